//! The families of a node.

use std::time::Duration;

use ramjet_proto::fault::DropReason;

use super::agents;
use super::page::{Labels, Page, float, seconds, truth};
use crate::control::ControlHandle;
use crate::worker::counters::Counters;

/// How long the control thread is waited for; then the page is made without what it knows.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a worker's counter is shown, where its label does not say it in Prometheus' terms.
enum Shown {
    /// Under this name, since the unit comes last.
    As(&'static str),
    /// What is now, under its own name.
    Level,
    /// Nanoseconds, as seconds under this name.
    Seconds(&'static str),
}

const SHOWN: [(&str, Shown); 8] = [
    ("bytes_received", Shown::As("received_bytes_total")),
    ("bytes_sent", Shown::As("sent_bytes_total")),
    (
        "stream_bytes_received",
        Shown::As("stream_received_bytes_total"),
    ),
    ("stream_bytes_sent", Shown::As("stream_sent_bytes_total")),
    ("busy_ns", Shown::Seconds("busy_seconds_total")),
    ("receive_buffers", Shown::Level),
    ("send_trains", Shown::Level),
    ("huge_page_bytes", Shown::Level),
];

/// Writes what is known of the node behind `control`.
pub(crate) fn write(control: &ControlHandle, page: &mut Page) {
    let workers = control.worker_counters();
    let workers: Vec<&Counters> = workers.iter().map(|counters| &**counters).collect();
    let answered = write_control(control, page);
    write_workers(&workers, page);
    write_drops(&workers, page);
    if answered {
        write_latencies(control, page);
    }
}

/// Whether control answered.
fn write_control(control: &ControlHandle, page: &mut Page) -> bool {
    let failed = truth(control.failure().is_some());
    page.gauge(
        "ramjet_node_failed",
        "1 if a thread of the node ended and it must be restarted.",
        failed,
    );
    let vitals = control.vitals(PATIENCE).ok();
    page.gauge(
        "ramjet_node_control_up",
        "1 if the control thread answered this scrape within a second.",
        truth(vitals.is_some()),
    );
    let Some(vitals) = vitals else {
        return false;
    };
    for (name, help, fact) in [
        (
            "ramjet_node_registered",
            "1 once the registry has numbered the node and its workers run.",
            vitals.registered,
        ),
        (
            "ramjet_node_registry_reached",
            "1 while the registry is reached.",
            vitals.registry_reached,
        ),
        (
            "ramjet_node_task_ready",
            "1 while the node wants tasks.",
            vitals.task_ready,
        ),
    ] {
        page.gauge(name, help, truth(fact));
    }
    if let Some(polo) = vitals.polo {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a sample is a floating-point number"
        )]
        let polo = polo as f64;
        page.gauge("ramjet_node_polo", "Polo of the node, as last heard.", polo);
    }
    page.gauge(
        "ramjet_node_spooled_receipts",
        "Receipts that wait to be settled by the registry.",
        float(vitals.spooled as u64),
    );
    page.gauges(
        "ramjet_node_engagements",
        "Running engagements, by the side that the node has in them.",
        [
            (
                &[("side", "requester")] as Labels<'_>,
                float(vitals.requesting as u64),
            ),
            (&[("side", "worker")], float(vitals.serving as u64)),
        ],
    );
    agents::write(&vitals.agents, page);
    let events: Vec<_> = vitals
        .events
        .iter()
        .map(|(event, count)| ([("event", *event)], float(*count)))
        .collect();
    page.counters(
        "ramjet_control_events_total",
        "Events on the control thread, by name; one that never occurred has no series.",
        events.iter().map(|(labels, count)| (&labels[..], *count)),
    );
    true
}

fn write_workers(workers: &[&Counters], page: &mut Page) {
    if workers.is_empty() {
        return;
    }
    let indices: Vec<String> = (0..workers.len()).map(|index| index.to_string()).collect();
    let labels: Vec<_> = indices
        .iter()
        .map(|index| [("worker", index.as_str())])
        .collect();
    for (counter, label, help) in Counters::named() {
        let series = |unit: fn(u64) -> f64| {
            let values = workers.iter().map(|worker| unit(worker.read(counter)));
            let series = labels.iter().map(|labels| &labels[..]).zip(values);
            series.collect::<Vec<_>>()
        };
        let shown = SHOWN.iter().find(|(known, _)| *known == label);
        let name = match shown {
            None => format!("ramjet_worker_{label}_total"),
            Some((_, Shown::Level)) => format!("ramjet_worker_{label}"),
            Some((_, Shown::As(name) | Shown::Seconds(name))) => format!("ramjet_worker_{name}"),
        };
        match shown {
            Some((_, Shown::Level)) => page.gauges(&name, help, series(float)),
            Some((_, Shown::Seconds(_))) => {
                page.counters(
                    &name,
                    &help.replace("Nanoseconds", "Seconds"),
                    series(seconds),
                );
            }
            _ => page.counters(&name, help, series(float)),
        }
    }
}

/// All reasons, over all workers: which reason says what is wrong, hardly ever which worker.
fn write_drops(workers: &[&Counters], page: &mut Page) {
    let series: Vec<_> = DropReason::ALL
        .iter()
        .map(|reason| {
            let dropped = workers
                .iter()
                .map(|counters| counters.dropped(*reason))
                .sum();
            ([("reason", reason.label())], float(dropped))
        })
        .collect();
    page.counters(
        "ramjet_dropped_total",
        "Datagrams, frames and sends that were dropped, by reason.",
        series.iter().map(|(labels, count)| (&labels[..], *count)),
    );
}

fn write_latencies(control: &ControlHandle, page: &mut Page) {
    // The workers have them anyway, for `ramjet status`: a scrape adds nothing to a task.
    let Ok(all) = control.latencies(PATIENCE) else {
        return;
    };
    page.times(
        "ramjet_task_stage_seconds",
        "Time that tasks spent at this worker: queue until they ran, handler while they ran.",
        [
            (&[("stage", "queue")] as Labels<'_>, all.staged),
            (&[("stage", "handler")], all.handler),
        ],
    );
    page.times(
        "ramjet_task_round_trip_seconds",
        "As requester: from the first send of a task until its answer.",
        [(&[] as Labels<'_>, all.round_trip)],
    );
}
