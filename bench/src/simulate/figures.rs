//! The figures of runs, and how sure they are.
//!
//! A run's figures are percentiles over its requests. Requests of one run depend on each other (a
//! queue is shared), so how sure a figure is says the spread over redraws, not over requests: each
//! redraw is one observation. All policies see the same redraws, so their ratios are paired: the
//! error of a ratio of means is that of `y - ratio * x` over redraws, by the delta method (Cochran,
//! Sampling Techniques, 3rd edition 1977, section 6.4). With few redraws errors are rough, and with
//! one there are none.

use serde::Serialize;

use super::run::Fate;
use crate::stats::{max_to_mean, mean, quantile, sorted};

/// What came of one run, or a mean over several.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Median seconds to the first token.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Mean.
    pub mean: f64,
    /// Mean seconds to the last token.
    pub total: f64,
    /// Prompt tokens found cached, share of all.
    pub hit: f64,
    /// Those that were predicted to be.
    pub predicted: f64,
    /// Those predicted and not found.
    pub stale: f64,
    /// Requests of the busiest worker over the mean.
    pub busiest: f64,
}

/// How many they are.
const COUNT: usize = 9;

impl Figures {
    /// Of a run over `workers`; `None` of no request.
    pub fn of(fates: &[Fate], workers: usize) -> Option<Self> {
        let ttfts = sorted(fates.iter().map(|fate| fate.ttft));
        let totals: Vec<f64> = fates.iter().map(|fate| fate.total).collect();
        let sum = |of: fn(&Fate) -> u64| fates.iter().map(of).sum::<u64>() as f64;
        let tokens = sum(|fate| fate.tokens);
        let mut loads = vec![0.0; workers];
        for fate in fates {
            loads[fate.worker as usize] += 1.0;
        }
        Some(Self {
            p50: quantile(&ttfts, 0.5)?,
            p95: quantile(&ttfts, 0.95)?,
            p99: quantile(&ttfts, 0.99)?,
            mean: mean(&ttfts)?,
            total: mean(&totals)?,
            hit: sum(|fate| fate.cached) / tokens,
            predicted: sum(|fate| fate.predicted) / tokens,
            stale: sum(|fate| fate.predicted.saturating_sub(fate.cached)) / tokens,
            busiest: max_to_mean(&loads)?,
        })
    }

    fn values(&self) -> [f64; COUNT] {
        let Self { p50, p95, p99, mean, total, hit, predicted, stale, busiest } = *self;
        [p50, p95, p99, mean, total, hit, predicted, stale, busiest]
    }

    fn from_values(values: [f64; COUNT]) -> Self {
        let [p50, p95, p99, mean, total, hit, predicted, stale, busiest] = values;
        Self { p50, p95, p99, mean, total, hit, predicted, stale, busiest }
    }

    /// Makes figures of each figure by itself.
    fn each(of: impl Fn(usize) -> f64) -> Self {
        Self::from_values(std::array::from_fn(of))
    }
}

/// A mean over redraws and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean, or the ratio of two.
    pub value: Figures,
    /// Its standard error; of fewer than two redraws there is none.
    pub error: Option<Figures>,
}

impl Estimate {
    /// Mean over redraws; `None` of none.
    pub fn mean_of(redraws: &[Figures]) -> Option<Self> {
        if redraws.is_empty() {
            return None;
        }
        let column = |at: usize| redraws.iter().map(move |figures| figures.values()[at]);
        let value = Figures::each(|at| column(at).sum::<f64>() / redraws.len() as f64);
        let means = value.values();
        let error = (redraws.len() > 1)
            .then(|| Figures::each(|at| error_of(column(at).map(|x| x - means[at]))));
        Some(Self { value, error })
    }

    /// Means over means of other runs on the same redraws; `None` of none.
    pub fn ratio_of(redraws: &[Figures], others: &[Figures]) -> Option<Self> {
        let (ours, theirs) = (Self::mean_of(redraws)?, Self::mean_of(others)?);
        let (ours, theirs) = (ours.value.values(), theirs.value.values());
        // Where both are 0 nothing differs.
        let differ = |at: usize| ours[at] > 0.0 || theirs[at] > 0.0;
        let ratio = |at: usize| if differ(at) { ours[at] / theirs[at] } else { 1.0 };
        let error = (redraws.len() > 1 && redraws.len() == others.len()).then(|| {
            Figures::each(|at| {
                let rests = redraws
                    .iter()
                    .zip(others)
                    .map(|(own, other)| own.values()[at] - ratio(at) * other.values()[at]);
                if differ(at) { error_of(rests) / theirs[at] } else { 0.0 }
            })
        });
        Some(Self { value: Figures::each(ratio), error })
    }
}

/// Standard error of the mean of something whose mean is known to be 0.
fn error_of(rests: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = rests.len() as f64;
    let squares: f64 = rests.map(|rest| rest * rest).sum();
    (squares / (count * (count - 1.0))).sqrt()
}

/// Mean and standard error of plain numbers.
pub fn mean_and_error(numbers: &[f64]) -> (f64, Option<f64>) {
    let mean = mean(numbers).unwrap_or(0.0);
    let error = (numbers.len() > 1).then(|| error_of(numbers.iter().map(|number| number - mean)));
    (mean, error)
}

/// Geometric mean; 1 of nothing.
pub fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) =
        ratios.fold((0.0, 0.0), |(sum, count), ratio| (sum + ratio.ln(), count + 1.0));
    if count == 0.0 { 1.0 } else { f64::exp(sum / count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(worker: u32, ttft: f64, cached: u64, predicted: u64) -> Fate {
        Fate { worker, ttft, total: ttft + 1.0, tokens: 100, cached, predicted }
    }

    fn figures(p50: f64) -> Figures {
        Figures { p50, ..Figures::from_values([1.0; COUNT]) }
    }

    #[test]
    fn a_runs_figures_can_be_counted_by_hand() {
        let fates: Vec<Fate> = (1..=100)
            .map(|at| {
                fate(u32::from(at > 75), f64::from(at), 40, if at % 2 == 0 { 60 } else { 20 })
            })
            .collect();
        let figures = Figures::of(&fates, 2).unwrap();
        assert_eq!((figures.p50, figures.p95, figures.p99), (50.0, 95.0, 99.0));
        assert_eq!((figures.mean, figures.total), (50.5, 51.5));
        assert_eq!((figures.hit, figures.predicted, figures.stale), (0.4, 0.4, 0.1));
        assert!((figures.busiest - 1.5).abs() < 1e-12);
        assert_eq!(Figures::of(&[], 2), None);
    }

    #[test]
    fn errors_are_those_of_the_text_book() {
        let mean = Estimate::mean_of(&[figures(1.0), figures(2.0), figures(6.0)]).unwrap();
        assert!((mean.value.p50 - 3.0).abs() < 1e-12);
        // Squares 4 + 1 + 9, over 3 * 2.
        assert!((mean.error.unwrap().p50 - (14.0_f64 / 6.0).sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::mean_of(&[figures(1.0)]).unwrap().error, None);
        assert_eq!(mean_and_error(&[1.0, 3.0]), (2.0, Some(1.0)));
    }

    #[test]
    fn what_all_redraws_share_does_not_blur_a_ratio() {
        let noisy = [figures(1.0), figures(5.0), figures(3.0)];
        let twice = noisy.map(|f| figures(2.0 * f.p50));
        let ratio = Estimate::ratio_of(&twice, &noisy).unwrap();
        assert!((ratio.value.p50 - 2.0).abs() < 1e-12);
        assert!(ratio.error.unwrap().p50 < 1e-12);
        assert!((geometric_mean([0.5, 2.0, 8.0].into_iter()) - 2.0).abs() < 1e-12);
    }
}
