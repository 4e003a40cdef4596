//! The tables of engagements on both sides, and the pure rules over their rows.
//!
//! A requester's row is keyed by its offer, which it draws itself, and lives from the offer until
//! its channel has closed. A worker's row is keyed by the engagement and lives from the grant until
//! its channel has closed. What still has to be settled afterwards lives in the spool, not here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::ids::{ChannelId, EngagementId, NodeId};
use ramjet_proto::market::message::{Diagnosis, Settlement};
use ramjet_proto::market::{AcceptFrom, Gate, Grant, Offer};
use ramjet_proto::time::Time;

use super::handle::{EVENTS_MAX, EventSink};
use super::local_job::Verdicts;
use super::receipts::{RequesterAccount, WorkerAccount};
use super::vocabulary::{ChannelTerms, CloseReason, Totals};
use crate::job::Job;
use crate::node::{EngageEvent, EngageOutcome};

/// Engagements of our own at a time.
pub(crate) const REQUESTING_MAX: usize = 4_096;
/// Accepts that wait for the registry's word.
pub(crate) const ACCEPTING_MAX: usize = 1_024;
/// How much later than its deadline an offer's end may be heard of, until it is asked about.
pub(crate) const OFFER_SLACK: Duration = Duration::from_secs(2);

/// A moment on both clocks: monotonic for waiting, wall for what the registry writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Time,
    pub(crate) unix_ms: u64,
}

impl Moment {
    /// The monotonic moment of a registry's time stamp; this moment if it has passed.
    pub(crate) fn at_unix_ms(&self, unix_ms: u64) -> Time {
        self.now + Duration::from_millis(unix_ms.saturating_sub(self.unix_ms))
    }
}

/// Where a requester's engagement stands.
pub(crate) enum RequestState {
    /// The registry has not confirmed the offer; given up at this moment.
    Offering { until: Time },
    /// Confirmed: workers think about it.
    Offered { until: Time, asked_again: bool },
    /// Granted: the worker thread opens the channel.
    Opening,
    /// Tasks flow.
    Running,
    /// Every task is answered; the last receipt is under way until this moment.
    Accounting { until: Time },
    /// The channel closed early; the last settlement is awaited until this moment.
    Ending { outcome: EngageOutcome, until: Time },
    /// Its caller has been told; the row waits for the channel to close, until this moment.
    Over { until: Time },
}

/// One engagement of our own.
pub(crate) struct Requesting {
    pub(crate) offer: Offer,
    pub(crate) state: RequestState,
    /// When the offer is to be sent (again); never while it is under way.
    pub(crate) ask_at: Time,
    pub(crate) notified: u32,
    pub(crate) diagnosis: Option<Diagnosis>,
    /// The caller does not want it any more.
    pub(crate) cancelled: bool,
    /// Here before the channel opens and after the job is done.
    pub(crate) job: Option<Box<dyn Job>>,
    pub(crate) events: Events,
    pub(crate) verdicts: Option<Arc<Verdicts>>,
    pub(crate) granted: Option<Granted>,
    /// As the worker thread reported them last.
    pub(crate) totals: Totals,
    pub(crate) channel_closed: bool,
    /// The worker thread asked for a receipt that was not made yet.
    pub(crate) receipt_due: bool,
    pub(crate) receipt_at: Time,
    pub(crate) settlement: Option<Settlement>,
    /// Sent once: the close that ends a channel which outlived its grant.
    pub(crate) closing: bool,
}

/// What a grant adds to a requester's row.
pub(crate) struct Granted {
    pub(crate) engagement: EngagementId,
    pub(crate) worker: NodeId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expires_at: Time,
    pub(crate) account: RequesterAccount,
}

impl Requesting {
    /// The totals that count: the client's judgement, where it comes later than the answer.
    pub(crate) fn judged(&self) -> Totals {
        self.verdicts
            .as_ref()
            .map_or(self.totals, |verdicts| verdicts.adjust(self.totals))
    }

    /// Whether the registry stands at receipt `k` or a later one.
    pub(crate) fn is_settled(&self, k: u32) -> bool {
        self.settlement
            .as_ref()
            .is_some_and(|settlement| settlement.k >= k)
    }

    /// Whether tasks flow.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, RequestState::Running)
    }

    /// Whether its caller still waits.
    pub(crate) fn is_live(&self) -> bool {
        !matches!(self.state, RequestState::Over { .. })
    }
}

/// Where a worker's engagement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServeState {
    /// The requester holds the grant; its place is kept until this moment.
    Granted { until: Time },
    /// Admitted on this channel.
    Open { channel: ChannelId },
}

/// One engagement that we serve.
pub(crate) struct Serving {
    pub(crate) grant: Grant,
    pub(crate) bytes: Vec<u8>,
    pub(crate) skill: usize,
    pub(crate) state: ServeState,
    pub(crate) expires_at: Time,
    pub(crate) totals: Totals,
    pub(crate) account: WorkerAccount,
    /// The next settlement before the end is due no sooner.
    pub(crate) settle_at: Time,
    /// When the channel is to be closed if it has not closed itself.
    pub(crate) close_at: Time,
    pub(crate) close_reason: CloseReason,
    pub(crate) closing: bool,
    /// The last receipt that was refused, so that its repetitions are counted but not logged.
    pub(crate) refused_k: Option<u32>,
}

/// An accept that we signed and whose outcome is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepting {
    pub(crate) until: Time,
    /// The connection was lost before the registry answered: if it notifies again, accept again.
    pub(crate) unanswered: bool,
}

/// The terms of a channel under `grant`.
pub(crate) fn terms(
    grant: &Grant,
    skill: usize,
    credits: u32,
    unsigned_max: u64,
    at: Moment,
) -> ChannelTerms {
    ChannelTerms {
        engagement: grant.engagement,
        skill,
        credits,
        tasks: grant.tasks,
        expires_at: at.at_unix_ms(grant.expires_at_ms),
        unsigned_max,
    }
}

/// Whether a worker with this policy serves a requester, as far as the worker can tell: who is
/// trusted is the registry's knowledge, and so is polo that moved since it was last heard of.
pub(crate) fn policy_allows(
    policy: AcceptFrom,
    requester_polo: i64,
    own_polo: Option<i64>,
) -> bool {
    let met = own_polo.is_none_or(|own| requester_polo >= own);
    match policy {
        AcceptFrom::Gate => met,
        AcceptFrom::MinPolo(least) => met || requester_polo >= least,
        AcceptFrom::Trusted | AcceptFrom::Anyone => true,
    }
}

/// Whether the gate as written in a grant holds, and was widened only where the policy says so.
pub(crate) fn gate_holds(grant: &Grant, policy: AcceptFrom) -> bool {
    match grant.gate {
        Gate::Met => grant.requester_polo >= grant.worker_polo,
        Gate::Widened => match policy {
            AcceptFrom::Gate => false,
            AcceptFrom::MinPolo(least) => grant.requester_polo >= least,
            AcceptFrom::Trusted | AcceptFrom::Anyone => true,
        },
    }
}

/// The endpoint of a grant message: text that may name no address.
pub(crate) fn endpoint(text: &str) -> Option<SocketAddr> {
    text.parse()
        .ok()
        .filter(|endpoint: &SocketAddr| endpoint.port() != 0)
}

/// The caller's end of an engagement.
pub(crate) struct Events {
    sink: EventSink,
    /// The greatest `k` whose settlement the caller was told.
    settled_k: u32,
}

impl Events {
    pub(crate) fn new(sink: EventSink) -> Self {
        Events { sink, settled_k: 0 }
    }

    /// Tells the caller. News that a later event repeats are left out while the channel is half
    /// full, which keeps room for every step; a caller that is gone hears nothing.
    pub(crate) fn tell(&mut self, event: EngageEvent) {
        if matches!(event, EngageEvent::Progress(_)) && self.sink.channel.len() >= EVENTS_MAX / 2 {
            return;
        }
        if let Err(crossbeam::channel::TrySendError::Full(event)) =
            self.sink.channel.try_send(event)
        {
            tracing::error!(?event, "an event found no room: a step was told twice");
        }
        if let Some(wake) = &self.sink.wake {
            wake.notify_one();
        }
    }

    /// Tells a settlement once; one that is not the last may be left out.
    pub(crate) fn tell_settled(&mut self, settlement: &Settlement, last: bool) {
        let full = self.sink.channel.len() >= EVENTS_MAX / 2;
        if settlement.k > self.settled_k && (last || !full) {
            self.settled_k = settlement.k;
            self.tell(EngageEvent::Settled(settlement.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_widened_only_where_the_skill_says_so() {
        let rows = [
            (AcceptFrom::Gate, 5, Some(5), true),
            (AcceptFrom::Gate, 4, Some(5), false),
            (AcceptFrom::Gate, 4, None, true),
            (AcceptFrom::MinPolo(3), 3, Some(5), true),
            (AcceptFrom::MinPolo(3), 2, Some(5), false),
            (AcceptFrom::Anyone, -9, Some(5), true),
        ];
        for (policy, requester, own, allowed) in rows {
            assert_eq!(
                policy_allows(policy, requester, own),
                allowed,
                "{policy} {requester}"
            );
        }
    }

    #[test]
    fn an_endpoint_that_nobody_can_be_reached_at_is_none() {
        let address = "127.0.0.1:4000".parse().expect("an address");
        assert_eq!(endpoint("127.0.0.1:4000"), Some(address));
        assert_eq!(endpoint("127.0.0.1:0"), None);
        assert_eq!(endpoint("somewhere"), None);
    }

    #[test]
    fn progress_never_takes_the_room_of_the_last_event() {
        let (channel, receiver) = crossbeam::channel::bounded(EVENTS_MAX);
        let mut events = Events::new(EventSink {
            channel,
            wake: None,
        });
        for _ in 0..10 * EVENTS_MAX {
            events.tell(EngageEvent::Progress(Totals::default()));
        }
        events.tell(EngageEvent::Opened);
        let seen: Vec<_> = receiver.try_iter().collect();
        assert_eq!(seen.len(), EVENTS_MAX / 2 + 1);
        assert!(matches!(seen.last(), Some(EngageEvent::Opened)));
    }
}
