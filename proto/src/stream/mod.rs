//! Pilot's reliable streams (protocol 1), without input or output.
//!
//! A [`Session`] is one end of one stream. It owns no socket and no clock: packets go in through
//! [`Session::receive`], bytes through [`Session::write`], time through
//! [`Session::handle_timeout`]; after any of these the caller lets it speak with
//! [`Session::transmit`], takes what arrived with [`Session::take_inbound`] and what happened with
//! [`Session::take_event`], and comes back at [`Session::next_timeout`] at the latest.
//! [`Streams`] is the table of all sessions of one worker, with its limits.
//!
//! | part | holds |
//! |---|---|
//! | [`session`] | the states of a stream, from SYN to TIME_WAIT |
//! | `send` | what was written: segments, their repeats, what the peer allows |
//! | `receive` | what arrived: order, gaps, our window, when to acknowledge |
//! | `options` | how two ramjet nodes know each other, in the payload of SYN |
//! | `sack` | which ranges arrived beyond a gap, in the payload of an ACK |
//! | `round_trip` | the time-out of RFC 6298 |
//! | `window` | the congestion window towards other daemons |
//! | [`table`] | sessions by peer and ports, ports to dial from, limits |
//!
//! What is sent are the segments that other daemons take (`docs/WIRE.md`, section 2.7). Two ramjet
//! nodes find each other by eight bytes in SYN and SYN-ACK, where other daemons ignore a payload. Then
//! windows count units of 1 KiB instead of segments, segments are as long as the path carries, more
//! ranges are told beyond a gap, and the tunnel's own congestion controller
//! ([`crate::engagement::congestion`]) decides what may leave, so that streams and tasks of one
//! tunnel share one window. Towards other daemons, which run no tasks of ours, each stream has a
//! window of its own.
//!
//! Invariants:
//! - The bounds of a segment never change between its sends, unless the peer is a ramjet node and the
//!   path has become shorter than the segment.
//! - No segment begins with the four bytes that mark ranges (`SACK`): other daemons swallow it.
//! - Bytes that wait to be read are bounded by the window we told, segments beyond a gap by
//!   [`AHEAD_MAX`].
//! - FIN leaves after the last byte was acknowledged, or five seconds after the close.
//!
//! Absent: half-closed streams, which Pilot does not have: a FIN ends both directions.

mod options;
mod receive;
mod round_trip;
mod sack;
mod send;
pub mod session;
pub mod table;
#[cfg(test)]
mod tests;
mod window;

pub use receive::AHEAD_MAX;
pub use session::{Event, Session, Standing, State};
pub use table::{Key, Refusal, Streams, Ticket};

use crate::wire::limits::{DATAGRAM_LEN_MAX, SEAL_OVERHEAD};

/// Longest payload of a segment to another daemon: what 1.18.0 sends, which fragments nowhere.
pub const SEGMENT_LEN_FOREIGN: usize = 1_152;
/// Longest payload of a segment on a path of which nothing is known.
pub const SEGMENT_LEN_BASE: usize = DATAGRAM_LEN_MAX - SEAL_OVERHEAD;
/// Segments that may be out to another daemon: it keeps no more beyond a gap.
pub const SEGMENTS_FOREIGN_MAX: usize = 128;

const _: () = assert!(SEGMENT_LEN_FOREIGN <= SEGMENT_LEN_BASE);

/// What a stream packet says beside its payload and its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentHead {
    /// `FLAG_*` of [`crate::wire::header`].
    pub flags: u8,
    /// Number of its first byte.
    pub sequence: u32,
    /// Number of the first byte that has not arrived.
    pub acknowledgment: u32,
    /// What more may be sent.
    pub window: u16,
}

/// Where a session puts its packets.
pub trait SegmentSink {
    /// Takes one packet; whether there was room. What was refused is offered again later.
    fn put(&mut self, head: SegmentHead, payload: &[u8]) -> bool;
}

/// A sequence number of the wire as one that never wraps: the one nearest to `near`.
fn extend(near: u64, wire: u32) -> u64 {
    let distance = i64::from(wire.wrapping_sub(wire_of(near)).cast_signed());
    near.wrapping_add_signed(distance)
}

/// A sequence number as the wire has it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it wraps, as the wire says"
)]
fn wire_of(sequence: u64) -> u32 {
    sequence as u32
}

/// A first sequence number as one that never wraps. Far from zero, so that whatever a peer says of it
/// stays above zero.
fn first(wire: u32) -> u64 {
    (1 << 32) + u64::from(wire)
}
