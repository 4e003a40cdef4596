//! Timeouts: retransmission, keepalive, rotation, retirement; and what they send.

use core::time::Duration;
use std::net::SocketAddr;

use super::exchange::{Exchange, Purpose, Step};
use super::handshake::LocalKey;
use super::introduce::ASK_AGAIN;
use super::keys::own_prefix;
use super::peer::{CANDIDATE_FOR, IDLE_AFTER, PREVIOUS_FOR, Place, ROTATE_AFTER, Tunnel};
use super::seal::seal_datagram;
use super::{Entropy, Received, TunnelEvent, TunnelHandle, Tunnels};
use crate::addr::{Address, SocketAddress};
use crate::fault::DropReason;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::header::{FLAG_ACK, PacketFields, Protocol};
use crate::wire::limits::{DATAGRAM_LEN_MAX, PACKET_HEADER_LEN, SEAL_OVERHEAD, SEALED_HEADER_LEN};

/// Silence of ours after which a tunnel in use gets a keepalive: below the 55 s after which
/// daemons suspect the path, and the 30 s of common NAT tables.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(25);
/// A tunnel without packets of the caller for this long is not kept alive.
const IN_USE_FOR: Duration = Duration::from_secs(300);
/// Silence of a peer in use, that should keep us alive every 25 s, after which it is dialed again.
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// After a rotation that was not answered.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);
/// Questions to the registry, a second apart, before a dial is given up.
const ASKS_MAX: u32 = 10;
/// Payload of our pings; daemons echo it.
const PING: &[u8] = b"ramjet.ping.1";

impl Tunnels {
    /// When [`Self::handle_timeout`] wants to be called next, or [`Time::NEVER`].
    pub fn next_timeout(&self) -> Time {
        self.timers.next().min(self.beacon.next_discover())
    }

    /// Does what is due: retransmissions, keepalives, rotation, retirement, discovery. Stops early
    /// when there is much to transmit; then [`Self::next_timeout`] is not in the future.
    pub fn handle_timeout(&mut self, now: Time, entropy: Entropy<'_>) {
        self.discover(now);
        while !self.outbox.is_crowded() {
            let Some((at, handle)) = self.timers.pop_due(now) else {
                return;
            };
            let Some(peer) = self.table.tunnel_mut(handle) else {
                continue;
            };
            if peer.scheduled == at {
                peer.scheduled = Time::NEVER;
                self.serve(handle, now, &mut *entropy);
            }
        }
    }

    /// Everything that is due for one tunnel.
    pub(super) fn serve(&mut self, handle: TunnelHandle, now: Time, entropy: Entropy<'_>) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        peer.expire(now);
        if peer.wanted && (peer.identity.is_none() || peer.endpoint.is_none()) {
            self.ask_again(handle, now);
        }
        self.step_exchange(handle, now);
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if peer.rotation_due(now) {
            let (identity, ours, theirs) = (&self.identity, self.node, peer.node);
            peer.rotate_at = now + ROTATE_AGAIN;
            let fresh = || {
                let mut random = [0; 4];
                entropy(&mut random);
                let prefix = own_prefix(random, ours, theirs);
                (LocalKey::new(identity, ours, now, entropy), prefix)
            };
            peer.rotate(fresh, now);
            self.step_exchange(handle, now);
        }
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if keepalive_at(peer) <= now {
            // Also if nothing can be sent: the next one is due in its own time.
            peer.sent_at = now;
            self.send_keepalive(handle, now);
        }
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if silent_at(peer) <= now {
            let node = peer.node;
            peer.exchange = Some(Exchange::new(Purpose::Dial, now));
            self.ask(node);
            self.step_exchange(handle, now);
        }
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if peer.is_needed() {
            self.reschedule(handle, now);
        } else {
            self.table.remove(handle);
        }
    }

    /// Puts the tunnel's next deadline into the timers.
    pub(super) fn reschedule(&mut self, handle: TunnelHandle, now: Time) {
        let Some(peer) = self.table.tunnel(handle) else {
            return;
        };
        self.wake(handle, deadline(peer).max(now));
    }

    /// Wakes a tunnel at `at` or earlier.
    pub(super) fn wake(&mut self, handle: TunnelHandle, at: Time) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if at < peer.scheduled {
            peer.scheduled = at;
            self.timers.push(at, handle);
        }
    }

    fn ask_again(&mut self, handle: TunnelHandle, now: Time) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if peer.asked_at.is_some_and(|at| now.since(at) < ASK_AGAIN) {
            return;
        }
        if peer.asks == ASKS_MAX && peer.identity.is_none() {
            self.give_up_unless_live(handle);
            return;
        }
        peer.asks = (peer.asks + 1).min(ASKS_MAX);
        peer.asked_at = Some(now);
        let node = peer.node;
        self.ask(node);
    }

    /// Removes a tunnel that has no session, and says so if the caller wanted it.
    pub(super) fn give_up_unless_live(&mut self, handle: TunnelHandle) {
        let Some(peer) = self.table.tunnel(handle) else {
            return;
        };
        if peer.live.is_none() {
            self.lose(handle);
        }
    }

    pub(super) fn lose(&mut self, handle: TunnelHandle) {
        let Some(peer) = self.table.tunnel(handle) else {
            return;
        };
        if peer.wanted || peer.live.is_some() {
            self.events.push_back(TunnelEvent::Lost { peer: peer.node });
        }
        self.table.remove(handle);
    }

    // ---- key exchange --------------------------------------------------------------------------

    fn step_exchange(&mut self, handle: TunnelHandle, now: Time) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        // Without the registry's key an answer could not be verified; the dial begins with it.
        let Some(exchange) = peer.exchange.as_mut().filter(|_| peer.identity.is_some()) else {
            return;
        };
        if exchange.next_at > now {
            return;
        }
        let purpose = exchange.purpose;
        let step = exchange.step(now);
        let lacks_key = peer.rotating.is_none() && peer.candidates.iter().all(Option::is_none);
        let (node, endpoint) = (peer.node, peer.endpoint);
        match step {
            Step::Announce { request } => {
                if purpose == Purpose::Dial && !request && lacks_key {
                    self.request_punch(node);
                }
                let to = endpoint.or_else(|| self.candidate_endpoint(handle));
                self.send_announcement(handle, to, request && lacks_key, now);
                self.send_pings(handle, purpose == Purpose::Dial, now);
            }
            Step::Nudge => self.send_request(handle, endpoint),
            Step::Exhausted => match purpose {
                Purpose::Dial => self.lose(handle),
                Purpose::Rotate | Purpose::Answer => peer.exchange = None,
            },
        }
    }

    fn candidate_endpoint(&self, handle: TunnelHandle) -> Option<SocketAddr> {
        let candidates = self.table.tunnel(handle)?.candidates.iter().flatten();
        candidates.max_by_key(|session| session.since)?.endpoint
    }

    /// Sends our announcement, and a key request behind it.
    pub(super) fn send_announcement(
        &mut self,
        handle: TunnelHandle,
        to: Option<SocketAddr>,
        request: bool,
        now: Time,
    ) {
        let Some((peer, to)) = self.table.tunnel_mut(handle).zip(to) else {
            return;
        };
        if self.outbox.push(to, &peer.announced().announcement()) {
            peer.note_announced(now);
        }
        if request {
            self.send_request(handle, Some(to));
        }
    }

    fn send_request(&mut self, handle: TunnelHandle, to: Option<SocketAddr>) {
        let Some((peer, to)) = self.table.tunnel_mut(handle).zip(to) else {
            return;
        };
        self.outbox.push(to, &peer.announced().request());
    }

    /// Sends a ping under every session that waits for its first datagram, and under the live one
    /// if asked: the peer's pong, or its own ping, is what confirms.
    pub(super) fn send_pings(&mut self, handle: TunnelHandle, live: bool, now: Time) {
        let places = [
            Place::Candidate(0),
            Place::Candidate(1),
            Place::Rotating,
            Place::Live,
        ];
        for place in places {
            if place != Place::Live || live {
                let control = Control {
                    flags: 0,
                    ..Control::default()
                };
                self.send_control(handle, place, None, &control, PING, now);
            }
        }
    }

    /// Sends an empty control packet under the live session.
    pub(super) fn send_keepalive(&mut self, handle: TunnelHandle, now: Time) {
        self.send_control(handle, Place::Live, None, &Control::default(), &[], now);
    }

    /// Answers a ping under the live session.
    pub(super) fn answer_ping(
        &mut self,
        handle: TunnelHandle,
        now: Time,
        source: Option<SocketAddr>,
        ping: &PacketFields,
        payload: &[u8],
    ) -> Received<'static> {
        if payload.len() + SEAL_OVERHEAD > DATAGRAM_LEN_MAX {
            return Received::Dropped(DropReason::TooLong);
        }
        let control = Control {
            flags: FLAG_ACK,
            network: ping.destination.address.network,
            port: ping.source.port,
            sequence: ping.sequence,
            acknowledgment: ping.sequence.wrapping_add(1),
        };
        if self.send_control(handle, Place::Live, source, &control, payload, now) {
            Received::Handled
        } else {
            Received::Dropped(DropReason::NoSendBuffer)
        }
    }

    /// Seals a control packet under the session at `place` and queues it, to the session's own
    /// endpoint where that is not the tunnel's.
    fn send_control(
        &mut self,
        handle: TunnelHandle,
        place: Place,
        to: Option<SocketAddr>,
        control: &Control,
        payload: &[u8],
        now: Time,
    ) -> bool {
        let ours = self.node;
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return false;
        };
        let (theirs, endpoint) = (peer.node, peer.endpoint);
        let Some((session, counter)) = peer.sealing(place) else {
            return false;
        };
        let own = if let Place::Candidate(_) = place {
            session.endpoint
        } else {
            None
        };
        let Some(to) = to.or(own).or(endpoint) else {
            return false;
        };
        let fields = control.fields(ours, theirs);
        let queued = self.outbox.push_with(to, |space| {
            space[SEALED_HEADER_LEN + PACKET_HEADER_LEN..][..payload.len()]
                .copy_from_slice(payload);
            let nonce = counter.next(session.prefix);
            seal_datagram(&session.key, nonce, &fields, space, payload.len())
        });
        if queued && place == Place::Live {
            peer.sent_at = now;
        }
        queued
    }
}

/// What differs between keepalive, ping and pong.
#[derive(Default)]
struct Control {
    flags: u8,
    network: u16,
    port: u16,
    sequence: u32,
    acknowledgment: u32,
}

impl Control {
    fn fields(&self, ours: NodeId, theirs: NodeId) -> PacketFields {
        let network = self.network;
        PacketFields {
            flags: self.flags,
            protocol: Protocol::Control,
            source: SocketAddress {
                address: Address {
                    network,
                    node: ours,
                },
                port: 0,
            },
            destination: SocketAddress {
                address: Address {
                    network,
                    node: theirs,
                },
                port: self.port,
            },
            sequence: self.sequence,
            acknowledgment: self.acknowledgment,
            window: 0,
        }
    }
}

fn keepalive_at(peer: &Tunnel) -> Time {
    if peer.live.is_some() && peer.sent_at < peer.used_at + IN_USE_FOR {
        peer.sent_at + KEEPALIVE_AFTER
    } else {
        Time::NEVER
    }
}

fn silent_at(peer: &Tunnel) -> Time {
    let at = peer.heard_at + SILENT_AFTER;
    let in_use = peer.used_at + SILENT_AFTER >= at;
    let dialing = peer
        .exchange
        .is_some_and(|exchange| exchange.purpose == Purpose::Dial);
    if peer.live.is_some() && in_use && !dialing {
        at
    } else {
        Time::NEVER
    }
}

/// When the tunnel wants to be served next.
fn deadline(peer: &Tunnel) -> Time {
    let exchange = peer.exchange.filter(|_| peer.identity.is_some());
    let lacks = peer.wanted && (peer.identity.is_none() || peer.endpoint.is_none());
    let candidates = peer
        .candidates
        .iter()
        .flatten()
        .map(|session| session.since + CANDIDATE_FOR);
    [
        exchange.map(|exchange| exchange.next_at),
        peer.previous
            .as_ref()
            .map(|session| session.since + PREVIOUS_FOR),
        peer.asked_at.filter(|_| lacks).map(|at| at + ASK_AGAIN),
        peer.rotation_at(),
        Some(keepalive_at(peer)),
        Some(silent_at(peer)),
    ]
    .into_iter()
    .flatten()
    .chain(candidates)
    .min()
    .unwrap_or(Time::NEVER)
}

const _: () = assert!(PING.len() + SEAL_OVERHEAD <= DATAGRAM_LEN_MAX);
const _: () = assert!(IDLE_AFTER.as_secs() < KEEPALIVE_AFTER.as_secs());
const _: () = assert!(KEEPALIVE_AFTER.as_secs() * 2 < SILENT_AFTER.as_secs());
const _: () = assert!(SILENT_AFTER.as_secs() < ROTATE_AFTER.as_secs());
