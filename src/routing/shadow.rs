//! What another policy would have picked, and what that would have been worth.
//!
//! The shadow policy is given the request and the candidates of a decision that has been made, and
//! changes nothing. Both choices are judged by the price of `prefix-aware`, in seconds to the first
//! token. That is a look one step ahead: caches and queues are those the live policy has made, and
//! the shadow never lives with the consequences of its own choices. And the estimate is what
//! `prefix-aware` itself goes by, though not alone: it also counts what a request costs those
//! behind it, which no look at one request shows.

use rand::Rng;

use super::{
    policy::{Ask, Decision, Policy, PolicyParams, Reason, estimated_seconds, pick},
    regret::tokens_of,
    worker::Candidate,
};

/// An estimate counts for no more than this, in seconds: a worker of absurd speed or load must not
/// drown all others in a sum.
pub const ESTIMATE_SECONDS_MAX: f64 = 3600.0;

/// One policy's choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// [`Candidate::slot`] of the worker.
    pub slot: usize,
    /// Why this one.
    pub reason: Reason,
    /// Tokens of the prompt that it holds.
    pub cached_tokens: u64,
    /// Estimated time to its first token: 0 to [`ESTIMATE_SECONDS_MAX`] seconds.
    pub first_token_s: f64,
}

/// The live choice and the other policy's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// What was picked.
    pub live: Estimate,
    /// What would have been.
    pub shadow: Estimate,
}

impl Comparison {
    /// Whether both are the same worker.
    pub fn agrees(&self) -> bool {
        self.live.slot == self.shadow.slot
    }
}

/// Lets `policy` pick where `live` has been decided, and estimates both. `ask.turn` is the shadow's
/// own. `None` where it cannot pick, which no candidates of a decision are the cause of.
pub fn compare(
    policy: &(Policy, PolicyParams),
    ask: &Ask,
    candidates: &[Candidate],
    live: &Decision,
    rng: &mut (impl Rng + ?Sized),
) -> Option<Comparison> {
    // The reason is to be the policy's, also where an attempt has failed before.
    let ask = &Ask { retry: false, ..*ask };
    let shadow = pick(policy.0, &policy.1, ask, candidates, rng).ok()?;
    let estimate = |decision: &Decision| {
        let chosen = candidates.iter().find(|candidate| candidate.slot == decision.slot)?;
        Some(Estimate {
            slot: decision.slot,
            reason: decision.reason,
            cached_tokens: tokens_of(ask, decision.matched_blocks),
            // In this order a NaN is capped too.
            first_token_s: estimated_seconds(ask, chosen).min(ESTIMATE_SECONDS_MAX),
        })
    };
    Some(Comparison { live: estimate(live)?, shadow: estimate(&shadow)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::routing::{Work, policy::tests as samples};

    fn rng(seed: u64) -> SmallRng {
        SmallRng::seed_from_u64(seed)
    }

    fn prompt() -> Ask {
        Ask { blocks: 100, tokens: 1_000, ..Ask::default() }
    }

    fn compared(policy: Policy, ask: &Ask, workers: &[Candidate], live: usize) -> Comparison {
        let only: Vec<_> = workers.iter().filter(|w| w.slot == live).copied().collect();
        let params = PolicyParams::default();
        let mut live = pick(Policy::Random, &params, ask, &only, &mut rng(1)).unwrap();
        live.best_matched_blocks = workers.iter().map(|w| w.matched_blocks).max().unwrap();
        compare(&(policy, params), ask, workers, &live, &mut rng(2)).unwrap()
    }

    #[test]
    fn both_choices_are_priced_at_one_price() {
        let mut workers = samples::fleet_holding(&[50, 0]);
        workers[0].forecast.backlog_s = 0.2;
        let of = compared(Policy::PrefixAware, &prompt(), &workers, 0);
        assert!(!of.agrees());
        assert_eq!((of.live.slot, of.shadow.slot), (0, 1));
        assert_eq!((of.live.cached_tokens, of.shadow.cached_tokens), (500, 0));
        assert_eq!((of.live.reason, of.shadow.reason), (Reason::Random, Reason::Spill));
        let cost = workers[0].forecast.cost;
        let own = |uncached| cost.seconds(&Work::of(uncached, 1_000));
        assert!((of.live.first_token_s - 0.2 - own(500)).abs() < 1e-9, "{of:?}");
        assert!((of.shadow.first_token_s - own(1_000)).abs() < 1e-9, "{of:?}");
    }

    #[test]
    fn a_weight_is_a_share_of_traffic_and_no_speed() {
        let mut workers = samples::fleet_holding(&[0, 0]);
        workers[1].weight = 0.1;
        let of = compared(Policy::PrefixAware, &prompt(), &workers, 1);
        assert_eq!((of.live.slot, of.shadow.slot), (1, 0));
        assert!((of.live.first_token_s - of.shadow.first_token_s).abs() < 1e-9, "{of:?}");
    }

    #[test]
    fn after_a_failed_attempt_the_reason_is_still_the_policy_s() {
        let workers = samples::fleet_holding(&[0, 50]);
        let ask = Ask { retry: true, ..prompt() };
        let of = compared(Policy::PrefixAware, &ask, &workers, 0);
        assert_eq!((of.live.reason, of.shadow.reason), (Reason::Retry, Reason::Prefix));
    }

    #[test]
    fn turns_are_those_it_is_given() {
        let workers = samples::fleet_holding(&[0, 0, 0]);
        for turn in 0..6 {
            let of = compared(Policy::RoundRobin, &Ask { turn, ..prompt() }, &workers, 0);
            assert_eq!(of.shadow.slot as u64, turn % 3);
            assert_eq!(of.agrees(), turn % 3 == 0);
        }
    }

    #[test]
    fn what_cannot_be_is_capped() {
        let mut workers = samples::fleet_holding(&[0]);
        workers[0].forecast.backlog_s = 1e300;
        let of = compared(Policy::Random, &prompt(), &workers, 0);
        assert!((of.live.first_token_s - ESTIMATE_SECONDS_MAX).abs() < 1e-9, "{of:?}");
    }

    proptest! {
        /// The shadow picks as it would live, by its own random numbers alone; the live choice is
        /// told as it was; all sums stay finite.
        #[test]
        fn the_shadow_is_the_policy_and_changes_nothing(
            workers in samples::any_fleet(),
            ask in samples::any_ask(),
            seeds in any::<[u64; 2]>(),
        ) {
            let params = PolicyParams::default();
            for (policy, other) in
                Policy::ALL.into_iter().flat_map(|p| Policy::ALL.map(|other| (p, other)))
            {
                let mut live_rng = rng(seeds[0]);
                let Ok(live) = pick(policy, &params, &ask, &workers, &mut live_rng) else {
                    return Ok(());
                };
                let other = (other, params);
                let compared =
                    compare(&other, &ask, &workers, &live, &mut rng(seeds[1]));
                let Some(Comparison { live: told, shadow }) = compared else {
                    return Err(TestCaseError::fail("candidates of a decision can be picked from"));
                };
                prop_assert_eq!((told.slot, told.reason), (live.slot, live.reason));
                let unasked = Ask { retry: false, ..ask };
                let alone = pick(other.0, &params, &unasked, &workers, &mut rng(seeds[1])).unwrap();
                prop_assert_eq!((shadow.slot, shadow.reason), (alone.slot, alone.reason));
                for estimate in [told, shadow] {
                    let seconds = estimate.first_token_s;
                    prop_assert!((0.0..=ESTIMATE_SECONDS_MAX).contains(&seconds), "{:?}", estimate);
                    prop_assert!(estimate.cached_tokens <= ask.tokens);
                }
            }
        }
    }
}
