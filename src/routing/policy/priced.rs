//! The default policy: what would each worker's first token cost, in seconds?
//!
//! ```text
//! ahead(w)    = queued_tokens + request_tokens * waiting + decode_tokens * decodes
//! uncached(w) = tokens * (1 - matched / blocks)
//! cost(w)     = (ahead(w) + uncached(w)) / (prefill rate(w) * weight(w))        least wins
//! ```
//!
//! This is the time to first token as Mooncake estimates it (Qin et al., FAST 2025: queue plus
//! uncached prefill), with requests and decodes priced in the same unit. A match is worth what it
//! saves and no more: a request leaves a warm worker exactly when the queue there is longer than
//! the recomputation elsewhere, at any load, prompt size and fleet size, where a fixed threshold
//! is right for one of each. A system prompt that all share needs no rule either: once the first
//! holder has that much work in front, the next request warms another worker.
//!
//! What it does not do: it prices the delay of this request, not the one it leaves to those behind
//! it.

use rand::Rng;

use super::super::worker::Candidate;
use super::balance::{Draw, tie_limit};
use super::{Ask, Choice, PolicyParams, PromptKind, Reason};

/// The least cost; of those that tie the longest match, then one at random.
pub(super) fn prefix_aware<'a>(
    params: &PolicyParams,
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> (&'a Candidate, Reason) {
    let ask = choice.ask;
    let cost = |candidate: &Candidate| cost_seconds(params, ask, candidate);
    let limit = tie_limit(choice.open().map(cost).fold(f64::INFINITY, f64::min));
    let (mut draw, mut longest) = (Draw::default(), 0);
    for cheapest in choice.open().filter(|candidate| cost(candidate) <= limit) {
        let matched = ask.matched(cheapest);
        if matched > longest {
            (draw, longest) = (Draw::default(), matched);
        }
        if matched == longest {
            draw.offer(cheapest, rng);
        }
    }
    let reason = match ask.kind {
        PromptKind::NoPrompt => Reason::NoPrompt,
        PromptKind::Unreadable => Reason::Unreadable,
        PromptKind::Prompt if choice.best_matched == 0 => Reason::NoMatch,
        PromptKind::Prompt if longest == choice.best_matched => Reason::Prefix,
        PromptKind::Prompt => Reason::Spill,
    };
    (draw.chosen(), reason)
}

/// Estimated seconds to the first token of `ask` at `candidate`, divided by its weight.
pub(super) fn cost_seconds(params: &PolicyParams, ask: &Ask, candidate: &Candidate) -> f64 {
    let settings = params.settings();
    let load = &candidate.load;
    let ahead = load.queued_tokens as f64
        + settings.request_tokens * f64::from(load.waiting())
        + settings.decode_tokens * f64::from(load.decodes);
    let uncached = ask.tokens as f64 * (1.0 - ask.matched_share(candidate));
    // Two tiny factors must not make a zero: no work over no speed would be no number at all.
    let speed = (candidate.safe_rate() * candidate.safe_weight()).max(f64::MIN_POSITIVE);
    (ahead + uncached) / speed
}
