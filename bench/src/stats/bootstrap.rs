//! Confidence intervals by the percentile bootstrap (Efron and Tibshirani, An Introduction to the
//! Bootstrap, 1993, chapter 13): the sample is drawn again, with replacement, a thousand times, and
//! the interval holds the middle 95 % of what the statistic becomes.
//!
//! Drawn are requests. Requests of one run are not independent (they queue behind each other), so
//! what several seeds differ by is the better guard against chance; reports show both.

use serde::{Deserialize, Serialize};

use super::rank;
use crate::trace::draws::Draws;

/// Times that a sample is drawn again.
pub const RESAMPLES: usize = 1_000;
/// Outside the interval, on each side.
const TAIL: f64 = 0.025;
/// Percentiles that are reported.
pub const QUANTILES: [f64; 3] = [0.50, 0.95, 0.99];

/// A figure and the interval that holds it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Of the sample itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The `QUANTILES` of a sorted sample; `None` of nothing.
pub fn quantiles(sorted: &[f64], seed: u64) -> Option<[Figure; 3]> {
    let ranks = QUANTILES.map(|q| rank(sorted.len(), q));
    let [Some(a), Some(b), Some(c)] = ranks else { return None };
    let ranks = [a, b, c];
    let mut draws = Draws::new(seed, 0xb007);
    let mut found: [Vec<f64>; 3] = Default::default();
    let mut drawn = vec![0_u32; sorted.len()];
    for _ in 0..RESAMPLES {
        redraw(&mut drawn, &mut draws);
        // In a sorted sample the order of places is that of values.
        for (rank, found) in ranks.iter().zip(&mut found) {
            let (_, place, _) = drawn.select_nth_unstable(*rank);
            found.push(sorted[*place as usize]);
        }
    }
    let mut figures = found.iter_mut().zip(ranks).map(|(found, rank)| figure(sorted[rank], found));
    Some(std::array::from_fn(|_| figures.next().expect("three of three")))
}

/// The mean of a sample; `None` of nothing.
pub fn mean(values: &[f64], seed: u64) -> Option<Figure> {
    let pairs: Vec<(f64, f64)> = values.iter().map(|value| (*value, 1.0)).collect();
    share(&pairs, seed)
}

/// The sum of the first to the sum of the second, such as tokens cached to tokens prompted; `None`
/// where the second sum is 0.
pub fn share(pairs: &[(f64, f64)], seed: u64) -> Option<Figure> {
    let of = |sums: (f64, f64)| sums.0 / sums.1;
    let all = pairs.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    if all.1 <= 0.0 {
        return None;
    }
    let mut draws = Draws::new(seed, 0x5a7e);
    let mut found = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let mut sums = (0.0, 0.0);
        for _ in 0..pairs.len() {
            let pair = pairs[draws.below(pairs.len() as u64) as usize];
            sums = (sums.0 + pair.0, sums.1 + pair.1);
        }
        // A draw of nothing but empty prompts says nothing.
        if sums.1 > 0.0 {
            found.push(of(sums));
        }
    }
    Some(figure(of(all), &mut found))
}

/// Quantiles of the first to those of the second, of pairs of the same request under two policies:
/// both are drawn together, so that what both share does not widen the interval.
pub fn ratios(pairs: &[(f64, f64)], seed: u64) -> Option<[Figure; 3]> {
    let ranks = QUANTILES.map(|q| rank(pairs.len(), q));
    let [Some(a), Some(b), Some(c)] = ranks else { return None };
    let ranks = [a, b, c];
    let ratio = |first: &mut [f64], second: &mut [f64], rank: usize| {
        let above = *first.select_nth_unstable_by(rank, f64::total_cmp).1;
        above / *second.select_nth_unstable_by(rank, f64::total_cmp).1
    };
    let mut firsts: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    let mut seconds: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let values = ranks.map(|rank| ratio(&mut firsts, &mut seconds, rank));
    let mut draws = Draws::new(seed, 0x7a710);
    let mut drawn = vec![0_u32; pairs.len()];
    let mut found: [Vec<f64>; 3] = Default::default();
    for _ in 0..RESAMPLES {
        redraw(&mut drawn, &mut draws);
        for (at, place) in drawn.iter().enumerate() {
            (firsts[at], seconds[at]) = pairs[*place as usize];
        }
        for (rank, found) in ranks.iter().zip(&mut found) {
            found.push(ratio(&mut firsts, &mut seconds, *rank));
        }
    }
    let mut figures = found.iter_mut().zip(values).map(|(found, value)| figure(value, found));
    Some(std::array::from_fn(|_| figures.next().expect("three of three")))
}

fn redraw(drawn: &mut [u32], draws: &mut Draws) {
    let count = drawn.len() as u64;
    for place in drawn {
        *place = draws.below(count) as u32;
    }
}

fn figure(value: f64, found: &mut [f64]) -> Figure {
    found.sort_by(f64::total_cmp);
    let at = |q| rank(found.len(), q).map_or(value, |rank| found[rank]);
    Figure { value, low: at(TAIL), high: at(1.0 - TAIL) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stats::sorted;

    fn exponential(count: usize, seed: u64) -> Vec<f64> {
        let mut draws = Draws::new(seed, 1);
        (0..count).map(|_| draws.gap(1.0)).collect()
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_truth() {
        // Medians of exponential samples, whose true median is ln 2, and their means, which are 1.
        let (mut medians, mut means) = (0, 0);
        for seed in 0..100 {
            let sample = exponential(150, seed);
            let mean = mean(&sample, seed).expect("a sample");
            means += usize::from((mean.low..=mean.high).contains(&1.0));
            let [median, ..] = quantiles(&sorted(sample), seed).expect("a sample");
            let truth = std::f64::consts::LN_2;
            medians += usize::from((median.low..=median.high).contains(&truth));
        }
        assert!((88..=100).contains(&medians), "{medians} of 100");
        assert!((88..=100).contains(&means), "{means} of 100");
    }

    #[test]
    fn pairs_cancel_what_they_share() {
        let pairs: Vec<_> = exponential(300, 4).into_iter().map(|x| (0.5 * x, x)).collect();
        for figure in ratios(&pairs, 1).expect("a sample") {
            assert!((figure.low - 0.5).abs() < 1e-9 && (figure.high - 0.5).abs() < 1e-9);
        }
        assert_eq!(ratios(&[], 1), None);
        assert_eq!(quantiles(&[], 1), None);
        assert_eq!(share(&[(0.0, 0.0)], 1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_value_lies_in_its_interval_and_repeats_for_its_seed(
            values in prop::collection::vec(0.1_f64..1e4, 1..60), seed: u64,
        ) {
            let sample = sorted(values.clone());
            let figures = quantiles(&sample, seed).expect("a sample");
            prop_assert_eq!(quantiles(&sample, seed), Some(figures));
            for figure in figures {
                prop_assert!(figure.low <= figure.high);
                prop_assert!(sample.contains(&figure.low) && sample.contains(&figure.value));
            }
            let pairs: Vec<_> = values.iter().map(|value| (value / 2.0, *value)).collect();
            let half = share(&pairs, seed).expect("a sum");
            prop_assert!((half.value - 0.5).abs() < 1e-9 && (half.low - 0.5).abs() < 1e-9);
        }
    }
}
