//! What one number of tunnels came to: the row for people, the object for `--json`.

use ramjet_bench::report::CaseReport;
use serde::Serialize;

use super::super::super::output::{grouped, table};
use super::point::CONTROL_TUNNELS;

/// Resident memory of a worker's process, by tunnel.
#[derive(Clone, Copy, Debug, Serialize)]
pub(in super::super) struct Memory {
    /// Of a tunnel whose keys are exchanged, without an engagement.
    pub(super) tunnel_bytes: u64,
    /// Of a tunnel with an open engagement that has served every slot and rests.
    pub(super) engagement_bytes: u64,
    /// Of the whole process at the end.
    pub(super) process_bytes: u64,
}

/// One number of tunnels.
#[derive(Clone, Debug, Serialize)]
pub(in super::super) struct TunnelsReport {
    /// The ratio to the control's tunnels, and how it was measured.
    #[serde(flatten)]
    pub(in super::super) case: CaseReport,
    /// Tunnels.
    pub(super) tunnels: usize,
    /// Slots of each engagement.
    pub(super) credits: u32,
    /// How long all key exchanges took, in seconds.
    pub(super) establish_s: f64,
    /// Key exchanges a second.
    pub(super) handshakes_per_s: f64,
    /// Offers, grants and opened channels a second.
    pub(super) engagements_per_s: f64,
    /// Tasks that the worker ran in all runs of the subject.
    pub(super) tasks_run: u64,
    /// What a task cost the control's worker; `worker.cpu_ns_per_task` is the subject's.
    pub(super) control_cpu_ns_per_task: Option<f64>,
    /// Share of the time in which the generator had work: near 1 it is what limits.
    pub(super) generator_busy_share: Option<f64>,
    /// How often the load went round all tunnels in one run.
    pub(super) rounds: Option<f64>,
    /// Tasks that were sent again.
    pub(super) repeated: u64,
    /// What the worker dropped, by reason.
    pub(super) worker_drops: std::collections::BTreeMap<String, u64>,
    /// Where there are enough tunnels to tell.
    pub(super) memory: Option<Memory>,
}

/// The rows under a header, and what there is to say to each.
pub(in super::super) fn page(reports: &[TunnelsReport]) -> String {
    let against = format!("WITH {CONTROL_TUNNELS}");
    let header = [
        "TUNNELS",
        "TASKS/S",
        &against,
        "RATIO",
        "95 % INTERVAL",
        "P50 US",
        "P99 US",
        "CPU NS",
        "WITH 4",
        "GENERATOR",
        "KEYS/S",
        "B/TUNNEL",
        "B/ENGAGEMENT",
    ];
    let mut page = table(&header, &reports.iter().map(row).collect::<Vec<_>>());
    for report in reports {
        let case = &report.case;
        if let Some(quiet) = case.quiet.as_ref().filter(|quiet| quiet.disturbed) {
            let reasons = quiet.reasons.join(", ");
            page.push_str(&format!("\n{}: disturbed, repeat it: {reasons}", case.case));
        }
        if let Some(note) = &case.note {
            page.push_str(&format!("\n{}: {note}", case.case));
        }
    }
    if let Some(last) = reports.last() {
        page.push_str(&format!(
            "\n{}; control: {}; CPU NS: of a worker for a task; GENERATOR: share of the time in \
             which it had work",
            last.case.method, last.case.control_name
        ));
    }
    page
}

fn row(report: &TunnelsReport) -> Vec<String> {
    let case = &report.case;
    let (tunnel, engagement) = report.memory.map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |memory| {
            (
                grouped(memory.tunnel_bytes),
                grouped(memory.engagement_bytes),
            )
        },
    );
    vec![
        report.tunnels.to_string(),
        figure(case.tasks_per_s, 0),
        figure(case.control, 0),
        figure(case.ratio, 2),
        format!(
            "{} to {}",
            figure(case.ratio_low, 2),
            figure(case.ratio_high, 2)
        ),
        figure(case.p50_us, 0),
        figure(case.p99_us, 0),
        figure(case.worker.map(|worker| worker.cpu_ns_per_task), 0),
        figure(report.control_cpu_ns_per_task, 0),
        figure(report.generator_busy_share, 2),
        figure(Some(report.handshakes_per_s), 0),
        tunnel,
        engagement,
    ]
}

/// A figure with so many decimals; whole ones in groups of three digits.
fn figure(value: Option<f64>, decimals: usize) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if decimals == 0 => format!("{value:.0}")
            .parse()
            .map_or_else(|_| format!("{value:.0}"), grouped),
        Some(value) => format!("{value:.decimals$}"),
    }
}
