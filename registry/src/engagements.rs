//! Engagements and their accounts: what was granted, and what both ends have signed for since.
//!
//! Invariants, each with a property test: the settled state of an engagement is its receipt with
//! the greatest `k`, whatever the order, repetition or loss on the way; counters never shrink; the
//! polo an engagement moved is a function of that receipt alone. Receipts arrive here with both
//! signatures verified against the keys in the grant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{Base64Bytes, EngagementRow};
use ramjet_proto::market::{Gate, Grant, Receipt, SignedReceipt};
use ramjet_proto::polo::{Account, Deltas};
use serde::{Deserialize, Serialize};

use crate::command::{Refused, Why};
use crate::config::Rules;

/// One engagement, from its grant on. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engagement {
    /// The offer it came from.
    pub offer: OfferId,
    /// Who sends tasks.
    pub requester: NodeId,
    /// Who runs them.
    pub worker: NodeId,
    /// The requester's key in the grant.
    pub requester_key: PublicKey,
    /// The worker's key in the grant.
    pub worker_key: PublicKey,
    /// The requester's polo at the match.
    pub requester_polo: i64,
    /// The worker's polo at the match.
    pub worker_polo: i64,
    /// How the gate was passed.
    pub gate: Gate,
    /// Most tasks it may carry.
    pub tasks: u64,
    /// Most tasks outstanding.
    pub concurrency: u32,
    /// When it was offered.
    pub offered_at_ms: u64,
    /// When the accept was applied.
    pub granted_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
    /// The skill.
    pub skill: String,
    /// The newest settled receipt with both signatures.
    pub receipt: Option<Base64Bytes>,
    /// Polo it has moved at the requester so far.
    pub moved_requester: i64,
    /// Polo it has moved at the worker so far.
    pub moved_worker: i64,
    /// When and why it was released.
    pub released: Option<Released>,
}

/// The end of an engagement by the word of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// When.
    pub at_ms: u64,
    /// By whom.
    pub node: NodeId,
    /// The reason it gave.
    pub reason: String,
}

impl Engagement {
    /// The grant, as the registry signs it.
    pub fn grant(&self, engagement: EngagementId) -> Grant {
        Grant {
            engagement,
            offer: self.offer,
            requester: self.requester,
            worker: self.worker,
            requester_key: self.requester_key,
            worker_key: self.worker_key,
            requester_polo: self.requester_polo,
            worker_polo: self.worker_polo,
            gate: self.gate,
            tasks: self.tasks,
            concurrency: self.concurrency,
            offered_at_ms: self.offered_at_ms,
            granted_at_ms: self.granted_at_ms,
            expires_at_ms: self.expires_at_ms,
            skill: self.skill.clone(),
        }
    }

    /// The newest settled receipt.
    pub fn settled(&self) -> Option<Receipt> {
        let bytes = self.receipt.as_ref()?;
        SignedReceipt::decode(&bytes.0)
            .ok()
            .map(|signed| signed.receipt)
    }

    /// Whether `node` is one of its ends.
    pub fn names(&self, node: NodeId) -> bool {
        node == self.requester || node == self.worker
    }

    /// Whether it still runs.
    pub fn is_active(&self, at_ms: u64) -> bool {
        self.released.is_none() && at_ms < self.expires_at_ms
    }

    /// When it ended, if it has.
    pub fn ended_at_ms(&self, at_ms: u64) -> Option<u64> {
        match &self.released {
            Some(released) => Some(released.at_ms),
            None => (at_ms >= self.expires_at_ms).then_some(self.expires_at_ms),
        }
    }

    /// What polo depends on, at `receipt`.
    pub fn account(&self, receipt: &Receipt) -> Account {
        Account {
            accepted: receipt.accepted,
            expired: receipt.expired,
            busy_ns: receipt.busy_ns,
            staged_ns: receipt.staged_ns,
            idle_ms: self.granted_at_ms.saturating_sub(self.offered_at_ms),
        }
    }

    /// How it stands in a list.
    pub fn row(&self, engagement: EngagementId, at_ms: u64) -> EngagementRow {
        let receipt = self.settled().unwrap_or_default();
        let state = match (&self.released, self.is_active(at_ms)) {
            (Some(_), _) => "released",
            (None, true) => "active",
            (None, false) => "expired",
        };
        EngagementRow {
            engagement,
            skill: self.skill.clone(),
            requester: self.requester,
            worker: self.worker,
            state: state.to_owned(),
            offered_at_ms: self.offered_at_ms,
            granted_at_ms: self.granted_at_ms,
            released_at_ms: self.released.as_ref().map(|released| released.at_ms),
            k: receipt.k,
            accepted: receipt.accepted,
            rejected: receipt.rejected,
            earned: self.moved_worker,
        }
    }
}

/// How a receipt stands to what is on file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the newest now.
    Newer,
    /// It, or a later one, was settled before.
    Known,
    /// It excludes what is on file, for this reason.
    Contradiction(String),
}

/// Compares a verified receipt with the engagement's grant and its newest receipt.
pub fn judge(engagement: &Engagement, receipt: &Receipt, at_ms: u64, rules: &Rules) -> Standing {
    if let Some(reason) = against_grant(engagement, receipt, at_ms, rules) {
        return Standing::Contradiction(reason);
    }
    let Some(settled) = engagement.settled() else {
        return if receipt.k == 1 && receipt.previous != [0; 32] {
            Standing::Contradiction("receipt 1 names a predecessor".to_owned())
        } else {
            Standing::Newer
        };
    };
    let contradiction = |what: &str| {
        Standing::Contradiction(format!(
            "receipt {} {what} receipt {}, which is settled",
            receipt.k, settled.k
        ))
    };
    match receipt.k.cmp(&settled.k) {
        core::cmp::Ordering::Equal if *receipt == settled => Standing::Known,
        core::cmp::Ordering::Equal => contradiction("differs from"),
        core::cmp::Ordering::Less if settled.follows(receipt) => Standing::Known,
        core::cmp::Ordering::Less => contradiction("counts more than"),
        core::cmp::Ordering::Greater if !receipt.follows(&settled) => {
            contradiction("counts less than")
        }
        core::cmp::Ordering::Greater
            if receipt.k == settled.k + 1 && receipt.previous != settled.hash() =>
        {
            contradiction("does not name the hash of")
        }
        core::cmp::Ordering::Greater => Standing::Newer,
    }
}

fn against_grant(
    engagement: &Engagement,
    receipt: &Receipt,
    at_ms: u64,
    rules: &Rules,
) -> Option<String> {
    if receipt.k == 0 {
        return Some("k: 0, receipts count from 1".to_owned());
    }
    // Tasks that ran; a task that the worker refused because its deadline had passed did not.
    let ran = receipt
        .accepted
        .saturating_add(receipt.rejected)
        .saturating_add(receipt.failed);
    if ran > engagement.tasks {
        return Some(format!(
            "it counts {ran} tasks, and the grant allows {}",
            engagement.tasks
        ));
    }
    let until_ms = at_ms.min(engagement.expires_at_ms);
    let wall_ms = until_ms
        .saturating_sub(engagement.granted_at_ms)
        .saturating_add(rules.busy_slack_ms);
    let busy_ns_max = u128::from(wall_ms) * 1_000_000 * u128::from(engagement.concurrency);
    if u128::from(receipt.busy_ns) > busy_ns_max {
        return Some(format!(
            "busy_ns: {}, and {wall_ms} ms with {} tasks at a time allow {busy_ns_max}",
            receipt.busy_ns, engagement.concurrency
        ));
    }
    None
}

/// A receipt that contradicts what is on file, kept with both signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it came.
    pub at_ms: u64,
    /// The receipt, encoded.
    pub receipt: Base64Bytes,
    /// What it contradicts.
    pub reason: String,
}

/// All engagements on file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engagements {
    rows: BTreeMap<EngagementId, Engagement>,
    /// The last id given.
    last: u64,
    evidence: VecDeque<Evidence>,
    /// Contradictions in all, those no longer kept included.
    contradictions: u64,
    #[serde(skip)]
    by_node: BTreeMap<NodeId, BTreeSet<EngagementId>>,
}

impl Engagements {
    pub(crate) fn rebuild(&mut self) {
        for (&id, engagement) in &self.rows {
            for node in [engagement.requester, engagement.worker] {
                self.by_node.entry(node).or_default().insert(id);
            }
        }
    }

    /// One engagement.
    ///
    /// # Errors
    /// [`Why::NotFound`].
    pub fn row(&self, id: EngagementId) -> Result<&Engagement, Refused> {
        self.rows.get(&id).ok_or_else(|| {
            Refused::new(
                Why::NotFound,
                format!("engagement {id}: not found, or no longer on file"),
            )
        })
    }

    pub(crate) fn row_mut(&mut self, id: EngagementId) -> &mut Engagement {
        self.rows
            .get_mut(&id)
            .expect("the caller has just found it")
    }

    /// Engagements on file.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none is on file.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many grants were given in all.
    pub fn granted(&self) -> u64 {
        self.last
    }

    /// All engagements, newest first.
    pub fn newest(&self) -> impl Iterator<Item = (EngagementId, &Engagement)> {
        self.rows
            .iter()
            .rev()
            .map(|(&id, engagement)| (id, engagement))
    }

    /// The engagements of one node, newest first.
    pub fn newest_of(&self, node: NodeId) -> impl Iterator<Item = (EngagementId, &Engagement)> {
        self.by_node
            .get(&node)
            .into_iter()
            .flat_map(|ids| ids.iter().rev())
            .map(|&id| (id, &self.rows[&id]))
    }

    /// Contradictory receipts, oldest first.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.evidence.iter()
    }

    /// Contradictions in all.
    pub fn contradictions(&self) -> u64 {
        self.contradictions
    }

    pub(crate) fn add(&mut self, engagement: Engagement) -> EngagementId {
        self.last += 1;
        let id = EngagementId(self.last);
        for node in [engagement.requester, engagement.worker] {
            self.by_node.entry(node).or_default().insert(id);
        }
        self.rows.insert(id, engagement);
        id
    }

    /// The engagements that may go so that another fits: those whose settling time is over; else,
    /// of those that have ended, the sixteenth part that ended longest ago, settled ones first.
    ///
    /// # Errors
    /// [`Why::Limited`]: the table is full of engagements that still run.
    pub(crate) fn check_room(
        &self,
        at_ms: u64,
        rules: &Rules,
    ) -> Result<Vec<EngagementId>, Refused> {
        if self.rows.len() < rules.engagements_max {
            return Ok(Vec::new());
        }
        let mut ended: Vec<(bool, u64, EngagementId)> = self
            .rows
            .iter()
            .filter_map(|(&id, row)| {
                row.ended_at_ms(at_ms)
                    .map(|ended| (row.receipt.is_none(), ended, id))
            })
            .collect();
        if ended.is_empty() {
            return Err(Refused::new(
                Why::Limited,
                format!(
                    "too many engagements run: {}, at most {}; try when one has ended",
                    self.rows.len(),
                    rules.engagements_max
                ),
            ));
        }
        ended.sort_unstable();
        let over = |ended_at_ms: u64| ended_at_ms.saturating_add(rules.settle_window_ms) <= at_ms;
        let many = (ended.len() / 16).max(1);
        Ok(ended
            .into_iter()
            .enumerate()
            .filter(|&(index, (_, ended_at_ms, _))| index < many || over(ended_at_ms))
            .map(|(_, (_, _, id))| id)
            .collect())
    }

    pub(crate) fn forget(&mut self, ids: &[EngagementId]) {
        for id in ids {
            let Some(row) = self.rows.remove(id) else {
                continue;
            };
            for node in [row.requester, row.worker] {
                if let Some(held) = self.by_node.get_mut(&node) {
                    held.remove(id);
                    if held.is_empty() {
                        self.by_node.remove(&node);
                    }
                }
            }
        }
    }

    /// Whether this very receipt is kept as evidence already.
    pub(crate) fn has_evidence(&self, receipt: &[u8]) -> bool {
        self.evidence
            .iter()
            .any(|evidence| evidence.receipt.0 == receipt)
    }

    pub(crate) fn keep_evidence(&mut self, evidence: Evidence, evidence_max: usize) {
        self.contradictions += 1;
        self.evidence.push_back(evidence);
        while self.evidence.len() > evidence_max {
            self.evidence.pop_front();
        }
    }

    /// Takes `receipt` as the newest, and gives what polo must move now: the difference between
    /// what the engagement comes to and what it has moved before.
    pub(crate) fn settle(
        &mut self,
        id: EngagementId,
        receipt: Base64Bytes,
        totals: Deltas,
    ) -> Deltas {
        let row = self.row_mut(id);
        let moved = Deltas {
            requester: totals.requester - row.moved_requester,
            worker: totals.worker - row.moved_worker,
        };
        row.receipt = Some(receipt);
        row.moved_requester = totals.requester;
        row.moved_worker = totals.worker;
        moved
    }
}
