//! Figures of a sample, and how sure they are.

pub mod bootstrap;
pub mod fit;

/// Points of a distribution that results keep: enough to draw it.
pub const GRID: usize = 200;

/// The value that a share `q` of a sorted sample does not exceed (nearest rank); `None` of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = rank(sorted.len(), q)?;
    sorted.get(rank).copied()
}

/// Where in a sorted sample of `count` the quantile `q` is.
fn rank(count: usize, q: f64) -> Option<usize> {
    let rank = (count as f64 * q).ceil() as usize;
    (count > 0).then(|| rank.clamp(1, count) - 1)
}

/// The mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation of a sample; `None` below two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Sorted, without what is no number.
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The distribution of a sorted sample by `GRID` equal steps of its share: the value at each.
pub fn grid(sorted: &[f64]) -> Vec<f64> {
    let at = |step| quantile(sorted, step as f64 / GRID as f64);
    (0..=GRID).filter_map(at).collect()
}

/// The largest to the mean: 1 where all are equal; `None` if all are 0.
pub fn max_to_mean(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|mean| *mean > 0.0)?;
    Some(values.iter().copied().fold(0.0, f64::max) / mean)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = sorted((1..=100).rev().map(f64::from));
        assert_eq!(quantile(&values, 0.5), Some(50.0));
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!((quantile(&values, 0.0), quantile(&values, 1.0)), (Some(1.0), Some(100.0)));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(deviation(&[1.0, 3.0]), Some(2.0_f64.sqrt()));
        assert_eq!(max_to_mean(&[1.0, 3.0]), Some(1.5));
        assert_eq!(max_to_mean(&[0.0, 0.0]), None);
    }

    proptest! {
        #[test]
        fn a_grid_rises_from_the_least_to_the_most(values in prop::collection::vec(-1e6..1e6, 1..80)) {
            let values = sorted(values);
            let grid = grid(&values);
            prop_assert_eq!(grid.len(), GRID + 1);
            prop_assert!(grid.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert_eq!(grid.first(), values.first());
            prop_assert_eq!(grid.last(), values.last());
        }
    }
}
