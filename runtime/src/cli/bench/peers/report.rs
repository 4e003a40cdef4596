//! What `ramjet bench peers` prints: a row a peer, and what stands behind it.
//!
//! Invariants: a peer without figures has a reason, a peer with figures has none; a ratio is never
//! printed without its interval.

use ramjet_bench::facts::Quiet;
use ramjet_bench::pairs::PairSummary;
use serde::Serialize;

use super::program::{Listed, PeerRun};
use crate::cli::output::{rate, table};

/// One window of a sweep.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Swept {
    pub(super) window: u32,
    pub(super) tasks_per_s: f64,
    pub(super) p50_us: f64,
}

/// A ratio over pairs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Ratio {
    pub(super) fn of(summary: &PairSummary) -> Self {
        Ratio {
            median: summary.ratio_median,
            low: summary.ratio_low,
            high: summary.ratio_high,
        }
    }

    fn text(self) -> String {
        format!("{:.1} ({:.1} to {:.1})", self.median, self.low, self.high)
    }
}

/// One peer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) peer: String,
    pub(super) version: Option<String>,
    pub(super) encrypted: bool,
    pub(super) payload: u32,
    /// Why there are no figures.
    pub(super) reason: Option<String>,
    #[serde(flatten)]
    pub(super) compared: Option<Compared>,
}

impl Report {
    /// A peer without figures, for `reason`.
    pub(super) fn absent(peer: &Listed, payload: u32, reason: &str) -> Self {
        Report {
            peer: peer.peer.clone(),
            version: peer.version.clone(),
            encrypted: peer.encrypted,
            payload,
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            compared: None,
        }
    }
}

/// The figures of a peer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Compared {
    pub(super) best_window: u32,
    pub(super) tasks_per_s: f64,
    pub(super) p50_us_at_one: f64,
    /// At the best window.
    pub(super) p99_us: f64,
    /// Requests given up as lost over all pairs.
    pub(super) lost: u64,
    pub(super) settings: String,
    pub(super) settings_at_one: String,
    pub(super) commands: Vec<String>,
    pub(super) ramjet_window: u32,
    pub(super) ramjet_tasks_per_s: f64,
    pub(super) ramjet_p50_us_at_one: f64,
    pub(super) ramjet_sweep: Vec<Swept>,
    /// Tasks per second, ramjet's over the peer's.
    pub(super) ratio_tasks: Ratio,
    /// Median latency with one outstanding, the peer's over ramjet's.
    pub(super) ratio_p50: Ratio,
    pub(super) sweep: Vec<PeerRun>,
    pub(super) method: String,
    pub(super) quiet: Option<Quiet>,
}

/// The table, and what stands behind each row.
pub(super) fn text(reports: &[Report]) -> String {
    let header = [
        "PEER",
        "VERSION",
        "ENCRYPTED",
        "BEST WINDOW",
        "TASKS/S",
        "P50 AT 1",
        "RAMJET TASKS/S",
        "RAMJET P50 AT 1",
        "TASKS, RAMJET/PEER",
        "P50, PEER/RAMJET",
    ];
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    let mut text = table(&header, &rows);
    for report in reports {
        text.push('\n');
        for line in remarks(report) {
            text.push_str(&format!("\n{}: {line}", report.peer));
        }
    }
    text
}

fn row(report: &Report) -> Vec<String> {
    let dash = || "-".to_owned();
    let us = |us: f64| format!("{us:.1} us");
    let figures = match &report.compared {
        Some(compared) => [
            compared.best_window.to_string(),
            rate(compared.tasks_per_s),
            us(compared.p50_us_at_one),
            rate(compared.ramjet_tasks_per_s),
            us(compared.ramjet_p50_us_at_one),
            compared.ratio_tasks.text(),
            compared.ratio_p50.text(),
        ],
        None => std::array::from_fn(|_| dash()),
    };
    let encrypted = if report.encrypted { "yes" } else { "no" };
    [
        report.peer.clone(),
        report.version.clone().unwrap_or_else(dash),
        encrypted.to_owned(),
    ]
    .into_iter()
    .chain(figures)
    .collect()
}

fn remarks(report: &Report) -> Vec<String> {
    let Some(compared) = &report.compared else {
        let reason = report.reason.as_deref().unwrap_or("no figures");
        return vec![format!("not run: {reason}")];
    };
    let sweep: Vec<String> = compared
        .sweep
        .iter()
        .map(|run| format!("{} {}", run.window, rate(run.tasks_per_s)))
        .collect();
    let mut lines = vec![
        compared.method.clone(),
        format!("set: {}", compared.settings),
        format!("set with one outstanding: {}", compared.settings_at_one),
        format!("sweep: {}", sweep.join(", ")),
    ];
    if compared.lost > 0 {
        lines.push(format!("{} requests were lost", compared.lost));
    }
    lines.extend(
        compared
            .commands
            .iter()
            .map(|line| format!("again: {line}")),
    );
    lines.push(match &compared.quiet {
        Some(quiet) if quiet.disturbed => {
            format!("disturbed, repeat it: {}", quiet.reasons.join(", "))
        }
        _ => "undisturbed".to_owned(),
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(version: Option<&str>) -> Listed {
        Listed {
            peer: version.map_or("nats", |_| "tonic").to_owned(),
            version: version.map(str::to_owned),
            encrypted: false,
            reason: None,
            install: String::new(),
        }
    }

    fn run(window: u32) -> PeerRun {
        PeerRun {
            window,
            setting: "multi-1".to_owned(),
            settings: "words".to_owned(),
            tasks: 200,
            lost: 1,
            tasks_per_s: 100.0,
            p50_us: 50.0,
            p99_us: 99.0,
            p999_us: 100.0,
            max_us: 101.0,
            command: format!("run --window {window}"),
        }
    }

    fn quiet(reasons: &[&str]) -> Quiet {
        Quiet {
            wall_ms: 1_000,
            steal_share: None,
            foreign_share: Some(0.2),
            involuntary_switches: 0,
            disturbed: !reasons.is_empty(),
            reasons: reasons.iter().map(|&reason| reason.to_owned()).collect(),
        }
    }

    fn compared(reasons: &[&str]) -> Compared {
        let ratio = |median| Ratio {
            median,
            low: median - 1.0,
            high: median + 1.5,
        };
        Compared {
            best_window: 64,
            tasks_per_s: 12_345.6,
            p50_us_at_one: 50.0,
            p99_us: 99.0,
            lost: 2,
            settings: "set for many".to_owned(),
            settings_at_one: "set for one".to_owned(),
            commands: vec!["run --window 64".to_owned(), "run --window 1".to_owned()],
            ramjet_window: 1_024,
            ramjet_tasks_per_s: 493_824.0,
            ramjet_p50_us_at_one: 10.0,
            ramjet_sweep: Vec::new(),
            ratio_tasks: ratio(40.0),
            ratio_p50: ratio(5.0),
            sweep: vec![run(1), run(64)],
            method: "closed loop".to_owned(),
            quiet: Some(quiet(reasons)),
        }
    }

    fn present(reasons: &[&str]) -> Report {
        Report {
            compared: Some(compared(reasons)),
            ..Report::absent(&listed(Some("0.14")), 64, "")
        }
    }

    #[test]
    fn an_absent_peer_has_a_row_and_a_reason_and_a_present_one_its_figures() {
        let absent = Report::absent(&listed(None), 64, "it is absent; install: get it");
        let text = text(&[absent, present(&[])]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("nats") && lines[1].ends_with('-'),
            "{text}"
        );
        for part in [
            "12,346/s",
            "493,824/s",
            "40.0 (39.0 to 41.5)",
            "5.0 (4.0 to 6.5)",
        ] {
            assert!(lines[2].contains(part), "{part} in {text}");
        }
        for line in [
            "nats: not run: it is absent; install: get it",
            "tonic: closed loop",
            "tonic: set: set for many",
            "tonic: set with one outstanding: set for one",
            "tonic: sweep: 1 100/s, 64 100/s",
            "tonic: 2 requests were lost",
            "tonic: again: run --window 1",
            "tonic: undisturbed",
        ] {
            assert!(lines.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn a_disturbed_comparison_says_by_what() {
        let text = text(&[present(&["other processes 20.0 % of the cores"])]);
        let told = "tonic: disturbed, repeat it: other processes 20.0 % of the cores";
        assert!(text.ends_with(told), "{text}");
    }

    #[test]
    fn the_json_object_is_flat_and_has_a_reason_or_figures() {
        let object = |report: &Report| serde_json::to_value(report).expect("plain data");
        let absent = object(&Report::absent(&listed(None), 64, "absent"));
        assert_eq!(absent["reason"], "absent");
        assert!(absent.get("tasks_per_s").is_none(), "{absent}");
        let present = object(&present(&[]));
        assert!(present["reason"].is_null(), "{present}");
        assert_eq!(present["ratio_tasks"]["low"], 39.0);
        assert_eq!(present["ratio_p50"]["median"], 5.0);
        assert_eq!(present["sweep"][1]["window"], 64);
        assert_eq!(present["quiet"]["disturbed"], false);
    }
}
