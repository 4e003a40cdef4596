//! Room 3: from a sealed datagram to a packet whose sender is proved.
//!
//! The order is: a tunnel for the sender, a window for the nonce, the tag; only then anything
//! inside is read, and only then a window, a session or an endpoint moves.

use core::fmt;
use std::net::SocketAddr;

use super::peer::Place;
use super::{Entropy, Received, TunnelEvent, TunnelHandle, Tunnels};
use crate::addr::Address;
use crate::fault::DropReason;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::datagram::Sealed;
use crate::wire::header::{FLAG_ACK, PacketFields, Protocol};
use crate::wire::limits::{PACKET_HEADER_LEN, TAG_LEN};

/// Proof that these bytes were sealed by this peer: constructible only here.
pub struct Opened<'b> {
    /// The tunnel it came through.
    pub tunnel: TunnelHandle,
    /// The node that sealed it, which is also the packet's source node.
    pub peer: NodeId,
    /// The packet header.
    pub header: PacketFields,
    /// The packet's payload, decrypted in place.
    pub payload: &'b mut [u8],
    proof: Proof,
}

struct Proof;

impl fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proof = self.proof;
        f.debug_struct("Opened")
            .field("tunnel", &self.tunnel)
            .field("peer", &self.peer)
            .field("header", &self.header)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

impl Tunnels {
    /// Opens a sealed datagram. `source` is `None` if the beacon relayed it.
    pub(super) fn open_sealed<'b>(
        &mut self,
        now: Time,
        source: Option<SocketAddr>,
        mut sealed: Sealed<'b>,
        entropy: Entropy<'_>,
    ) -> Received<'b> {
        if sealed.sender == self.node {
            return Received::Dropped(DropReason::FromSelf);
        }
        let Some(handle) = self.table.find(sealed.sender) else {
            let reason = self.introduce(sealed.sender, source, None, now).err();
            return Received::Dropped(reason.unwrap_or(DropReason::NoSession));
        };
        let peer = self
            .table
            .tunnel_mut(handle)
            .expect("the index knows only tunnels");
        let (place, newest) = match peer.open(&mut sealed, &mut self.scratch) {
            Ok(opened) => opened,
            Err(reason) => {
                self.not_opened(handle, reason, source, now);
                return Received::Dropped(reason);
            }
        };
        peer.heard_at = now;
        peer.failures = 0;
        let directly = source.is_some();
        let confirms = !matches!(place, Place::Live | Place::Previous);
        if confirms {
            self.confirmed(handle, place, source, now, entropy);
        } else if place == Place::Live {
            if peer.exchange.is_some() {
                peer.settle();
            }
            if newest {
                if directly && peer.endpoint != source {
                    peer.endpoint = source;
                }
                peer.reach.heard(directly, now);
            }
            let hurried = peer.reach.relayed && directly;
            if peer.is_worn(now) || hurried {
                self.wake(handle, now);
            }
        }
        self.deliver(handle, now, source, sealed)
    }

    /// The first datagram under a new session: traffic and endpoint move to it.
    fn confirmed(
        &mut self,
        handle: TunnelHandle,
        place: Place,
        source: Option<SocketAddr>,
        now: Time,
        entropy: Entropy<'_>,
    ) {
        let peer = self.table.tunnel_mut(handle).expect("it opened a datagram");
        let first = peer.confirm(place, now);
        let announced_from = peer.live.as_ref().and_then(|session| session.endpoint);
        peer.endpoint = source.or(peer.endpoint).or(announced_from);
        let rerouted = peer.reach.confirmed(source.is_some(), first, now);
        peer.settle();
        peer.wanted = false;
        if first {
            peer.used_at = now;
            let event = TunnelEvent::Established {
                tunnel: handle,
                peer: peer.node,
            };
            self.events.push_back(event);
        }
        if rerouted {
            self.rerouted(handle);
        }
        // The peer may still wait for its own confirmation.
        self.send_keepalive(handle, now);
        self.serve(handle, now, entropy);
    }

    /// A datagram of a known node that no session opens: either noise, or the peer holds other
    /// keys than we. Both sides' announcements mend that; noise costs one exchange a second.
    fn not_opened(
        &mut self,
        handle: TunnelHandle,
        reason: DropReason,
        source: Option<SocketAddr>,
        now: Time,
    ) {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return;
        };
        if !matches!(reason, DropReason::BadTag | DropReason::NoSession) {
            return;
        }
        peer.failures = peer.failures.saturating_add(1);
        let silent = now.since(peer.heard_at) >= SILENCE_BEFORE_REQUEST;
        let suspicious =
            peer.live.is_none() || (silent && peer.failures >= FAILURES_BEFORE_REQUEST);
        if suspicious && peer.exchange.is_none() && peer.identity.is_some() {
            let (node, endpoint) = (peer.node, peer.endpoint);
            let known = source.and(endpoint.or(source));
            let ways = self.ways(node, known, endpoint);
            self.answer(handle, ways, true, now);
        }
    }

    /// Reads the packet inside and hands it on, or acts on it if it is for the tunnel itself.
    fn deliver<'b>(
        &mut self,
        handle: TunnelHandle,
        now: Time,
        source: Option<SocketAddr>,
        sealed: Sealed<'b>,
    ) -> Received<'b> {
        let packet_len = sealed.body.len() - TAG_LEN;
        let packet = &mut sealed.body[..packet_len];
        let (header, payload_len) = match PacketFields::parse_authenticated(packet) {
            Ok(parsed) => parsed,
            Err(reason) => return Received::Dropped(reason),
        };
        let payload = &mut packet[PACKET_HEADER_LEN..][..payload_len];
        let from = header.source.address.node;
        let to = header.destination.address.node;
        if header.protocol == Protocol::Control && header.destination.port == 0 {
            // The keepalive of older daemons names neither end.
            let anonymous = payload.is_empty() && from == NodeId(0);
            if from != sealed.sender && !anonymous {
                return Received::Dropped(DropReason::SpoofedSource);
            }
            if to != self.node && to != NodeId(0) {
                return Received::Dropped(DropReason::WrongDestination);
            }
            if payload.is_empty() {
                return Received::Handled;
            }
            if header.flags & FLAG_ACK == 0 {
                return self.answer_ping(handle, now, source, &header, payload);
            }
            self.pong(handle, header.sequence, now);
            return Received::Handled;
        }
        if from != sealed.sender {
            return Received::Dropped(DropReason::SpoofedSource);
        }
        let broadcast = to == Address::BROADCAST && header.protocol == Protocol::Datagram;
        if to != self.node && !broadcast {
            return Received::Dropped(DropReason::WrongDestination);
        }
        let peer = self.table.tunnel_mut(handle).expect("it opened a datagram");
        if peer.note_used(now) {
            self.wake(handle, now);
        }
        Received::Packet(Opened {
            tunnel: handle,
            peer: sealed.sender,
            header,
            payload,
            proof: Proof,
        })
    }
}

/// Failures before we suspect that the peer holds other keys.
const FAILURES_BEFORE_REQUEST: u32 = 3;
/// … and silence, since a peer that is heard holds the right ones.
const SILENCE_BEFORE_REQUEST: core::time::Duration = core::time::Duration::from_secs(1);
