//! Timeouts: retransmission, keepalive, rotation, retirement; and what they send.

use core::time::Duration;
use std::net::SocketAddr;

use super::exchange::{Exchange, Purpose, Step};
use super::handshake::LocalKey;
use super::introduce::ASK_AGAIN;
use super::keys::own_prefix;
use super::peer::{CANDIDATE_FOR, IDLE_AFTER, PREVIOUS_FOR, Place, ROTATE_AFTER, Tunnel};
use super::relay::{Route, Ways};
use super::seal::seal_datagram;
use super::{Entropy, Received, TunnelEvent, TunnelHandle, Tunnels};
use crate::addr::{Address, SocketAddress};
use crate::fault::DropReason;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::beacon::RELAY_HEADER_LEN;
use crate::wire::header::{FLAG_ACK, PacketFields, Protocol};
use crate::wire::limits::{DATAGRAM_LEN_MAX, PACKET_HEADER_LEN, SEAL_OVERHEAD, SEALED_HEADER_LEN};

/// Silence of ours after which a tunnel in use gets a keepalive: below the 55 s after which
/// daemons suspect the path, the 30 s of common NAT tables, and the 25 s after which daemons send
/// theirs, who take to the beacon when nothing of ours comes directly between three of them.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(20);
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
        self.step_reach(handle, now);
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
        let reach = if self.beacon.is_some() && peer.live.is_some() {
            peer.reach.due(peer.used_at)
        } else {
            Time::NEVER
        };
        self.wake(handle, deadline(peer).min(reach).max(now));
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
        let announced_from = self.candidate_endpoint(handle);
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
        let (node, endpoint, relayed) = (peer.node, peer.endpoint, peer.reach.relayed);
        let direct = if purpose == Purpose::Follow {
            peer.elsewhere
        } else {
            endpoint.or(announced_from)
        };
        match step {
            Step::Announce { request } => {
                if purpose == Purpose::Dial && !request && lacks_key {
                    self.request_punch(node, now);
                }
                // The beacon only where the direct way is not known to do, or does not answer.
                let relay = self
                    .relay_route(node)
                    .filter(|_| request || relayed || direct.is_none())
                    .filter(|_| purpose != Purpose::Follow);
                let ways = [direct.map(Route::direct), relay];
                self.announce(handle, ways, request && lacks_key, now);
                self.send_pings(handle, None, now);
                if matches!(purpose, Purpose::Dial | Purpose::Follow) {
                    self.ping_live(handle, ways, now);
                }
            }
            Step::Nudge => {
                for route in [endpoint.map(Route::direct), self.relay_route(node)] {
                    self.send_request(handle, route);
                }
            }
            Step::Exhausted => match purpose {
                Purpose::Dial => self.lose(handle),
                Purpose::Rotate | Purpose::Answer | Purpose::Follow => peer.exchange = None,
            },
        }
    }

    fn candidate_endpoint(&self, handle: TunnelHandle) -> Option<SocketAddr> {
        let candidates = self.table.tunnel(handle)?.candidates.iter().flatten();
        candidates.max_by_key(|session| session.since)?.endpoint
    }

    /// Sends our announcement every way there is, and a key request behind it.
    pub(super) fn announce(&mut self, handle: TunnelHandle, ways: Ways, request: bool, now: Time) {
        for route in ways {
            self.send_announcement(handle, route, request, now);
        }
    }

    /// Sends our announcement one way, and a key request behind it.
    pub(super) fn send_announcement(
        &mut self,
        handle: TunnelHandle,
        route: Option<Route>,
        request: bool,
        now: Time,
    ) {
        let Some((peer, to)) = self.table.tunnel_mut(handle).zip(route) else {
            return;
        };
        if self.outbox.push(to, &peer.announced().announcement()) {
            peer.note_announced(now);
        }
        if request {
            self.send_request(handle, route);
        }
    }

    fn send_request(&mut self, handle: TunnelHandle, route: Option<Route>) {
        let Some((peer, route)) = self.table.tunnel_mut(handle).zip(route) else {
            return;
        };
        self.outbox.push(route, &peer.announced().request());
    }

    /// Sends a ping under every session that waits for its first datagram, to `only` or every way it
    /// may arrive: the peer's pong, or its own ping, is what confirms.
    pub(super) fn send_pings(&mut self, handle: TunnelHandle, only: Option<Route>, now: Time) {
        for place in [Place::Candidate(0), Place::Candidate(1), Place::Rotating] {
            let ways = match only {
                Some(_) => [only, None],
                None => self.ways_to(handle, place),
            };
            for route in ways.into_iter().flatten() {
                self.send_ping(handle, place, route, 0, now);
            }
        }
    }

    /// The ways to a session: an announcement says by its own where its sender is.
    fn ways_to(&self, handle: TunnelHandle, place: Place) -> Ways {
        let Some(peer) = self.table.tunnel(handle) else {
            return [None, None];
        };
        match place {
            Place::Candidate(index) => {
                let candidate = peer.candidates[index].as_ref();
                let source = candidate.and_then(|session| session.endpoint);
                self.ways(peer.node, source, peer.endpoint)
            }
            Place::Live | Place::Previous | Place::Rotating => [self.route(handle), None],
        }
    }

    /// Sends a ping under the live session: its pong says that the peer still holds it.
    pub(super) fn ping_live(&mut self, handle: TunnelHandle, ways: Ways, now: Time) {
        for route in ways.into_iter().flatten() {
            self.send_ping(handle, Place::Live, route, 0, now);
        }
    }

    /// Sends one ping, whose pong repeats the sequence number.
    pub(super) fn send_ping(
        &mut self,
        handle: TunnelHandle,
        place: Place,
        route: Route,
        sequence: u32,
        now: Time,
    ) {
        let control = Control {
            sequence,
            ..Control::default()
        };
        self.send_control(handle, place, route, &control, PING, now);
    }

    /// Sends an empty control packet under the live session.
    pub(super) fn send_keepalive(&mut self, handle: TunnelHandle, now: Time) {
        if let Some(route) = self.route(handle) {
            self.send_control(handle, Place::Live, route, &Control::default(), &[], now);
        }
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
        if payload.len() + SEAL_OVERHEAD + RELAY_HEADER_LEN > DATAGRAM_LEN_MAX {
            return Received::Dropped(DropReason::TooLong);
        }
        // Back the way it came, unless that is known to lead nowhere: whoever asks wants to hear.
        let Some(route) = self.table.tunnel(handle).and_then(|peer| {
            let back = source.filter(|_| !peer.reach.relayed).map(Route::direct);
            back.or_else(|| self.relay_route(peer.node))
                .or_else(|| self.route(handle))
        }) else {
            return Received::Dropped(DropReason::NoSession);
        };
        let control = Control {
            flags: FLAG_ACK,
            network: ping.destination.address.network,
            port: ping.source.port,
            sequence: ping.sequence,
            acknowledgment: ping.sequence.wrapping_add(1),
        };
        if self.send_control(handle, Place::Live, route, &control, payload, now) {
            Received::Handled
        } else {
            Received::Dropped(DropReason::NoSendBuffer)
        }
    }

    /// Seals a control packet under the session at `place` and queues it.
    fn send_control(
        &mut self,
        handle: TunnelHandle,
        place: Place,
        route: Route,
        control: &Control,
        payload: &[u8],
        now: Time,
    ) -> bool {
        let ours = self.node;
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return false;
        };
        let theirs = peer.node;
        let Some((session, counter)) = peer.sealing(place) else {
            return false;
        };
        let fields = control.fields(ours, theirs);
        let queued = self.outbox.push_with(route, |space| {
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

const _: () = assert!(PING.len() + SEAL_OVERHEAD + RELAY_HEADER_LEN <= DATAGRAM_LEN_MAX);
const _: () = assert!(IDLE_AFTER.as_secs() < KEEPALIVE_AFTER.as_secs());
const _: () = assert!(KEEPALIVE_AFTER.as_secs() * 2 < SILENT_AFTER.as_secs());
const _: () = assert!(SILENT_AFTER.as_secs() < ROTATE_AFTER.as_secs());
