//! The driver protocol: what programs of the same host say to their node, as Pilot's own command
//! line and SDK speak it to a Pilot daemon.
//!
//! ```text
//!  frame    length u32 (of code and payload) | code u8 | payload        all integers big-endian
//!  address  network u16 | node u32                                      6 bytes
//! ```
//!
//! A frame is a [`Command`] of a client or a [`Reply`] of the node. There is no request number: the
//! reply to command `c` has code `c + 1`, or is an [`Reply::Error`]; replies to commands of one code
//! come in the order of the commands. Pushes ([`Reply::Accepted`], [`Reply::Received`],
//! [`Reply::Closed`], [`Reply::Datagram`], [`Reply::Progress`]) come at any time between.
//!
//! | codes | whose |
//! |---|---|
//! | 01 to 3A | Pilot's, of the daemons 1.9.1 and 1.18.0 together |
//! | A1 to B2 | [`MarketCommand`]: a task market for programs in other languages; no Pilot daemon knows them |
//!
//! Invariants: a payload is read once, here; what a [`Command`] or [`Reply`] borrows lies in its
//! frame; reading never panics and what is refused is named by its command; surplus bytes behind a
//! payload of fixed length are ignored, as Pilot's daemons ignore them. Code 0 is nobody's: it is
//! how a node tells its own local protocol, which shares the framing, from this one.
//!
//! Absent: sockets, and what a command does.

mod command;
mod market;
mod payload;
mod reply;
mod subcommands;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::addr::{Address, SocketAddress};

pub use command::{Command, TAGS_MAX};
pub use market::{MarketCommand, SUBMISSION_LEN_MAX, Submission, TaskEnd};
pub use payload::CommandFault;
pub use reply::Reply;
pub use subcommands::{HandshakeCommand, NetworkCommand};

/// Longest code and payload.
pub const FRAME_LEN_MAX: usize = 1 << 20;
/// Most bytes of a stream in one frame: what is left beside code and connection.
pub const STREAM_BYTES_MAX: usize = FRAME_LEN_MAX - 1 - 4;
/// Longest payload of a Pilot datagram: what its packet header can say.
pub const DATAGRAM_BYTES_MAX: usize = u16::MAX as usize;

/// The length that a frame's first four bytes announce, of code and payload.
///
/// # Errors
/// It is 0 or beyond [`FRAME_LEN_MAX`]: nothing that follows can be read.
pub fn frame_len(prefix: [u8; 4]) -> Result<usize, FrameFault> {
    let len = u32::from_be_bytes(prefix);
    match usize::try_from(len) {
        Ok(len) if (1..=FRAME_LEN_MAX).contains(&len) => Ok(len),
        _ => Err(FrameFault { len }),
    }
}

/// A length that no frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFault {
    /// As announced.
    pub len: u32,
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a frame of {} bytes, must be 1 to {FRAME_LEN_MAX}",
            self.len
        )
    }
}

impl std::error::Error for FrameFault {}

/// Appends a frame whose payload is written by `payload`.
fn append(out: &mut Vec<u8>, code: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.push(code);
    payload(out);
    let len = out.len() - start - 4;
    assert!(len <= FRAME_LEN_MAX, "a driver frame of {len} bytes");
    let len = u32::try_from(len).expect("FRAME_LEN_MAX fits 32 bits");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Takes the members of a payload off its front.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn socket_address(&mut self) -> Option<SocketAddress> {
        let address = Address::from_bytes(self.array()?);
        let port = self.u16()?;
        Some(SocketAddress { address, port })
    }

    /// A length of 32 bits and that many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

fn push_socket_address(out: &mut Vec<u8>, to: SocketAddress) {
    out.extend(to.address.to_bytes());
    out.extend(to.port.to_be_bytes());
}

fn push_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("FRAME_LEN_MAX fits 32 bits");
    out.extend(len.to_be_bytes());
    out.extend_from_slice(bytes);
}
