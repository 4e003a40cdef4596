//! One object a case for `--json`, and the plain table for people.
//!
//! Invariants: the ratio of a case is its figure over its control's, in the unit `compares` names,
//! and both come from the same run; a missing figure is `null` in JSON and `-` in the table, never
//! zero.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arms::ArmResult;
use crate::facts::Quiet;
use crate::pairs::PairSummary;

/// Which figure of a case its ratio compares with the control.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compares {
    /// Tasks per second over the control's datagrams per second: more is better.
    TasksPerS,
    /// Median latency over the control's, both in microseconds: less is better.
    P50Us,
    /// 99th percentile of the latency over the control's, both in microseconds: less is better.
    P99Us,
}

/// What a task cost the worker that ran it, and how it travelled.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WorkerCost {
    /// Nanoseconds of the worker's thread for a task; turns in which nothing happened are not in it.
    pub cpu_ns_per_task: f64,
    /// System calls of the worker's thread for a task.
    pub system_calls_per_task: f64,
    /// Tasks for each datagram that the worker sent.
    pub tasks_per_datagram: f64,
    /// Mean length of those datagrams, in bytes of UDP payload.
    pub datagram_len: f64,
}

impl WorkerCost {
    /// From the worker's counters before and after; nothing if it ran no task in between.
    #[must_use]
    pub fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let count = |name: &str| -> Option<f64> {
            let earlier = before.get(name).copied().unwrap_or(0);
            Some(after.get(name)?.saturating_sub(earlier) as f64)
        };
        let (tasks, datagrams) = (count("tasks_run")?, count("datagrams_sent")?);
        (tasks > 0.0 && datagrams > 0.0).then_some(())?;
        Some(WorkerCost {
            cpu_ns_per_task: count("busy_ns")? / tasks,
            system_calls_per_task: count("system_calls")? / tasks,
            tasks_per_datagram: tasks / datagrams,
            datagram_len: count("bytes_sent")? / datagrams,
        })
    }
}

/// One measured case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Name of the case, with its parameters.
    pub case: String,
    /// Tasks completed per second.
    pub tasks_per_s: Option<f64>,
    /// Median latency of a task, in microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile of the same.
    pub p99_us: Option<f64>,
    /// The control's figure, in the unit `compares` names.
    pub control: Option<f64>,
    /// What the control is.
    pub control_name: String,
    /// Which figure is compared.
    pub compares: Compares,
    /// The case's figure divided by the control's.
    pub ratio: Option<f64>,
    /// Lower end of the ratio's 95 % interval, where pairs were run.
    pub ratio_low: Option<f64>,
    /// Upper end of the ratio's 95 % interval, where pairs were run.
    pub ratio_high: Option<f64>,
    /// How it was measured, such as `closed loop, window 512, 7 interleaved pairs`.
    pub method: String,
    /// Whether the machine was busy with something else, and with what.
    pub quiet: Option<Quiet>,
    /// What a task cost its worker, where that was counted.
    pub worker: Option<WorkerCost>,
    /// What a reader must know.
    pub note: Option<String>,
}

impl CaseReport {
    /// A case without a control, such as the control itself.
    #[must_use]
    pub fn of_arm(arm: &ArmResult, method: impl Into<String>) -> Self {
        Self {
            case: arm.name.clone(),
            tasks_per_s: Some(arm.per_s),
            p50_us: Some(arm.p50_us),
            p99_us: Some(arm.p99_us),
            control: None,
            control_name: String::from("none: this is a control"),
            compares: Compares::TasksPerS,
            ratio: None,
            ratio_low: None,
            ratio_high: None,
            method: method.into(),
            quiet: None,
            worker: None,
            note: arm.details.note.clone(),
        }
    }

    /// A case compared over interleaved pairs: figure, control and ratio come from the summary's
    /// medians.
    #[must_use]
    pub fn of_pairs(
        case: impl Into<String>,
        compares: Compares,
        control_name: impl Into<String>,
        summary: &PairSummary,
        method: impl Into<String>,
    ) -> Self {
        let figure = Some(summary.subject_median());
        Self {
            case: case.into(),
            tasks_per_s: figure.filter(|_| compares == Compares::TasksPerS),
            p50_us: figure.filter(|_| compares == Compares::P50Us),
            p99_us: figure.filter(|_| compares == Compares::P99Us),
            control: Some(summary.control_median()),
            control_name: control_name.into(),
            compares,
            ratio: Some(summary.ratio_median),
            ratio_low: Some(summary.ratio_low),
            ratio_high: Some(summary.ratio_high),
            method: method.into(),
            quiet: None,
            worker: None,
            note: None,
        }
    }
}

/// The cases as a table of fixed columns, ending with a newline; notes and disturbances follow it.
#[must_use]
pub fn table(cases: &[CaseReport]) -> String {
    let head = [
        "CASE",
        "TASKS/S",
        "P50 US",
        "P99 US",
        "CONTROL",
        "RATIO",
        "95 % INTERVAL",
    ];
    let rows: Vec<Vec<String>> = cases.iter().map(row).collect();
    let mut out = columns(&head, &rows);
    for case in cases {
        for line in remarks(case) {
            out.push_str(&format!("{}: {line}\n", case.case));
        }
    }
    out
}

/// Rows under a head, the first column to the left and the others to the right; each line ends with
/// a newline.
pub(crate) fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn row(case: &CaseReport) -> Vec<String> {
    let control = |figure| match case.compares {
        Compares::TasksPerS => grouped(figure),
        Compares::P50Us | Compares::P99Us => format!("{figure:.1} us"),
    };
    let interval = case.ratio_low.zip(case.ratio_high).map_or_else(
        || String::from("-"),
        |(low, high)| format!("{low:.2} to {high:.2}"),
    );
    vec![
        case.case.clone(),
        case.tasks_per_s.map_or_else(|| String::from("-"), grouped),
        case.p50_us
            .map_or_else(|| String::from("-"), |us| format!("{us:.1}")),
        case.p99_us
            .map_or_else(|| String::from("-"), |us| format!("{us:.1}")),
        case.control.map_or_else(|| String::from("-"), control),
        case.ratio
            .map_or_else(|| String::from("-"), |ratio| format!("{ratio:.2}")),
        interval,
    ]
}

fn remarks(case: &CaseReport) -> Vec<String> {
    let mut lines = vec![format!("{}; control: {}", case.method, case.control_name)];
    if let Some(quiet) = case.quiet.as_ref().filter(|quiet| quiet.disturbed) {
        lines.push(format!(
            "disturbed, repeat it: {}",
            quiet.reasons.join(", ")
        ));
    }
    if let Some(worker) = &case.worker {
        lines.push(format!(
            "a task cost the worker {:.0} CPU-ns and {:.3} system calls; {:.1} tasks a datagram of \
             {:.0} bytes",
            worker.cpu_ns_per_task,
            worker.system_calls_per_task,
            worker.tasks_per_datagram,
            worker.datagram_len,
        ));
    }
    lines.extend(case.note.clone());
    lines
}

/// A rate as a whole number in groups of three digits.
pub(crate) fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len() - index;
        if index > 0 && left.is_multiple_of(3) && digit.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> PairSummary {
        PairSummary {
            ratio_median: 6.5,
            ratio_low: 6.1,
            ratio_high: 6.9,
            a: vec![1_300_000.0, 1_310_000.0, 1_290_000.0],
            b: vec![200_000.0, 201_000.0, 199_000.0],
        }
    }

    #[test]
    fn the_json_object_has_the_agreed_fields() {
        let case = CaseReport::of_pairs(
            "tasks 64 B",
            Compares::TasksPerS,
            "gso_echo",
            &summary(),
            "5 interleaved pairs",
        );
        let object = serde_json::to_value(&case).expect("a case is plain data");
        assert_eq!(object["case"], "tasks 64 B");
        assert_eq!(object["tasks_per_s"], 1_300_000.0);
        assert_eq!(object["control"], 200_000.0);
        assert_eq!(object["ratio"], 6.5);
        assert_eq!(object["compares"], "tasks_per_s");
        assert!(object["p50_us"].is_null() && object["p99_us"].is_null());
    }

    #[test]
    fn the_table_lines_up_and_tells_what_disturbed_a_run() {
        let mut case = CaseReport::of_pairs(
            "tasks 64 B",
            Compares::TasksPerS,
            "gso_echo",
            &summary(),
            "5 pairs",
        );
        case.quiet = Some(Quiet {
            wall_ms: 10,
            steal_share: Some(0.2),
            foreign_share: None,
            involuntary_switches: 0,
            disturbed: true,
            reasons: vec![String::from("steal time 20.0 % of the cores")],
        });
        let latency =
            CaseReport::of_pairs("latency", Compares::P50Us, "raw", &summary(), "5 pairs");
        let text = table(&[case, latency]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("CASE        "), "{text}");
        assert!(
            lines[1].contains("1,300,000") && lines[1].contains("6.10 to 6.90"),
            "{text}"
        );
        assert!(lines[2].contains("200000.0 us"), "{text}");
        assert!(
            text.contains("tasks 64 B: disturbed, repeat it: steal time 20.0 %"),
            "{text}"
        );
    }

    #[test]
    fn rates_are_grouped() {
        let table = [
            (0.4, "0"),
            (999.0, "999"),
            (1000.0, "1,000"),
            (1_234_567.8, "1,234,568"),
        ];
        for (figure, text) in table {
            assert_eq!(grouped(figure), text);
        }
    }
}
