//! How fast a worker prefills, learned from the requests it answers.
//!
//! One observation is the work in front of a request plus its own uncached prompt, over the time
//! to its first token. Observations vary by a factor of a few with batching and prompt length, and
//! one stalled request is off by a factor of a hundred, so the average is taken of their
//! logarithms: a single outlier then moves the estimate by some percent, not by its own size. A
//! line fitted through time and tokens would also give the fixed cost of a request; it needs a
//! spread of prompt lengths that many workloads do not have.

use std::time::Duration;

/// Tokens a second assumed of a fleet in which no worker has been learned yet.
///
/// A 70B model on eight A100 prefills about 8,900 tokens a second and an 8B model on one about
/// 10,600 (arithmetic from peak FLOP/s at half use); a little under both. It matters only until a
/// few requests have been answered, and not at all between workers, as all are assumed alike.
pub const RATE_UNTIL_LEARNED: f64 = 8_000.0;

/// Observations of fewer tokens are ignored: their time is network and scheduling, not prefill.
pub const OBSERVED_TOKENS_MIN: u64 = 256;

/// Observed rates outside these are ignored, in tokens a second: below, the worker hung or queued
/// behind others' work; above, it held the prompt and we did not know.
pub const OBSERVED_RATE_RANGE: std::ops::RangeInclusive<f64> = 20.0..=2_000_000.0;

/// Weight of the newest observation in the long run: a memory of about ten requests.
const NEWEST_WEIGHT: f64 = 0.1;

/// Observations after which the average is believed.
const OBSERVATIONS_MIN: u32 = 4;

/// Rates within this share of the fleet's mean count as the mean.
///
/// Equal workers never measure alike, as each sees its own mix of prompts. Left in, the difference
/// decides every tie, and an idle fleet sends all its traffic to whichever measured fastest while
/// the caches of the others stay empty. Different hardware generations lie further apart than
/// this.
const SAME_RATE_SHARE: f64 = 0.25;

/// What a [`PrefillRate`] has learned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RateImage {
    /// Mean of the natural logarithms of tokens a second.
    pub log_mean: f64,
    /// Observations in it.
    pub observations: u32,
}

/// Moving geometric mean of one worker's prefill rate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PrefillRate {
    log_mean: f64,
    observations: u32,
}

impl PrefillRate {
    /// A rate not learned yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was learned.
    pub fn image(&self) -> RateImage {
        RateImage { log_mean: self.log_mean, observations: self.observations }
    }

    /// Goes on from what was learned; a rate that cannot have been counts as none.
    pub fn restore(image: RateImage) -> Self {
        let RateImage { log_mean, observations } = image;
        let (least, most) = OBSERVED_RATE_RANGE.into_inner();
        // A mean of logarithms may lie beside its ends by a rounding.
        let can_be = (least.ln() - 1e-6..=most.ln() + 1e-6).contains(&log_mean);
        if can_be { Self { log_mean, observations } } else { Self::new() }
    }

    /// Takes in that `tokens_ahead_and_own` uncached prompt tokens (queued at the worker when a
    /// request was sent, plus the request's own) took `elapsed` until that request's first token.
    /// Says whether it counted: too few tokens or an absurd rate do not.
    pub fn observe(&mut self, tokens_ahead_and_own: u64, elapsed: Duration) -> bool {
        let rate = tokens_ahead_and_own as f64 / elapsed.as_secs_f64();
        if tokens_ahead_and_own < OBSERVED_TOKENS_MIN || !OBSERVED_RATE_RANGE.contains(&rate) {
            return false;
        }
        self.observations = self.observations.saturating_add(1);
        // A plain mean of the first ten, so that the very first does not linger.
        let newest_weight = NEWEST_WEIGHT.max(1.0 / f64::from(self.observations));
        self.log_mean += newest_weight * (rate.ln() - self.log_mean);
        true
    }

    /// Tokens a second, once enough was observed to believe it.
    pub fn learned(&self) -> Option<f64> {
        (self.observations >= OBSERVATIONS_MIN).then(|| self.log_mean.exp())
    }

    /// Tokens a second: the learned rate, else [`RATE_UNTIL_LEARNED`]. For a worker among others
    /// use [`FleetRate::of`], which fills gaps with the fleet's mean.
    pub fn tokens_per_s(&self) -> f64 {
        self.learned().unwrap_or(RATE_UNTIL_LEARNED)
    }
}

/// The mean rate of a fleet, by which its workers are made comparable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetRate {
    mean: f64,
}

impl FleetRate {
    /// The mean over the workers whose rate is learned; [`RATE_UNTIL_LEARNED`] without any.
    pub fn mean_of<'a>(rates: impl IntoIterator<Item = &'a PrefillRate>) -> Self {
        let (sum, count) = rates
            .into_iter()
            .filter_map(PrefillRate::learned)
            .fold((0.0, 0_u32), |(sum, count), rate| (sum + rate, count + 1));
        let mean = if count == 0 { RATE_UNTIL_LEARNED } else { sum / f64::from(count) };
        Self { mean }
    }

    /// Tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.mean
    }

    /// What to put into `Candidate::prefill_tokens_per_s`: the worker's own rate where it is
    /// learned and differs from the fleet's mean by more than a quarter, else the mean.
    pub fn of(&self, rate: &PrefillRate) -> f64 {
        match rate.learned() {
            Some(own) if (own - self.mean).abs() > SAME_RATE_SHARE * self.mean => own,
            _ => self.mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(tokens_per_s: u64) -> PrefillRate {
        let mut rate = PrefillRate::new();
        for _ in 0..20 {
            assert!(rate.observe(tokens_per_s, Duration::from_secs(1)));
        }
        rate
    }

    fn assert_near(got: f64, want: f64, share: f64) {
        assert!((got - want).abs() <= share * want, "{got} is not {want}");
    }

    #[test]
    fn assumes_the_default_until_four_observations() {
        let mut rate = PrefillRate::new();
        for _ in 0..3 {
            rate.observe(1_000, Duration::from_secs(1));
            assert_near(rate.tokens_per_s(), RATE_UNTIL_LEARNED, 1e-9);
        }
        rate.observe(1_000, Duration::from_secs(1));
        assert_near(rate.tokens_per_s(), 1_000.0, 1e-9);
    }

    #[test]
    fn follows_a_change_within_some_dozens_of_requests() {
        let mut rate = learned(10_000);
        for _ in 0..40 {
            rate.observe(2_500, Duration::from_secs(1));
        }
        assert_near(rate.tokens_per_s(), 2_500.0, 0.05);
    }

    #[test]
    fn one_stall_moves_it_by_less_than_half() {
        let mut rate = learned(8_000);
        rate.observe(8_000, Duration::from_secs(100));
        assert!(rate.tokens_per_s() > 4_000.0, "{}", rate.tokens_per_s());
    }

    #[test]
    fn what_was_learned_is_taken_up_again_and_nonsense_is_not() {
        let mut rate = learned(8_000);
        let mut restored = PrefillRate::restore(rate.image());
        for seconds in 1..5 {
            assert_eq!(restored, rate);
            for rate in [&mut restored, &mut rate] {
                assert!(rate.observe(8_000, Duration::from_secs(seconds)));
            }
        }
        for log_mean in [f64::NAN, f64::INFINITY, -1.0, 0.0, 700.0] {
            let rate = PrefillRate::restore(RateImage { log_mean, observations: 9 });
            assert_eq!(rate, PrefillRate::new());
        }
    }

    #[test]
    fn tiny_and_absurd_samples_do_not_count() {
        let mut rate = learned(8_000);
        let before = rate;
        for (tokens, elapsed) in [
            (255, Duration::from_secs(1)),
            (0, Duration::ZERO),
            (10_000, Duration::ZERO),
            (300, Duration::from_hours(1)),
            (u64::MAX, Duration::from_secs(1)),
            (1_000_000, Duration::from_millis(1)),
        ] {
            assert!(!rate.observe(tokens, elapsed), "{tokens} in {elapsed:?}");
        }
        assert_eq!(rate, before);
    }

    #[test]
    fn unlearned_workers_count_as_the_mean_of_the_learned() {
        let rates = [learned(4_000), learned(12_000), PrefillRate::new()];
        let fleet = FleetRate::mean_of(&rates);
        assert_near(fleet.of(&rates[2]), 8_000.0, 1e-6);
        assert_near(fleet.of(&rates[0]), 4_000.0, 1e-6);
        assert_near(fleet.of(&rates[1]), 12_000.0, 1e-6);
        let none = [PrefillRate::new(), PrefillRate::new()];
        assert_near(FleetRate::mean_of(&none).tokens_per_s(), RATE_UNTIL_LEARNED, 1e-9);
    }

    #[test]
    fn workers_that_measure_nearly_alike_are_alike() {
        let rates = [learned(7_400), learned(8_000), learned(8_600)];
        let fleet = FleetRate::mean_of(&rates);
        let seen = rates.each_ref().map(|rate| fleet.of(rate).to_bits());
        assert!(seen.iter().all(|&bits| bits == seen[0]), "{seen:?}");
    }
}
