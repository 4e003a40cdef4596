//! When the tasks of an open loop are meant to be sent: decided before the run.
//!
//! A schedule knows nothing of the run. It is a list of moments after the start that the rate, the
//! kind of arrivals and the seed decide, so a system that answers late cannot thin out the load it
//! is asked for (no coordinated omission). Moments are handed out in order, one at a time.
//!
//! Invariants: moments never go back; the mean rate over whole rounds of [`GAPS`] tasks is exactly
//! the rate asked for; the same seed gives the same moments on every machine.
//!
//! Poisson arrivals repeat a table of [`GAPS`] exponential gaps that is drawn when the schedule is
//! made: a logarithm for each task would be paid for on the core that is measured.

use serde::Serialize;

use crate::random::SplitMix;

/// Gaps of Poisson arrivals that are drawn before they repeat.
pub const GAPS: usize = 16_384;

/// Lowest rate of a schedule, in tasks per second.
pub const RATE_MIN: f64 = 0.1;
/// Highest rate of a schedule, in tasks per second.
pub const RATE_MAX: f64 = 1e9;

/// How tasks arrive.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independently of each other, as many users do: gaps are exponential.
    #[default]
    Poisson,
    /// At a fixed interval.
    Fixed,
}

impl Arrivals {
    /// The word for it in a report.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Poisson => "poisson",
            Self::Fixed => "fixed",
        }
    }
}

/// Moments at which tasks are due, in nanoseconds after the start.
#[derive(Clone, Debug)]
pub struct Schedule {
    gaps: Box<[f32]>,
    mean_ns: f64,
    place: usize,
    due_ns: f64,
}

impl Schedule {
    /// A schedule of `per_s` tasks a second, held to [`RATE_MIN`] and [`RATE_MAX`]; fixed arrivals
    /// take nothing from the seed.
    #[must_use]
    pub fn new(arrivals: Arrivals, per_s: f64, seed: u64) -> Self {
        let gaps = match arrivals {
            Arrivals::Fixed => Box::from([1.0]),
            Arrivals::Poisson => exponential_gaps(seed),
        };
        Self {
            gaps,
            mean_ns: 1e9 / per_s.clamp(RATE_MIN, RATE_MAX),
            place: 0,
            due_ns: 0.0,
        }
    }

    /// When the next task is due.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        whole(self.due_ns)
    }

    /// Goes on to the task after the next.
    pub fn advance(&mut self) {
        self.due_ns += f64::from(self.gaps[self.place]) * self.mean_ns;
        self.place += 1;
        if self.place == self.gaps.len() {
            self.place = 0;
        }
    }

    /// Goes on to the first task that is due at `end_ns` or later; how many were passed over.
    pub fn skip_to(&mut self, end_ns: u64) -> u64 {
        let mut skipped = 0;
        while self.due_ns() < end_ns {
            self.advance();
            skipped += 1;
        }
        skipped
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a moment of a run is positive and far below 2^53 ns, which are 104 days"
)]
fn whole(nanos: f64) -> u64 {
    nanos as u64
}

/// Gaps with a mean of one.
fn exponential_gaps(seed: u64) -> Box<[f32]> {
    let mut random = SplitMix::new(seed);
    let drawn: Vec<f64> = (0..GAPS).map(|_| -random.unit().ln()).collect();
    let scale = GAPS as f64 / drawn.iter().sum::<f64>();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a gap needs no more than seven digits"
    )]
    let gaps = drawn.iter().map(|gap| (gap * scale) as f32);
    gaps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut schedule: Schedule, count: usize) -> Vec<u64> {
        let due = |_| {
            let due = schedule.due_ns();
            schedule.advance();
            due
        };
        (0..count).map(due).collect()
    }

    #[test]
    fn fixed_arrivals_keep_their_interval() {
        let schedule = Schedule::new(Arrivals::Fixed, 1_000_000.0, 7);
        assert_eq!(moments(schedule, 4), [0, 1_000, 2_000, 3_000]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_kind() {
        let due = moments(Schedule::new(Arrivals::Poisson, 1e6, 1), GAPS + 1);
        let total = due[GAPS];
        let asked = GAPS as u64 * 1_000;
        assert!(total.abs_diff(asked) < asked / 1_000, "{total}");
        let gaps: Vec<f64> = due.windows(2).map(|two| (two[1] - two[0]) as f64).collect();
        let variance = gaps.iter().map(|gap| (gap - 1e3).powi(2)).sum::<f64>() / GAPS as f64;
        // Of an exponential distribution the deviation equals the mean.
        assert!((variance.sqrt() / 1e3 - 1.0).abs() < 0.05, "{variance}");
        // And a share of e^-1 lies above it.
        let long = gaps.iter().filter(|gap| **gap > 1e3).count() as f64 / GAPS as f64;
        assert!((long - (-1.0_f64).exp()).abs() < 0.02, "{long}");
    }

    #[test]
    fn the_seed_alone_decides() {
        let of = |seed| moments(Schedule::new(Arrivals::Poisson, 5e4, seed), 100);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let mut schedule = Schedule::new(Arrivals::Fixed, 1_000.0, 0);
        assert_eq!(schedule.skip_to(10_000_000), 10);
        assert_eq!(schedule.due_ns(), 10_000_000);
        assert_eq!(schedule.skip_to(10_000_000), 0);
    }
}
