//! What a prefill costs at one worker, in seconds, learned from the first tokens it sends.
//!
//! ```text
//! seconds = request_s + token_s * uncached + pair_s * uncached * (prompt - uncached / 2)
//! ```
//!
//! A fixed part, the part every token takes in the linear layers, and the attention of each
//! uncached token over all that precede it. With a straight line in its place long prompts look
//! cheaper than they are and short ones dearer. The three are fitted by least squares of *relative*
//! errors, so that a prompt of a hundred tokens counts as much as one of a hundred thousand; they
//! fade with the observations after them, are never negative, and lean on the shape of known
//! hardware until there is evidence against it.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

/// Prefill to be done, in what it costs by: additive, so that a queue is a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Requests.
    pub requests: u64,
    /// Prompt tokens that the worker does not hold.
    pub tokens: u64,
    /// Pairs of such a token and one it attends to.
    pub pairs: u64,
}

impl Work {
    /// One request of `prompt` tokens of which `uncached` are not held; at least one is computed.
    pub fn of(uncached: u64, prompt: u64) -> Self {
        let uncached = uncached.clamp(1, TOKENS_MAX);
        let prompt = prompt.clamp(uncached, TOKENS_MAX);
        Self { requests: 1, tokens: uncached, pairs: uncached * (prompt - uncached / 2) }
    }

    /// What is known by counts alone: the attention of so many prompts is left out.
    pub fn of_counts(requests: u32, tokens: u64) -> Self {
        Self { requests: u64::from(requests), tokens, pairs: 0 }
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Longer prompts cost as if they had this many tokens: keeps `pairs` of a million of them in 64
/// bits.
const TOKENS_MAX: u64 = 1 << 22;

impl Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
            pairs: self.pairs.saturating_add(other.pairs),
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Work {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
            pairs: self.pairs.saturating_sub(other.pairs),
        }
    }
}

impl SubAssign for Work {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// What prefill costs, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillCost {
    /// A request, whatever its length.
    pub request_s: f64,
    /// An uncached token.
    pub token_s: f64,
    /// An uncached token attending to another.
    pub pair_s: f64,
}

/// The shape of known hardware: 20 ms a request, 8,000 tokens a second, and at 60,000 tokens as
/// much time for attention as for the rest. A 70B model on eight A100 takes 0.113 ms a token and
/// 2.1 ns a pair at half of peak FLOP/s, an 8B model on one 0.094 ms and 3 ns.
const KNOWN: PrefillCost = PrefillCost { request_s: 0.02, token_s: 1.25e-4, pair_s: 2.1e-9 };

impl Default for PrefillCost {
    fn default() -> Self {
        KNOWN
    }
}

impl PrefillCost {
    /// Seconds of prefill.
    pub fn seconds(&self, work: &Work) -> f64 {
        self.request_s * work.requests as f64
            + self.token_s * work.tokens as f64
            + self.pair_s * work.pairs as f64
    }

    /// The mean of several; the default of none.
    pub fn mean_of(costs: impl IntoIterator<Item = Self>) -> Self {
        let zero = Self { request_s: 0.0, token_s: 0.0, pair_s: 0.0 };
        let (sum, count) = costs.into_iter().fold((zero, 0.0), |(sum, count), cost| {
            let sum = Self {
                request_s: sum.request_s + cost.request_s,
                token_s: sum.token_s + cost.token_s,
                pair_s: sum.pair_s + cost.pair_s,
            };
            (sum, count + 1.0)
        });
        if count == 0.0 { Self::default() } else { sum.times(1.0 / count) }
    }

    /// The mean of what was learned, each by how sure it is; where nothing is, all alike.
    fn mean_by_sureness(learned: impl IntoIterator<Item = Learned>) -> Self {
        let learned: Vec<_> = learned.into_iter().collect();
        let count = learned.len() as f64;
        let sure: f64 = learned.iter().map(|known| known.sure).sum();
        let share = |known: &Learned| (known.sure + UNSURE) * count / (sure + UNSURE * count);
        Self::mean_of(learned.iter().map(|known| known.cost.times(share(known))))
    }

    /// As far from `mean` as `part` of the way there leaves, by ratios.
    fn towards(&self, mean: &Self, part: f64) -> Self {
        let ratio = mean.seconds(&USUAL).max(1e-9) / self.seconds(&USUAL).max(1e-9);
        self.times(ratio.powf(part))
    }

    /// `factor` times the cost.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        Self {
            request_s: self.request_s * factor,
            token_s: self.token_s * factor,
            pair_s: self.pair_s * factor,
        }
    }

    /// Tokens a second at a prompt of usual length.
    pub fn tokens_per_s(&self) -> f64 {
        USUAL.tokens as f64 / self.seconds(&USUAL).max(1e-9)
    }

    /// As it is used beside others: what lies within a quarter of `fleet`'s mean counts as the
    /// mean.
    ///
    /// Equal workers never measure alike, as each sees its own mix of prompts. Left in, the
    /// difference decides every tie, and an idle fleet sends all its traffic to whichever measured
    /// fastest while the caches of the others stay empty. Different hardware generations lie
    /// further apart than this.
    #[must_use]
    pub fn beside(&self, fleet: &Self) -> Self {
        let ratio = self.seconds(&USUAL) / fleet.seconds(&USUAL).max(1e-9);
        if (1.0 / (1.0 + SAME_SHARE)..=1.0 + SAME_SHARE).contains(&ratio) { *fleet } else { *self }
    }
}

/// What a worker's first tokens taught, and how far that is to be relied on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learned {
    /// The cost.
    pub cost: PrefillCost,
    /// From 0, not at all any more, to 1, wholly; see [`Evidence`](super::evidence::Evidence).
    pub sure: f64,
}

/// What to believe of each worker, given what was learned of it and the pool it belongs to: its own
/// cost beside the mean of its pool, that mean where nothing was learned of it, and the mean of all
/// where nothing was learned of its pool.
///
/// The less sure a cost is, the less it counts for the mean and the nearer to it it is taken to be.
/// Else a worker that was slow for its first requests (it compiled its kernels), and therefore gets
/// none while others are idle, would seem slow for ever.
pub fn believed<P: Eq + Hash>(learned: &[(P, Option<Learned>)]) -> Vec<PrefillCost> {
    let mut pools: HashMap<&P, Vec<Learned>> = HashMap::new();
    for (pool, known) in learned {
        pools.entry(pool).or_default().extend(known);
    }
    let all = PrefillCost::mean_by_sureness(learned.iter().filter_map(|(_, known)| *known));
    let means: HashMap<&P, PrefillCost> = pools
        .into_iter()
        .map(|(pool, known)| {
            let mean = if known.is_empty() { all } else { PrefillCost::mean_by_sureness(known) };
            (pool, mean)
        })
        .collect();
    let cost = |(pool, own): &(P, Option<Learned>)| {
        let mean = means.get(pool).unwrap_or(&all);
        own.map_or(*mean, |own| own.cost.towards(mean, 1.0 - own.sure).beside(mean))
    };
    learned.iter().map(cost).collect()
}

/// A prompt of usual length, uncached.
const USUAL: Work = Work { requests: 1, tokens: 2_000, pairs: 2_000_000 };
/// See [`PrefillCost::beside`].
const SAME_SHARE: f64 = 0.25;
/// What a cost that is not sure at all still counts for a mean.
const UNSURE: f64 = 1e-3;

/// Observations are remembered over about this many.
const MEMORY: f64 = 96.0;
/// Weight of the known shape against observations, in observations.
const LEAN: f64 = 4.0;
/// The speed that is leant on is a mean over about this many observations.
const SPEED_MEMORY: f64 = 12.0;
/// Observations after which the fit is believed.
const OBSERVATIONS_MIN: u32 = 4;
/// An observation counts as at most this many times what was expected, and at least its inverse:
/// one stalled request is off by a factor of a hundred.
const SURPRISE_MAX: f64 = 4.0;
/// Observed times outside these, relative to the known shape, are ignored: below, the worker held
/// the prompt and we did not know; above, it hung or waited behind others' work.
const RELATIVE_RANGE: std::ops::RangeInclusive<f64> = 0.004..=400.0;

/// What a [`PrefillModel`] has learned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PrefillImage {
    /// Mean of the logarithms of observed times, relative to the known shape.
    pub log_speed: f64,
    /// Observations in all.
    pub observations: u32,
    /// Normal equations of the fit, relative to the known shape: the upper triangle by rows, then
    /// the right side.
    pub sums: [f64; 9],
}

impl PrefillImage {
    /// What is known where only the logarithm of tokens a second was learned.
    pub fn of_log_rate(log_tokens_per_s: f64, observations: u32) -> Self {
        let log_speed = (USUAL.tokens as f64 / KNOWN.seconds(&USUAL)).ln() - log_tokens_per_s;
        Self { log_speed, observations, sums: [0.0; 9] }
    }
}

/// Learns one worker's [`PrefillCost`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PrefillModel {
    image: PrefillImage,
    /// The fit; meaningless before [`OBSERVATIONS_MIN`].
    fitted: [f64; 3],
}

impl PrefillModel {
    /// Nothing learned yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was learned.
    pub fn image(&self) -> PrefillImage {
        self.image
    }

    /// Goes on from what was learned; what cannot be counts as nothing.
    pub fn restore(image: PrefillImage) -> Self {
        let (least, most) = RELATIVE_RANGE.into_inner();
        // Shares are at most 1, and a mean may lie beside its ends by a rounding.
        let (left, right) = image.sums.split_at(6);
        let can_be = (least.ln() - 1e-6..=most.ln() + 1e-6).contains(&image.log_speed)
            && left.iter().all(|sum| (0.0..=MEMORY + 1e-6).contains(sum))
            && right.iter().all(|sum| (0.0..=MEMORY * most + 1e-6).contains(sum));
        if !can_be {
            return Self::new();
        }
        let mut model = Self { image, fitted: [0.0; 3] };
        model.fit();
        model
    }

    /// Takes in that `work` took `elapsed`, with nothing else before it. Says whether it counted.
    pub fn observe(&mut self, work: &Work, elapsed: Duration) -> bool {
        let known = KNOWN.seconds(work);
        let relative = elapsed.as_secs_f64() / known;
        if work.is_none() || !RELATIVE_RANGE.contains(&relative) {
            return false;
        }
        let relative = match self.learned() {
            Some(cost) => {
                let expected = cost.seconds(work) / known;
                let (least, most) = RELATIVE_RANGE.into_inner();
                relative.clamp(expected / SURPRISE_MAX, expected * SURPRISE_MAX).clamp(least, most)
            }
            None => relative,
        };
        let image = &mut self.image;
        image.observations = image.observations.saturating_add(1);
        // A plain mean of the first ones, so that the very first does not linger.
        let newest = (1.0 / f64::from(image.observations)).max(1.0 / SPEED_MEMORY);
        image.log_speed += newest * (relative.ln() - image.log_speed);
        // Shares of the known cost, which sum to 1: a row of relative errors.
        let row = [
            KNOWN.request_s * work.requests as f64 / known,
            KNOWN.token_s * work.tokens as f64 / known,
            KNOWN.pair_s * work.pairs as f64 / known,
        ];
        for sum in &mut image.sums {
            *sum *= 1.0 - 1.0 / MEMORY;
        }
        let mut place = 0;
        for i in 0..3 {
            for j in i..3 {
                image.sums[place] += row[i] * row[j];
                place += 1;
            }
            image.sums[6 + i] += row[i] * relative;
        }
        self.fit();
        true
    }

    /// The cost, once enough was observed to believe it.
    pub fn learned(&self) -> Option<PrefillCost> {
        let [request, token, pair] = self.fitted;
        (self.image.observations >= OBSERVATIONS_MIN).then_some(PrefillCost {
            request_s: KNOWN.request_s * request,
            token_s: KNOWN.token_s * token,
            pair_s: KNOWN.pair_s * pair,
        })
    }

    /// Solves the normal equations under "no part is negative", by cyclic coordinate descent
    /// (Franc et al., CAIP 2005): three unknowns, so a fixed number of rounds will do.
    fn fit(&mut self) {
        let speed = self.image.log_speed.exp();
        let sums = &self.image.sums;
        let lhs = [
            [sums[0] + LEAN, sums[1], sums[2]],
            [sums[1], sums[3] + LEAN, sums[4]],
            [sums[2], sums[4], sums[5] + LEAN],
        ];
        let rhs = [sums[6] + LEAN * speed, sums[7] + LEAN * speed, sums[8] + LEAN * speed];
        let mut fitted = [speed; 3];
        for _ in 0..40 {
            for i in 0..3 {
                let others: f64 = (0..3).filter(|&j| j != i).map(|j| lhs[i][j] * fitted[j]).sum();
                fitted[i] = ((rhs[i] - others) / lhs[i][i]).max(0.0);
            }
        }
        self.fitted = fitted;
    }
}

#[cfg(test)]
#[path = "prefill_tests.rs"]
mod tests;
