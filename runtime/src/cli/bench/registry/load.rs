//! One run: lookups at a stated rate, decided before it begins.

use std::thread;
use std::time::{Duration, Instant};

use ramjet_bench::schedule::{Arrivals, Schedule};

use super::super::super::output::micros;
use super::crowd::{Crowd, Order, Tally};

/// How long the last answers may take.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether they are here.
const DRAIN_POLL: Duration = Duration::from_millis(1);
/// What decides the moments.
const SEED: u64 = 1;
/// Steps through the crowd: both prime and far apart, so that every node asks and is asked about.
const ASKER_STEP: usize = 7_919;
const WANTED_STEP: usize = 104_729;

/// What one run measured.
pub(super) struct Run {
    pub(super) tally: Tally,
    /// From the first moment to the last answer.
    pub(super) elapsed: Duration,
}

impl Run {
    /// 99th percentile of a lookup, in microseconds.
    pub(super) fn p99_us(&self) -> f64 {
        micros(self.tally.lookups.value_at_quantile(0.99))
    }
}

/// Looks up `per_s` nodes a second for `length`, and waits for all answers.
pub(super) fn run(crowd: &Crowd, per_s: f64, length: Duration) -> Result<Run, String> {
    let mut schedule = Schedule::new(Arrivals::Poisson, per_s, SEED);
    let end_ns = u64::try_from(length.as_nanos()).map_err(|error| error.to_string())?;
    // Heartbeats between the runs are no part of one.
    crowd.take();
    let began = Instant::now();
    let mut asked = 0_usize;
    while schedule.due_ns() < end_ns || asked == 0 {
        let due = began + Duration::from_nanos(schedule.due_ns());
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let order = Order {
            due,
            wanted: asked.wrapping_mul(WANTED_STEP) % crowd.len(),
        };
        crowd.order(asked.wrapping_mul(ASKER_STEP) % crowd.len(), order)?;
        asked += 1;
        schedule.advance();
    }
    let until = Instant::now() + DRAIN_MAX;
    while crowd.answered()? < asked as u64 {
        if Instant::now() > until {
            let answered = crowd.answered()?;
            return Err(format!(
                "{answered} of {asked} lookups were answered within {DRAIN_MAX:?}"
            ));
        }
        thread::sleep(DRAIN_POLL);
    }
    Ok(Run {
        elapsed: began.elapsed(),
        tally: crowd.take(),
    })
}
