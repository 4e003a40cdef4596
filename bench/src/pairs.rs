//! Interleaved pairs: how a ratio is measured on a machine that does other things too.
//!
//! Subject and control run back to back in the order A B B A A B B A …, so that a drift of the
//! machine falls on both alike; each pair gives one ratio, and the median of the ratios is the
//! figure. A bootstrap over the pairs says how far that median can be trusted, and a twin of the
//! control against itself says what ratio this machine reports when nothing differs.
//!
//! Invariants: a summary holds at least [`PAIRS_MIN`] pairs; the interval contains the median; the
//! same samples always give the same interval, because the resampling is seeded with a constant.
//!
//! Absent: what the closures measure, and whether a ratio is good.

use std::fmt;

use serde::Serialize;

use crate::random::SplitMix;

/// Fewest pairs a summary is made of.
pub const PAIRS_MIN: usize = 5;

/// Resamples of the bootstrap; the interval moves by less than its last printed digit beyond this.
const RESAMPLES: usize = 2_000;
/// The interval holds this share of the resampled medians.
const CONFIDENCE: f64 = 0.95;

/// The ratio of a subject to its control over interleaved pairs.
#[derive(Clone, Debug, Serialize)]
pub struct PairSummary {
    /// Median over the pairs of subject divided by control.
    pub ratio_median: f64,
    /// Lower end of the 95 % bootstrap interval of that median.
    pub ratio_low: f64,
    /// Upper end of the 95 % bootstrap interval of that median.
    pub ratio_high: f64,
    /// What the subject measured, in order.
    pub a: Vec<f64>,
    /// What the control measured, in order; the entry at the same place is the other half of the
    /// pair.
    pub b: Vec<f64>,
}

impl PairSummary {
    /// Median of the subject's measurements.
    #[must_use]
    pub fn subject_median(&self) -> f64 {
        median(&mut self.a.clone())
    }

    /// Median of the control's measurements.
    #[must_use]
    pub fn control_median(&self) -> f64 {
        median(&mut self.b.clone())
    }

    /// Half the width of the interval, relative to its median: of an A/A twin, the noise floor.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.ratio_high - self.ratio_low) / 2.0 / self.ratio_median
    }
}

/// Why a set of pairs gave no summary.
#[derive(Debug)]
pub enum PairError<Failure> {
    /// Fewer pairs were asked for than make a summary.
    TooFew {
        /// How many were asked for.
        given: usize,
    },
    /// An arm failed.
    Arm(Failure),
    /// An arm measured nothing, or not a number.
    NotPositive {
        /// Which arm: `subject` or `control`.
        arm: &'static str,
        /// What it measured.
        value: f64,
    },
}

impl<Failure: fmt::Display> fmt::Display for PairError<Failure> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { given } => {
                write!(
                    out,
                    "{given} pairs are too few; ask for at least {PAIRS_MIN}"
                )
            }
            Self::Arm(failure) => failure.fmt(out),
            Self::NotPositive { arm, value } => write!(
                out,
                "the {arm} measured {value}, which gives no ratio; run it alone and look at its \
                report"
            ),
        }
    }
}

impl<Failure: std::error::Error + 'static> std::error::Error for PairError<Failure> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Arm(failure) => Some(failure),
            Self::TooFew { .. } | Self::NotPositive { .. } => None,
        }
    }
}

/// Runs `pairs` interleaved pairs of `subject` (A) and `control` (B) and sums their ratios up.
///
/// Both closures return one positive figure in the same unit, such as tasks per second or
/// microseconds. For the noise floor pass the control twice.
///
/// # Errors
/// [`PairError`]: too few pairs, a failing arm, or a figure that is not positive.
pub fn interleave<Failure>(
    pairs: usize,
    mut subject: impl FnMut() -> Result<f64, Failure>,
    mut control: impl FnMut() -> Result<f64, Failure>,
) -> Result<PairSummary, PairError<Failure>> {
    if pairs < PAIRS_MIN {
        return Err(PairError::TooFew { given: pairs });
    }
    let (mut a, mut b) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
    for pair in 0..pairs {
        if pair.is_multiple_of(2) {
            a.push(positive("subject", subject())?);
            b.push(positive("control", control())?);
        } else {
            b.push(positive("control", control())?);
            a.push(positive("subject", subject())?);
        }
    }
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    let (ratio_low, ratio_high) = bootstrap_interval(&ratios);
    Ok(PairSummary {
        ratio_median: median(&mut ratios.clone()),
        ratio_low,
        ratio_high,
        a,
        b,
    })
}

/// The median; sorts its argument. An empty set has no median and gives NaN.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn positive<Failure>(
    arm: &'static str,
    measured: Result<f64, Failure>,
) -> Result<f64, PairError<Failure>> {
    let value = measured.map_err(PairError::Arm)?;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(PairError::NotPositive { arm, value })
    }
}

/// Percentile bootstrap of the median.
fn bootstrap_interval(ratios: &[f64]) -> (f64, f64) {
    let mut random = SplitMix::new(0x5EED_CAFE_F00D_D00D);
    let mut sample = vec![0.0; ratios.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            sample.fill_with(|| ratios[random.below(ratios.len())]);
            median(&mut sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let cut = resamples_below(tail);
    (medians[cut], medians[RESAMPLES - 1 - cut])
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of 2,000 resamples is a small, positive whole number"
)]
fn resamples_below(share: f64) -> usize {
    (RESAMPLES as f64 * share) as usize
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn the_order_is_a_b_b_a() {
        let order = RefCell::new(String::new());
        let run = |name| {
            order.borrow_mut().push(name);
            Ok::<_, Infallible>(1.0)
        };
        let summary = interleave(6, || run('A'), || run('B')).expect("six pairs are enough");
        assert_eq!(*order.borrow(), "ABBAABBAABBA");
        assert_eq!((summary.a.len(), summary.b.len()), (6, 6));
    }

    #[test]
    fn a_drift_common_to_both_arms_leaves_the_ratio_alone() {
        let clock = RefCell::new(1.0);
        let drifting = |factor: f64| {
            let mut speed = clock.borrow_mut();
            *speed *= 0.995;
            Ok::<_, Infallible>(*speed * factor)
        };
        let summary = interleave(20, || drifting(0.5), || drifting(1.0)).expect("enough pairs");
        assert!((summary.ratio_median - 0.5).abs() < 0.005, "{summary:?}");
        assert!(summary.ratio_low <= summary.ratio_median);
        assert!(summary.ratio_median <= summary.ratio_high);
        assert!(summary.spread() < 0.02, "{summary:?}");
        assert!(summary.subject_median() < summary.control_median());
    }

    #[test]
    fn one_disturbed_pair_does_not_move_the_median() {
        let mut calls = 0;
        let subject = || {
            calls += 1;
            Ok::<_, Infallible>(if calls == 3 { 20.0 } else { 100.0 })
        };
        let summary = interleave(9, subject, || Ok(50.0)).expect("enough pairs");
        assert!((summary.ratio_median - 2.0).abs() < 1e-9);
        assert!((summary.ratio_high - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_gives_no_ratio_is_refused_with_its_reason() {
        let one = || Ok::<_, &str>(1.0);
        let few = interleave(4, one, one)
            .expect_err("four are too few")
            .to_string();
        assert!(few.contains("at least 5"), "{few}");
        let zero = interleave(5, one, || Ok(0.0))
            .expect_err("zero")
            .to_string();
        assert!(zero.contains("control measured 0"), "{zero}");
        let failed = interleave(5, || Err("the arm fell over"), one).expect_err("failed");
        assert_eq!(failed.to_string(), "the arm fell over");
    }

    #[test]
    fn the_median_of_even_and_odd_sets() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(&mut []).is_nan());
    }
}
