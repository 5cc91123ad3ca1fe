//! The default policy: the delay a request would meet at each worker, and the one it would leave.
//!
//! ```text
//! first(w) = B + p                                           seconds to my own first token
//! wake(w)  = h * lambda * p * (3 * (B + usual B) + p) / max(1 - rho, 1/3)
//! price(w) = (first(w) + decode_tokens * token_s * decodes(w) + wake(w)) / weight(w)    least wins
//! ```
//!
//! `B` is the prefill sent to `w` and not done, `p` the prefill of what `w` does not hold of this
//! prompt, both in seconds at the worker's learned cost; `lambda` and `rho` are the requests and the
//! seconds of prefill sent to `w` a second, `usual B` its mean backlog, all over the fleet's last
//! requests; `h` is the share of prompt tokens that the fleet finds cached.
//!
//! The first line is the time to first token as Mooncake estimates it (Qin et al., FAST 2025). By
//! itself it gives each request the best it can have now and lets all that share a beginning follow
//! the first of them to one worker. The second line is what they do to each other: `p (2 B + p)` is
//! what the value function of an M/G/1 queue says a job of length `p` costs those who come after it
//! (Hyytiä, Penttinen and Aalto, EJOR 218(1), 2012), and in a fleet that reuses much, what is placed
//! at a worker comes back to it. So where nothing is reused the wake is nothing and the choice is
//! the quickest; where much is, long-run load per worker is balanced too, and a system prompt that
//! all share spreads by itself, without any notion of "shared".
//!
//! A match is worth what it saves and no more: a request leaves a warm worker exactly when waiting
//! there, and keeping others waiting, costs more than the recomputation elsewhere. That is the
//! valve: at any load, prompt size and fleet size, where a fixed threshold is right for one of each.
//! docs/adr/0016 has the figures and what was tried in vain.

use rand::Rng;

use super::super::prefill::Work;
use super::super::worker::Candidate;
use super::balance::{Draw, tie_limit};
use super::{Ask, Choice, PolicyParams, PromptKind, Reason};

/// How much the queue counts in the wake against the request's own length.
const QUEUE_WEIGHT: f64 = 3.0;

/// A worker counts as idle for at least this share of the time: near saturation, where the formula
/// of a stable queue means nothing, it would drown all else.
const IDLE_SHARE_MIN: f64 = 1.0 / 3.0;

/// Prices are at most this: absurd numbers must stay comparable.
const PRICE_MAX: f64 = 1e15;

/// The least price; of those that tie the longest match, then one at random.
pub(super) fn prefix_aware<'a>(
    params: &PolicyParams,
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> (&'a Candidate, Reason) {
    let ask = choice.ask;
    let hit_share = hit_share(choice.candidates);
    let price = |candidate: &Candidate| price(params, ask, hit_share, candidate);
    let limit = tie_limit(choice.open().map(price).fold(f64::INFINITY, f64::min));
    let (mut draw, mut longest) = (Draw::default(), 0);
    for cheapest in choice.open().filter(|candidate| price(candidate) <= limit) {
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

/// Estimated seconds to the first token of `ask` at `candidate`: 0 or more, and infinite where the
/// numbers are absurd. A weight is a share of traffic and no speed: it does not count here.
pub fn estimated_seconds(ask: &Ask, candidate: &Candidate) -> f64 {
    candidate.forecast.backlog_s + own_seconds(ask, candidate)
}

/// Seconds to prefill what `candidate` does not hold of the prompt.
fn own_seconds(ask: &Ask, candidate: &Candidate) -> f64 {
    let uncached = ask.tokens as f64 * (1.0 - ask.matched_share(candidate));
    candidate.forecast.cost.seconds(&Work::of(uncached.round() as u64, ask.tokens))
}

/// Share of prompt tokens that were found cached, 0 to 1, over all that candidates have got.
fn hit_share(candidates: &[Candidate]) -> f64 {
    let traffic = candidates.iter().map(|candidate| candidate.forecast.traffic);
    let (hit, computed) = traffic.fold((0.0, 0.0), |(hit, computed), traffic| {
        (hit + traffic.hit_tokens_per_s, computed + traffic.computed_tokens_per_s)
    });
    if hit > 0.0 { hit / (hit + computed) } else { 0.0 }
}

fn price(params: &PolicyParams, ask: &Ask, hit_share: f64, candidate: &Candidate) -> f64 {
    let forecast = &candidate.forecast;
    let (ahead_s, own_s) = (forecast.backlog_s, own_seconds(ask, candidate));
    let decode_s = params.settings().decode_tokens * forecast.cost.token_s;
    let traffic = &forecast.traffic;
    let idle_share = (1.0 - traffic.prefill_share).max(IDLE_SHARE_MIN);
    let queue_s = QUEUE_WEIGHT * (ahead_s + traffic.backlog_s) + own_s;
    let wake_s = hit_share * traffic.requests_per_s * own_s * queue_s / idle_share;
    let price = ahead_s + own_s + decode_s * f64::from(candidate.load.decodes) + wake_s;
    // In this order a NaN is capped too.
    (price / candidate.safe_weight()).min(PRICE_MAX)
}
