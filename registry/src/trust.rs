//! Trust between nodes, and the inboxes by which strangers ask for it.
//!
//! A report of trust has a direction: what `a` says opens `a`, and nothing else. Two reports make
//! trust mutual. An approved handshake is both at once, because the other end has asked. (Pilot's
//! first registry made one report symmetric, by which anyone opened any private node.)

use std::collections::{BTreeMap, BTreeSet};

use ramjet_proto::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::command::{Refused, Why};

/// Waiting messages of each kind in one inbox.
pub const INBOX_MAX: usize = 100;
/// Longest justification, in bytes.
pub const JUSTIFICATION_LEN_MAX: usize = 1_024;
/// Nodes that one node may trust.
pub const TRUSTED_MAX: usize = 4_096;

/// A handshake request that waits to be collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// Who asks.
    pub from: NodeId,
    /// For people.
    pub justification: String,
    /// When it was asked.
    pub at_ms: u64,
}

/// An answer that waits to be collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeResponse {
    /// Who answers.
    pub from: NodeId,
    /// The answer.
    pub accept: bool,
    /// When it was given.
    pub at_ms: u64,
}

/// What waits for one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbox {
    /// Requests to it.
    pub requests: Vec<HandshakeRequest>,
    /// Answers to its own requests.
    pub responses: Vec<HandshakeResponse>,
}

/// Who trusts whom, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Whom each node has declared its trust in.
    reports: BTreeMap<NodeId, BTreeSet<NodeId>>,
    inboxes: BTreeMap<NodeId, Inbox>,
    /// By the node asked: who has asked and has no answer yet, collected or not.
    unanswered: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Trust {
    /// Whether `node` has declared its trust in `peer`.
    pub fn opens(&self, node: NodeId, peer: NodeId) -> bool {
        self.reports
            .get(&node)
            .is_some_and(|peers| peers.contains(&peer))
    }

    /// Whether each has declared its trust in the other.
    pub fn mutual(&self, a: NodeId, b: NodeId) -> bool {
        self.opens(a, b) && self.opens(b, a)
    }

    /// Whether nothing waits for `node`.
    pub fn inbox_is_empty(&self, node: NodeId) -> bool {
        !self.inboxes.contains_key(&node)
    }

    pub(crate) fn check_report(&self, node: NodeId) -> Result<(), Refused> {
        let held = self.reports.get(&node).map_or(0, BTreeSet::len);
        if held < TRUSTED_MAX {
            return Ok(());
        }
        Err(Refused::new(
            Why::Limited,
            format!("node {node} trusts {held} nodes, at most {TRUSTED_MAX}: revoke some first"),
        ))
    }

    pub(crate) fn report(&mut self, node: NodeId, peer: NodeId) {
        self.reports.entry(node).or_default().insert(peer);
    }

    /// Whether there was anything to revoke.
    pub(crate) fn any(&self, node: NodeId, peer: NodeId) -> bool {
        self.opens(node, peer) || self.opens(peer, node)
    }

    pub(crate) fn revoke(&mut self, node: NodeId, peer: NodeId) {
        for (from, to) in [(node, peer), (peer, node)] {
            if let Some(peers) = self.reports.get_mut(&from) {
                peers.remove(&to);
                if peers.is_empty() {
                    self.reports.remove(&from);
                }
            }
        }
    }

    pub(crate) fn check_request(
        &self,
        from: NodeId,
        to: NodeId,
        justification: &str,
    ) -> Result<(), Refused> {
        if from == to {
            return Err(Refused::new(
                Why::Invalid,
                "invalid handshake: a node with itself",
            ));
        }
        if justification.len() > JUSTIFICATION_LEN_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "justification too long: {} bytes, at most {JUSTIFICATION_LEN_MAX}",
                    justification.len()
                ),
            ));
        }
        let Some(inbox) = self.inboxes.get(&to) else {
            return Ok(());
        };
        if inbox.requests.iter().any(|request| request.from == from) {
            return Err(Refused::new(
                Why::Limited,
                format!("a handshake request from node {from} is already waiting for node {to}"),
            ));
        }
        if inbox.requests.len() >= INBOX_MAX {
            return Err(Refused::new(
                Why::Limited,
                format!("too many handshake requests wait for node {to}, at most {INBOX_MAX}"),
            ));
        }
        Ok(())
    }

    pub(crate) fn request(&mut self, from: NodeId, to: NodeId, justification: &str, at_ms: u64) {
        self.inboxes
            .entry(to)
            .or_default()
            .requests
            .push(HandshakeRequest {
                from,
                justification: justification.to_owned(),
                at_ms,
            });
        let unanswered = self.unanswered.entry(to).or_default();
        unanswered.insert(from);
        // Requests that were collected and never answered give way to newer ones.
        while unanswered.len() > 2 * INBOX_MAX {
            let collected = unanswered.iter().copied().find(|&node| node != from);
            unanswered.remove(&collected.expect("the set holds more than one node"));
        }
    }

    pub(crate) fn collect(&mut self, node: NodeId) -> Inbox {
        self.inboxes.remove(&node).unwrap_or_default()
    }

    pub(crate) fn check_respond(&self, node: NodeId, peer: NodeId) -> Result<(), Refused> {
        if self
            .unanswered
            .get(&node)
            .is_some_and(|peers| peers.contains(&peer))
        {
            return Ok(());
        }
        Err(Refused::new(
            Why::NotFound,
            format!("no pending handshake request from node {peer}: not found"),
        ))
    }

    pub(crate) fn respond(&mut self, node: NodeId, peer: NodeId, accept: bool, at_ms: u64) {
        if let Some(peers) = self.unanswered.get_mut(&node) {
            peers.remove(&peer);
            if peers.is_empty() {
                self.unanswered.remove(&node);
            }
        }
        if let Some(inbox) = self.inboxes.get_mut(&node) {
            inbox.requests.retain(|request| request.from != peer);
            if inbox.requests.is_empty() && inbox.responses.is_empty() {
                self.inboxes.remove(&node);
            }
        }
        if accept {
            self.report(node, peer);
            self.report(peer, node);
        }
        let responses = &mut self.inboxes.entry(peer).or_default().responses;
        if responses.len() >= INBOX_MAX {
            responses.remove(0);
        }
        responses.push(HandshakeResponse {
            from: node,
            accept,
            at_ms,
        });
    }

    /// Table rows, for the pace of snapshots.
    pub(crate) fn rows(&self) -> usize {
        self.reports.len() + self.inboxes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn one_report_opens_the_reporter_only() {
        let mut trust = Trust::default();
        trust.report(A, B);
        assert!(trust.opens(A, B) && !trust.opens(B, A) && !trust.mutual(A, B));
        trust.report(B, A);
        assert!(trust.mutual(A, B) && trust.mutual(B, A));
        trust.revoke(B, A);
        assert!(!trust.any(A, B));
    }

    #[test]
    fn an_approval_needs_a_request_and_makes_trust_mutual() {
        let mut trust = Trust::default();
        assert_eq!(
            trust.check_respond(B, A).expect_err("nobody asked").why,
            Why::NotFound
        );
        trust.request(A, B, "work", 5);
        assert_eq!(
            trust
                .check_request(A, B, "")
                .expect_err("still waiting")
                .why,
            Why::Limited
        );
        assert_eq!(trust.collect(B).requests.len(), 1);
        assert_eq!(trust.check_respond(B, A), Ok(()));
        trust.respond(B, A, true, 6);
        assert!(trust.mutual(A, B));
        let inbox = trust.collect(A);
        assert_eq!(
            inbox.responses,
            [HandshakeResponse {
                from: B,
                accept: true,
                at_ms: 6
            }]
        );
        assert!(trust.inbox_is_empty(A) && trust.inbox_is_empty(B));
    }

    #[test]
    fn an_inbox_is_bounded() {
        let mut trust = Trust::default();
        for from in 10..10 + u32::try_from(INBOX_MAX).expect("small") {
            assert_eq!(trust.check_request(NodeId(from), A, ""), Ok(()));
            trust.request(NodeId(from), A, "", 0);
        }
        assert_eq!(
            trust.check_request(B, A, "").expect_err("full").why,
            Why::Limited
        );
        let long = "x".repeat(JUSTIFICATION_LEN_MAX + 1);
        assert_eq!(
            trust.check_request(A, B, &long).expect_err("too long").why,
            Why::Invalid
        );
    }
}
