//! Room 9: from a payload with room around it to a sealed datagram.

use core::fmt;

use super::keys::{NonceBytes, SessionKey};
use super::peer::Place;
use super::{TunnelHandle, Tunnels};
use crate::addr::{Address, SocketAddress};
use crate::time::Time;
use crate::wire::datagram::write_sealed_header;
use crate::wire::header::{PacketFields, Protocol};
use crate::wire::limits::{PACKET_HEADER_LEN, RECEIVED_LEN_MAX, SEAL_OVERHEAD, SEALED_HEADER_LEN};

/// What the caller says of a packet to seal; the addresses follow from the tunnel, on network 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingPacket {
    /// What the packet is part of.
    pub protocol: Protocol,
    /// `FLAG_*`, the low four bits.
    pub flags: u8,
    /// Our port.
    pub source_port: u16,
    /// The peer's port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledged sequence number.
    pub acknowledgment: u32,
    /// Free receive slots, in segments.
    pub window: u16,
}

/// Why a packet was not sealed. Nothing was sent and no nonce was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealRefusal {
    /// The handle is stale: the tunnel was lost or evicted. `connect` makes another.
    UnknownTunnel,
    /// No session yet; an `Established` event will tell.
    NotEstablished,
    /// The payload with its overhead does not fit the space, or a UDP datagram.
    TooLong {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        space: usize,
    },
}

impl fmt::Display for SealRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealRefusal::UnknownTunnel => f.write_str("the tunnel is gone: connect again"),
            SealRefusal::NotEstablished => {
                f.write_str("the tunnel has no session yet: wait for it to be established")
            }
            SealRefusal::TooLong { needed, space } => {
                write!(
                    f,
                    "a sealed datagram of {needed} bytes does not fit {space} bytes"
                )
            }
        }
    }
}

impl std::error::Error for SealRefusal {}

impl Tunnels {
    /// Seals in place. `datagram[SEALED_HEADER_LEN + PACKET_HEADER_LEN ..][..payload_len]` holds
    /// the payload; the headers and the tag are written around it. Returns the length of the whole
    /// datagram, `payload_len + SEAL_OVERHEAD`.
    ///
    /// # Errors
    /// [`SealRefusal`]; the payload is then untouched.
    pub fn seal(
        &mut self,
        tunnel: TunnelHandle,
        now: Time,
        packet: &OutgoingPacket,
        datagram: &mut [u8],
        payload_len: usize,
    ) -> Result<usize, SealRefusal> {
        let space = datagram.len().min(RECEIVED_LEN_MAX);
        let needed = payload_len.saturating_add(SEAL_OVERHEAD);
        if needed > space {
            return Err(SealRefusal::TooLong { needed, space });
        }
        let ours = self.node;
        let peer = self
            .table
            .tunnel_mut(tunnel)
            .ok_or(SealRefusal::UnknownTunnel)?;
        let theirs = peer.node;
        let (session, counter) = peer
            .sealing(Place::Live)
            .ok_or(SealRefusal::NotEstablished)?;
        let fields = PacketFields {
            flags: packet.flags,
            protocol: packet.protocol,
            source: SocketAddress {
                address: Address::backbone(ours),
                port: packet.source_port,
            },
            destination: SocketAddress {
                address: Address::backbone(theirs),
                port: packet.destination_port,
            },
            sequence: packet.sequence,
            acknowledgment: packet.acknowledgment,
            window: packet.window,
        };
        let nonce = counter.next(session.prefix);
        let length = seal_datagram(&session.key, nonce, &fields, datagram, payload_len);
        peer.sent_at = now;
        let ask_at = peer.reach.sent(now);
        if peer.note_used(now) || peer.is_worn(now) {
            self.wake(tunnel, now);
        } else if let Some(at) = ask_at.filter(|_| self.beacon.is_some()) {
            self.wake(tunnel, at);
        }
        Ok(length)
    }
}

/// Writes clear header, packet header and tag around the payload, and encrypts.
pub(super) fn seal_datagram(
    key: &SessionKey,
    nonce: NonceBytes,
    fields: &PacketFields,
    datagram: &mut [u8],
    payload_len: usize,
) -> usize {
    let length = payload_len + SEAL_OVERHEAD;
    let sender = fields.source.address.node;
    let (clear, rest) = datagram[..length].split_at_mut(SEALED_HEADER_LEN);
    write_sealed_header(clear, sender, nonce.0, nonce.1);
    let (packet, tag) = rest.split_at_mut(PACKET_HEADER_LEN + payload_len);
    fields.write(packet);
    tag.copy_from_slice(&key.seal(nonce, sender, packet));
    length
}
