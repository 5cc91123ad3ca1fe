//! What a decision left unused of the fleet's caches, in tokens.
//!
//! Of the tokens of a prompt the chosen worker is believed to hold some, and the best eligible one
//! at least as many. The difference is prefilled again. It is the price of a choice, not its
//! mistake: waiting for the best worker may have cost more.
//!
//! Tokens follow from blocks by share, as in the price of `prefix-aware`, and blocks in slower
//! tiers count at their worth.

use super::{
    policy::{Ask, Decision, PromptKind},
    worker::Candidate,
};

/// Why a worker that holds less was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpillCause {
    /// All that hold the longest match are saturated.
    Saturated,
    /// The policy preferred another: it priced the wait higher, or does not look at caches.
    Policy,
}

impl SpillCause {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Saturated, Self::Policy];

    /// Its name: a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::Policy => "policy",
        }
    }
}

/// The tokens of one decision: `chosen_tokens <= best_tokens <= prompt_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Regret {
    /// Tokens of the prompt; 0 for a request without one that was read.
    pub prompt_tokens: u64,
    /// Those that the chosen worker holds.
    pub chosen_tokens: u64,
    /// Those that the candidate with the longest match holds, be it saturated or not.
    pub best_tokens: u64,
    /// Whether a longer match was passed over, under whatever policy, and why.
    pub spill: Option<SpillCause>,
}

impl Regret {
    /// What `decision` on `ask` among `candidates` leaves unused, as far as we believe.
    pub fn of(ask: &Ask, candidates: &[Candidate], decision: &Decision) -> Self {
        if ask.kind != PromptKind::Prompt {
            return Self::default();
        }
        let best = decision.best_matched_blocks;
        let spill = (decision.matched_blocks < best).then(|| {
            let mut holders = candidates.iter().filter(|c| ask.matched(c) == best);
            if holders.all(Candidate::is_saturated) {
                SpillCause::Saturated
            } else {
                SpillCause::Policy
            }
        });
        Self {
            prompt_tokens: ask.tokens,
            chosen_tokens: tokens_of(ask, decision.matched_blocks),
            best_tokens: tokens_of(ask, best),
            spill,
        }
    }

    /// Tokens that are prefilled although another worker holds them.
    pub fn recomputed_tokens(&self) -> u64 {
        self.best_tokens.saturating_sub(self.chosen_tokens)
    }

    /// The same after the answer said how long the prompt was and how much of it was cached.
    ///
    /// The best worker was not asked: unless it is the chosen one it counts with the share it was
    /// believed to hold, or with what the chosen one held if that was more.
    #[must_use]
    pub fn answered(&self, prompt_tokens: u64, cached_tokens: u64) -> Self {
        let chosen_tokens = cached_tokens.min(prompt_tokens);
        let best_tokens = if self.spill.is_some() {
            let believed = part_of(prompt_tokens, self.best_tokens, self.prompt_tokens);
            believed.max(chosen_tokens)
        } else {
            chosen_tokens
        };
        Self { prompt_tokens, chosen_tokens, best_tokens, spill: self.spill }
    }
}

/// Tokens in the first `blocks` blocks of the prompt: their share of all.
pub(super) fn tokens_of(ask: &Ask, blocks: u32) -> u64 {
    part_of(ask.tokens, u64::from(blocks), u64::from(ask.blocks))
}

/// `all * part / whole`, at most `all`; 0 of nothing.
fn part_of(all: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let part = u128::from(all) * u128::from(part.min(whole)) / u128::from(whole);
    u64::try_from(part).unwrap_or(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::routing::policy::{Policy, PolicyParams, Reason, pick, tests as samples};

    fn decision(slot: usize, matched_blocks: u32, best_matched_blocks: u32) -> Decision {
        Decision { slot, reason: Reason::Prefix, matched_blocks, best_matched_blocks }
    }

    fn prompt() -> Ask {
        Ask { blocks: 100, tokens: 1_010, ..Ask::default() }
    }

    #[test]
    fn a_choice_of_the_best_leaves_nothing() {
        let workers = samples::fleet_holding(&[60, 20]);
        let regret = Regret::of(&prompt(), &workers, &decision(0, 60, 60));
        let tokens = (regret.prompt_tokens, regret.chosen_tokens, regret.best_tokens);
        assert_eq!(tokens, (1_010, 606, 606));
        assert_eq!((regret.recomputed_tokens(), regret.spill), (0, None));
    }

    #[test]
    fn a_spill_leaves_the_difference_and_says_whose_doing_it_was() {
        let mut workers = samples::fleet_holding(&[60, 20, 60]);
        let spilled = |workers: &[Candidate]| {
            let regret = Regret::of(&prompt(), workers, &decision(1, 20, 60));
            (regret.chosen_tokens, regret.best_tokens, regret.recomputed_tokens(), regret.spill)
        };
        assert_eq!(spilled(&workers), (202, 606, 404, Some(SpillCause::Policy)));
        workers[0].inflight_max = 0;
        assert_eq!(spilled(&workers).3, Some(SpillCause::Policy), "the third has room");
        workers[2].inflight_max = 0;
        assert_eq!(spilled(&workers), (202, 606, 404, Some(SpillCause::Saturated)));
    }

    #[test]
    fn what_is_no_prompt_has_no_tokens() {
        for kind in [PromptKind::NoPrompt, PromptKind::Unreadable] {
            let ask = Ask { kind, ..prompt() };
            let regret = Regret::of(&ask, &samples::fleet_holding(&[50, 0]), &decision(1, 0, 0));
            assert_eq!(regret, Regret::default());
        }
        // A prompt shorter than a block is one.
        let ask = Ask { blocks: 0, tokens: 7, ..prompt() };
        let regret = Regret::of(&ask, &samples::fleet_holding(&[0]), &decision(0, 0, 0));
        assert_eq!((regret.prompt_tokens, regret.best_tokens, regret.spill), (7, 0, None));
    }

    #[test]
    fn answers_correct_the_chosen_and_leave_the_best_as_believed() {
        let spilled = Regret {
            prompt_tokens: 1_000,
            chosen_tokens: 200,
            best_tokens: 600,
            spill: Some(SpillCause::Policy),
        };
        let told = |regret: &Regret, prompt, cached| {
            let told = regret.answered(prompt, cached);
            (told.prompt_tokens, told.chosen_tokens, told.best_tokens)
        };
        assert_eq!(told(&spilled, 2_000, 100), (2_000, 100, 1_200));
        assert_eq!(told(&spilled, 2_000, 1_500), (2_000, 1_500, 1_500), "it held more than all");
        assert_eq!(told(&spilled, 100, 900), (100, 100, 100), "an answer that makes no sense");
        // What the best one had lost is staleness, not regret.
        let best = Regret { chosen_tokens: 600, spill: None, ..spilled };
        assert_eq!(told(&best, 2_000, 100), (2_000, 100, 100));
        assert_eq!(told(&Regret::default(), 50, 10), (50, 10, 10));
    }

    proptest! {
        #[test]
        fn chosen_is_at_most_best_is_at_most_all(
            workers in samples::any_fleet(),
            ask in samples::any_ask(),
            seed in any::<u64>(),
            answer in (any::<u64>(), any::<u64>()),
        ) {
            for policy in Policy::ALL {
                let mut rng = SmallRng::seed_from_u64(seed);
                let picked = pick(policy, &PolicyParams::default(), &ask, &workers, &mut rng);
                let Ok(decision) = picked else { continue };
                let regret = Regret::of(&ask, &workers, &decision);
                for regret in [regret, regret.answered(answer.0, answer.1)] {
                    prop_assert!(regret.chosen_tokens <= regret.best_tokens, "{:?}", regret);
                    prop_assert!(regret.best_tokens <= regret.prompt_tokens, "{:?}", regret);
                    prop_assert!(regret.spill.is_some() || regret.recomputed_tokens() == 0);
                }
                let longer = decision.matched_blocks < decision.best_matched_blocks;
                prop_assert_eq!(regret.spill.is_some(), longer);
                // Said only where nobody with room holds as much.
                if regret.spill == Some(SpillCause::Saturated) {
                    let open = workers.iter().filter(|w| !w.is_saturated());
                    let longest = open.map(|w| ask.matched(w)).max().unwrap_or(0);
                    prop_assert!(longest < decision.best_matched_blocks);
                }
            }
        }
    }
}
