//! The families of a registry.
//!
//! Its closed list of counters is shown as it is, but for faults and refusals: each kind is one
//! family with the reason as its label.

use ramjet_registry::fault::{Count, Counters};

use super::page::{Page, float};

/// Counters whose label begins so are one family, with what follows as the reason.
const BY_REASON: [(&str, &str, &str); 3] = [
    (
        "refused_",
        "ramjet_registry_refused_total",
        "Requests that were understood and refused, by reason.",
    ),
    (
        "frame_",
        "ramjet_registry_frame_faults_total",
        "Connections ended because what follows could not be told apart, by reason.",
    ),
    (
        "message_",
        "ramjet_registry_message_faults_total",
        "Messages that were no request, by reason.",
    ),
];

/// What ends a connection, beside faults of its frames.
const CLOSED: [Count; 4] = [
    Count::ReadTimeout,
    Count::WriteTimeout,
    Count::OutgoingFull,
    Count::TooManyFaults,
];

/// Why the beacon did not act on a datagram.
const BEACON_FAULTS: [Count; 7] = [
    Count::BeaconMalformed,
    Count::BeaconUnknownType,
    Count::BeaconUnknownNode,
    Count::BeaconSourceHeld,
    Count::BeaconLimited,
    Count::BeaconFull,
    Count::BeaconSendFailed,
];

const LEVELS: [Count; 5] = [
    Count::LogPosition,
    Count::NodesOnFile,
    Count::OffersOpen,
    Count::EngagementsOnFile,
    Count::ContradictionsOnFile,
];

/// Writes what a registry counts.
pub(crate) fn write(counters: &Counters, page: &mut Page) {
    let mut by_reason = |name: &str, help: &str, reasons: Vec<(&'static str, Count)>| {
        let series: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| ([("reason", *reason)], float(counters.value(*count))))
            .collect();
        page.counters(
            name,
            help,
            series.iter().map(|(labels, count)| (&labels[..], *count)),
        );
    };
    for (prefix, name, help) in BY_REASON {
        let reasons = Count::ALL
            .iter()
            .filter_map(|count| Some((count.label().strip_prefix(prefix)?, *count)));
        by_reason(name, help, reasons.collect());
    }
    let labelled = |counts: &[Count], prefix: &str| {
        let label = |count: &Count| count.label().strip_prefix(prefix).unwrap_or(count.label());
        counts.iter().map(|count| (label(count), *count)).collect()
    };
    by_reason(
        "ramjet_registry_connections_ended_total",
        "Connections that the registry ended, by reason, beside faults of their frames.",
        labelled(&CLOSED, ""),
    );
    by_reason(
        "ramjet_registry_beacon_faults_total",
        "Datagrams on which the beacon did not act, by reason.",
        labelled(&BEACON_FAULTS, "beacon_"),
    );
    for count in Count::ALL {
        let (label, help) = (count.label(), count.help());
        let told = BY_REASON
            .iter()
            .any(|(prefix, ..)| label.starts_with(prefix))
            || CLOSED.contains(count)
            || BEACON_FAULTS.contains(count);
        let value = float(counters.value(*count));
        if LEVELS.contains(count) {
            page.gauge(&format!("ramjet_registry_{label}"), help, value);
        } else if !told {
            page.counter(&format!("ramjet_registry_{label}_total"), help, value);
        }
    }
}
