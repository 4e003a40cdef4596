//! Which way datagrams take: straight to the peer, or over the beacon.
//!
//! | a tunnel is | while | and changes when |
//! |---|---|---|
//! | direct | a datagram of the peer arrives directly, or it answers one of ours that went directly | it was used for 4 s without either, and of two pings only the relayed one is answered within 1 s |
//! | relayed | nothing is known to pass directly | the peer answers a ping that went directly: asked when the session begins, when a datagram arrives directly, and every 15 s while in use, each time with a request to punch |
//!
//! What decides is always a pong: it is sealed by the peer and repeats the number of our ping, and
//! that number says which way the ping went. Nothing else switches a live tunnel, neither silence
//! alone nor a message of the beacon, which nobody signs.
//!
//! Without a beacon every tunnel is direct. Absent: relaying for others, which is the beacon's.

use core::time::Duration;
use std::net::SocketAddr;

use super::peer::Place;
use super::{TunnelEvent, TunnelHandle, Tunnels};
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::beacon::RELAY_HEADER_LEN;

/// Use of a direct tunnel without a sign that it is direct, before it is asked. Shorter than the 10 s
/// after which a requester gives up a worker that does not answer.
const SUSPECT_AFTER: Duration = Duration::from_secs(4);
/// How long both pings may take; a path much slower than the other one counts as none.
const PROBE_FOR: Duration = Duration::from_secs(1);
/// Between two attempts to leave the beacon.
const RETURN_EVERY: Duration = Duration::from_secs(15);
/// A relayed tunnel that was not used for so long is left where it is.
const RETURN_WHILE_USED: Duration = Duration::from_secs(60);
/// A session that the peer confirms over the beacon does not move a tunnel that was direct so lately:
/// it may have sent both ways.
const DIRECT_LATELY: Duration = Duration::from_secs(8);
/// How long a punch command may be the answer to our request.
const PUNCH_FOR: Duration = Duration::from_secs(3);
/// Requests whose commands may come.
const PUNCHES_MAX: usize = 8;

/// Where a datagram goes, and what goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The address.
    pub to: SocketAddr,
    /// The header that the beacon needs, if `to` is the beacon.
    pub relay: Option<[u8; RELAY_HEADER_LEN]>,
}

impl Route {
    /// Straight to an address.
    pub(super) fn direct(to: SocketAddr) -> Self {
        Route { to, relay: None }
    }
}

/// Up to two ways for one datagram, where it is not known which of them arrives.
pub(super) type Ways = [Option<Route>; 2];

/// Which way a ping went, as the low bits of its sequence number tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Direct,
    Relayed,
    /// To the address at which the beacon sees the peer.
    Commanded,
}

impl Sent {
    fn sequence(self, round: u32) -> u32 {
        round << 2 | self as u32
    }
}

/// A question which way is open.
#[derive(Clone, Copy, Debug)]
struct Probe {
    at: Time,
    relay_answered: bool,
}

/// What is known of the ways to a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Datagrams go over the beacon.
    pub(super) relayed: bool,
    /// When something is known to have passed directly, last.
    proven_at: Time,
    /// When the first packet since then went directly; [`Time::NEVER`] if none has.
    unproven_since: Time,
    probe: Option<Probe>,
    /// When the ways were asked about last.
    asked_at: Time,
    /// Something came directly since: ask again soon.
    hurried: bool,
    /// Numbers the questions; 0 is for pings that ask nothing.
    round: u32,
    /// Where a ping went on the beacon's word.
    commanded: Option<SocketAddr>,
}

impl Reach {
    pub(super) fn new(now: Time) -> Self {
        Reach {
            relayed: false,
            proven_at: now,
            unproven_since: Time::NEVER,
            probe: None,
            asked_at: now,
            hurried: false,
            round: 0,
            commanded: None,
        }
    }

    /// A datagram of the peer opened under the live session, and is its newest.
    pub(super) fn heard(&mut self, directly: bool, now: Time) {
        if !directly {
            return;
        }
        if self.relayed {
            // That its way is open does not say that ours is.
            self.hurried = true;
        } else {
            self.prove(now);
        }
    }

    fn prove(&mut self, now: Time) {
        self.proven_at = now;
        self.unproven_since = Time::NEVER;
    }

    /// A packet goes this way; when to ask about it, if that is news.
    pub(super) fn sent(&mut self, now: Time) -> Option<Time> {
        if self.relayed || self.unproven_since != Time::NEVER {
            return None;
        }
        self.unproven_since = now;
        Some(now + SUSPECT_AFTER)
    }

    /// A session was confirmed by a datagram; whether the way changed.
    pub(super) fn confirmed(&mut self, directly: bool, first: bool, now: Time) -> bool {
        let before = self.relayed;
        if directly {
            self.relayed = false;
            self.prove(now);
        } else if first || now.since(self.proven_at) >= DIRECT_LATELY {
            self.relayed = true;
            self.hurried = true;
            self.asked_at = now.before(PROBE_FOR);
        }
        self.probe = None;
        self.relayed != before
    }

    /// When the ways want to be asked about, or an answer is due.
    pub(super) fn due(&self, used_at: Time) -> Time {
        if let Some(probe) = self.probe {
            return probe.at + PROBE_FOR;
        }
        if self.relayed {
            return if self.hurried {
                self.asked_at + PROBE_FOR
            } else if used_at + RETURN_WHILE_USED > self.asked_at {
                self.asked_at + RETURN_EVERY
            } else {
                Time::NEVER
            };
        }
        if self.unproven_since == Time::NEVER {
            return Time::NEVER;
        }
        self.unproven_since.max(self.asked_at) + SUSPECT_AFTER
    }

    /// The answers to a probe are in; whether the way changed.
    fn judge(&mut self) -> bool {
        let Some(probe) = self.probe.take() else {
            return false;
        };
        let lost = !self.relayed && probe.relay_answered && self.proven_at < probe.at;
        if lost {
            self.relayed = true;
            self.unproven_since = Time::NEVER;
        }
        lost
    }

    /// The peer has answered our ping of this number; whether the way changed, and where the peer was
    /// reached if that is news.
    fn answered(&mut self, sequence: u32, now: Time) -> (bool, Option<SocketAddr>) {
        if self.round == 0 || sequence >> 2 != self.round & (u32::MAX >> 2) {
            return (false, None);
        }
        let commanded = if sequence & 3 == Sent::Commanded as u32 {
            self.commanded
        } else {
            None
        };
        if sequence & 3 == Sent::Relayed as u32 {
            if let Some(probe) = &mut self.probe {
                probe.relay_answered = true;
            }
            return (false, None);
        }
        self.prove(now);
        self.probe = None;
        self.hurried = false;
        (std::mem::replace(&mut self.relayed, false), commanded)
    }
}

/// Punches that were asked for.
#[derive(Debug, Default)]
pub(super) struct Punches([Option<(NodeId, Time)>; PUNCHES_MAX]);

impl Punches {
    fn note(&mut self, node: NodeId, now: Time) {
        let oldest = self
            .0
            .iter_mut()
            .min_by_key(|entry| entry.map_or((Time::ZERO, false), |(_, at)| (at, true)));
        *oldest.expect("there are some places") = Some((node, now));
    }

    fn recent(&self, now: Time) -> impl Iterator<Item = NodeId> {
        let fresh =
            move |entry: Option<(NodeId, Time)>| entry.filter(|(_, at)| now.since(*at) < PUNCH_FOR);
        self.0.into_iter().filter_map(fresh).map(|(node, _)| node)
    }
}

impl Tunnels {
    /// Where to send what was sealed for this tunnel: to the peer, or to the beacon with a header
    /// before each datagram. `None` if neither is known, or the handle is stale.
    pub fn route(&self, tunnel: TunnelHandle) -> Option<Route> {
        let peer = self.table.tunnel(tunnel)?;
        let direct = peer.endpoint.filter(|_| !peer.reach.relayed);
        direct
            .map(Route::direct)
            .or_else(|| self.relay_route(peer.node))
            .or(peer.endpoint.map(Route::direct))
    }

    /// Whether the beacon relays this tunnel.
    pub fn is_relayed(&self, tunnel: TunnelHandle) -> bool {
        self.route(tunnel)
            .is_some_and(|route| route.relay.is_some())
    }

    /// Over the beacon to a node.
    pub(super) fn relay_route(&self, node: NodeId) -> Option<Route> {
        let mut header = [0; RELAY_HEADER_LEN];
        header[0] = RELAY;
        header[1..5].copy_from_slice(&self.node.0.to_be_bytes());
        header[5..].copy_from_slice(&node.0.to_be_bytes());
        Some(Route {
            to: self.beacon.address?,
            relay: Some(header),
        })
    }

    /// The ways to answer a datagram of `node`: back to where it came from; if it was relayed, the
    /// same way, and directly if it is known where to.
    pub(super) fn ways(
        &self,
        node: NodeId,
        source: Option<SocketAddr>,
        endpoint: Option<SocketAddr>,
    ) -> Ways {
        match source {
            Some(source) => [Some(Route::direct(source)), None],
            None => [self.relay_route(node), endpoint.map(Route::direct)],
        }
    }

    /// Asks about the ways to a peer when that is due, and draws the conclusion when it is time.
    pub(super) fn step_reach(&mut self, handle: TunnelHandle, now: Time) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if self.beacon.address.is_none()
            || peer.live.is_none()
            || peer.reach.due(peer.used_at) > now
        {
            return;
        }
        if peer.reach.probe.is_some() {
            if peer.reach.judge() {
                self.rerouted(handle);
            }
            return;
        }
        let node = peer.node;
        let reach = &mut peer.reach;
        reach.round = (reach.round + 1) & (u32::MAX >> 2);
        reach.round += u32::from(reach.round == 0);
        reach.asked_at = now;
        reach.hurried = false;
        reach.probe = Some(Probe {
            at: now,
            relay_answered: false,
        });
        let (round, relayed) = (reach.round, reach.relayed);
        let direct = peer.endpoint.map(Route::direct);
        if relayed {
            self.request_punch(node, now);
            // The peer may be somewhere else by now.
            self.ask(node);
        } else {
            let relay = self.relay_route(node);
            self.send_probe(handle, relay, Sent::Relayed.sequence(round), now);
        }
        self.send_probe(handle, direct, Sent::Direct.sequence(round), now);
    }

    /// A pong of the peer.
    pub(super) fn pong(&mut self, handle: TunnelHandle, sequence: u32, now: Time) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        let (changed, reached) = peer.reach.answered(sequence, now);
        if reached.is_some() {
            peer.endpoint = reached;
        }
        if changed {
            self.rerouted(handle);
        }
        self.reschedule(handle, now);
    }

    /// Tells the caller that a tunnel's datagrams take another way from now on.
    pub(super) fn rerouted(&mut self, handle: TunnelHandle) {
        if let Some(peer) = self.table.tunnel(handle) {
            let relayed = peer.reach.relayed;
            self.events.push_back(TunnelEvent::Rerouted {
                tunnel: handle,
                relayed,
            });
        }
    }

    /// Asks the beacon to make us and `target` punch.
    pub(super) fn request_punch(&mut self, target: NodeId, now: Time) {
        if self.send_punch_request(target) {
            self.beacon.punches.note(target, now);
        }
    }

    /// The beacon says where a node is seen that we asked it about, or that asked about us. Of those
    /// that we asked about, one may be reached there: each is tried, and which of them it is shows in
    /// what it answers. Nothing else follows from the beacon's word.
    pub(super) fn try_commanded(&mut self, to: SocketAddr, now: Time) {
        let asked: [Option<NodeId>; PUNCHES_MAX] = {
            let mut recent = self.beacon.punches.recent(now);
            core::array::from_fn(|_| recent.next())
        };
        for node in asked.into_iter().flatten() {
            let Some(handle) = self.table.find(node) else {
                continue;
            };
            let peer = self.table.tunnel_mut(handle).expect("just found");
            if peer.endpoint == Some(to) {
                continue;
            }
            if peer.live.is_none() {
                if peer.exchange.is_some() && peer.identity.is_some() {
                    self.send_announcement(handle, Some(Route::direct(to)), false, now);
                    self.send_pings(handle, Some(Route::direct(to)), now);
                }
            } else if peer.reach.relayed && peer.reach.round > 0 {
                peer.reach.commanded = Some(to);
                let sequence = Sent::Commanded.sequence(peer.reach.round);
                self.send_probe(handle, Some(Route::direct(to)), sequence, now);
            }
        }
    }

    fn send_probe(&mut self, handle: TunnelHandle, route: Option<Route>, sequence: u32, now: Time) {
        if let Some(route) = route {
            self.send_ping(handle, Place::Live, route, sequence, now);
        }
    }
}

/// The beacon's message 05.
const RELAY: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_number_of_a_ping_says_which_way_it_went() {
        let mut reach = Reach::new(Time::ZERO);
        reach.relayed = true;
        for stale in [0, 1, 2, 3] {
            assert_eq!(
                reach.answered(stale, at(1)),
                (false, None),
                "nothing was asked"
            );
        }
        reach.round = 7;
        reach.commanded = Some(SocketAddr::from(([10, 0, 0, 9], 9)));
        assert_eq!(
            reach.answered(Sent::Relayed.sequence(7), at(1)),
            (false, None)
        );
        assert_eq!(
            reach.answered(Sent::Direct.sequence(6), at(1)),
            (false, None)
        );
        assert!(reach.relayed);
        let commanded = Sent::Commanded.sequence(7);
        assert_eq!(reach.answered(commanded, at(1)), (true, reach.commanded));
        assert!(!reach.relayed);
        assert_eq!(
            reach.answered(Sent::Direct.sequence(7), at(2)),
            (false, None)
        );
    }

    #[test]
    fn silence_alone_moves_nothing() {
        let mut reach = Reach::new(Time::ZERO);
        assert_eq!(reach.due(at(1)), Time::NEVER, "nothing was sent");
        assert_eq!(reach.sent(at(1)), Some(at(5)));
        assert_eq!(reach.sent(at(2)), None, "the first counts");
        assert_eq!(reach.due(at(2)), at(5));
        reach.probe = Some(Probe {
            at: at(4),
            relay_answered: false,
        });
        assert!(!reach.judge(), "the peer may be gone");
        assert!(!reach.relayed);
        reach.probe = Some(Probe {
            at: at(8),
            relay_answered: true,
        });
        assert!(reach.judge());
        assert!(reach.relayed);
    }

    #[test]
    fn the_oldest_request_makes_room() {
        let mut punches = Punches::default();
        for node in 1..=9_u32 {
            punches.note(
                NodeId(node),
                Time::ZERO + Duration::from_millis(u64::from(node)),
            );
        }
        let mut recent: Vec<u32> = punches.recent(at(1)).map(|node| node.0).collect();
        recent.sort_unstable();
        assert_eq!(recent, [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(punches.recent(at(4)).count(), 0);
    }
}
