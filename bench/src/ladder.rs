//! Latency at stated rates: the rungs of a ladder, and which of them count.
//!
//! A rung is one open-loop run. Its latencies run from the moment a task was meant to be sent to
//! the arrival of its answer, so that time lost before the send counts too. Whether the figures may
//! be told is decided here, by [`Rung::judge`]:
//!
//! | what | bound |
//! |---|---|
//! | the machine was disturbed ([`Quiet`]) | not at all |
//! | tasks that left [`LATE_AFTER_NS`] after their moment, or never | [`LATE_SHARE_MAX`] of all |
//! | the generator's own lag, 99th percentile | [`LAG_SHARE_MAX`] of the 99th percentile told |
//! | time for which other threads held the cores of the measured ones | [`STALLED_SHARE_MAX`] |
//! | tasks without a result | none |
//!
//! Who makes the load is the requester that is measured, so the time from a task's moment to its
//! send lies within the latency that is told and never flatters it. It has three parts: where every
//! slot was taken the task is *held back*; where the requester's thread was at work on other tasks
//! it is the requester's part of the path; where it had nothing else to do it is the *generator's
//! own lag*, which is bounded so that what is told of the tail is not made by the load. That lag is
//! held against the 99th percentile, not the median: an idle turn of the thread takes a
//! microsecond, and a median of ten would leave no room for it.
//!
//! Invariants: a rung that does not count keeps its reasons and loses its figures, unless it was
//! forced; then it keeps both.

use std::fmt::Write as _;

use serde::Serialize;

use crate::facts::Quiet;
use crate::latencies::{Latencies, Point};
use crate::report::{columns, grouped};
use crate::schedule::Arrivals;

/// A task that leaves later than this after its moment is late, in nanoseconds: a hundred times
/// what a round trip takes.
pub const LATE_AFTER_NS: u64 = 1_000_000;
/// Share of late and unsent tasks above which the rate asked for was not offered.
pub const LATE_SHARE_MAX: f64 = 0.01;
/// Share of the 99th percentile that the generator's own lag may have.
pub const LAG_SHARE_MAX: f64 = 0.10;
/// Share of the time for which the measured threads may have waited for their cores, in sum: more
/// than one task in a hundred would meet such a wait, and the 99th percentile would be its length.
pub const STALLED_SHARE_MAX: f64 = 0.01;
/// Shares of the capacity that a ladder climbs.
pub const SHARES: [f64; 6] = [0.10, 0.25, 0.50, 0.70, 0.80, 0.90];

/// Where a task's time went, over the tasks that were looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// What it is.
    pub name: String,
    /// Its percentiles.
    pub latencies: Latencies,
}

/// How many tasks became what; all of them counted after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tasks that were due.
    pub due: u64,
    /// Tasks that were sent.
    pub sent: u64,
    /// Results that came before the time was over.
    pub in_time: u64,
    /// Tasks that were sent and got no result: lost, refused, failed, or answered wrongly.
    pub lost: u64,
    /// Tasks that left more than [`LATE_AFTER_NS`] after their moment, whoever was to blame.
    pub late: u64,
    /// Tasks that waited because every slot was taken.
    pub held_back: u64,
}

/// One rate, run once.
#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    /// What it is called.
    pub name: String,
    /// Share of the capacity, on a ladder.
    pub share: Option<f64>,
    /// Tasks a second that were asked for; absent where the loop is closed.
    pub offered_per_s: Option<f64>,
    /// Results a second.
    pub achieved_per_s: Option<f64>,
    /// Length of the run after its warm-up, in seconds.
    pub seconds: f64,
    /// What became of its tasks.
    pub counts: Counts,
    /// The first answer that was no result, in words.
    pub first_fault: Option<String>,
    /// From the intended send to the answer.
    pub latencies: Option<Latencies>,
    /// 99th percentile over the unloaded median of the same invocation.
    pub p99_over_unloaded: Option<f64>,
    /// The generator's own lag, 99th percentile, in microseconds; absent where the requester was
    /// never idle.
    pub generator_lag_p99_us: Option<f64>,
    /// Share of the time for which the measured threads of this process were ready and another
    /// thread had their core, in sum: about the share of tasks that met such a wait.
    pub stalled_share: Option<f64>,
    /// Where the time went.
    pub stages: Vec<Stage>,
    /// The whole distribution.
    pub curve: Vec<Point>,
    /// Runs it took until this one.
    pub attempts: u32,
    /// What else the machine did.
    pub quiet: Option<Quiet>,
    /// Why it does not count; empty if it does.
    pub invalid: Vec<String>,
    /// Whether its figures are kept all the same.
    pub forced: bool,
}

impl Rung {
    /// Finds out whether it counts, and fills in the reasons why not.
    pub fn judge(&mut self) {
        let mut reasons = Vec::new();
        if let Some(quiet) = self.quiet.as_ref().filter(|quiet| quiet.disturbed) {
            reasons.push(format!(
                "the machine was disturbed: {}",
                quiet.reasons.join(", ")
            ));
        }
        let counts = self.counts;
        let unsent = counts.due.saturating_sub(counts.sent);
        let behind = (counts.late + unsent) as f64 / counts.due.max(1) as f64;
        if self.offered_per_s.is_some() && behind > LATE_SHARE_MAX {
            reasons.push(format!(
                "the rate was not offered: {:.1} % of the tasks left over {} ms late or never \
                 ({:.1} % waited for a free slot)",
                behind * 100.0,
                LATE_AFTER_NS / 1_000_000,
                counts.held_back as f64 / counts.due.max(1) as f64 * 100.0,
            ));
        }
        let p99 = self.latencies.as_ref().and_then(|told| told.p99_us);
        if let Some((lag, p99)) = self.generator_lag_p99_us.zip(p99)
            && lag > p99 * LAG_SHARE_MAX
        {
            reasons.push(format!(
                "the generator lagged: p99 of its own lag {lag:.1} us, more than {:.0} % of the \
                 p99 of {p99:.1} us",
                LAG_SHARE_MAX * 100.0
            ));
        }
        if let Some(stalled) = self
            .stalled_share
            .filter(|share| *share > STALLED_SHARE_MAX)
        {
            reasons.push(format!(
                "other threads held the cores of the measured ones for {:.1} % of the time, more \
                 than {:.0} %",
                stalled * 100.0,
                STALLED_SHARE_MAX * 100.0
            ));
        }
        if counts.lost > 0 {
            let first = self.first_fault.as_deref();
            reasons.push(format!(
                "{} of {} tasks have no result{}",
                counts.lost,
                counts.sent,
                first.map_or_else(String::new, |fault| format!(", first fault: {fault}"))
            ));
        }
        if self.latencies.is_none() {
            reasons.push(String::from("nothing was answered"));
        }
        self.invalid = reasons;
    }

    /// Whether it counts.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.invalid.is_empty()
    }

    /// Of a rung that does not count: keeps the figures if `force`, marked, else drops them.
    pub fn withhold_unless(&mut self, force: bool) {
        if self.is_valid() {
            return;
        }
        self.forced = force;
        if !force {
            self.latencies = None;
            self.achieved_per_s = None;
            self.p99_over_unloaded = None;
            self.generator_lag_p99_us = None;
            self.stages.clear();
            self.curve.clear();
        }
    }

    /// Sets its 99th percentile against the unloaded median.
    pub fn compare_with_unloaded(&mut self, unloaded_p50_us: Option<f64>) {
        let p99 = self.latencies.as_ref().and_then(|told| told.p99_us);
        self.p99_over_unloaded = p99.zip(unloaded_p50_us).map(|(p99, p50)| p99 / p50);
    }

    /// Its median.
    #[must_use]
    pub fn p50_us(&self) -> Option<f64> {
        self.latencies.as_ref().and_then(|told| told.p50_us)
    }
}

/// One window of the search for the capacity.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CapacityTrial {
    /// Tasks outstanding at a time.
    pub window: u32,
    /// Results a second, closed loop.
    pub tasks_per_s: f64,
}

/// A climb from little load to almost all.
#[derive(Clone, Debug, Serialize)]
pub struct Ladder {
    /// Bytes of a task's payload.
    pub payload: usize,
    /// Most tasks outstanding.
    pub window: u32,
    /// How tasks arrive.
    pub arrivals: Arrivals,
    /// What decides when.
    pub seed: u64,
    /// What the shares are of, in tasks a second; absent where rates were stated.
    pub capacity_per_s: Option<f64>,
    /// The search for it; empty where it was stated.
    pub capacity_trials: Vec<CapacityTrial>,
    /// One task outstanding.
    pub unloaded: Option<Rung>,
    /// The rates, from the lowest.
    pub rungs: Vec<Rung>,
    /// How it was measured.
    pub method: String,
}

impl Ladder {
    /// The rungs, the unloaded one first.
    pub fn all(&self) -> impl Iterator<Item = &Rung> {
        self.unloaded.iter().chain(&self.rungs)
    }
}

/// The ladder as two tables, its reasons and its method, ending with a newline.
#[must_use]
pub fn table(ladder: &Ladder) -> String {
    let head = [
        "LOAD",
        "OFFERED/S",
        "ACHIEVED/S",
        "P50 US",
        "P90 US",
        "P99 US",
        "P99.9 US",
        "P99.99 US",
        "MAX US",
        "P99/UNLOADED",
        "LAG P99 US",
        "STALLED %",
        "LOST",
        "LATE",
    ];
    let rows: Vec<Vec<String>> = ladder.all().map(row).collect();
    let mut out = columns(&head, &rows);
    for rung in ladder.all() {
        let mark = match (rung.is_valid(), rung.forced) {
            (true, _) => continue,
            (false, true) => "does not count, shown by force",
            (false, false) => "INVALID, not shown",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{}: {mark} after {} runs: {}",
            rung.name,
            rung.attempts,
            rung.invalid.join("; ")
        );
    }
    let staged: Vec<Vec<String>> = ladder.all().flat_map(stage_rows).collect();
    if !staged.is_empty() {
        out.push('\n');
        out.push_str(&columns(
            &["LOAD, STAGE", "P50 US", "P99 US", "P99.9 US", "MAX US"],
            &staged,
        ));
    }
    let _ = writeln!(out, "\n{}", ladder.method);
    out
}

fn row(rung: &Rung) -> Vec<String> {
    let told = rung.latencies.as_ref();
    let us = |figure: Option<f64>| figure.map_or_else(dash, |us| format!("{us:.1}"));
    vec![
        rung.name.clone(),
        rung.offered_per_s.map_or_else(dash, grouped),
        rung.achieved_per_s.map_or_else(dash, grouped),
        us(told.and_then(|told| told.p50_us)),
        us(told.and_then(|told| told.p90_us)),
        us(told.and_then(|told| told.p99_us)),
        us(told.and_then(|told| told.p999_us)),
        us(told.and_then(|told| told.p9999_us)),
        us(told.map(|told| told.max_us)),
        rung.p99_over_unloaded
            .map_or_else(dash, |ratio| format!("{ratio:.2}")),
        us(rung.generator_lag_p99_us),
        rung.stalled_share
            .map_or_else(dash, |share| format!("{:.2}", share * 100.0)),
        rung.counts.lost.to_string(),
        rung.counts.late.to_string(),
    ]
}

fn stage_rows(rung: &Rung) -> Vec<Vec<String>> {
    let us = |figure: Option<f64>| figure.map_or_else(dash, |us| format!("{us:.1}"));
    let stages = rung.stages.iter().map(|stage| {
        let told = &stage.latencies;
        vec![
            format!("{}, {}", rung.name, stage.name),
            us(told.p50_us),
            us(told.p99_us),
            us(told.p999_us),
            us(Some(told.max_us)),
        ]
    });
    stages.collect()
}

fn dash() -> String {
    String::from("-")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn rung(name: &str, p99_us: f64) -> Rung {
        let latencies = Latencies {
            count: 300_000,
            p50_us: Some(p99_us / 3.0),
            p90_us: Some(p99_us / 2.0),
            p99_us: Some(p99_us),
            p999_us: Some(p99_us * 2.0),
            p9999_us: None,
            max_us: p99_us * 9.0,
        };
        let points = [
            (0.0, 0.2),
            (50.0, 1.0 / 3.0),
            (99.0, 1.0),
            (99.9, 2.0),
            (100.0, 9.0),
        ];
        Rung {
            name: name.to_owned(),
            share: Some(0.5),
            offered_per_s: Some(100_000.0),
            achieved_per_s: Some(99_990.0),
            seconds: 3.0,
            counts: Counts {
                due: 300_000,
                sent: 300_000,
                in_time: 299_970,
                ..Counts::default()
            },
            first_fault: None,
            stalled_share: Some(0.002),
            stages: vec![Stage {
                name: "handler".to_owned(),
                latencies: latencies.clone(),
            }],
            latencies: Some(latencies),
            p99_over_unloaded: None,
            generator_lag_p99_us: Some(p99_us / 20.0),
            curve: points
                .map(|(percentile, share)| Point {
                    percentile,
                    us: p99_us * share,
                    count: 1,
                })
                .to_vec(),
            attempts: 1,
            quiet: None,
            invalid: Vec::new(),
            forced: false,
        }
    }

    pub(crate) fn ladder(rungs: Vec<Rung>) -> Ladder {
        Ladder {
            payload: 64,
            window: 1_024,
            arrivals: Arrivals::Poisson,
            seed: 1,
            capacity_per_s: Some(200_000.0),
            capacity_trials: vec![CapacityTrial {
                window: 1_024,
                tasks_per_s: 200_000.0,
            }],
            unloaded: None,
            rungs,
            method: "open loop".to_owned(),
        }
    }

    fn disturbed() -> Quiet {
        Quiet {
            wall_ms: 3_000,
            steal_share: Some(0.04),
            foreign_share: None,
            involuntary_switches: 0,
            disturbed: true,
            reasons: vec!["steal time 4.0 % of the cores".to_owned()],
        }
    }

    #[test]
    fn each_bound_takes_a_rung_off_the_count() {
        type Spoil = fn(&mut Rung);
        let table: [(Spoil, &str); 8] = [
            (
                |rung| rung.stalled_share = Some(0.02),
                "held the cores of the measured ones for 2.0 %",
            ),
            (|_| (), ""),
            (|rung| rung.quiet = Some(disturbed()), "steal time 4.0 %"),
            (
                |rung| rung.counts.late = 3_001,
                "1.0 % of the tasks left over 1 ms late",
            ),
            (
                |rung| rung.counts.sent = 290_000,
                "3.3 % of the tasks left over 1 ms late or never",
            ),
            (
                |rung| rung.generator_lag_p99_us = Some(9.1),
                "own lag 9.1 us",
            ),
            (
                |rung| rung.counts.lost = 1,
                "1 of 300000 tasks have no result",
            ),
            (|rung| rung.latencies = None, "nothing was answered"),
        ];
        for (spoil, reason) in table {
            let mut rung = rung("50 %", 90.0);
            spoil(&mut rung);
            rung.judge();
            assert_eq!(rung.is_valid(), reason.is_empty(), "{:?}", rung.invalid);
            let said = rung.invalid.join("; ");
            assert!(said.contains(reason), "{said}");
        }
    }

    #[test]
    fn what_does_not_count_is_not_shown_unless_forced() {
        let mut withheld = rung("80 %", 77.7);
        withheld.quiet = Some(disturbed());
        withheld.judge();
        let mut forced = withheld.clone();
        withheld.withhold_unless(false);
        forced.withhold_unless(true);
        let shown = table(&ladder(vec![withheld.clone()]));
        assert!(!shown.contains("77.7"), "{shown}");
        assert!(
            shown.contains("80 %: INVALID, not shown after 1 runs"),
            "{shown}"
        );
        let json = serde_json::to_value(&withheld).expect("plain data");
        assert!(json["latencies"].is_null() && json["achieved_per_s"].is_null());
        let shown = table(&ladder(vec![forced]));
        assert!(
            shown.contains("77.7") && shown.contains("shown by force"),
            "{shown}"
        );
    }

    #[test]
    fn the_table_tells_every_figure_of_a_rung_that_counts() {
        let mut good = rung("50 %", 90.0);
        good.compare_with_unloaded(Some(15.0));
        good.judge();
        let shown = table(&ladder(vec![good]));
        let cells: Vec<&str> = shown
            .lines()
            .nth(1)
            .expect("a row")
            .split_whitespace()
            .collect();
        let expected = [
            "50", "%", "100,000", "99,990", "30.0", "45.0", "90.0", "180.0", "-", "810.0", "6.00",
            "4.5", "0.20", "0", "0",
        ];
        assert_eq!(cells, expected, "{shown}");
        assert!(shown.contains("50 %, handler"), "{shown}");
    }
}
