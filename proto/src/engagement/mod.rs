//! The two ends of an engagement, as state tables over slots.
//!
//! A channel has as many slots as its worker granted credits. A slot carries one task at a time;
//! each use of it is a generation. From that alone follow the promises of the task protocol:
//!
//! - *at most once*: a worker runs generation `g` of a slot only if it has seen `g - 1` answered,
//!   and never runs it twice ([`serving`]);
//! - *exactly one answer*: a requester repeats a task until its answer comes, and takes the first
//!   ([`requesting`]);
//! - *nothing to acknowledge*: generation `g + 1` in a slot says that the answer to `g` arrived, and
//!   carries the verdict on it, so a worker keeps at most one answer a slot;
//! - *no head of the line*: a slow task holds its own slot and no other.
//!
//! The tables own no socket and no clock. They write frames into a [`FrameSink`] they are lent.

pub mod congestion;
pub mod job;
pub mod parts;
pub mod requesting;
pub mod rtt;
pub mod serving;

use crate::frame::Head;

/// What an engagement has come to on one side, cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tasks handed to the worker (requester), or taken on (worker).
    pub tasks: u64,
    /// Answered with a result. On the worker's side: results made, accepted or not.
    pub done: u64,
    /// Of these, accepted by verdict.
    pub accepted: u64,
    /// Of these, rejected by verdict.
    pub rejected: u64,
    /// Answered with a handler's failure.
    pub failed: u64,
    /// Refused as late.
    pub expired: u64,
    /// Refused for any other reason.
    pub refused: u64,
    /// Handler time, as the RESULT frames stated it, in nanoseconds: of the accepted results at the
    /// requester, of all results made at the worker.
    pub busy_ns: u64,
    /// Time that the same tasks waited at the worker before they ran, in nanoseconds.
    pub staged_ns: u64,
    /// Frames sent again by this side.
    pub repeated: u64,
}

/// Space for outgoing frames: reserve, write, commit.
pub trait FrameSink {
    /// Lends space for the payload of one frame, at least `payload_max` bytes, or `None` when no
    /// buffer is free now. Reserving again without a commit undoes the earlier reservation.
    fn reserve(&mut self, payload_max: usize) -> Option<&mut [u8]>;

    /// Makes the reserved space a frame whose payload is its first `payload_len` bytes.
    fn commit(&mut self, head: Head, payload_len: usize);

    /// Sends a frame with this payload; whether there was space for it.
    fn send(&mut self, head: Head, payload: &[u8]) -> bool {
        match self.reserve(payload.len()) {
            Some(space) => {
                space[..payload.len()].copy_from_slice(payload);
                self.commit(head, payload.len());
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod transfer_tests;
#[cfg(test)]
mod verdict_tests;
