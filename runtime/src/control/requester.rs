//! The requester's half: from an offer to the last settlement of our own engagements.
//!
//! ```text
//!  Offering ─offered─▶ Offered ─grant─▶ Opening ─opened─▶ Running ─job done─▶ Accounting ─settled─▶ Over
//!     │ no registry       │ expired        └── closed ──────┴─────▶ Ending ───settled or late────▶ Over
//!     ▼                   ▼
//!    Over                Over          Over ─channel closed─▶ gone
//! ```
//!
//! Each row tells its caller exactly one `Ended`, on its way into `Over`.

use ramjet_proto::addr::Address;
use ramjet_proto::ids::{EngagementId, OfferId};
use ramjet_proto::market::message::{Base64Bytes, Diagnosis, GrantMessage, ReplyBody, RequestBody};
use ramjet_proto::market::{Offer, SignedGrant};
use ramjet_proto::time::Time;

use super::engagements::{
    Events, Granted, Moment, OFFER_SLACK, REQUESTING_MAX, RequestState, Requesting, endpoint, terms,
};
use super::handle::EngageAsk;
use super::link::Tag;
use super::plane::{Plane, RETRY};
use super::receipts::RequesterAccount;
use super::vocabulary::{CloseReason, Command, Totals};
use crate::job::Job;
use crate::node::{EngageEnd, EngageEvent, EngageOutcome, NodeError};

/// A row whose channel never reports its end is dropped after this.
const OVER_MAX: std::time::Duration = std::time::Duration::from_secs(60);

impl Plane {
    /// Takes an engagement to make, or refuses it by name.
    pub(crate) fn engage(&mut self, ask: EngageAsk, at: Moment) {
        let EngageAsk {
            request,
            events,
            verdicts,
            respond,
        } = ask;
        let offer = Offer {
            offer: OfferId((self.config.entropy)()),
            requester: self.node,
            skill: request.skill,
            filters: request.filters,
            min_polo: request.min_polo,
            tasks: request.tasks,
            concurrency: request.concurrency,
            duration_s: request.duration_s,
            accept_deadline_ms: request.accept_deadline_ms,
        };
        let full = (self.requesting.len() >= REQUESTING_MAX).then(|| {
            format!(
                "{REQUESTING_MAX} engagements of this node run already, the limit; wait for one"
            )
        });
        if let Some(reason) = self.closed_for_work().or(full).or_else(|| offer.refusal()) {
            self.count("engages_refused");
            respond(Err(NodeError(reason)));
            return;
        }
        let id = offer.offer;
        let row = Requesting {
            state: RequestState::Offering {
                until: at.now + deadline(&offer),
            },
            ask_at: at.now,
            offer,
            notified: 0,
            diagnosis: None,
            cancelled: false,
            job: Some(request.job),
            events: Events::new(events),
            verdicts,
            granted: None,
            totals: Totals::default(),
            channel_closed: true,
            receipt_due: false,
            receipt_at: at.now,
            settlement: None,
            closing: false,
        };
        self.requesting.insert(id, row);
        respond(Ok(id));
        self.send_offers(at);
    }

    /// Sends every offer that is to be sent (again).
    pub(crate) fn send_offers(&mut self, at: Moment) {
        if !self.link.is_ready() {
            return;
        }
        for row in self.requesting.values_mut() {
            let open = matches!(
                row.state,
                RequestState::Offering { .. } | RequestState::Offered { .. }
            );
            if !open || row.cancelled || row.ask_at > at.now {
                continue;
            }
            row.ask_at = Time::NEVER;
            row.offer.requester = self.node;
            let signature = self.config.identity.sign(&row.offer.signed_bytes());
            let signature = Base64Bytes(signature.to_vec());
            let body = RequestBody::Offer {
                offer: row.offer.clone(),
                signature,
            };
            self.link
                .ask_market(Tag::Offer(row.offer.offer), body, at.now);
        }
        self.digest(at);
    }

    pub(crate) fn offer_reply(&mut self, id: OfferId, body: ReplyBody, at: Moment) {
        match body {
            ReplyBody::Offered {
                notified,
                diagnosis,
            } => {
                let Some(row) = self.requesting.get_mut(&id) else {
                    return;
                };
                if !matches!(row.state, RequestState::Offering { .. }) {
                    return;
                }
                let until = at.now + deadline(&row.offer) + OFFER_SLACK;
                row.state = RequestState::Offered {
                    until,
                    asked_again: false,
                };
                (row.notified, row.diagnosis) = (notified, diagnosis.clone());
                row.events.tell(EngageEvent::Offered {
                    offer: id,
                    notified,
                    diagnosis,
                });
            }
            ReplyBody::Granted { grant } => self.granted(&grant, at),
            ReplyBody::Refused(refusal) => {
                self.count("offers_refused");
                self.finish(id, EngageOutcome::Refused(refusal), at);
            }
            other => {
                self.count("link_unfitting_replies");
                let what = super::link::kind(&other);
                let text = format!("the registry answered an offer by {what}");
                self.finish(id, EngageOutcome::NoRegistry(text), at);
            }
        }
    }

    pub(crate) fn expired(
        &mut self,
        id: OfferId,
        polo: (i64, i64),
        notified: u32,
        diagnosis: Option<Diagnosis>,
        at: Moment,
    ) {
        self.polo = Some(polo.1);
        let waits = |row: &Requesting| {
            matches!(
                row.state,
                RequestState::Offering { .. } | RequestState::Offered { .. }
            )
        };
        if self.requesting.get(&id).is_some_and(waits) {
            self.finish(
                id,
                EngageOutcome::Expired {
                    polo,
                    notified,
                    diagnosis,
                },
                at,
            );
        }
    }

    /// A grant, for us as requester or as worker.
    pub(crate) fn granted(&mut self, message: &GrantMessage, at: Moment) {
        let signed = match SignedGrant::decode(&message.grant.0) {
            Ok(signed) => signed,
            Err(fault) => {
                self.count("grants_malformed");
                tracing::warn!(%fault, "grant refused");
                return;
            }
        };
        let ours = self.config.identity.public();
        let genuine = self
            .link
            .registry_key()
            .is_some_and(|key| signed.verify(&key).is_ok());
        let grant = &signed.grant;
        if !genuine {
            self.count("grants_not_genuine");
            tracing::warn!(engagement = %grant.engagement, "grant without the registry's signature");
        } else if grant.worker == self.node && grant.worker_key == ours {
            self.serve_granted(signed, &message.requester_endpoint, at);
        } else if grant.requester == self.node && grant.requester_key == ours {
            self.open(signed, &message.worker_endpoint, at);
        } else {
            self.count("grants_for_others");
            tracing::warn!(engagement = %grant.engagement, "grant that does not name this node");
        }
    }

    /// Our offer was taken: introduce the worker and open the channel.
    fn open(&mut self, signed: SignedGrant, worker_endpoint: &str, at: Moment) {
        let bytes = signed.encode();
        let grant = signed.grant;
        if self.by_engagement.contains_key(&grant.engagement) {
            // Told again after a reconnect.
            return;
        }
        let id = grant.offer;
        let waits = self.requesting.get(&id).is_some_and(|row| {
            !row.cancelled
                && matches!(
                    row.state,
                    RequestState::Offering { .. } | RequestState::Offered { .. }
                )
        });
        if !waits {
            // Cancelled, given up, or of an earlier life of this node: nobody will use it.
            self.count("grants_unwanted");
            if self.requesting.get(&id).is_some_and(|row| row.cancelled) {
                self.requesting.remove(&id);
            }
            self.release(grant.engagement, CloseReason::Cancelled.label(), at);
            return;
        }
        self.introduce(grant.worker, grant.worker_key, endpoint(worker_endpoint));
        let mut terms = terms(&grant, 0, grant.concurrency, self.config.unsigned_max, at);
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        if row.verdicts.is_some() {
            // A job that judges later ends when its last result is judged, not when its last task
            // is answered: it says so itself. The other end holds it to the grant.
            terms.tasks = u64::MAX;
        }
        if row.offer.skill != grant.skill {
            self.count("grants_for_another_skill");
            self.release(grant.engagement, CloseReason::BadGrant.label(), at);
            self.finish(id, EngageOutcome::Closed(CloseReason::BadGrant), at);
            return;
        }
        row.events.tell(EngageEvent::Granted {
            engagement: grant.engagement,
            worker: grant.worker,
            worker_address: Address::backbone(grant.worker).to_string(),
            polo: (grant.requester_polo, grant.worker_polo),
            gate: grant.gate,
            credits: grant.concurrency,
        });
        row.granted = Some(Granted {
            engagement: grant.engagement,
            worker: grant.worker,
            bytes: bytes.clone(),
            expires_at: terms.expires_at,
            account: RequesterAccount::new(grant.engagement, grant.worker_key),
        });
        row.state = RequestState::Opening;
        row.channel_closed = false;
        let job = row
            .job
            .take()
            .expect("a job stays in its row until the channel opens");
        self.by_engagement.insert(grant.engagement, id);
        let grant_bytes = bytes.into_boxed_slice();
        self.command(
            grant.worker,
            Command::Engage {
                peer: grant.worker,
                terms,
                grant: grant_bytes,
                job,
            },
        );
    }

    fn row_of(&mut self, engagement: EngagementId) -> Option<&mut Requesting> {
        self.requesting
            .get_mut(self.by_engagement.get(&engagement)?)
    }

    pub(crate) fn opened(&mut self, engagement: EngagementId, credits: u32) {
        if let Some(row) = self.row_of(engagement)
            && matches!(row.state, RequestState::Opening)
        {
            tracing::debug!(%engagement, credits, "opened");
            row.state = RequestState::Running;
            row.events.tell(EngageEvent::Opened);
        }
    }

    pub(crate) fn first_result(&mut self, engagement: EngagementId) {
        if let Some(row) = self.row_of(engagement)
            && row.is_live()
        {
            row.events.tell(EngageEvent::FirstResult);
        }
    }

    pub(crate) fn progress(
        &mut self,
        engagement: EngagementId,
        totals: Totals,
        receipt_due: bool,
        at: Moment,
    ) {
        let interval = self.config.timings.receipt;
        let Some(row) = self.row_of(engagement) else {
            return;
        };
        if !matches!(row.state, RequestState::Running) {
            return;
        }
        row.totals = totals;
        let judged = row.judged();
        row.events.tell(EngageEvent::Progress(judged));
        row.receipt_due |= receipt_due;
        if row.receipt_due || at.now.since(row.receipt_at) >= interval {
            self.sign_receipt(engagement, at);
        }
    }

    /// The channel is gone.
    pub(crate) fn closed(
        &mut self,
        engagement: EngagementId,
        reason: CloseReason,
        totals: Totals,
        job: Option<Box<dyn Job>>,
        at: Moment,
    ) {
        let until = at.now + self.config.timings.grace;
        let Some(&id) = self.by_engagement.get(&engagement) else {
            return;
        };
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        row.channel_closed = true;
        if job.is_some() {
            row.job = job;
        }
        let Some(granted) = &row.granted else { return };
        let whole = granted.account.whole().copied();
        let owed = whole.filter(|whole| !row.is_settled(whole.receipt.k));
        match &row.state {
            RequestState::Over { .. } => {
                self.drop_row(id, engagement);
                return;
            }
            // The last receipt is signed by both: the channel is not needed any more.
            RequestState::Accounting { .. } if !granted.account.in_flight() => return,
            RequestState::Ending { .. } => return,
            _ => row.totals = totals,
        }
        tracing::info!(%engagement, reason = reason.label(), "channel closed early");
        let outcome = EngageOutcome::Closed(reason);
        match owed {
            Some(whole) => {
                row.state = RequestState::Ending { outcome, until };
                self.settler.want(whole, at.now);
            }
            None => self.finish(id, outcome, at),
        }
    }

    /// The caller does not want it any more.
    pub(crate) fn cancel(&mut self, id: OfferId, at: Moment) {
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        row.cancelled = true;
        match row.state {
            RequestState::Offering { .. } | RequestState::Offered { .. } => {
                self.finish(id, EngageOutcome::Closed(CloseReason::Cancelled), at);
            }
            RequestState::Opening | RequestState::Running => {
                self.close_channel(id, CloseReason::Cancelled);
            }
            RequestState::Accounting { .. }
            | RequestState::Ending { .. }
            | RequestState::Over { .. } => {}
        }
    }

    /// Tells the worker thread to close a channel, once.
    pub(crate) fn close_channel(&mut self, id: OfferId, reason: CloseReason) {
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        let Some(granted) = &row.granted else { return };
        if !row.channel_closed && !std::mem::replace(&mut row.closing, true) {
            let (worker, engagement) = (granted.worker, granted.engagement);
            self.command(worker, Command::Close { engagement, reason });
        }
    }

    /// The other end, or the registry, has released one of our engagements.
    pub(crate) fn released(&mut self, engagement: EngagementId, reason: &str, at: Moment) {
        tracing::debug!(%engagement, reason, "released by the other end");
        let grace = self.config.timings.grace;
        if let Some(row) = self.row_of(engagement) {
            if let (RequestState::Opening | RequestState::Running, Some(granted)) =
                (&row.state, &mut row.granted)
            {
                // The worker closes the channel itself; this is for one that cannot any more.
                granted.expires_at = granted.expires_at.min(at.now + grace);
            }
        } else {
            self.serve_released(engagement, at);
        }
    }

    /// Ends a row for its caller.
    pub(crate) fn finish(&mut self, id: OfferId, outcome: EngageOutcome, at: Moment) {
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        if !row.is_live() {
            return;
        }
        tracing::debug!(offer = %id, ?outcome, "engagement over");
        let reason = match &outcome {
            EngageOutcome::Closed(reason) => *reason,
            _ => CloseReason::Finished,
        };
        let totals = row.judged();
        row.state = RequestState::Over {
            until: at.now + OVER_MAX,
        };
        row.events.tell(EngageEvent::Ended(EngageEnd {
            outcome,
            totals,
            settlement: row.settlement.clone(),
            job: row.job.take(),
        }));
        let granted = row.granted.as_ref().map(|granted| granted.engagement);
        let closed = row.channel_closed;
        // A cancelled offer stays until its grant can no longer come, to be released then.
        let awaited = row.cancelled && granted.is_none();
        let Some(engagement) = granted else {
            if !awaited {
                self.requesting.remove(&id);
            }
            return;
        };
        self.release(engagement, reason.label(), at);
        self.close_channel(id, reason);
        if closed {
            self.drop_row(id, engagement);
        }
        self.tidy_spool(engagement);
    }

    fn drop_row(&mut self, id: OfferId, engagement: EngagementId) {
        self.requesting.remove(&id);
        self.by_engagement.remove(&engagement);
        self.tidy_spool(engagement);
    }

    pub(crate) fn tick_requesting(&mut self, at: Moment) {
        let ids: Vec<OfferId> = self.requesting.keys().copied().collect();
        for id in ids {
            self.tick_request(id, at);
        }
        self.send_offers(at);
    }

    fn tick_request(&mut self, id: OfferId, at: Moment) {
        let away = !self.link.is_ready();
        let (grace, interval) = (self.config.timings.grace, self.config.timings.receipt);
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        match &mut row.state {
            RequestState::Offering { until } if at.now >= *until => {
                let text = self.link.away_text();
                self.finish(id, EngageOutcome::NoRegistry(text), at);
            }
            RequestState::Offered { until, .. } if away && at.now >= *until + grace => {
                let text = self.link.away_text();
                self.finish(id, EngageOutcome::NoRegistry(text), at);
            }
            RequestState::Offered { until, asked_again } if at.now >= *until && !away => {
                if std::mem::replace(asked_again, true) {
                    let text = format!("the registry does not say what became of offer {id}");
                    self.finish(id, EngageOutcome::NoRegistry(text), at);
                } else {
                    *until = at.now + OFFER_SLACK;
                    row.ask_at = at.now;
                }
            }
            RequestState::Opening | RequestState::Running => {
                let Some(granted) = &row.granted else { return };
                let engagement = granted.engagement;
                if at.now >= granted.expires_at + RETRY {
                    self.close_channel(id, CloseReason::Expired);
                } else if at.now.since(row.receipt_at) >= interval || row.receipt_due {
                    self.sign_receipt(engagement, at);
                }
            }
            RequestState::Accounting { until } if at.now >= *until => {
                let unsigned = row.granted.as_ref().is_some_and(|g| g.account.in_flight());
                if unsigned {
                    self.finish(id, EngageOutcome::Closed(CloseReason::Lost), at);
                } else if away || at.now >= *until + grace {
                    self.finish(id, EngageOutcome::Spooled, at);
                }
            }
            RequestState::Ending { outcome, until } if at.now >= *until => {
                let outcome = outcome.clone();
                self.finish(id, outcome, at);
            }
            RequestState::Over { until } if at.now >= *until => {
                let engagement = row.granted.as_ref().map(|granted| granted.engagement);
                match engagement {
                    Some(engagement) => {
                        self.count("channels_without_end");
                        self.drop_row(id, engagement);
                    }
                    None => {
                        self.requesting.remove(&id);
                    }
                }
            }
            _ => {}
        }
    }
}

fn deadline(offer: &Offer) -> std::time::Duration {
    std::time::Duration::from_millis(u64::from(offer.accept_deadline_ms))
}
