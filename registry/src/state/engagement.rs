//! The commands in the life of an engagement after its grant: settle, release, renew.

use ramjet_proto::ids::{EngagementId, NodeId};
use ramjet_proto::market::message::{Base64Bytes, Settlement};
use ramjet_proto::market::terms::DURATION_S_MAX;
use ramjet_proto::market::{Gate, SignedReceipt};
use ramjet_proto::polo::{self, Occasion};

use super::State;
use crate::command::{Outcome, Refused, Why};
use crate::engagements::{self, Evidence, Released, Standing};

/// Longest reason of a release, in bytes.
pub const REASON_LEN_MAX: usize = 256;

impl State {
    pub(super) fn settle(&mut self, at_ms: u64, receipt: &Base64Bytes) -> Result<Outcome, Refused> {
        let signed = SignedReceipt::decode(&receipt.0)
            .map_err(|fault| Refused::new(Why::Invalid, fault.to_string()))?;
        let id = signed.receipt.engagement;
        let row = self.engagements.row(id)?;
        if let Some(ended_at_ms) = row.ended_at_ms(at_ms)
            && ended_at_ms.saturating_add(self.rules.settle_window_ms) <= at_ms
        {
            return Err(Refused::new(
                Why::Stale,
                format!(
                    "engagement {id} ended at {ended_at_ms}, and receipts are taken for {} ms",
                    self.rules.settle_window_ms
                ),
            ));
        }
        match engagements::judge(row, &signed.receipt, at_ms, &self.rules) {
            Standing::Known => {
                let settlement = self.settlement(id, (0, 0));
                Ok(Outcome::Settled {
                    settlement,
                    repeated: true,
                })
            }
            Standing::Contradiction(reason) => {
                if !self.engagements.has_evidence(&receipt.0) {
                    self.advance(at_ms);
                    let reason = reason.clone();
                    let evidence = Evidence {
                        at_ms,
                        receipt: receipt.clone(),
                        reason,
                    };
                    self.engagements
                        .keep_evidence(evidence, self.rules.evidence_max);
                }
                Err(Refused::new(
                    Why::Contradiction,
                    format!("engagement {id}: {reason}"),
                ))
            }
            Standing::Newer => {
                let occasion = Occasion::Engagement {
                    account: row.account(&signed.receipt),
                    gate_met: row.gate == Gate::Met,
                };
                let known = row.settled().map_or(0, |receipt| receipt.accepted);
                let (requester, worker) = (row.requester, row.worker);
                let totals = polo::deltas(self.rules.polo_policy, occasion);
                self.advance(at_ms);
                let moved = self.engagements.settle(id, receipt.clone(), totals);
                let account = self.directory.account(requester);
                account.polo = account.polo.saturating_add(moved.requester);
                let account = self.directory.account(worker);
                account.polo = account.polo.saturating_add(moved.worker);
                account.worked_results += signed.receipt.accepted - known;
                let settlement = self.settlement(id, (moved.requester, moved.worker));
                Ok(Outcome::Settled {
                    settlement,
                    repeated: false,
                })
            }
        }
    }

    /// How an engagement stands after polo moved by `(requester, worker)`.
    fn settlement(&self, id: EngagementId, moved: (i64, i64)) -> Settlement {
        let row = self
            .engagements
            .row(id)
            .expect("the caller has just found it");
        let receipt = row.settled().unwrap_or_default();
        let around = |node, moved: i64| {
            let after = self.directory.polo(node);
            (after.saturating_sub(moved), after)
        };
        Settlement {
            engagement: id,
            k: receipt.k,
            accepted: receipt.accepted,
            earned: row.moved_worker,
            worker: row.worker,
            worker_polo: around(row.worker, moved.1),
            requester: row.requester,
            requester_polo: around(row.requester, moved.0),
            position: self.position,
        }
    }

    pub(super) fn release(
        &mut self,
        at_ms: u64,
        id: EngagementId,
        node: NodeId,
        reason: &str,
    ) -> Result<Outcome, Refused> {
        let row = self.engagements.row(id)?;
        if !row.names(node) {
            return Err(Refused::new(
                Why::NotProven,
                format!("node {node} is no end of engagement {id}"),
            ));
        }
        if reason.len() > REASON_LEN_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!("reason: {} bytes, at most {REASON_LEN_MAX}", reason.len()),
            ));
        }
        if row.ended_at_ms(at_ms).is_some() {
            return Ok(Outcome::Released { other: None });
        }
        let other = if node == row.worker {
            row.requester
        } else {
            row.worker
        };
        self.advance(at_ms);
        let released = Released {
            at_ms,
            node,
            reason: reason.to_owned(),
        };
        self.engagements.row_mut(id).released = Some(released);
        Ok(Outcome::Released { other: Some(other) })
    }

    pub(super) fn renew(
        &mut self,
        at_ms: u64,
        id: EngagementId,
        node: NodeId,
        tasks: u64,
        duration_s: u32,
    ) -> Result<Outcome, Refused> {
        let row = self.engagements.row(id)?;
        if node != row.requester {
            return Err(Refused::new(
                Why::NotProven,
                format!("node {node} is not the requester of engagement {id}"),
            ));
        }
        if !row.is_active(at_ms) {
            return Err(Refused::new(
                Why::Taken,
                format!("engagement {id} has ended: make a new offer"),
            ));
        }
        let expires_at_ms = row
            .expires_at_ms
            .saturating_add(u64::from(duration_s) * 1_000);
        let latest_ms = at_ms.saturating_add(u64::from(DURATION_S_MAX) * 1_000);
        if expires_at_ms > latest_ms || (tasks == 0 && duration_s == 0) {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "renewal by {tasks} tasks and {duration_s} s: must add something, and end at \
                     most {DURATION_S_MAX} s from now"
                ),
            ));
        }
        let worker = row.worker;
        self.advance(at_ms);
        let row = self.engagements.row_mut(id);
        row.tasks = row.tasks.saturating_add(tasks);
        row.expires_at_ms = expires_at_ms;
        Ok(Outcome::Renewed { worker })
    }
}
