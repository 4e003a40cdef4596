//! Who may answer: a peer that this node has dialed lately may open streams back to where answers
//! and trust arrive, though it is not trusted and the node is private.
//!
//! Pilot's messages are answered on a stream of their own. Only dials of this node open the window;
//! it holds for [`REPLY_FOR`], and the table forgets the oldest beyond [`REPLIES_MAX`].

use std::collections::HashMap;
use std::time::Duration;

use ramjet_proto::agent::{PORT_EXCHANGE, PORT_HANDSHAKE};
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;

/// How long after a dial a peer may answer.
const REPLY_FOR: Duration = Duration::from_secs(300);
/// Peers that may answer at a time.
const REPLIES_MAX: usize = 4_096;

/// Peers that were dialed lately.
#[derive(Debug, Default)]
pub(super) struct Replies {
    dialed: HashMap<NodeId, Time>,
}

impl Replies {
    /// This node dials a peer.
    pub(super) fn dialed(&mut self, peer: NodeId, now: Time) {
        if self.dialed.len() >= REPLIES_MAX && !self.dialed.contains_key(&peer) {
            self.dialed.retain(|_, at| now.since(*at) < REPLY_FOR);
            let oldest = self.dialed.iter().min_by_key(|(_, at)| **at);
            if self.dialed.len() >= REPLIES_MAX
                && let Some(oldest) = oldest.map(|(peer, _)| *peer)
            {
                self.dialed.remove(&oldest);
            }
        }
        self.dialed.insert(peer, now);
    }

    /// Whether a peer may open a stream to this port for having been dialed.
    pub(super) fn admit(&self, peer: NodeId, port: u16, now: Time) -> bool {
        matches!(port, PORT_EXCHANGE | PORT_HANDSHAKE)
            && self
                .dialed
                .get(&peer)
                .is_some_and(|at| now.since(*at) < REPLY_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_dialed_peer_may_answer_for_a_while_where_answers_arrive() {
        let mut replies = Replies::default();
        let (peer, other) = (NodeId(7), NodeId(8));
        replies.dialed(peer, at(10));
        assert!(replies.admit(peer, PORT_EXCHANGE, at(309)));
        assert!(replies.admit(peer, PORT_HANDSHAKE, at(309)));
        assert!(!replies.admit(peer, PORT_EXCHANGE, at(310)));
        assert!(!replies.admit(peer, 5_001, at(11)));
        assert!(!replies.admit(other, PORT_EXCHANGE, at(11)));
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let mut replies = Replies::default();
        for peer in 0..=u32::try_from(REPLIES_MAX).expect("small") {
            replies.dialed(NodeId(peer), at(u64::from(peer) / 100));
        }
        assert_eq!(replies.dialed.len(), REPLIES_MAX);
        assert!(replies.admit(NodeId(4_096), PORT_EXCHANGE, at(41)));
        // All that were dialed at once are as old as each other: one of them had to go.
        let gone = (0..100).filter(|peer| !replies.admit(NodeId(*peer), PORT_EXCHANGE, at(41)));
        assert_eq!(gone.count(), 1);
    }
}
