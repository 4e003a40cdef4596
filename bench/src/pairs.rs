//! Interleaved pairs: how a ratio is measured on a machine that does other things too.
//!
//! Subject and control run back to back in the order A B B A A B B A …, so that a drift of the
//! machine falls on both alike; each pair gives one ratio, and the median of the ratios is the
//! figure. A bootstrap over the pairs says how far that median can be trusted, and a twin of the
//! control against itself says what ratio this machine reports when nothing differs.
//!
//! A pair during which the machine did something else is repeated as a whole, a bounded number of
//! times; then it is left out, unless it was forced.
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
    /// Too few pairs were undisturbed.
    Disturbed {
        /// How many were.
        clean: usize,
        /// How many were wanted.
        wanted: usize,
        /// What disturbed the last one.
        reason: String,
    },
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
            Self::Disturbed {
                clean,
                wanted,
                reason,
            } => write!(
                out,
                "the machine was disturbed: {clean} pairs were quiet before {PAIRS_MIN} of {wanted} \
                 were out of reach; the last one met {reason}. Run it again when the machine \
                 is quiet, or take it as it is with --force"
            ),
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
            Self::TooFew { .. } | Self::Disturbed { .. } | Self::NotPositive { .. } => None,
        }
    }
}

/// What to do about pairs that were disturbed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Patience {
    /// How often one pair is repeated.
    pub retries: u32,
    /// Whether a pair that is still disturbed then counts all the same.
    pub force: bool,
}

/// A summary, and what the machine did while it came about.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Of the pairs that count.
    pub summary: PairSummary,
    /// Which of all pairs that were run these are, counted from 0, repeated ones included.
    pub kept: Vec<usize>,
    /// Pairs that were disturbed and run again.
    pub repeated: u32,
    /// Pairs that were left out.
    pub left_out: usize,
    /// What disturbed the pairs that count all the same; empty unless forced.
    pub disturbed: Vec<String>,
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
    subject: impl FnMut() -> Result<f64, Failure>,
    control: impl FnMut() -> Result<f64, Failure>,
) -> Result<PairSummary, PairError<Failure>> {
    let watched = interleave_watched(pairs, Patience::default(), subject, control, || None)?;
    Ok(watched.summary)
}

/// As [`interleave`], and asks `disturbance` after each pair what disturbed it, if anything did.
///
/// # Errors
/// As [`interleave`], and if fewer than [`PAIRS_MIN`] pairs were undisturbed.
pub fn interleave_watched<Failure>(
    pairs: usize,
    patience: Patience,
    mut subject: impl FnMut() -> Result<f64, Failure>,
    mut control: impl FnMut() -> Result<f64, Failure>,
    mut disturbance: impl FnMut() -> Option<String>,
) -> Result<Watched, PairError<Failure>> {
    if pairs < PAIRS_MIN {
        return Err(PairError::TooFew { given: pairs });
    }
    let (mut a, mut b) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
    let (mut repeated, mut disturbed, mut last) = (0, Vec::new(), String::new());
    let (mut ran, mut kept) = (0, Vec::with_capacity(pairs));
    for pair in 0..pairs {
        let left_out = pair - a.len();
        if pairs - left_out < PAIRS_MIN {
            break;
        }
        for attempt in 0..=patience.retries {
            let (of_a, of_b) = if pair.is_multiple_of(2) {
                let of_a = positive("subject", subject())?;
                (of_a, positive("control", control())?)
            } else {
                let of_b = positive("control", control())?;
                (positive("subject", subject())?, of_b)
            };
            ran += 1;
            let counts = match disturbance() {
                None => true,
                Some(reason) if attempt == patience.retries => {
                    last.clone_from(&reason);
                    disturbed.push(reason);
                    patience.force
                }
                Some(_) => {
                    repeated += 1;
                    continue;
                }
            };
            if counts {
                a.push(of_a);
                b.push(of_b);
                kept.push(ran - 1);
            }
            break;
        }
    }
    if a.len() < PAIRS_MIN {
        return Err(PairError::Disturbed {
            clean: a.len(),
            wanted: pairs,
            reason: last,
        });
    }
    let left_out = pairs - a.len();
    Ok(Watched {
        summary: summarize(a, b),
        kept,
        repeated,
        left_out,
        disturbed: if patience.force {
            disturbed
        } else {
            Vec::new()
        },
    })
}

fn summarize(a: Vec<f64>, b: Vec<f64>) -> PairSummary {
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    let (ratio_low, ratio_high) = bootstrap_interval(&ratios);
    PairSummary {
        ratio_median: median(&mut ratios.clone()),
        ratio_low,
        ratio_high,
        a,
        b,
    }
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
    fn a_disturbed_pair_is_repeated_then_left_out_or_kept_by_force() {
        // The second pair is disturbed once, the third always.
        let run = |force| {
            let (mut calls, mut asked) = (0.0, 0);
            let subject = || {
                calls += 1.0;
                Ok::<_, Infallible>(calls)
            };
            let disturbance = || {
                asked += 1;
                [2, 4, 5]
                    .contains(&asked)
                    .then(|| format!("neighbour {asked}"))
            };
            let patience = Patience { retries: 1, force };
            interleave_watched(6, patience, subject, || Ok(1.0), disturbance)
        };
        let clean = run(false).expect("five clean pairs");
        assert_eq!(clean.summary.a, [1.0, 3.0, 6.0, 7.0, 8.0]);
        assert_eq!(clean.kept, [0, 2, 5, 6, 7]);
        assert_eq!((clean.repeated, clean.left_out), (2, 1));
        assert!(clean.disturbed.is_empty());
        let forced = run(true).expect("six pairs");
        assert_eq!(forced.summary.a, [1.0, 3.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(
            (forced.left_out, forced.disturbed),
            (0, vec!["neighbour 5".to_owned()])
        );
    }

    #[test]
    fn too_few_quiet_pairs_give_no_summary() {
        let one = || Ok::<_, Infallible>(1.0);
        let mut runs = 0;
        let disturbance = || {
            runs += 1;
            (runs > 4).then(|| "steal time 9.0 %".to_owned())
        };
        let refused = interleave_watched(7, Patience::default(), one, one, disturbance)
            .expect_err("four are too few")
            .to_string();
        assert!(
            refused.contains("4 pairs were quiet before 5 of 7 were out of reach"),
            "{refused}"
        );
        assert!(
            refused.contains("steal time 9.0 %. Run it again"),
            "{refused}"
        );
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
