//! What happened, by name: one closed list of counters shared by metrics, logs and tests.
//!
//! Two laws hold whenever nothing is in flight. Every message has one end: `messages_received` is
//! the sum of `requests_answered`, `requests_refused` and the message faults. Every datagram too:
//! `beacon_received` is the sum of `beacon_answered` and the beacon faults.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;

use ramjet_proto::labelled_enum;

labelled_enum! {
    /// What is counted.
    Count {
        // Connections.
        /// Accepted connections.
        ConnectionsOpened => "connections_opened",
        /// Ended connections, whatever the reason.
        ConnectionsClosed => "connections_closed",
        /// Connections refused at the cap.
        ConnectionsRefused => "connections_refused",
        /// Messages that were read late because their connection is over its rate.
        MessagesPaced => "messages_paced",
        /// Connections closed after the read deadline.
        ReadTimeout => "read_timeout",
        /// Connections closed because a write did not finish in time.
        WriteTimeout => "write_timeout",
        /// Connections closed because too much waited to be written.
        OutgoingFull => "outgoing_full",
        /// Connections closed because of too many faults.
        TooManyFaults => "too_many_faults",
        // Frames that end the connection, because what follows cannot be told apart.
        /// The connection began as HTTP.
        FrameHttp => "frame_http",
        /// The connection began as TLS.
        FrameTls => "frame_tls",
        /// The connection began in Pilot's binary mode.
        FrameBinaryMode => "frame_binary_mode",
        /// A length above the limit.
        FrameTooLong => "frame_too_long",
        /// A length of zero.
        FrameEmpty => "frame_empty",
        /// The connection ended inside a frame.
        FrameTruncated => "frame_truncated",
        // Messages.
        /// Whole frames received.
        MessagesReceived => "messages_received",
        /// Not UTF-8.
        MessageNotUtf8 => "message_not_utf8",
        /// Not JSON, or nested too deep.
        MessageNotJson => "message_not_json",
        /// JSON, but no object with a text member `type`.
        MessageNoType => "message_no_type",
        /// A type that this registry does not know.
        MessageUnknownType => "message_unknown_type",
        /// A known type with fields of the wrong kind.
        MessageMalformed => "message_malformed",
        /// Requests that were answered.
        RequestsAnswered => "requests_answered",
        /// Requests that were understood and refused.
        RequestsRefused => "requests_refused",
        // Refusals by reason; their sum is requests_refused.
        /// A field out of its range.
        RefusedInvalid => "refused_invalid",
        /// The connection has not proven the node.
        RefusedNotProven => "refused_not_proven",
        /// A signature is missing or does not verify.
        RefusedSignature => "refused_signature",
        /// No such node, name, offer or engagement.
        RefusedNotFound => "refused_not_found",
        /// The polo gate.
        RefusedGate => "refused_gate",
        /// Somebody else was first.
        RefusedTaken => "refused_taken",
        /// Older than what is on file.
        RefusedStale => "refused_stale",
        /// A receipt contradicts an earlier one or the grant.
        RefusedContradiction => "refused_contradiction",
        /// A limit is reached.
        RefusedLimited => "refused_limited",
        /// The log could not be written.
        RefusedUnavailable => "refused_unavailable",
        /// Private: the two nodes are not in trust.
        RefusedPrivate => "refused_private",
        /// Unsigned polo messages, or a service that this registry does not offer.
        RefusedUnsupported => "refused_unsupported",
        // Market.
        /// Pushes handed to connections.
        PushesSent => "pushes_sent",
        /// Commands in the log.
        CommandsLogged => "commands_logged",
        /// Transactions committed.
        BatchesCommitted => "batches_committed",
        /// Transactions that failed; nothing in them was answered as done.
        BatchesFailed => "batches_failed",
        /// Snapshots taken.
        Snapshots => "snapshots",
        /// Offers opened.
        OffersOpened => "offers_opened",
        /// Offers that nobody accepted in time.
        OffersExpired => "offers_expired",
        /// Offers granted to a worker.
        Grants => "grants",
        /// Receipts settled, repetitions excluded.
        Settlements => "settlements",
        // Beacon.
        /// Datagrams that the beacon received.
        BeaconReceived => "beacon_received",
        /// Datagrams that the beacon acted upon.
        BeaconAnswered => "beacon_answered",
        /// A known type with a wrong length.
        BeaconMalformed => "beacon_malformed",
        /// A type that this beacon does not know.
        BeaconUnknownType => "beacon_unknown_type",
        /// A node that has not discovered itself here lately.
        BeaconUnknownNode => "beacon_unknown_node",
        /// A changed source within the holding time.
        BeaconSourceHeld => "beacon_source_held",
        /// Over a source's rate.
        BeaconLimited => "beacon_limited",
        /// No room in a table.
        BeaconFull => "beacon_full",
        /// The kernel refused to send.
        BeaconSendFailed => "beacon_send_failed",
        /// Nodes told over the beacon that a handshake waits for them; not part of the law.
        BeaconNotices => "beacon_notices",
        // Levels, not sums.
        /// Position of the last command in the log.
        LogPosition => "log_position",
        /// Nodes on file.
        NodesOnFile => "nodes_on_file",
        /// Open offers.
        OffersOpen => "offers_open",
        /// Engagements on file.
        EngagementsOnFile => "engagements_on_file",
        /// Contradictory receipts in all.
        ContradictionsOnFile => "contradictions_on_file",
        // The byte log.
        /// The byte log could not be written.
        ByteLogFailed => "byte_log_failed",
    }
}

/// One counter for each [`Count`]; shared by all threads of a registry.
#[derive(Debug)]
pub struct Counters([AtomicU64; Count::COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Counters([const { AtomicU64::new(0) }; Count::COUNT])
    }
}

impl Counters {
    /// Adds one.
    pub fn add(&self, count: Count) {
        self.add_many(count, 1);
    }

    /// Adds `many`.
    pub fn add_many(&self, count: Count, many: u64) {
        self.0[count as usize].fetch_add(many, Ordering::Relaxed);
    }

    /// Sets a level.
    pub fn set(&self, count: Count, level: u64) {
        self.0[count as usize].store(level, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }

    /// All values by label.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        Count::ALL
            .iter()
            .map(|&count| (count.label(), self.value(count)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_count_apart() {
        let counters = Counters::default();
        for (index, &count) in Count::ALL.iter().enumerate() {
            counters.add_many(count, index as u64);
        }
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.len(), Count::COUNT);
        for (index, count) in Count::ALL.iter().enumerate() {
            assert_eq!(snapshot[count.label()], index as u64);
        }
    }
}
