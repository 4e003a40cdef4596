//! The account of our own engagements: receipts signed, countersigned, settled.
//!
//! A receipt is spooled before it is sent. While an engagement runs, its worker settles; the
//! requester settles the last receipt itself, so that its caller hears of it even if the worker is
//! gone by then. Settling twice is harmless.

use std::time::Duration;

use ramjet_proto::ids::EngagementId;
use ramjet_proto::market::RECEIPT_LEN;
use ramjet_proto::market::message::{Refusal, Settlement};

use super::engagements::{Moment, RequestState};
use super::plane::Plane;
use super::receipts::covered;
use super::vocabulary::{Command, Side, Totals};
use crate::job::Job;
use crate::node::EngageOutcome;

/// A receipt without its countersignature is not replaced sooner than this: a round trip and two
/// syncs fit, and a worker is not flooded by a requester that is always due.
const REPLACE: Duration = Duration::from_millis(50);

impl Plane {
    /// Signs the next receipt if there is anything to sign for, and if the last one has had its
    /// chance to come back.
    pub(crate) fn sign_receipt(&mut self, engagement: EngagementId, at: Moment) {
        let Some(row) = self
            .by_engagement
            .get(&engagement)
            .and_then(|id| self.requesting.get_mut(id))
        else {
            return;
        };
        let last = matches!(row.state, RequestState::Accounting { .. });
        let judged = row.judged();
        let Some(granted) = &mut row.granted else {
            return;
        };
        if granted.account.in_flight() && !last && at.now.since(row.receipt_at) < REPLACE {
            return;
        }
        row.receipt_at = at.now;
        // A client that judges later than the answers come leaves the receipt due until it has.
        let answered = row.totals.done.saturating_add(row.totals.failed);
        let receipt = granted.account.next(&judged);
        row.receipt_due &=
            receipt.is_none_or(|receipt| covered(&receipt) < answered) && row.verdicts.is_some();
        let Some(receipt) = receipt else { return };
        let half = granted.account.sign(receipt, &self.config.identity);
        let worker = granted.worker;
        self.spool.put(Side::Requester, &granted.bytes, half, false);
        let receipt = Box::new(half.encode());
        self.command_after_commit(
            worker,
            Command::Receipt {
                engagement,
                receipt,
            },
        );
        self.count("receipts_signed");
    }

    /// The worker's countersignature came back.
    pub(crate) fn countersigned(
        &mut self,
        engagement: EngagementId,
        bytes: &[u8; RECEIPT_LEN],
        at: Moment,
    ) {
        let ours = self.config.identity.public();
        let Some(row) = self
            .by_engagement
            .get(&engagement)
            .and_then(|id| self.requesting.get_mut(id))
        else {
            self.count("receipt_unknown_engagement");
            return;
        };
        // A row that is over was not waited for, but what it signed for is still to be settled.
        let last = matches!(
            row.state,
            RequestState::Accounting { .. } | RequestState::Over { .. }
        );
        let due = row.receipt_due;
        let settled_k = row.settlement.as_ref().map_or(0, |settlement| settlement.k);
        let Some(granted) = &mut row.granted else {
            return;
        };
        match granted.account.countersigned(bytes, &ours) {
            // The worker's settlement was faster than its countersignature: nothing is owed.
            Ok(Some(whole)) if whole.receipt.k <= settled_k => {
                self.count("receipts_countersigned");
            }
            Ok(Some(whole)) => {
                self.spool.put(Side::Requester, &granted.bytes, whole, true);
                let newest = !granted.account.in_flight();
                self.count("receipts_countersigned");
                if last && newest {
                    self.settler.want(whole, at.now);
                } else if due {
                    self.sign_receipt(engagement, at);
                }
            }
            Ok(None) => self.count("receipts_repeated"),
            Err(refusal) => {
                self.count(refusal.counter());
                tracing::warn!(%engagement, %refusal, "countersigned receipt refused");
            }
        }
    }

    /// Every task has its answer: sign for the rest, settle, and only then say so.
    pub(crate) fn job_done(
        &mut self,
        engagement: EngagementId,
        totals: Totals,
        job: Box<dyn Job>,
        at: Moment,
    ) {
        let until = at.now + self.config.timings.grace;
        let Some(&id) = self.by_engagement.get(&engagement) else {
            return;
        };
        let Some(row) = self.requesting.get_mut(&id) else {
            return;
        };
        (row.totals, row.job) = (totals, Some(job));
        if !row.is_live() {
            return;
        }
        row.state = RequestState::Accounting { until };
        self.sign_receipt(engagement, at);
        let Some(row) = self.requesting.get(&id) else {
            return;
        };
        let Some(granted) = &row.granted else { return };
        if granted.account.in_flight() {
            return;
        }
        match granted.account.whole().copied() {
            Some(whole) if !row.is_settled(whole.receipt.k) => {
                self.settler.want(whole, at.now);
            }
            // Nothing was accounted for, or all of it is settled.
            _ => self.finish(id, EngageOutcome::Settled, at),
        }
    }

    /// The registry settled a receipt of an engagement of ours, on either side.
    pub(crate) fn settled(&mut self, settlement: &Settlement, at: Moment) {
        let engagement = settlement.engagement;
        if settlement.worker == self.node {
            self.polo = Some(settlement.worker_polo.1);
        }
        if settlement.requester == self.node {
            self.polo = Some(settlement.requester_polo.1);
        }
        self.spool.settled(engagement, settlement.k);
        self.settler.settled(engagement, settlement.k);
        if let Some(&id) = self.by_engagement.get(&engagement)
            && let Some(row) = self.requesting.get_mut(&id)
            && row.is_live()
        {
            if row
                .settlement
                .as_ref()
                .is_none_or(|earlier| earlier.k <= settlement.k)
            {
                row.settlement = Some(settlement.clone());
            }
            let newest = row
                .granted
                .as_ref()
                .map_or(0, |granted| granted.account.newest_k());
            let whole = row
                .granted
                .as_ref()
                .map_or(0, |granted| granted.account.whole_k());
            let outcome = match &row.state {
                RequestState::Accounting { .. } if settlement.k >= newest => {
                    Some(EngageOutcome::Settled)
                }
                RequestState::Ending { outcome, .. } if settlement.k >= whole => {
                    Some(outcome.clone())
                }
                _ => None,
            };
            row.events.tell_settled(settlement, outcome.is_some());
            if let Some(outcome) = outcome {
                self.finish(id, outcome, at);
            }
        }
        self.tidy_spool(engagement);
    }

    /// The registry will never settle this receipt.
    pub(crate) fn settlement_refused(
        &mut self,
        engagement: EngagementId,
        refusal: &Refusal,
        at: Moment,
    ) {
        self.count("settlements_refused");
        tracing::error!(%engagement, code = ?refusal.code, reason = %refusal.reason,
            "settlement refused; the receipt leaves the spool");
        self.settler.forget(engagement);
        if let Some(&id) = self.by_engagement.get(&engagement) {
            let outcome = match self.requesting.get(&id).map(|row| &row.state) {
                Some(RequestState::Accounting { .. }) => {
                    Some(EngageOutcome::Refused(refusal.clone()))
                }
                Some(RequestState::Ending { outcome, .. }) => Some(outcome.clone()),
                _ => None,
            };
            if let Some(outcome) = outcome {
                self.finish(id, outcome, at);
            }
        }
        self.spool.remove(engagement);
    }
}
