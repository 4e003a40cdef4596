//! The jobs that commands run: what they send, and what they do with the answers.
//!
//! | job | sends | does with an answer |
//! |---|---|---|
//! | [`Verify`] | lines, over and over, up to a number | compares it with the one expected |
//! | [`Collect`] | some lines once | hands it to a printer, bounded by what is printed |
//! | [`Load`] | one payload until a moment | compares it, counts |
//! | [`OpenLoop`] | one payload at moments laid down before | compares it, times it from its moment |
//!
//! Each runs on a worker thread and blocks nowhere. What it measured arrives when it is dropped, so
//! it arrives in every case, once.

mod collect;
mod load;
mod open_loop;
mod verify;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::text::Text;
use crate::job::{Answer, Next, Refused, Timing};

pub use collect::{
    Batch, Collect, CollectPlan, Collected, Flow, REORDER_BYTES_MAX, REORDER_LINES_MAX,
};
pub use load::{Load, Loaded};
pub use open_loop::{Intervals, OpenLoop, OpenLoopPlan, OpenLooped, Pace, Stages};
pub use verify::{Expected, Verify};

/// Why a task was not run by a worker that goes away in good order.
pub const DRAINING: &str = Refused::Draining.label();

/// What a job has measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Tasks handed out.
    pub issued: u64,
    /// Results that were accepted.
    pub accepted: u64,
    /// Results that were rejected.
    pub rejected: u64,
    /// Tasks whose handler failed.
    pub failed: u64,
    /// Tasks that were not run, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Answers to tasks that had one already, or were never handed out: always 0 unless the
    /// runtime breaks its word.
    pub repeated: u64,
    /// Handler time of all results, in nanoseconds.
    pub busy_ns: u64,
    /// Round trips of tasks with a result, in nanoseconds.
    pub round_trip: Histogram<u64>,
    /// The first answer that was not accepted, in words.
    pub first_fault: Option<String>,
}

impl Default for Measured {
    fn default() -> Self {
        Measured {
            issued: 0,
            accepted: 0,
            rejected: 0,
            failed: 0,
            refused: BTreeMap::new(),
            repeated: 0,
            busy_ns: 0,
            round_trip: crate::latency::Histograms::new().round_trip,
            first_fault: None,
        }
    }
}

impl Measured {
    /// Tasks with an answer of any kind.
    pub fn answered(&self) -> u64 {
        self.accepted + self.rejected + self.failed + self.refused.values().sum::<u64>()
    }

    /// Counts an answer that is no result, and keeps the first in words.
    fn count_fault(&mut self, token: u64, answer: Answer<'_>) {
        let words = match answer {
            Answer::Done(_) => {
                self.rejected += 1;
                "another result than the one expected".to_owned()
            }
            Answer::Failed(why) => {
                self.failed += 1;
                format!("failed: {}", String::from_utf8_lossy(why))
            }
            Answer::Refused(refused) => {
                *self.refused.entry(refused.label()).or_default() += 1;
                format!("refused: {}", refused.label())
            }
        };
        // People count tasks and lines from 1.
        self.first_fault
            .get_or_insert_with(|| format!("task {}: {words}", token + 1));
    }

    /// Notes the timing of a result.
    fn time(&mut self, timing: Timing) {
        self.busy_ns = self.busy_ns.saturating_add(timing.busy_ns);
        self.round_trip.saturating_record(timing.round_trip_ns);
    }

    /// The latency below which this share of the round trips lies, in nanoseconds.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        self.round_trip.value_at_quantile(share)
    }
}

/// How a running job stands, for a progress bar: each number is written by the job alone.
#[derive(Debug, Default)]
pub struct Live {
    answered: AtomicU64,
    p50_ns: AtomicU64,
    p99_ns: AtomicU64,
}

impl Live {
    /// Between two looks at the quantiles, which cost some ten microseconds.
    const ANSWERS_PER_LOOK: u64 = 4_096;

    fn note(&self, answered: u64, measured: &Measured) {
        self.answered.store(answered, Ordering::Relaxed);
        if answered.is_multiple_of(Self::ANSWERS_PER_LOOK) {
            self.p50_ns
                .store(measured.quantile_ns(0.5), Ordering::Relaxed);
            self.p99_ns
                .store(measured.quantile_ns(0.99), Ordering::Relaxed);
        }
    }

    /// Tasks with an answer.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Median and 99th percentile of the round trip, in nanoseconds; 0 until known.
    pub fn latency_ns(&self) -> (u64, u64) {
        (
            self.p50_ns.load(Ordering::Relaxed),
            self.p99_ns.load(Ordering::Relaxed),
        )
    }
}

/// Writes a line into the space of a task, or shares it if it does not fit.
fn task_of(text: &Text, line: usize, token: u64, space: &mut [u8]) -> Next {
    let payload = text.line(line);
    match space.get_mut(..payload.len()) {
        Some(space) => {
            space.copy_from_slice(payload);
            Next::Task {
                len: payload.len(),
                token,
            }
        }
        None => Next::Large {
            payload: text.share(line),
            token,
        },
    }
}
