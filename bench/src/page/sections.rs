//! The parts of a page.

use super::markup::{dash, escape, facts, latency_or_dash, paragraph, table};
use super::{Curve, bars, plots};
use crate::facts::{MachineFacts, Quiet};
use crate::ladder::{Ladder, Rung};
use crate::report::{CaseReport, Compares, grouped};
use crate::soak::{SoakInterval, SoakReport, mebibytes};

/// Latency at stated rates.
pub(super) fn ladder(ladder: &Ladder) -> String {
    let mut out = String::from("<h2>Over the offered load</h2>\n");
    out.push_str(&paragraph("quiet", &ladder.method));
    if let Some(capacity) = ladder.capacity_per_s {
        let trials: Vec<String> = ladder
            .capacity_trials
            .iter()
            .map(|trial| {
                format!(
                    "{}/s with window {}",
                    grouped(trial.tasks_per_s),
                    trial.window
                )
            })
            .collect();
        let found = if trials.is_empty() {
            String::from("as stated")
        } else {
            format!("closed loop: {}", trials.join(", "))
        };
        let words = format!("Capacity: {} tasks/s ({found})", grouped(capacity));
        out.push_str(&paragraph("", &words));
    }
    for rung in ladder.all().filter(|rung| !rung.is_valid()) {
        let mark = if rung.forced {
            "shown by force"
        } else {
            "not shown"
        };
        let why = rung.invalid.join("; ");
        let words = format!(
            "{}: does not count, {mark}, {} runs: {why}",
            rung.name, rung.attempts
        );
        out.push_str(&paragraph("bad", &words));
    }
    out.push_str(&plots::load(ladder).unwrap_or_default());
    out.push_str(&table(
        &RUNG_HEAD,
        &ladder.all().map(rung_row).collect::<Vec<_>>(),
    ));
    if let Some(plot) = plots::rungs(ladder) {
        out.push_str("<h3>By percentile</h3>\n");
        out.push_str(&plot);
    }
    out.push_str(&stages(ladder.all()));
    out
}

const RUNG_HEAD: [&str; 14] = [
    "load",
    "offered/s",
    "achieved/s",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "p99.99",
    "max",
    "p99 / unloaded p50",
    "lag p99",
    "stalled",
    "lost",
    "late",
];

fn rung_row(rung: &Rung) -> Vec<String> {
    let told = rung.latencies.as_ref();
    let mark = if rung.is_valid() { "" } else { " *" };
    vec![
        format!("{}{mark}", rung.name),
        rung.offered_per_s.map_or_else(dash, grouped),
        rung.achieved_per_s.map_or_else(dash, grouped),
        latency_or_dash(told.and_then(|told| told.p50_us)),
        latency_or_dash(told.and_then(|told| told.p90_us)),
        latency_or_dash(told.and_then(|told| told.p99_us)),
        latency_or_dash(told.and_then(|told| told.p999_us)),
        latency_or_dash(told.and_then(|told| told.p9999_us)),
        latency_or_dash(told.map(|told| told.max_us)),
        rung.p99_over_unloaded
            .map_or_else(dash, |ratio| format!("{ratio:.2}")),
        latency_or_dash(rung.generator_lag_p99_us),
        rung.stalled_share
            .map_or_else(dash, |share| format!("{:.2} %", share * 100.0)),
        grouped(rung.counts.lost as f64),
        grouped(rung.counts.late as f64),
    ]
}

/// A row for each load, a column for each stage.
fn stages<'rung>(rungs: impl Iterator<Item = &'rung Rung>) -> String {
    let staged: Vec<&Rung> = rungs.filter(|rung| !rung.stages.is_empty()).collect();
    let mut names: Vec<&str> = Vec::new();
    for stage in staged.iter().flat_map(|rung| &rung.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    // A closed loop has no first stage; the order is that of the others.
    names.sort_by_key(|name| *name != "send");
    if staged.is_empty() {
        return String::new();
    }
    let row = |rung: &&Rung| -> Vec<String> {
        let cell = |name: &&str| {
            let stage = rung.stages.iter().find(|stage| stage.name == *name);
            stage.map_or_else(dash, |stage| {
                let told = &stage.latencies;
                format!(
                    "{} / {} / {}",
                    latency_or_dash(told.p50_us),
                    latency_or_dash(told.p99_us),
                    super::markup::latency(told.max_us)
                )
            })
        };
        [vec![rung.name.clone()], names.iter().map(cell).collect()].concat()
    };
    let words = "p50 / p99 / max of each stage, over one task in seven. Send: from the intended \
                 moment to the send, at the requester. Worker queue: from arrival to the start of the \
                 handler, told by the worker with each result, as is the handler's time. Network \
                 and reply: what is left of the task's latency. Each is a distribution of its own; \
                 their percentiles do not add up.";
    let head: Vec<&str> = std::iter::once("load")
        .chain(names.iter().copied())
        .collect();
    let rows: Vec<Vec<String>> = staged.iter().map(row).collect();
    format!(
        "<h3>By stage</h3>\n{}{}",
        paragraph("quiet", words),
        table(&head, &rows)
    )
}

/// A rate for a long time.
pub(super) fn soak(soak: &SoakReport) -> String {
    let mut out = String::from("<h2>Over time</h2>\n");
    out.push_str(&paragraph("quiet", &soak.method));
    let class = if soak.is_ok() { "" } else { "bad" };
    out.push_str(&paragraph(class, &format!("Verdict: {}", soak.verdict())));
    for remark in &soak.remarks {
        out.push_str(&paragraph("quiet", remark));
    }
    out.push_str(&plots::soak_latency(soak).unwrap_or_default());
    out.push_str(&plots::soak_memory(soak).unwrap_or_default());
    let head = ["first third against last", "first", "last", "bound"];
    let mut rows = Vec::new();
    let mut add = |name: &str, drift: Option<crate::soak::Drift>, tell: &dyn Fn(f64) -> String| {
        if let Some(drift) = drift {
            let cells = [drift.first, drift.last, drift.bound].map(tell);
            rows.push([vec![name.to_owned()], cells.to_vec()].concat());
        }
    };
    add("p99", soak.p99, &super::markup::latency);
    add("resident memory", soak.resident, &mebibytes);
    add("open descriptors", soak.descriptors, &|count| {
        format!("{count:.0}")
    });
    if !rows.is_empty() {
        out.push_str(&table(&head, &rows));
    }
    out.push_str("<h3>Whole run</h3>\n");
    out.push_str(&table(&RUNG_HEAD, &[rung_row(&soak.run)]));
    let counts = soak.run.counts;
    let mut totals = vec![
        ("tasks due".to_owned(), counts.due),
        ("sent".to_owned(), counts.sent),
        ("held back".to_owned(), counts.held_back),
        ("repeated".to_owned(), soak.repeated),
    ];
    totals.extend(
        soak.drops
            .iter()
            .map(|(reason, count)| (reason.clone(), *count)),
    );
    let rows: Vec<Vec<String>> = totals
        .into_iter()
        .map(|(name, count)| vec![name, grouped(count as f64)])
        .collect();
    out.push_str(&table(&["count", "tasks or frames"], &rows));
    out.push_str(&stages(std::iter::once(&soak.run)));
    out.push_str("<h3>Intervals</h3>\n");
    let head = [
        "from s",
        "tasks/s",
        "p50",
        "p99",
        "max",
        "memory",
        "descriptors",
        "",
    ];
    let rows: Vec<Vec<String>> = soak.intervals.iter().map(interval_row).collect();
    out.push_str(&table(&head, &rows));
    out
}

fn interval_row(interval: &SoakInterval) -> Vec<String> {
    vec![
        format!("{:.0}", interval.start_s),
        grouped(interval.answered as f64 / interval.seconds.max(1e-9)),
        latency_or_dash(interval.p50_us),
        latency_or_dash(interval.p99_us),
        latency_or_dash(interval.max_us),
        interval
            .resident_bytes
            .map_or_else(dash, |bytes| mebibytes(bytes as f64)),
        interval
            .descriptors
            .map_or_else(dash, |count| count.to_string()),
        if interval.disturbed {
            "disturbed".to_owned()
        } else {
            String::new()
        },
    ]
}

/// Cases beside their controls.
pub(super) fn cases(cases: &[CaseReport], curves: &[Curve]) -> String {
    let mut out = String::new();
    for (compares, words) in [
        (Compares::TasksPerS, "Tasks per second"),
        (Compares::P50Us, "Median latency"),
        (Compares::P99Us, "99th percentile of the latency"),
    ] {
        let of_kind: Vec<&CaseReport> = cases
            .iter()
            .filter(|case| case.compares == compares)
            .collect();
        if of_kind.is_empty() {
            continue;
        }
        out.push_str(&format!("<h2>{words}</h2>\n"));
        out.push_str(&bars::bars(cases, compares).unwrap_or_default());
        let head = [
            "case",
            "tasks/s",
            "p50",
            "p99",
            "control",
            "ratio",
            "95 % interval",
        ];
        let rows: Vec<Vec<String>> = of_kind.iter().map(|case| case_row(case)).collect();
        out.push_str(&table(&head, &rows));
        for case in of_kind {
            out.push_str(&case_words(case));
        }
    }
    if let Some(plot) = plots::curves(curves) {
        out.push_str("<h3>By percentile</h3>\n");
        out.push_str(&plot);
    }
    out
}

fn case_row(case: &CaseReport) -> Vec<String> {
    let control = |figure| match case.compares {
        Compares::TasksPerS => grouped(figure),
        Compares::P50Us | Compares::P99Us => super::markup::latency(figure),
    };
    let interval = case.ratio_low.zip(case.ratio_high);
    vec![
        case.case.clone(),
        case.tasks_per_s.map_or_else(dash, grouped),
        latency_or_dash(case.p50_us),
        latency_or_dash(case.p99_us),
        case.control.map_or_else(dash, control),
        case.ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
        interval.map_or_else(dash, |(low, high)| format!("{low:.2} to {high:.2}")),
    ]
}

fn case_words(case: &CaseReport) -> String {
    let control = case
        .control
        .map_or_else(String::new, |_| format!("; control: {}", case.control_name));
    let mut out = format!(
        "<p class=\"quiet\"><b>{}</b>: {}{}</p>\n",
        escape(&case.case),
        escape(&case.method),
        escape(&control)
    );
    if let Some(note) = &case.note {
        out.push_str(&paragraph("quiet", note));
    }
    if let Some(quiet) = case.quiet.as_ref().filter(|quiet| quiet.disturbed) {
        let words = format!("{}: disturbed: {}", case.case, quiet.reasons.join(", "));
        out.push_str(&paragraph("bad", &words));
    }
    out
}

/// On what it was measured.
pub(super) fn machine(machine: &MachineFacts, quiet: Option<&Quiet>) -> String {
    let place = if machine.virtual_machine {
        "virtual machine"
    } else {
        "bare metal"
    };
    let or_none = |list: &[String]| match list {
        [] => String::from("none"),
        list => list.join("; "),
    };
    let mut rows = vec![
        ("processor", machine.cpu_model.clone()),
        (
            "cores",
            format!(
                "{} of {} allowed, {place}",
                machine.cores_allowed, machine.cores
            ),
        ),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("mitigations", or_none(&machine.mitigations)),
        ("clock", machine.clock_source.clone().unwrap_or_else(dash)),
        (
            "frequency governor",
            machine
                .governor
                .clone()
                .unwrap_or_else(|| String::from("not told by the kernel")),
        ),
    ];
    if let Some(quiet) = quiet {
        let share = |share: Option<f64>| {
            share.map_or_else(
                || String::from("not told"),
                |share| format!("{:.2} %", share * 100.0),
            )
        };
        rows.push(("steal time", share(quiet.steal_share)));
        rows.push(("other processes", share(quiet.foreign_share)));
        rows.push((
            "involuntary switches",
            grouped(quiet.involuntary_switches as f64),
        ));
        rows.push((
            "time of all runs",
            format!("{:.1} s", quiet.wall_ms as f64 / 1e3),
        ));
    }
    format!("<h2>Machine</h2>\n{}", facts(&rows))
}
