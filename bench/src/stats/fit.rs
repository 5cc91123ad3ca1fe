//! A straight line through points, by least squares.

use serde::{Deserialize, Serialize};

/// y = `intercept` + `slope` x.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What y gains where x gains 1.
    pub slope: f64,
    /// y where x is 0.
    pub intercept: f64,
    /// Share of the variance of y that the line explains.
    pub r2: f64,
}

/// The line of least squares; `None` where all x are equal.
pub fn line(points: &[(f64, f64)]) -> Option<Line> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x0, y0) = (mean(|point| point.0), mean(|point| point.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        points.iter().map(|(x, y)| of(x - x0, y - y0)).sum()
    };
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    if points.len() < 2 || xx <= 0.0 {
        return None;
    }
    let slope = xy / xx;
    let r2 = if yy > 0.0 { xy * xy / (xx * yy) } else { 1.0 };
    Some(Line { slope, intercept: y0 - slope * x0, r2 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_points_make_a_line_and_one_does_not() {
        let fitted = line(&[(1.0, 5.0), (3.0, 9.0)]).expect("a line");
        assert_eq!((fitted.slope, fitted.intercept, fitted.r2), (2.0, 3.0, 1.0));
        assert_eq!(line(&[(1.0, 5.0)]), None);
        assert_eq!(line(&[(1.0, 5.0), (1.0, 6.0)]), None);
        // Symmetric noise around a flat line.
        let flat = line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 1.0)]).expect("a line");
        assert!(flat.slope.abs() < 1e-12 && flat.r2 < 1e-12);
    }

    proptest! {
        #[test]
        fn points_of_a_line_give_it_back(
            slope in -50.0_f64..50.0, intercept in -50.0_f64..50.0,
            xs in prop::collection::btree_set(-100_i32..100, 2..20),
        ) {
            let points: Vec<_> =
                xs.into_iter().map(|x| (f64::from(x), intercept + slope * f64::from(x))).collect();
            let fitted = line(&points).expect("a line");
            prop_assert!((fitted.slope - slope).abs() < 1e-6);
            prop_assert!((fitted.intercept - intercept).abs() < 1e-4);
        }
    }
}
