//! Policies that keep something together: a session, a system prompt, or what a worker holds.

use rand::Rng;

use super::super::consistent;
use super::super::saturation::Headroom;
use super::super::worker::Candidate;
use super::balance::{least_by, least_loaded};
use super::{Choice, PolicyParams, Reason};

/// The worker that owns the session; the next in its hash order while that is saturated. Without
/// a session the least loaded.
pub(super) fn session<'a>(
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> (&'a Candidate, Reason) {
    let Some(key) = choice.ask.session else {
        return (least_loaded(choice.open(), rng), Reason::LeastLoaded);
    };
    match owner(key, choice.candidates.iter()) {
        Some(own) if !own.is_saturated() => (own, Reason::Session),
        _ => match owner(key, choice.open()) {
            Some(next) => (next, Reason::SessionSpill),
            None => (least_loaded(choice.open(), rng), Reason::LeastLoaded),
        },
    }
}

/// The worker that owns the system prompt, or the next in its hash order that is neither saturated
/// nor at its bound. Without a system prompt the least loaded.
pub(super) fn prefix_hash<'a>(
    params: &PolicyParams,
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> (&'a Candidate, Reason) {
    let Some(key) = choice.ask.prefix else {
        return (least_loaded(choice.open(), rng), Reason::LeastLoaded);
    };
    let all = choice.candidates.iter();
    let requests: u64 = all.clone().map(|c| u64::from(c.load.requests)).sum();
    let weight_total: f64 = all.clone().map(Candidate::safe_weight).sum();
    let under_bound = |candidate: &&Candidate| {
        let bounded_load = params.settings().bounded_load;
        let weight = candidate.safe_weight();
        let bound = consistent::bound(requests, weight, weight_total, bounded_load);
        f64::from(candidate.load.requests) + 1.0 <= bound
    };
    match owner(key, choice.open().filter(under_bound)) {
        Some(taker) => {
            let is_own = owner(key, all).is_some_and(|own| own.slot == taker.slot);
            (taker, if is_own { Reason::PrefixHash } else { Reason::PrefixHashSpill })
        }
        // Whoever is under the bound is saturated, so none is left to keep the bound with.
        None => (least_loaded(choice.open(), rng), Reason::PrefixHashSpill),
    }
}

/// The least loaded of those that hold the longest match any worker with room has; the least
/// loaded of all when they hold nothing.
pub(super) fn sticky<'a>(
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> (&'a Candidate, Reason) {
    let ask = choice.ask;
    let longest = choice.open().map(|candidate| ask.matched(candidate)).max().unwrap_or(0);
    let holders = choice.open().filter(|candidate| ask.matched(candidate) == longest);
    let reason = match longest {
        longest if longest < choice.best_matched => Reason::Spill,
        0 => Reason::LeastLoaded,
        _ => Reason::Sticky,
    };
    (least_loaded(holders, rng), reason)
}

/// The best of `hit_weight * hit + load_weight * (1 - load)`, ties at random.
///
/// `hit` is the share of the prompt that the worker holds; `load` is its requests over its
/// `inflight_max`, over its weight. The scale is absolute: what others carry does not change a
/// worker's score.
pub(super) fn weighted<'a>(
    params: &PolicyParams,
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> &'a Candidate {
    let settings = params.settings();
    let score = |candidate: &Candidate| {
        let used = Headroom::new(&candidate.load, candidate.inflight_max).used_share();
        settings.hit_weight * choice.ask.matched_share(candidate)
            + settings.load_weight * (1.0 - used / candidate.safe_weight())
    };
    least_by(choice.open(), |candidate| -score(candidate), rng)
}

/// The one of `candidates` that owns `key`.
fn owner<'a>(key: u64, candidates: impl Iterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    let score =
        |candidate: &Candidate| consistent::score(key, candidate.key, candidate.safe_weight());
    // `max_by` with the score computed once for each candidate, not twice for each comparison.
    let scored = candidates.map(|candidate| (score(candidate), candidate));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}
