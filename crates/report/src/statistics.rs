//! Means with their intervals, and tests of whether a difference is real.

use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// Mean and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Mean; not a number if there are no values.
    pub(crate) mean: f64,
    /// Standard deviation of the values (divided by `count - 1`); `None` for fewer than two values.
    pub(crate) deviation: Option<f64>,
    /// Half the width of the 95 % confidence interval of the mean by Student's t distribution; `None` for fewer than two
    /// values.
    pub(crate) half_width: Option<f64>,
}

impl Sample {
    /// The sample of `values`.
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.len() > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (n - 1.0)).sqrt()
        });
        let half_width = deviation.and_then(|deviation| {
            let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
            Some(t.inverse_cdf(0.975) * deviation / n.sqrt())
        });
        Self {
            mean,
            deviation,
            half_width,
        }
    }
}

/// A paired t-test: whether the mean of differences is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PairedTest {
    /// The differences.
    pub(crate) difference: Sample,
    /// The probability of a mean at least this far from 0 if there were no difference; 0 where all differences are the
    /// same, 1 where they are 0.
    pub(crate) p: f64,
}

/// The paired t-test of these pairs of values. `None` for fewer than two pairs.
pub(crate) fn paired_test(pairs: &[(f64, f64)]) -> Option<PairedTest> {
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
    let difference = Sample::of(&differences);
    let error = difference.deviation? / (pairs.len() as f64).sqrt();
    let p = if error > 0.0 {
        let t = StudentsT::new(0.0, 1.0, pairs.len() as f64 - 1.0).ok()?;
        2.0 * t.cdf(-(difference.mean / error).abs())
    } else if difference.mean == 0.0 {
        1.0
    } else {
        0.0
    };
    Some(PairedTest { difference, p })
}

/// McNemar's exact test for `a` images that only one network classifies correctly and `b` that only another does: the
/// p-value of the hypothesis that both are equally likely.
pub(crate) fn mcnemar(a: u64, b: u64) -> f64 {
    match Binomial::new(0.5, a + b) {
        Ok(binomial) if a + b > 0 => (2.0 * binomial.cdf(a.min(b))).min(1.0),
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1e-3),
            "{found} is not {expected}"
        );
    }

    // import numpy as np; from scipy import stats
    // x = [0.8503, 0.8479, 0.8532, 0.8461]; y = [0.8316, 0.8342, 0.8301, 0.8350]
    const X: [f64; 4] = [0.8503, 0.8479, 0.8532, 0.8461];
    const Y: [f64; 4] = [0.8316, 0.8342, 0.8301, 0.8350];

    #[test]
    fn samples_are_scipys() {
        let sample = Sample::of(&X);
        close(sample.mean, 0.849375); // np.mean(x)
        close(sample.deviation.unwrap(), 0.003076117683054397); // np.std(x, ddof=1)
        close(sample.half_width.unwrap(), 0.0048947896775271725); // stats.t.ppf(0.975, 3) * stats.sem(x)
        assert!(Sample::of(&[]).mean.is_nan());
        let one = Sample::of(&[0.5]);
        assert_eq!((one.mean, one.deviation, one.half_width), (0.5, None, None));
    }

    #[test]
    fn paired_tests_are_scipys() {
        let pairs: Vec<_> = X.into_iter().zip(Y).collect();
        let test = paired_test(&pairs).unwrap();
        close(test.p, 0.008284147656297234); // stats.ttest_rel(x, y).pvalue
        close(test.difference.half_width.unwrap(), 0.008485363134548469); // r = stats.ttest_rel(x, y).confidence_interval(); (r.high - r.low) / 2
        close(paired_test(&pairs[..2]).unwrap().p, 0.09747485886143839); // stats.ttest_rel(x[:2], y[:2]).pvalue
        assert_eq!(paired_test(&pairs[..1]), None);
        assert_eq!(paired_test(&[(0.5, 0.25), (0.75, 0.5)]).unwrap().p, 0.0);
        assert_eq!(paired_test(&[(0.5, 0.5), (0.75, 0.75)]).unwrap().p, 1.0);
    }

    #[test]
    fn mcnemars_test_is_scipys() {
        // stats.binomtest(a, a + b, 0.5).pvalue
        for (a, b, p) in [
            (1, 9, 0.021484375),
            (30, 45, 0.10534226887460482),
            (480, 700, 1.6222463977551117e-10),
            (0, 3, 0.25),
            (812, 799, 0.7649706113927086),
        ] {
            close(mcnemar(a, b), p);
            close(mcnemar(b, a), p);
        }
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(mcnemar(5, 5), 1.0);
    }
}
