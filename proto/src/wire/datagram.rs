//! The kinds of tunnel datagram, told apart by the first bytes.
//!
//! | first bytes | kind | layout after the magic | length |
//! |---|---|---|---|
//! | `PILT` | plaintext | packet | 38 + n |
//! | `PILS` | sealed | sender 4, nonce 12, ciphertext, tag 16 | 70 + n |
//! | `PILK` | key request | sender 4, X25519 key 32 | 40 |
//! | `PILA` | key announcement | sender 4, X25519 key 32, Ed25519 key 32, signature 64 | 136 |
//! | `PILP` | punch | nothing | 4 |
//! | below 0x10 | beacon message | see [`super::beacon`] | |
//!
//! A sealed datagram must have room for a packet header; surplus bytes behind an announcement or a
//! request are ignored, as every daemon does.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::{PACKET_HEADER_LEN, RECEIVED_LEN_MAX, SEAL_OVERHEAD, SEALED_HEADER_LEN};
use crate::fault::DropReason;
use crate::ids::NodeId;

/// Length of a key announcement.
pub const ANNOUNCEMENT_LEN: usize = 136;
/// Length of a key request.
pub const REQUEST_LEN: usize = 40;
/// A whole punch datagram.
pub const PUNCH: [u8; 4] = *b"PILP";

const PLAINTEXT: [u8; 4] = *b"PILT";
const SEALED: [u8; 4] = *b"PILS";
const REQUEST: [u8; 4] = *b"PILK";
const ANNOUNCEMENT: [u8; 4] = *b"PILA";
/// Beacon messages begin with a byte below this.
const BEACON_BELOW: u8 = 0x10;

/// What stands in clear before the ciphertext of a sealed datagram.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SealedHeader {
    magic: [u8; 4],
    sender: U32,
    prefix: [u8; 4],
    counter: U64,
}

const _: () = assert!(size_of::<SealedHeader>() == SEALED_HEADER_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AnnouncementBytes {
    magic: [u8; 4],
    sender: U32,
    key: [u8; 32],
    identity: [u8; 32],
    signature: [u8; 64],
}

const _: () = assert!(size_of::<AnnouncementBytes>() == ANNOUNCEMENT_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestBytes {
    magic: [u8; 4],
    sender: U32,
    key: [u8; 32],
}

const _: () = assert!(size_of::<RequestBytes>() == REQUEST_LEN);
const _: () = assert!(SEAL_OVERHEAD > PACKET_HEADER_LEN);

/// A datagram whose kind and minimum length are known.
#[derive(Debug)]
pub enum Datagram<'b> {
    /// PILS.
    Sealed(Sealed<'b>),
    /// PILA.
    Announcement(Announcement),
    /// PILK, from this node. Its key is not used: nobody vouches for it.
    Request(NodeId),
    /// PILT.
    Plaintext,
    /// PILP.
    Punch,
    /// A beacon message, unread.
    Beacon(&'b mut [u8]),
}

/// A sealed datagram: its clear header, and ciphertext with tag.
#[derive(Debug)]
pub struct Sealed<'b> {
    /// Who claims to have sealed it.
    pub sender: NodeId,
    /// The random part of the nonce, constant for one key of one side.
    pub prefix: [u8; 4],
    /// The counting part of the nonce.
    pub counter: u64,
    /// Ciphertext and tag.
    pub body: &'b mut [u8],
}

/// A signed X25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Whose key it claims to be.
    pub sender: NodeId,
    /// The X25519 public key.
    pub key: [u8; 32],
    /// The Ed25519 public key.
    pub identity: [u8; 32],
    /// By `identity`, over `auth`, sender and key.
    pub signature: [u8; 64],
}

impl<'b> Datagram<'b> {
    /// Tells the kind and checks the length.
    ///
    /// # Errors
    /// [`DropReason::TooShort`], [`DropReason::TooLong`], [`DropReason::UnknownMagic`].
    pub fn parse(datagram: &'b mut [u8]) -> Result<Self, DropReason> {
        if datagram.len() > RECEIVED_LEN_MAX {
            return Err(DropReason::TooLong);
        }
        let Some(&magic) = datagram.first_chunk::<4>() else {
            return match datagram.first() {
                Some(&first) if first < BEACON_BELOW => Ok(Datagram::Beacon(datagram)),
                _ => Err(DropReason::TooShort),
            };
        };
        match magic {
            SEALED => Sealed::parse(datagram).map(Datagram::Sealed),
            ANNOUNCEMENT => Announcement::parse(datagram).map(Datagram::Announcement),
            REQUEST => {
                let (request, _) =
                    RequestBytes::ref_from_prefix(datagram).map_err(|_| DropReason::TooShort)?;
                Ok(Datagram::Request(NodeId(request.sender.get())))
            }
            PLAINTEXT => Ok(Datagram::Plaintext),
            PUNCH => Ok(Datagram::Punch),
            [first, ..] if first < BEACON_BELOW => Ok(Datagram::Beacon(datagram)),
            _ => Err(DropReason::UnknownMagic),
        }
    }
}

impl<'b> Sealed<'b> {
    fn parse(datagram: &'b mut [u8]) -> Result<Self, DropReason> {
        if datagram.len() < SEAL_OVERHEAD {
            return Err(DropReason::TooShort);
        }
        let (header, body) =
            SealedHeader::mut_from_prefix(datagram).map_err(|_| DropReason::TooShort)?;
        Ok(Sealed {
            sender: NodeId(header.sender.get()),
            prefix: header.prefix,
            counter: header.counter.get(),
            body,
        })
    }
}

impl Announcement {
    fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let (bytes, _) =
            AnnouncementBytes::ref_from_prefix(datagram).map_err(|_| DropReason::TooShort)?;
        Ok(Announcement {
            sender: NodeId(bytes.sender.get()),
            key: bytes.key,
            identity: bytes.identity,
            signature: bytes.signature,
        })
    }

    /// The whole datagram.
    pub fn to_bytes(&self) -> [u8; ANNOUNCEMENT_LEN] {
        zerocopy::transmute!(AnnouncementBytes {
            magic: ANNOUNCEMENT,
            sender: U32::new(self.sender.0),
            key: self.key,
            identity: self.identity,
            signature: self.signature,
        })
    }
}

/// A key request of `sender`, a whole datagram.
pub fn request(sender: NodeId, key: [u8; 32]) -> [u8; REQUEST_LEN] {
    zerocopy::transmute!(RequestBytes {
        magic: REQUEST,
        sender: U32::new(sender.0),
        key
    })
}

/// Writes the clear header of a sealed datagram.
///
/// # Panics
/// If `datagram` is shorter than [`SEALED_HEADER_LEN`]: the caller prepared it.
pub fn write_sealed_header(datagram: &mut [u8], sender: NodeId, prefix: [u8; 4], counter: u64) {
    let header = SealedHeader {
        magic: SEALED,
        sender: U32::new(sender.0),
        prefix,
        counter: U64::new(counter),
    };
    datagram[..SEALED_HEADER_LEN].copy_from_slice(header.as_bytes());
}
