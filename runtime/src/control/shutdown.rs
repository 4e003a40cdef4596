//! The end of a node, in phases that are each bounded in time.
//!
//! 1. Work: no new engagement on either side; what runs may finish.
//! 2. Settle: what still runs is closed; the last receipts and releases go to the registry.
//! 3. Stop: every caller gets its `Ended`, the workers are told to stop.
//!
//! What could not be settled stays in the spool and is settled after the next start.

use std::collections::BTreeSet;
use std::time::Duration;

use ramjet_proto::ids::{EngagementId, OfferId};
use ramjet_proto::time::Time;

use super::engagements::{Moment, RequestState, ServeState};
use super::handle::Respond;
use super::plane::Plane;
use super::serving::is_signed;
use super::vocabulary::{CloseReason, Command};
use crate::node::{EngageOutcome, NodeError};
use crate::worker::owner_of;

/// Workers report how an engagement stands every 200 ms while it moves; whoever has been quiet for
/// longer than this has said its last word.
const QUIET: Duration = Duration::from_millis(300);

/// How long a closed channel may take to say that it has closed: some round trips. A peer that is
/// gone never does.
const CLOSING: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Work,
    Settle,
}

/// A shutdown under way.
pub(crate) struct Drain {
    respond: Option<Respond<()>>,
    phase: Phase,
    until: Time,
    /// Before this, what the workers have made, or that they have closed, may not have been
    /// reported yet.
    quiet_at: Time,
    /// Workers in which something may still run.
    busy: BTreeSet<usize>,
}

impl Plane {
    /// Begins the end.
    pub(crate) fn shut_down(&mut self, respond: Respond<()>, at: Moment) {
        if self.drain.is_some() {
            respond(Err(NodeError(
                "the node is shutting down already".to_owned(),
            )));
            return;
        }
        let running = self.node.0 != 0;
        self.drain = Some(Drain {
            respond: Some(respond),
            phase: Phase::Work,
            until: at.now + self.config.timings.drain,
            quiet_at: at.now + QUIET,
            busy: (0..self.config.workers)
                .filter(|worker| running && !self.ended.contains(worker))
                .collect(),
        });
        self.advertiser.hurry(at.now);
        if running {
            self.command_all(|| Command::Drain);
        }
        let waiting: Vec<OfferId> = self
            .requesting
            .iter()
            .filter(|(_, row)| row.granted.is_none() && row.is_live())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            if let Some(row) = self.requesting.get_mut(&id) {
                row.cancelled = true;
            }
            self.finish(id, EngageOutcome::Closed(CloseReason::Draining), at);
        }
        // Places that no requester has taken yet are given back at once.
        let unopened: Vec<EngagementId> = self
            .serving
            .iter()
            .filter(|(_, row)| matches!(row.state, ServeState::Granted { .. }))
            .map(|(engagement, _)| *engagement)
            .collect();
        for engagement in unopened {
            self.serving.remove(&engagement);
            self.release(engagement, CloseReason::Draining.label(), at);
        }
        self.tick(at);
    }

    pub(crate) fn drained(&mut self, worker: usize, at: Moment) {
        if let Some(drain) = &mut self.drain {
            drain.busy.remove(&worker);
            drain.quiet_at = at.now + QUIET;
        }
    }

    /// A worker thread has ended.
    pub(crate) fn worker_stopped(&mut self, worker: usize, error: Option<String>, at: Moment) {
        self.ended.insert(worker);
        self.drained(worker, at);
        if self.stopping && error.is_none() {
            return;
        }
        let error = error.unwrap_or_else(|| "it ended without being told to".to_owned());
        self.count("workers_failed");
        let message_id = crate::events::WORKER_ENDED;
        tracing::error!(message_id, worker, %error, "a worker thread has ended");
        self.fatal = Some(format!(
            "worker {worker} has ended: {error}; restart the node"
        ));
        self.advertiser.hurry(at.now);
        let workers = self.config.workers;
        let on_it = |node| owner_of(node, workers) == worker;
        let ours: Vec<EngagementId> = self
            .requesting
            .values()
            .filter_map(|row| row.granted.as_ref())
            .filter(|granted| on_it(granted.worker))
            .map(|granted| granted.engagement)
            .collect();
        for engagement in ours {
            let totals = self
                .by_engagement
                .get(&engagement)
                .and_then(|id| self.requesting.get(id))
                .map(|row| row.totals)
                .unwrap_or_default();
            self.closed(engagement, CloseReason::Lost, totals, None, at);
        }
        let served: Vec<EngagementId> = self
            .serving
            .iter()
            .filter(|(_, row)| on_it(row.grant.requester))
            .map(|(engagement, _)| *engagement)
            .collect();
        for engagement in served {
            let totals = self
                .serving
                .get(&engagement)
                .map(|row| row.totals)
                .unwrap_or_default();
            self.serve_closed(engagement, CloseReason::Lost, totals, at);
        }
    }

    /// Moves a shutdown to its next phase when the present one is done or out of time.
    pub(crate) fn tick_drain(&mut self, at: Moment) {
        let Some(drain) = &self.drain else { return };
        if self.stopping {
            return;
        }
        let late = at.now >= drain.until;
        let live = self
            .requesting
            .values()
            .any(super::engagements::Requesting::is_live);
        // A requester has until the end of this phase to sign for what it holds.
        let signed = || {
            let all = self
                .serving
                .values()
                .all(|row| is_signed(&row.account, &row.totals));
            all && (at.now >= drain.quiet_at || self.serving.is_empty())
        };
        match drain.phase {
            Phase::Work if late || (!live && drain.busy.is_empty() && signed()) => {
                self.close_all(at);
            }
            Phase::Settle => {
                if at.now >= drain.quiet_at {
                    self.give_up_channels(at);
                }
                let owed = self.settler.len() > 0 || self.is_releasing();
                let open = live || !self.serving.is_empty();
                if late || (!open && (!owed || !self.link.is_ready())) {
                    self.stop(at);
                }
            }
            Phase::Work => {}
        }
    }

    fn close_all(&mut self, at: Moment) {
        let grace = self.config.timings.grace;
        if let Some(drain) = &mut self.drain {
            drain.phase = Phase::Settle;
            drain.until = at.now + grace;
            drain.quiet_at = at.now + CLOSING;
        }
        let ours: Vec<OfferId> = self.requesting.keys().copied().collect();
        for id in ours {
            self.close_channel(id, CloseReason::Draining);
        }
        let served: Vec<_> = self
            .serving
            .iter()
            .map(|(engagement, row)| (row.grant.requester, *engagement))
            .collect();
        for (peer, engagement) in served {
            self.command(
                peer,
                Command::Close {
                    engagement,
                    reason: CloseReason::Draining,
                },
            );
        }
        self.settler.hurry();
        self.tick_drain(at);
    }

    /// Channels whose peers do not answer any more are released all the same.
    fn give_up_channels(&mut self, at: Moment) {
        let left: Vec<_> = self
            .serving
            .iter()
            .map(|(engagement, row)| (*engagement, row.totals))
            .collect();
        for (engagement, totals) in left {
            self.serve_closed(engagement, CloseReason::Draining, totals, at);
        }
    }

    fn stop(&mut self, at: Moment) {
        let left: Vec<(OfferId, EngageOutcome)> = self
            .requesting
            .iter()
            .filter_map(|(id, row)| match &row.state {
                RequestState::Over { .. } => None,
                RequestState::Accounting { .. } => Some((*id, EngageOutcome::Spooled)),
                RequestState::Ending { outcome, .. } => Some((*id, outcome.clone())),
                _ => Some((*id, EngageOutcome::Closed(CloseReason::Draining))),
            })
            .collect();
        for (id, outcome) in left {
            self.finish(id, outcome, at);
        }
        self.stopping = true;
        if self.node.0 != 0 {
            self.command_all(|| Command::Stop);
        }
    }

    /// Who asked for the shutdown, to be answered when the threads have ended.
    pub(crate) fn take_shutdown_respond(&mut self) -> Option<Respond<()>> {
        self.drain.as_mut()?.respond.take()
    }
}
