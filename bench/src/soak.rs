//! A stated rate for a stated time: what drifted, what leaked, what was lost.
//!
//! The run is cut into intervals. Of the first third and of the last the medians are compared: the
//! 99th percentiles of their intervals, the resident memory, the open descriptors. A soak fails by
//! what cannot be the machine's fault: tasks without a result, memory or descriptors that grew
//! beyond their bounds. A 99th percentile that rose is told and fails nothing.
//!
//! Invariants: fewer than [`INTERVALS_MIN`] intervals give no comparison, and intervals in which
//! the machine was disturbed take no part in that of the latencies.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::ladder::Rung;
use crate::report::{columns, grouped};

/// Fewest intervals in which a drift can be seen.
pub const INTERVALS_MIN: usize = 3;
/// Resident memory may grow by this share of what the first third had.
pub const MEMORY_GROWTH_SHARE_MAX: f64 = 0.05;
/// Or by this many bytes, whichever is more: histograms and tables that fill once.
pub const MEMORY_GROWTH_BYTES_MIN: u64 = 8 << 20;
/// Open descriptors may grow by so many.
pub const DESCRIPTOR_GROWTH_MAX: u64 = 4;
/// The 99th percentile is called drifted when the last third's is this many times the first's.
pub const P99_RATIO_MAX: f64 = 1.5;

/// One interval.
#[derive(Clone, Debug, Serialize)]
pub struct SoakInterval {
    /// Its start after the start of the run, in seconds.
    pub start_s: f64,
    /// Its length in seconds.
    pub seconds: f64,
    /// Results in it.
    pub answered: u64,
    /// Median latency, in microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
    /// Resident memory of the process at its end, in bytes.
    pub resident_bytes: Option<u64>,
    /// Open descriptors of the process at its end.
    pub descriptors: Option<u64>,
    /// Whether the machine did something else meanwhile.
    pub disturbed: bool,
}

/// First third against last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Median over the first third.
    pub first: f64,
    /// Median over the last third.
    pub last: f64,
    /// What the last may be at most.
    pub bound: f64,
}

impl Drift {
    fn of(values: &[f64], bound: impl Fn(f64) -> f64) -> Option<Self> {
        if values.len() < INTERVALS_MIN {
            return None;
        }
        let third = values.len() / 3;
        let first = crate::pairs::median(&mut values[..third].to_vec());
        let last = crate::pairs::median(&mut values[values.len() - third..].to_vec());
        Some(Self {
            first,
            last,
            bound: bound(first),
        })
    }

    /// Whether the last third is beyond the bound.
    #[must_use]
    pub fn is_beyond(&self) -> bool {
        self.last > self.bound
    }
}

/// A soak and its verdict.
#[derive(Clone, Debug, Serialize)]
pub struct SoakReport {
    /// The whole run.
    pub run: Rung,
    /// Bytes of a task's payload.
    pub payload: usize,
    /// Its intervals, in order.
    pub intervals: Vec<SoakInterval>,
    /// Tasks that had to be sent again.
    pub repeated: u64,
    /// What both nodes dropped during the run, by reason; only what occurred.
    pub drops: BTreeMap<String, u64>,
    /// 99th percentile, in microseconds.
    pub p99: Option<Drift>,
    /// Resident memory, in bytes.
    pub resident: Option<Drift>,
    /// Open descriptors.
    pub descriptors: Option<Drift>,
    /// What failed it; empty if nothing did.
    pub failed: Vec<String>,
    /// What a reader must know that failed nothing.
    pub remarks: Vec<String>,
    /// How it was measured.
    pub method: String,
}

impl SoakReport {
    /// Compares the thirds and comes to a verdict.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let clean = self.intervals.iter().filter(|interval| !interval.disturbed);
        let p99s: Vec<f64> = clean.filter_map(|interval| interval.p99_us).collect();
        let counted = |count: fn(&SoakInterval) -> Option<u64>| -> Vec<f64> {
            let known = self.intervals.iter().filter_map(count);
            known.map(|count| count as f64).collect()
        };
        self.p99 = Drift::of(&p99s, |first| first * P99_RATIO_MAX);
        self.resident = Drift::of(&counted(|interval| interval.resident_bytes), |first| {
            first + (first * MEMORY_GROWTH_SHARE_MAX).max(MEMORY_GROWTH_BYTES_MIN as f64)
        });
        self.descriptors = Drift::of(&counted(|interval| interval.descriptors), |first| {
            first + DESCRIPTOR_GROWTH_MAX as f64
        });
        self.judge();
        let disturbed = self
            .intervals
            .iter()
            .filter(|interval| interval.disturbed)
            .count();
        if disturbed > 0 {
            self.remarks.push(format!(
                "the machine was disturbed in {disturbed} of {} intervals",
                self.intervals.len()
            ));
        }
        self
    }

    fn judge(&mut self) {
        if self.run.counts.lost > 0 {
            self.failed.push(format!(
                "{} tasks have no result",
                grouped(self.run.counts.lost as f64)
            ));
        }
        if let Some(drift) = self.resident.filter(Drift::is_beyond) {
            self.failed.push(format!(
                "memory grew from {} to {}, bound {}",
                mebibytes(drift.first),
                mebibytes(drift.last),
                mebibytes(drift.bound)
            ));
        }
        if let Some(drift) = self.descriptors.filter(Drift::is_beyond) {
            self.failed.push(format!(
                "open descriptors grew from {:.0} to {:.0}, bound {:.0}",
                drift.first, drift.last, drift.bound
            ));
        }
        match self.p99 {
            Some(drift) if drift.is_beyond() => self.remarks.push(format!(
                "p99 drifted from {:.1} to {:.1} us, bound {:.1}",
                drift.first, drift.last, drift.bound
            )),
            Some(_) => {}
            None => self.remarks.push(format!(
                "too few undisturbed intervals to see whether p99 drifted; {INTERVALS_MIN} are \
                 needed"
            )),
        }
        for reason in &self.run.invalid {
            self.remarks
                .push(format!("latencies do not count: {reason}"));
        }
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.failed.is_empty()
    }

    /// One line: `ok`, or what failed.
    #[must_use]
    pub fn verdict(&self) -> String {
        if self.is_ok() {
            String::from("ok")
        } else {
            format!("FAILED: {}", self.failed.join("; "))
        }
    }
}

/// Bytes as text.
pub(crate) fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / (1 << 20) as f64)
}

/// The head of [`line`]'s columns.
#[must_use]
pub fn head() -> String {
    format!(
        "{:>8}  {:>11}  {:>8}  {:>8}  {:>9}  {:>10}  {:>4}",
        "FROM S", "TASKS/S", "P50 US", "P99 US", "MAX US", "MEMORY", "FDS"
    )
}

/// One interval as a line under [`head`].
#[must_use]
pub fn line(interval: &SoakInterval) -> String {
    let us =
        |figure: Option<f64>| figure.map_or_else(|| String::from("-"), |us| format!("{us:.1}"));
    let line = format!(
        "{:>8.0}  {:>11}  {:>8}  {:>8}  {:>9}  {:>10}  {:>4}",
        interval.start_s,
        grouped(interval.answered as f64 / interval.seconds.max(1e-9)),
        us(interval.p50_us),
        us(interval.p99_us),
        us(interval.max_us),
        interval
            .resident_bytes
            .map_or_else(|| String::from("-"), |bytes| mebibytes(bytes as f64)),
        interval
            .descriptors
            .map_or_else(|| String::from("-"), |count| count.to_string()),
    );
    if interval.disturbed {
        line + "  disturbed"
    } else {
        line
    }
}

/// What follows the intervals: totals, thirds, drops, verdict, method; ends with a newline.
#[must_use]
pub fn summary(soak: &SoakReport) -> String {
    let counts = soak.run.counts;
    let mut out = format!(
        "{} tasks due, {} sent, {} lost, {} late, {} held back, {} repeated\n",
        grouped(counts.due as f64),
        grouped(counts.sent as f64),
        grouped(counts.lost as f64),
        grouped(counts.late as f64),
        grouped(counts.held_back as f64),
        grouped(soak.repeated as f64),
    );
    let mut rows = Vec::new();
    let mut add = |name: &str, drift: Option<Drift>, tell: &dyn Fn(f64) -> String| {
        if let Some(drift) = drift {
            let cells = [drift.first, drift.last, drift.bound].map(tell);
            rows.push([vec![name.to_owned()], cells.to_vec()].concat());
        }
    };
    add("p99 us", soak.p99, &|us| format!("{us:.1}"));
    add("memory", soak.resident, &mebibytes);
    add("descriptors", soak.descriptors, &|count| {
        format!("{count:.0}")
    });
    if !rows.is_empty() {
        out.push_str(&columns(
            &["MEDIAN OF", "FIRST THIRD", "LAST THIRD", "BOUND"],
            &rows,
        ));
    }
    for (reason, count) in &soak.drops {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{reason}: {count}");
    }
    for remark in &soak.remarks {
        let _ = writeln!(out, "{remark}");
    }
    let _ = writeln!(out, "{}\n{}", soak.method, soak.verdict());
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn soak(tell: impl Fn(u32) -> SoakInterval) -> SoakReport {
        SoakReport {
            run: crate::ladder::tests::rung("100,000/s", 40.0),
            payload: 64,
            intervals: (0..9).map(tell).collect(),
            repeated: 0,
            drops: BTreeMap::new(),
            p99: None,
            resident: None,
            descriptors: None,
            failed: Vec::new(),
            remarks: Vec::new(),
            method: "open loop for 90 s".to_owned(),
        }
    }

    pub(crate) fn steady(number: u32) -> SoakInterval {
        SoakInterval {
            start_s: f64::from(number) * 10.0,
            seconds: 10.0,
            answered: 1_000_000,
            p50_us: Some(20.0),
            p99_us: Some(40.0),
            max_us: Some(900.0),
            resident_bytes: Some(100 << 20),
            descriptors: Some(30),
            disturbed: false,
        }
    }

    #[test]
    fn a_steady_run_is_ok() {
        let report = soak(steady).judged();
        assert_eq!(report.verdict(), "ok");
        assert!(report.remarks.is_empty(), "{:?}", report.remarks);
        let text = summary(&report);
        assert!(text.contains("100.0 MiB   100.0 MiB  108.0 MiB"), "{text}");
        assert!(
            line(&report.intervals[1]).contains("100,000"),
            "{}",
            line(&report.intervals[1])
        );
    }

    #[test]
    fn what_leaks_or_is_lost_fails_and_what_drifts_is_told() {
        let grown = soak(|number| SoakInterval {
            resident_bytes: Some(u64::from(100 + 2 * number) << 20),
            descriptors: Some(30 + u64::from(number)),
            p99_us: Some(40.0 + 10.0 * f64::from(number)),
            ..steady(number)
        })
        .judged();
        let verdict = grown.verdict();
        assert!(
            verdict.contains("memory grew from 102.0 MiB to 114.0 MiB, bound 110.0 MiB"),
            "{verdict}"
        );
        assert!(
            verdict.contains("open descriptors grew from 31 to 37, bound 35"),
            "{verdict}"
        );
        assert!(
            grown.remarks[0].contains("p99 drifted from 50.0 to 110.0"),
            "{:?}",
            grown.remarks
        );
        let mut losing = soak(steady);
        losing.run.counts.lost = 3;
        assert_eq!(losing.judged().verdict(), "FAILED: 3 tasks have no result");
    }

    #[test]
    fn disturbed_intervals_say_nothing_of_latency() {
        let report = soak(|number| SoakInterval {
            disturbed: number > 1,
            p99_us: Some(40.0 * f64::from(number + 1)),
            ..steady(number)
        })
        .judged();
        assert!(report.is_ok() && report.p99.is_none());
        assert!(
            report.remarks[0].contains("too few undisturbed"),
            "{:?}",
            report.remarks
        );
        assert!(
            report.remarks[1].contains("7 of 9 intervals"),
            "{:?}",
            report.remarks
        );
    }
}
