//! The worker's half: from a notification to the last settlement of engagements that we serve.
//!
//! Only a grant that answers an accept of this process is served: a worker that restarts has lost
//! its channels, and an old grant must not begin its count of tasks anew.

use ramjet_proto::ids::{ChannelId, EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{Base64Bytes, ReplyBody, RequestBody};
use ramjet_proto::market::{AcceptTerms, Offer, RECEIPT_LEN, SignedGrant};
use ramjet_proto::time::Time;

use super::engagements::{
    ACCEPTING_MAX, Accepting, Moment, ServeState, Serving, endpoint, gate_holds, policy_allows,
    terms,
};
use super::link::Tag;
use super::plane::{Plane, RETRY};
use super::receipts::{Examined, WorkerAccount, covered};
use super::vocabulary::{CloseReason, Command, Side, Totals};

impl Plane {
    /// An offer that we may take: take it, or leave it for a counted reason.
    pub(crate) fn notified(&mut self, offer: &Offer, requester_polo: i64, at: Moment) {
        if let Err(declined) = self.decide(offer, requester_polo) {
            self.count(declined);
            return;
        }
        let credits = self.config.credits.min(offer.concurrency);
        let terms = AcceptTerms {
            offer: offer.offer,
            worker: self.node,
            credits,
        };
        let signature = self.config.identity.sign(&terms.signed_bytes());
        // The grant may be presented for as long as the offer could be granted and opened.
        let wait = std::time::Duration::from_millis(u64::from(offer.accept_deadline_ms));
        let until = at.now + wait + self.config.timings.open;
        self.accepting.insert(
            offer.offer,
            Accepting {
                until,
                unanswered: false,
            },
        );
        let signature = Base64Bytes(signature.to_vec());
        let body = RequestBody::Accept { terms, signature };
        self.link.ask_market(Tag::Accept(offer.offer), body, at.now);
        self.count("accepts_sent");
        self.digest(at);
    }

    fn decide(&self, offer: &Offer, requester_polo: i64) -> Result<(), &'static str> {
        let skill = self.skill(&offer.skill);
        if self.closed_for_work().is_some() {
            return Err("offers_declined_closed");
        }
        if !self.config.task_ready {
            return Err("offers_declined_not_ready");
        }
        if offer.requester == self.node || offer.refusal().is_some() {
            return Err("offers_declined_invalid");
        }
        let Some(skill) = skill else {
            return Err("offers_declined_no_skill");
        };
        if !self.is_offered(skill) {
            return Err("offers_declined_no_agent");
        }
        if !policy_allows(self.config.skills[skill].1, requester_polo, self.polo) {
            return Err("offers_declined_gate");
        }
        if let Some(accepting) = self.accepting.get(&offer.offer) {
            return if accepting.unanswered {
                Ok(())
            } else {
                Err("offers_declined_repeated")
            };
        }
        let taken = self.serving.len() + self.accepting.len();
        if taken >= self.config.engagements_max || self.accepting.len() >= ACCEPTING_MAX {
            return Err("offers_declined_full");
        }
        Ok(())
    }

    pub(crate) fn accept_reply(&mut self, offer: OfferId, body: ReplyBody, at: Moment) {
        match body {
            ReplyBody::Granted { grant } => self.granted(&grant, at),
            ReplyBody::Refused(refusal) => {
                self.count("accepts_lost");
                tracing::debug!(%offer, code = ?refusal.code, "accept lost");
                self.accepting.remove(&offer);
            }
            other => {
                self.count("link_unfitting_replies");
                tracing::warn!(%offer, kind = super::link::kind(&other), "accept answered oddly");
            }
        }
    }

    /// A grant that names us as the worker: new, told again, or renewed.
    pub(crate) fn serve_granted(
        &mut self,
        signed: SignedGrant,
        requester_endpoint: &str,
        at: Moment,
    ) {
        let grant = &signed.grant;
        if let Some(row) = self.serving.get_mut(&grant.engagement) {
            let longer =
                grant.tasks > row.grant.tasks || grant.expires_at_ms > row.grant.expires_at_ms;
            if longer {
                let expires_at = at.at_unix_ms(grant.expires_at_ms);
                row.expires_at = expires_at;
                self.serving_due = at.now;
                let (peer, engagement, tasks) = (grant.requester, grant.engagement, grant.tasks);
                row.bytes = signed.encode();
                row.grant = signed.grant;
                self.command(
                    peer,
                    Command::Extend {
                        engagement,
                        tasks,
                        expires_at,
                    },
                );
            }
            return;
        }
        if !self.accepting.contains_key(&grant.offer) {
            self.count("grants_unwanted");
            self.release(signed.grant.engagement, CloseReason::Expired.label(), at);
            return;
        }
        let Some(skill) = self.skill(&grant.skill) else {
            self.count("grants_for_another_skill");
            self.release(signed.grant.engagement, CloseReason::NoSkill.label(), at);
            return;
        };
        let (requester, key) = (grant.requester, grant.requester_key);
        self.introduce(requester, key, endpoint(requester_endpoint));
        self.keep_serving(signed, skill, at);
    }

    fn skill(&self, name: &str) -> Option<usize> {
        self.config
            .skills
            .iter()
            .position(|(skill, _)| skill == name)
    }

    fn keep_serving(&mut self, signed: SignedGrant, skill: usize, at: Moment) {
        let bytes = signed.encode();
        let grant = signed.grant;
        self.accepting.remove(&grant.offer);
        let row = Serving {
            bytes,
            skill,
            state: ServeState::Granted {
                until: at.now + self.config.timings.open,
            },
            expires_at: at.at_unix_ms(grant.expires_at_ms),
            totals: Totals::default(),
            account: WorkerAccount::new(grant.engagement, grant.requester_key),
            settle_at: at.now,
            close_at: Time::NEVER,
            close_reason: CloseReason::Expired,
            closing: false,
            refused_k: None,
            grant,
        };
        self.serving.insert(row.grant.engagement, row);
        self.serving_due = at.now;
    }

    /// A requester presents its grant: admit its channel, or refuse it by reason.
    pub(crate) fn open_wanted(
        &mut self,
        peer: NodeId,
        channel: ChannelId,
        grant: &[u8],
        at: Moment,
    ) {
        match self.admit(peer, channel, grant, at) {
            Ok(engagement) => {
                let Some(row) = self.serving.get_mut(&engagement) else {
                    return;
                };
                row.state = ServeState::Open { channel };
                self.serving_due = at.now;
                let credits = row.grant.concurrency.min(self.config.credits);
                let terms = terms(&row.grant, row.skill, credits, self.config.unsigned_max, at);
                self.count("channels_admitted");
                self.command(
                    peer,
                    Command::Admit {
                        peer,
                        channel,
                        terms,
                    },
                );
            }
            Err((reason, why)) => {
                self.count("channels_refused");
                tracing::warn!(%peer, reason = reason.label(), why, "channel refused");
                self.command(
                    peer,
                    Command::Refuse {
                        peer,
                        channel,
                        reason,
                    },
                );
            }
        }
    }

    fn admit(
        &mut self,
        peer: NodeId,
        channel: ChannelId,
        grant: &[u8],
        at: Moment,
    ) -> Result<EngagementId, (CloseReason, &'static str)> {
        let bad = |why| (CloseReason::BadGrant, why);
        let signed = SignedGrant::decode(grant).map_err(|_| bad("the grant is malformed"))?;
        let key = self
            .link
            .registry_key()
            .ok_or(bad("the registry's key is not known yet"))?;
        signed
            .verify(&key)
            .map_err(|_| bad("the grant is not signed by the registry"))?;
        let grant = &signed.grant;
        if grant.worker != self.node || grant.worker_key != self.config.identity.public() {
            return Err(bad("the grant names another worker"));
        }
        if grant.requester != peer {
            return Err(bad("the grant names another requester"));
        }
        if grant.expires_at_ms <= at.unix_ms {
            return Err((CloseReason::Expired, "the grant has expired"));
        }
        if self.drain.is_some() {
            return Err((CloseReason::Draining, "the node is shutting down"));
        }
        let skill = self
            .skill(&grant.skill)
            .ok_or((CloseReason::NoSkill, "the skill is not served"))?;
        if !gate_holds(grant, self.config.skills[skill].1) {
            return Err(bad("the gate in the grant is not this worker's"));
        }
        let engagement = grant.engagement;
        match self.serving.get(&engagement).map(|row| row.state) {
            Some(ServeState::Granted { .. }) => {}
            // Asked again by the same channel: the answer was late.
            Some(ServeState::Open { channel: open }) if open == channel => {}
            Some(ServeState::Open { .. }) => return Err(bad("the engagement is open already")),
            None if self.accepting.contains_key(&grant.offer) => {
                self.keep_serving(signed, skill, at);
            }
            None => return Err((CloseReason::Expired, "the engagement has ended here")),
        }
        Ok(engagement)
    }

    /// How an engagement that we serve stands.
    pub(crate) fn served(&mut self, engagement: EngagementId, totals: Totals) {
        if let Some(row) = self.serving.get_mut(&engagement) {
            row.totals = totals;
        }
    }

    /// A receipt from the requester: countersign it, or refuse it by name.
    pub(crate) fn receipt(
        &mut self,
        engagement: EngagementId,
        bytes: &[u8; RECEIPT_LEN],
        made: Totals,
    ) {
        let Some(row) = self.serving.get_mut(&engagement) else {
            self.count("receipt_unknown_engagement");
            return;
        };
        row.totals = made;
        let peer = row.grant.requester;
        let whole = match row.account.examine(bytes, &made) {
            Ok(Examined::Fresh(fresh)) => {
                let whole = row.account.countersign(fresh, &self.config.identity);
                self.spool.put(Side::Worker, &row.bytes, whole, true);
                self.settler.want(whole, row.settle_at);
                self.count("receipts_countersigned");
                whole
            }
            Ok(Examined::Repeated(whole)) => {
                self.count("receipts_repeated");
                whole
            }
            Err(refusal) => {
                let k = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                if row.refused_k.replace(k) != Some(k) {
                    tracing::warn!(%engagement, %peer, %refusal, "receipt refused");
                }
                self.count(refusal.counter());
                return;
            }
        };
        let covered = covered(&whole.receipt);
        let receipt = Box::new(whole.encode());
        self.command_after_commit(
            peer,
            Command::Countersign {
                engagement,
                receipt,
                covered,
            },
        );
    }

    /// A channel that we served is gone.
    pub(crate) fn serve_closed(
        &mut self,
        engagement: EngagementId,
        reason: CloseReason,
        totals: Totals,
        at: Moment,
    ) {
        let Some(row) = self.serving.remove(&engagement) else {
            return;
        };
        tracing::debug!(%engagement, reason = reason.label(), done = totals.done, "served");
        if !is_signed(&row.account, &totals) {
            self.count("engagements_short_of_receipts");
        }
        self.settler.hurry_one(engagement);
        if reason != CloseReason::Finished {
            self.release(engagement, reason.label(), at);
        }
        self.tidy_spool(engagement);
    }

    /// The requester, or the registry, has ended an engagement that we serve.
    pub(crate) fn serve_released(&mut self, engagement: EngagementId, at: Moment) {
        let grace = self.config.timings.grace;
        let Some(row) = self.serving.get_mut(&engagement) else {
            return;
        };
        match row.state {
            ServeState::Granted { .. } => {
                self.serving.remove(&engagement);
                self.tidy_spool(engagement);
            }
            // The requester closes the channel itself; this is for one that cannot any more.
            ServeState::Open { .. } => {
                row.close_at = row.close_at.min(at.now + grace);
                self.serving_due = at.now;
                row.close_reason = CloseReason::Finished;
            }
        }
    }

    pub(crate) fn tick_serving(&mut self, at: Moment) {
        self.accepting
            .retain(|_, accepting| at.now < accepting.until);
        if at.now < self.serving_due {
            return;
        }
        let grace = self.config.timings.grace;
        let mut next = Time::NEVER;
        let mut unopened = Vec::new();
        let mut overdue = Vec::new();
        let mut endless = Vec::new();
        for (&engagement, row) in &mut self.serving {
            let peer = row.grant.requester;
            let end = (row.expires_at + RETRY).min(row.close_at);
            match row.state {
                ServeState::Granted { until } if at.now >= until => unopened.push(engagement),
                ServeState::Open { .. } if at.now >= end + grace => endless.push(engagement),
                ServeState::Open { .. } if at.now >= end && !row.closing => {
                    row.closing = true;
                    next = next.min(end + grace);
                    overdue.push((peer, engagement, row.close_reason));
                }
                ServeState::Granted { until } => next = next.min(until),
                ServeState::Open { .. } if row.closing => next = next.min(end + grace),
                ServeState::Open { .. } => next = next.min(end),
            }
        }
        self.serving_due = next;
        for engagement in unopened {
            self.count("grants_never_opened");
            self.serving.remove(&engagement);
            self.release(engagement, CloseReason::Lost.label(), at);
        }
        for (peer, engagement, reason) in overdue {
            self.command(peer, Command::Close { engagement, reason });
        }
        for engagement in endless {
            self.count("channels_without_end");
            let totals = self
                .serving
                .get(&engagement)
                .map(|row| row.totals)
                .unwrap_or_default();
            self.serve_closed(engagement, CloseReason::Expired, totals, at);
        }
    }
}

/// Whether the requester has signed for everything that was made.
pub(crate) fn is_signed(account: &WorkerAccount, made: &Totals) -> bool {
    let answered = made
        .done
        .saturating_add(made.failed)
        .saturating_add(made.expired);
    account.whole().map_or(0, |whole| covered(&whole.receipt)) >= answered
}
