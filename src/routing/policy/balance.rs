//! Policies that look at load or at nothing, and the draw that settles ties for all policies.

use rand::Rng;

use super::super::worker::Candidate;
use super::Choice;

/// Costs within this share of the least are equal: it covers rounding, no more. What should count
/// as noise (rates that measure nearly alike) is made equal before it gets here.
const TIE_SHARE: f64 = 1e-9;

/// The highest cost that ties with `least`.
pub(super) fn tie_limit(least: f64) -> f64 {
    least + least.abs() * TIE_SHARE
}

/// One of `candidates` at random, in proportion to weight; there must be at least one.
pub(super) fn by_weight<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    rng: &mut (impl Rng + ?Sized),
) -> &'a Candidate {
    let total: f64 = candidates.clone().map(Candidate::safe_weight).sum();
    at_weight(candidates, rng.random::<f64>() * total)
}

/// The candidate at `position` when they are laid side by side, each as wide as its weight.
fn at_weight<'a>(
    candidates: impl Iterator<Item = &'a Candidate>,
    mut position: f64,
) -> &'a Candidate {
    let mut last = None;
    for candidate in candidates {
        position -= candidate.safe_weight();
        last = Some(candidate);
        if position < 0.0 {
            break;
        }
    }
    // Rounding may leave `position` at 0 after the last one, which then it is.
    last.expect("every caller passes the open candidates, of which there are some")
}

/// A draw in proportion to weight among candidates that are offered one by one, for those whose
/// number is known only at the end: reservoir sampling (Chao, Biometrika 69(3), 1982). One random
/// number an offer, but the costs that decide who is offered are computed once fewer.
#[derive(Default)]
pub(super) struct Draw<'a> {
    chosen: Option<&'a Candidate>,
    weight_total: f64,
}

impl<'a> Draw<'a> {
    /// Takes `candidate` in, in place of the one chosen so far with the odds that are its due.
    pub(super) fn offer(&mut self, candidate: &'a Candidate, rng: &mut (impl Rng + ?Sized)) {
        let weight = candidate.safe_weight();
        self.weight_total += weight;
        if self.chosen.is_none() || rng.random::<f64>() * self.weight_total < weight {
            self.chosen = Some(candidate);
        }
    }

    /// The one drawn; somebody must have been offered.
    pub(super) fn chosen(self) -> &'a Candidate {
        self.chosen.expect("there are open candidates, and the least of their costs is in the tie")
    }
}

/// The one with the least cost; ties at random, in proportion to weight. No cost may be NaN.
pub(super) fn least_by<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    cost: impl Fn(&Candidate) -> f64,
    rng: &mut (impl Rng + ?Sized),
) -> &'a Candidate {
    let limit = tie_limit(candidates.clone().map(&cost).fold(f64::INFINITY, f64::min));
    let mut draw = Draw::default();
    candidates.filter(|candidate| cost(candidate) <= limit).for_each(|tied| draw.offer(tied, rng));
    draw.chosen()
}

/// The one with the fewest requests for its weight; ties at random.
pub(super) fn least_loaded<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    rng: &mut (impl Rng + ?Sized),
) -> &'a Candidate {
    least_by(candidates, requests_per_weight, rng)
}

fn requests_per_weight(candidate: &Candidate) -> f64 {
    f64::from(candidate.load.requests) / candidate.safe_weight()
}

/// The one whose turn it is. Equal weights give a strict rotation over the candidates with room.
///
/// Otherwise the turn's multiple of the golden ratio, modulo 1, points into the weights laid side
/// by side: a sequence that fills the interval evenly (Weyl; Knuth, TAOCP 3, section 6.4), so that
/// each gets its share within a few requests. Smooth weighted round robin would be exact, but
/// keeps a counter for every worker; here one counter in the caller's hands is all the state.
pub(super) fn in_turn<'a>(choice: &Choice<'a>) -> &'a Candidate {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio
    let turn = choice.ask.turn;
    let (mut count, mut total) = (0_u64, 0.0);
    let (mut lightest, mut heaviest) = (f64::INFINITY, 0.0_f64);
    for weight in choice.open().map(Candidate::safe_weight) {
        count += 1;
        total += weight;
        lightest = lightest.min(weight);
        heaviest = heaviest.max(weight);
    }
    let position = if lightest < heaviest {
        turn.wrapping_mul(GOLDEN) as f64 / 2.0_f64.powi(64) * total
    } else {
        // The middle of the slot, clear of rounding at its ends.
        ((turn % count) as f64 + 0.5) * heaviest
    };
    at_weight(choice.open(), position)
}

/// Two different ones at random, each as likely as any other, and of them the one with fewer
/// requests for its weight.
///
/// Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001.
pub(super) fn power_of_two<'a>(
    choice: &Choice<'a>,
    rng: &mut (impl Rng + ?Sized),
) -> &'a Candidate {
    let count = choice.open().count();
    let first = rng.random_range(0..count);
    // Skips `first`: drawn from one fewer, and moved past it.
    let second = if count > 1 { rng.random_range(0..count - 1) } else { 0 };
    let second = if count > 1 && second >= first { second + 1 } else { second };
    let drawn = choice.open().enumerate();
    let drawn = drawn.filter(|(i, _)| *i == first || *i == second).map(|(_, candidate)| candidate);
    least_loaded(drawn, rng)
}
