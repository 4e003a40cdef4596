//! What the runs came to: the row for people, the object for `--json`.

use std::time::Duration;

use hdrhistogram::Histogram;
use ramjet_bench::latencies::Latencies;
use ramjet_bench::report::{CaseReport, Compares};
use serde::Serialize;

use super::super::super::bench_args::RegistryLoadArgs;
use super::super::super::output::{grouped, per_second, table};
use super::load::Run;
use super::{CONTROL_NODES, Pairs};

/// Resident memory of the registry's process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(in super::super) struct Memory {
    /// Of the whole process, with all nodes.
    pub(super) process_bytes: u64,
    /// What it grew by for each node, its connection included.
    pub(super) node_bytes: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(in super::super) struct RegistryReport {
    /// The ratio to the control, and how it was measured.
    #[serde(flatten)]
    pub(in super::super) case: CaseReport,
    /// Nodes, each with a connection.
    nodes: u32,
    /// Registrations a second while all of them joined.
    joins_per_s: f64,
    /// Lookups a second that were asked for.
    offered_per_s: f64,
    /// Lookups a second that were answered.
    lookups_per_s: f64,
    /// From due to answered, over all runs.
    lookups: Option<Latencies>,
    /// Of the heartbeats meanwhile, from sent to answered.
    heartbeats: Option<Latencies>,
    /// Of the registry's process.
    memory: Memory,
}

impl RegistryReport {
    pub(super) fn of(
        args: &RegistryLoadArgs,
        pairs: &Pairs,
        memory: Memory,
        joined_in: Duration,
    ) -> Self {
        let mut case = CaseReport::of_pairs(
            format!("registry {} nodes", args.nodes),
            Compares::P99Us,
            format!("the same lookups at another registry, of {CONTROL_NODES} nodes"),
            &pairs.watched.summary,
            method(args),
        );
        let lookups = all(&pairs.subject, |run| &run.tally.lookups);
        let elapsed = pairs.subject.iter().map(|run| run.elapsed).sum();
        let told = lookups.as_ref().and_then(Latencies::of);
        case.p50_us = told.as_ref().and_then(|told| told.p50_us);
        case.quiet = Some(pairs.quiet.clone());
        RegistryReport {
            nodes: args.nodes,
            joins_per_s: per_second(u64::from(args.nodes), joined_in),
            offered_per_s: args.rate,
            lookups_per_s: per_second(lookups.as_ref().map_or(0, Histogram::len), elapsed),
            lookups: told,
            heartbeats: all(&pairs.subject, |run| &run.tally.heartbeats)
                .as_ref()
                .and_then(Latencies::of),
            memory,
            case,
        }
    }
}

/// The histograms of all runs in one.
fn all(runs: &[Run], which: impl Fn(&Run) -> &Histogram<u64>) -> Option<Histogram<u64>> {
    let mut sum: Option<Histogram<u64>> = None;
    for run in runs {
        match &mut sum {
            None => sum = Some(which(run).clone()),
            // All are made alike.
            Some(sum) => sum.add(which(run)).ok()?,
        }
    }
    sum
}

fn method(args: &RegistryLoadArgs) -> String {
    format!(
        "ramjet registry in a process of its own, its log on disk, nothing pinned; {} nodes on one \
         thread of this process, each with a key, a loopback address and a TCP connection, \
         registered and alive by a signed heartbeat every {}; open loop, Poisson arrivals at {} \
         lookups a second over all connections and nodes, timed from when they were due, every \
         answer compared; {} interleaved pairs of {:.2} s each",
        args.nodes,
        humantime::format_duration(args.heartbeat),
        args.rate,
        args.pairs,
        args.seconds,
    )
}

/// The row under a header, and what there is to say.
pub(in super::super) fn page(report: &RegistryReport) -> String {
    let header = [
        "NODES",
        "JOINS/S",
        "LOOKUPS/S",
        "P50 US",
        "P99 US",
        "MAX US",
        "WITH 100",
        "RATIO",
        "95 % INTERVAL",
        "BEATS",
        "BEAT P99",
        "B/NODE",
        "PROCESS",
    ];
    let case = &report.case;
    let lookups = report.lookups.as_ref();
    let beats = report.heartbeats.as_ref();
    let row = vec![
        grouped(u64::from(report.nodes)),
        figure(Some(report.joins_per_s), 0),
        figure(Some(report.lookups_per_s), 0),
        figure(lookups.and_then(|told| told.p50_us), 0),
        figure(lookups.and_then(|told| told.p99_us), 0),
        figure(lookups.map(|told| told.max_us), 0),
        figure(case.control, 0),
        figure(case.ratio, 2),
        format!(
            "{} to {}",
            figure(case.ratio_low, 2),
            figure(case.ratio_high, 2)
        ),
        beats.map_or_else(|| "-".to_owned(), |told| grouped(told.count)),
        figure(beats.and_then(|told| told.p99_us), 0),
        grouped(report.memory.node_bytes),
        grouped(report.memory.process_bytes),
    ];
    let mut page = table(&header, &[row]);
    if let Some(quiet) = case.quiet.as_ref().filter(|quiet| quiet.disturbed) {
        let reasons = quiet.reasons.join(", ");
        page.push_str(&format!("\ndisturbed, repeat it: {reasons}"));
    }
    page.push_str(&format!(
        "\n{}; P50, P99, MAX: over all runs; WITH 100 and RATIO: medians of the runs' p99, and of \
         the pairs; control: {}",
        case.method, case.control_name
    ));
    page
}

/// A figure with so many decimals.
fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
