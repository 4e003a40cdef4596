//! The packet header: 34 bytes before every payload inside a tunnel.
//!
//! ```text
//!  0        1        2        4            10           16     18     20       24       28     30       34
//!  | ver/fl | proto  | length | source     | destination| sport| dport| seq    | ack    | win  | crc-32 | payload …
//! ```
//!
//! The CRC-32 (IEEE) covers the header with its own field zeroed and exactly `length` bytes of
//! payload. Bytes beyond are ignored, as every daemon does.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::PACKET_HEADER_LEN;
use crate::addr::{Address, SocketAddress};
use crate::fault::DropReason;

/// Opens a stream.
pub const FLAG_SYN: u8 = 1;
/// Carries an acknowledgment; on a control packet, marks a pong.
pub const FLAG_ACK: u8 = 2;
/// Ends a stream.
pub const FLAG_FIN: u8 = 4;
/// Aborts a stream.
pub const FLAG_RST: u8 = 8;

/// The only version.
const VERSION: u8 = 1;
/// Where the checksum stands.
const CHECKSUM_OFFSET: usize = 30;

/// What a packet is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// A segment of a stream.
    Stream = 1,
    /// A datagram of its own.
    Datagram = 2,
    /// Keepalive, ping, pong.
    Control = 3,
}

impl Protocol {
    /// Reads the number on the wire.
    pub const fn from_wire(number: u8) -> Option<Self> {
        match number {
            1 => Some(Protocol::Stream),
            2 => Some(Protocol::Datagram),
            3 => Some(Protocol::Control),
            _ => None,
        }
    }
}

/// The header as it lies on the wire: no alignment, big-endian fields.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PacketHeader {
    version_and_flags: u8,
    protocol: u8,
    payload_len: U16,
    source: [u8; 6],
    destination: [u8; 6],
    source_port: U16,
    destination_port: U16,
    sequence: U32,
    acknowledgment: U32,
    window: U16,
    checksum: U32,
}

const _: () = assert!(size_of::<PacketHeader>() == PACKET_HEADER_LEN);
const _: () = assert!(core::mem::offset_of!(PacketHeader, checksum) == CHECKSUM_OFFSET);

/// The header's fields in host order, without version, length and checksum, which belong to the
/// bytes they describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFields {
    /// `FLAG_*`, the low four bits.
    pub flags: u8,
    /// What the packet is part of.
    pub protocol: Protocol,
    /// Who sends.
    pub source: SocketAddress,
    /// Who is meant.
    pub destination: SocketAddress,
    /// Sequence number, in bytes of the stream.
    pub sequence: u32,
    /// Acknowledged sequence number.
    pub acknowledgment: u32,
    /// Free receive slots, in segments.
    pub window: u16,
}

impl PacketFields {
    /// Writes the header at the front of `packet`, whose payload already stands behind it, and
    /// the checksum over both.
    ///
    /// # Panics
    /// If `packet` is shorter than a header or its payload longer than 65,535 bytes: the caller
    /// prepared it.
    pub fn write(&self, packet: &mut [u8]) {
        let payload_len = packet.len() - PACKET_HEADER_LEN;
        let header = PacketHeader {
            version_and_flags: VERSION << 4 | (self.flags & 0x0F),
            protocol: self.protocol as u8,
            payload_len: U16::new(u16::try_from(payload_len).expect("a length checked by seal")),
            source: self.source.address.to_bytes(),
            destination: self.destination.address.to_bytes(),
            source_port: U16::new(self.source.port),
            destination_port: U16::new(self.destination.port),
            sequence: U32::new(self.sequence),
            acknowledgment: U32::new(self.acknowledgment),
            window: U16::new(self.window),
            checksum: U32::ZERO,
        };
        packet[..PACKET_HEADER_LEN].copy_from_slice(header.as_bytes());
        let checksum = crc32fast::hash(packet).to_be_bytes();
        packet[CHECKSUM_OFFSET..PACKET_HEADER_LEN].copy_from_slice(&checksum);
    }

    /// Reads a packet: its fields and the length of its payload, which stands right behind the
    /// header.
    ///
    /// # Errors
    /// [`DropReason::BadPacket`] for a short packet or a wrong version,
    /// [`DropReason::BadChecksum`], [`DropReason::UnknownProtocol`].
    pub fn parse(packet: &[u8]) -> Result<(PacketFields, usize), DropReason> {
        let (fields, payload_len) = PacketFields::parse_authenticated(packet)?;
        let (header, rest) =
            PacketHeader::ref_from_prefix(packet).map_err(|_| DropReason::BadPacket)?;
        if checksum(header, &rest[..payload_len]) != header.checksum.get() {
            return Err(DropReason::BadChecksum);
        }
        Ok((fields, payload_len))
    }

    /// As [`Self::parse`], for a packet out of a sealed datagram: the tag has just proved every byte
    /// that the checksum covers, and more strongly, so the checksum is not computed again.
    ///
    /// # Errors
    /// [`DropReason::BadPacket`], [`DropReason::UnknownProtocol`].
    pub fn parse_authenticated(packet: &[u8]) -> Result<(PacketFields, usize), DropReason> {
        let (header, rest) =
            PacketHeader::ref_from_prefix(packet).map_err(|_| DropReason::BadPacket)?;
        let payload_len = usize::from(header.payload_len.get());
        if payload_len > rest.len() || header.version_and_flags >> 4 != VERSION {
            return Err(DropReason::BadPacket);
        }
        let fields = PacketFields {
            flags: header.version_and_flags & 0x0F,
            protocol: Protocol::from_wire(header.protocol).ok_or(DropReason::UnknownProtocol)?,
            source: socket_address(header.source, header.source_port),
            destination: socket_address(header.destination, header.destination_port),
            sequence: header.sequence.get(),
            acknowledgment: header.acknowledgment.get(),
            window: header.window.get(),
        };
        Ok((fields, payload_len))
    }
}

fn checksum(header: &PacketHeader, payload: &[u8]) -> u32 {
    let zeroed = PacketHeader {
        checksum: U32::ZERO,
        ..*header
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(zeroed.as_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn socket_address(address: [u8; 6], port: U16) -> SocketAddress {
    SocketAddress {
        address: Address::from_bytes(address),
        port: port.get(),
    }
}
