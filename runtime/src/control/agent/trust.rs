//! Whom this node trusts, who asks for trust, and whom it asked: pure state, and its file.
//!
//! Every decision of the handshake is here, without a clock or a stream. Invariants: nobody is in
//! both `trusted` and `pending`; an acceptance counts only for a request of our own that is open;
//! a message is taken once; every table has a bound, and what finds it full is refused or pushes out
//! the oldest. The file is Pilot's `trust.json`, so that a daemon's may be brought along.

use std::collections::{BTreeMap, HashSet, VecDeque};

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};

use super::calls::key_text;
use super::files::{rfc3339, unix_ms_of};
use crate::control::ports::Reach;

/// Nodes that can be trusted.
pub(super) const TRUSTED_MAX: usize = 65_536;
/// Requests that wait for a decision.
pub(super) const PENDING_MAX: usize = 256;
/// Requests of our own that are open.
pub(super) const OUTGOING_MAX: usize = 256;
/// Messages that are known again.
pub(super) const SEEN_MAX: usize = 8_192;
/// How long a request waits for a decision, in seconds: 30 days.
pub(super) const PENDING_AGE_MAX_S: u64 = 30 * 86_400;
/// How long after a revocation a request from the registry's inbox is not taken, in seconds.
pub(super) const REVOKED_QUIET_S: u64 = 300;
/// Revocations that are remembered.
const REVOKED_MAX: usize = 1_024;

/// A node that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustedNode {
    pub(crate) node: NodeId,
    pub(crate) key: PublicKey,
    pub(crate) approved_at_ms: u64,
    /// Both asked each other.
    pub(crate) mutual: bool,
    pub(crate) network: u16,
}

/// A node that asks for trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingNode {
    pub(crate) node: NodeId,
    /// Absent if the request came over the registry.
    pub(crate) key: Option<PublicKey>,
    pub(crate) justification: String,
    pub(crate) received_at_s: u64,
    /// It came over the registry, and so goes the answer.
    pub(crate) relayed: bool,
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Trust, and say so.
    Accept,
    /// It waits for a person.
    Wait,
    /// It is not taken: why.
    Refuse(String),
}

/// A request for trust, as it arrived.
#[derive(Clone, Debug)]
pub(super) struct TrustRequest {
    pub(super) node: NodeId,
    pub(super) key: PublicKey,
    pub(super) justification: String,
    pub(super) relayed: bool,
}

/// The state of trust.
#[derive(Debug, Default)]
pub(super) struct TrustBook {
    trusted: BTreeMap<NodeId, TrustedNode>,
    pending: BTreeMap<NodeId, PendingNode>,
    /// When we asked, in seconds since 1970.
    outgoing: BTreeMap<NodeId, u64>,
    /// When it was revoked, in seconds since 1970.
    revoked: BTreeMap<NodeId, u64>,
    seen: HashSet<[u8; 32]>,
    seen_order: VecDeque<[u8; 32]>,
}

impl TrustBook {
    /// Who may reach a node that trusts these.
    pub(super) fn reach(&self, public: bool) -> Reach {
        Reach {
            public,
            trusted: self.trusted.keys().copied().collect(),
        }
    }

    pub(super) fn trusts(&self, node: NodeId) -> bool {
        self.trusted.contains_key(&node)
    }

    pub(super) fn trusted(&self) -> impl Iterator<Item = &TrustedNode> {
        self.trusted.values()
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = &PendingNode> {
        self.pending.values()
    }

    /// When the newest request of our own was sent, in seconds since 1970.
    pub(super) fn asked_last_s(&self) -> Option<u64> {
        self.outgoing.values().max().copied()
    }

    /// Takes note of a message; false if it was seen before.
    pub(super) fn is_new(&mut self, digest: [u8; 32]) -> bool {
        if !self.seen.insert(digest) {
            return false;
        }
        self.seen_order.push_back(digest);
        if self.seen_order.len() > SEEN_MAX
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Decides about a request: who is trusted already and whom we asked ourselves is accepted, and
    /// everybody if `approve`; the others wait.
    pub(super) fn request(
        &mut self,
        request: TrustRequest,
        approve: bool,
        unix_s: u64,
    ) -> Decision {
        let node = request.node;
        if self.trusts(node) {
            return Decision::Accept;
        }
        let mutual = self.outgoing.contains_key(&node);
        if mutual || approve {
            return match self.trust(node, request.key, mutual, unix_s) {
                Ok(()) => Decision::Accept,
                Err(why) => Decision::Refuse(why),
            };
        }
        let quiet = self
            .revoked
            .get(&node)
            .is_some_and(|at| unix_s.saturating_sub(*at) < REVOKED_QUIET_S);
        if request.relayed && quiet {
            return Decision::Refuse(format!(
                "trust in node {node} was revoked less than {REVOKED_QUIET_S} s ago"
            ));
        }
        self.pending
            .retain(|_, row| unix_s.saturating_sub(row.received_at_s) < PENDING_AGE_MAX_S);
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&node) {
            return Decision::Refuse(format!("{PENDING_MAX} requests wait already, the limit"));
        }
        let row = PendingNode {
            node,
            key: (!request.relayed).then_some(request.key),
            justification: request.justification,
            received_at_s: unix_s,
            relayed: request.relayed,
        };
        self.pending.insert(node, row);
        Decision::Wait
    }

    /// We ask a node.
    ///
    /// # Errors
    /// Too many are open.
    pub(super) fn asking(&mut self, node: NodeId, unix_s: u64) -> Result<(), String> {
        if self.outgoing.len() >= OUTGOING_MAX && !self.outgoing.contains_key(&node) {
            return Err(format!(
                "{OUTGOING_MAX} requests of this node are open, the limit; revoke some"
            ));
        }
        self.outgoing.insert(node, unix_s);
        Ok(())
    }

    /// A node accepts. False if we did not ask it.
    pub(super) fn accepted(&mut self, node: NodeId, key: PublicKey, unix_s: u64) -> bool {
        if self.trusts(node) {
            self.outgoing.remove(&node);
            return true;
        }
        self.outgoing.contains_key(&node) && self.trust(node, key, false, unix_s).is_ok()
    }

    /// A node does not accept. False if we did not ask it.
    pub(super) fn rejected(&mut self, node: NodeId) -> bool {
        self.outgoing.remove(&node).is_some()
    }

    /// Trusts a node from now on.
    ///
    /// # Errors
    /// The table is full.
    pub(super) fn trust(
        &mut self,
        node: NodeId,
        key: PublicKey,
        mutual: bool,
        unix_s: u64,
    ) -> Result<(), String> {
        if self.trusted.len() >= TRUSTED_MAX && !self.trusts(node) {
            return Err(format!(
                "{TRUSTED_MAX} nodes are trusted, the limit; revoke some"
            ));
        }
        self.pending.remove(&node);
        self.outgoing.remove(&node);
        self.revoked.remove(&node);
        let row = TrustedNode {
            node,
            key,
            approved_at_ms: unix_s.saturating_mul(1_000),
            mutual,
            network: 0,
        };
        self.trusted.entry(node).or_insert(row);
        Ok(())
    }

    /// Takes a request out of those that wait.
    ///
    /// # Errors
    /// Nobody of that number asks.
    pub(super) fn take_pending(&mut self, node: NodeId) -> Result<PendingNode, String> {
        self.pending
            .remove(&node)
            .ok_or_else(|| format!("no pending handshake request from node {node}"))
    }

    /// Trusts a node no more, and forgets what was asked. False if there was nothing of it.
    pub(super) fn revoke(&mut self, node: NodeId, unix_s: u64) -> bool {
        let was = self.trusted.remove(&node).is_some();
        let asked = self.outgoing.remove(&node).is_some();
        if was {
            if self.revoked.len() >= REVOKED_MAX {
                self.revoked.pop_first();
            }
            self.revoked.insert(node, unix_s);
        }
        was || asked
    }

    /// Its file.
    pub(super) fn to_json(&self) -> Value {
        let trusted: Vec<Value> = self.trusted.values().map(trusted_json).collect();
        let pending: Vec<Value> = self.pending.values().map(pending_json).collect();
        let outgoing: Vec<Value> = self
            .outgoing
            .iter()
            .map(|(node, at)| json!({"node_id": node, "sent_at": rfc3339(at * 1_000)}))
            .collect();
        let revoked: Vec<Value> = self
            .revoked
            .iter()
            .map(|(node, at)| json!({"node_id": node, "revoked_at": rfc3339(at * 1_000)}))
            .collect();
        json!({
            "trusted": trusted, "pending": pending, "revoked": revoked, "outgoing": outgoing,
        })
    }

    /// Reads its file, or a daemon's. Rows that cannot be read are left out; how many.
    pub(super) fn from_json(file: &Value) -> (Self, usize) {
        let mut book = TrustBook::default();
        let mut left_out = 0;
        for row in rows(file, "trusted") {
            match read_trusted(row) {
                Some(trusted) if book.trusted.len() < TRUSTED_MAX => {
                    book.trusted.insert(trusted.node, trusted);
                }
                _ => left_out += 1,
            }
        }
        for row in rows(file, "pending") {
            match read_pending(row) {
                Some(pending) if book.pending.len() < PENDING_MAX && !book.trusts(pending.node) => {
                    book.pending.insert(pending.node, pending);
                }
                _ => left_out += 1,
            }
        }
        for (name, table, max) in [
            ("outgoing", &mut book.outgoing, OUTGOING_MAX),
            ("revoked", &mut book.revoked, REVOKED_MAX),
        ] {
            let member = if name == "outgoing" {
                "sent_at"
            } else {
                "revoked_at"
            };
            for row in rows(file, name) {
                match node_of(row) {
                    Some(node) if table.len() < max => {
                        table.insert(node, time_s(row.get(member)));
                    }
                    _ => left_out += 1,
                }
            }
        }
        (book, left_out)
    }
}

fn trusted_json(row: &TrustedNode) -> Value {
    json!({
        "node_id": row.node, "public_key": key_text(&row.key),
        "approved_at": rfc3339(row.approved_at_ms), "mutual": row.mutual,
        "network": row.network,
    })
}

fn pending_json(row: &PendingNode) -> Value {
    json!({
        "node_id": row.node,
        "public_key": row.key.as_ref().map(key_text).unwrap_or_default(),
        "justification": row.justification, "received_at": rfc3339(row.received_at_s * 1_000),
    })
}

fn rows<'a>(file: &'a Value, member: &str) -> &'a [Value] {
    let rows = file.get(member).and_then(Value::as_array);
    rows.map(Vec::as_slice).unwrap_or_default()
}

/// A row is a number or an object that names its node.
fn node_of(row: &Value) -> Option<NodeId> {
    let number = row.as_u64().or_else(|| row.get("node_id")?.as_u64())?;
    u32::try_from(number).ok().filter(|id| *id != 0).map(NodeId)
}

/// RFC 3339 or a number of seconds; 0 if it is neither.
fn time_s(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
        Some(Value::String(text)) => unix_ms_of(text).unwrap_or(0) / 1_000,
        _ => 0,
    }
}

fn key_of(row: &Value) -> Option<PublicKey> {
    PublicKey::from_base64(row.get("public_key")?.as_str()?)
}

fn read_trusted(row: &Value) -> Option<TrustedNode> {
    let network = row.get("network").and_then(Value::as_u64).unwrap_or(0);
    Some(TrustedNode {
        node: node_of(row)?,
        key: key_of(row)?,
        approved_at_ms: time_s(row.get("approved_at")) * 1_000,
        mutual: row.get("mutual").and_then(Value::as_bool).unwrap_or(false),
        network: u16::try_from(network).ok()?,
    })
}

fn read_pending(row: &Value) -> Option<PendingNode> {
    let key = key_of(row);
    let justification = row.get("justification").and_then(Value::as_str);
    Some(PendingNode {
        node: node_of(row)?,
        relayed: key.is_none(),
        key,
        justification: ramjet_proto::agent::bounded(
            justification.unwrap_or(""),
            ramjet_proto::agent::handshake::JUSTIFICATION_LEN_MAX,
        ),
        received_at_s: time_s(row.get("received_at")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: NodeId = NodeId(7);
    const B: NodeId = NodeId(8);
    const NOW: u64 = 1_777_000_000;

    fn key(node: NodeId) -> PublicKey {
        PublicKey([u8::try_from(node.0 % 256).expect("below 256"); 32])
    }

    fn request(node: NodeId, relayed: bool) -> TrustRequest {
        TrustRequest {
            node,
            key: key(node),
            justification: "work".to_owned(),
            relayed,
        }
    }

    #[test]
    fn who_asks_waits_unless_we_asked_or_approve_or_trust_already() {
        let mut book = TrustBook::default();
        assert_eq!(book.request(request(A, false), false, NOW), Decision::Wait);
        assert!(!book.trusts(A));
        let row = book.take_pending(A).expect("it waits");
        assert_eq!(row.key, Some(key(A)));
        assert!(book.take_pending(A).is_err(), "taken");
        book.asking(A, NOW).expect("room");
        assert_eq!(
            book.request(request(A, false), false, NOW),
            Decision::Accept
        );
        assert!(book.trusted().all(|row| row.mutual));
        assert_eq!(
            book.request(request(A, true), false, NOW),
            Decision::Accept,
            "trusted already"
        );
        assert_eq!(book.request(request(B, true), true, NOW), Decision::Accept);
        assert_eq!(book.reach(false).trusted, HashSet::from([A, B]));
    }

    #[test]
    fn an_acceptance_counts_only_for_a_request_of_ours() {
        let mut book = TrustBook::default();
        assert!(!book.accepted(A, key(A), NOW), "nobody asked");
        assert!(!book.trusts(A));
        book.asking(A, NOW).expect("room");
        assert!(book.accepted(A, key(A), NOW) && book.trusts(A));
        assert_eq!(book.asked_last_s(), None);
        book.asking(B, NOW).expect("room");
        assert!(book.rejected(B) && !book.rejected(B));
        assert!(!book.accepted(B, key(B), NOW), "the request is closed");
    }

    #[test]
    fn after_a_revocation_the_inbox_is_not_believed_for_a_while() {
        let mut book = TrustBook::default();
        book.trust(A, key(A), true, NOW).expect("room");
        assert!(book.revoke(A, NOW) && !book.trusts(A));
        assert!(!book.revoke(A, NOW), "nothing left");
        let late = book.request(request(A, true), false, NOW + REVOKED_QUIET_S - 1);
        assert!(matches!(late, Decision::Refuse(_)));
        assert_eq!(
            book.request(request(A, false), false, NOW + 1),
            Decision::Wait,
            "a direct request is a new one"
        );
        book.take_pending(A).expect("it waits");
        let later = book.request(request(A, true), false, NOW + REVOKED_QUIET_S);
        assert_eq!(later, Decision::Wait);
    }

    #[test]
    fn tables_are_bounded_and_the_old_makes_room() {
        let mut book = TrustBook::default();
        let nodes = 1_000..1_000 + u32::try_from(PENDING_MAX).expect("small");
        for node in nodes {
            let decision = book.request(request(NodeId(node), true), false, NOW);
            assert_eq!(decision, Decision::Wait);
        }
        let refused = book.request(request(A, true), false, NOW);
        assert!(matches!(refused, Decision::Refuse(why) if why.contains("256")));
        let month_later = NOW + PENDING_AGE_MAX_S;
        assert_eq!(
            book.request(request(A, true), false, month_later),
            Decision::Wait
        );
        assert_eq!(book.pending().count(), 1);
        for digest in 0..=u32::try_from(SEEN_MAX).expect("small") {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&digest.to_be_bytes());
            assert!(book.is_new(bytes));
            assert!(!book.is_new(bytes));
        }
        assert_eq!(book.seen.len(), SEEN_MAX);
    }

    #[test]
    fn a_daemons_file_is_read_and_what_is_broken_is_left_out() {
        let file = json!({
            "trusted": [
                {"node_id": 7, "public_key": key_text(&key(A)),
                 "approved_at": "2026-05-06T10:00:00Z", "mutual": true},
                {"node_id": 9, "public_key": "short"},
                {"node_id": 0, "public_key": key_text(&key(A))},
            ],
            "pending": [{"node_id": 8, "public_key": "", "justification": "x\ny",
                         "received_at": 5}],
            "revoked": [10], "outgoing": [{"node_id": 11, "sent_at": "2026-05-06T10:00:00Z"}],
        });
        let (book, left_out) = TrustBook::from_json(&file);
        assert_eq!(left_out, 2);
        assert!(book.trusts(A) && book.trusted().count() == 1);
        let pending: Vec<_> = book.pending().collect();
        assert_eq!((pending[0].node, pending[0].relayed), (B, true));
        assert_eq!(pending[0].justification, "x y");
        assert_eq!(book.asked_last_s(), Some(1_778_061_600));
    }

    proptest! {
        #[test]
        fn a_book_survives_its_file(
            steps in prop::collection::vec((0..5u8, 1..6u32, any::<bool>()), 0..40),
        ) {
            let mut book = TrustBook::default();
            for (now, (step, node, flag)) in (NOW..).zip(steps) {
                let node = NodeId(node);
                match step {
                    0 => drop(book.request(request(node, flag), false, now)),
                    1 => book.asking(node, now).expect("room"),
                    2 => drop(book.accepted(node, key(node), now)),
                    3 => drop(book.revoke(node, now)),
                    _ => drop(book.rejected(node)),
                }
                prop_assert!(book.pending().all(|row| !book.trusts(row.node)));
            }
            let (again, left_out) = TrustBook::from_json(&book.to_json());
            prop_assert_eq!(left_out, 0);
            prop_assert_eq!(again.trusted, book.trusted);
            prop_assert_eq!(again.pending, book.pending);
            prop_assert_eq!(again.outgoing, book.outgoing);
            prop_assert_eq!(again.revoked, book.revoked);
        }
    }
}
