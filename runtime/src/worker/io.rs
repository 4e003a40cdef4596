//! Rooms 1 and 10: what moves datagrams, behind one trait.
//!
//! | backend | in | out | wait |
//! |---|---|---|---|
//! | [`super::ring`] | multishot `recvmsg` into provided buffers, GRO | `sendmsg`, GSO, queued per turn | one `io_uring_enter` |
//! | [`super::mmsg`] | `recvmmsg`, GRO | `sendmsg`, GSO, at once | `poll` |
//!
//! A backend records completions and hands them over in batches; it never acts on them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ramjet_proto::wire::limits::DATAGRAM_LEN_MAX;

use super::arena::{ReceiveArena, SendArena};

/// Most trains that one harvest hands over, so that a turn stays bounded.
pub const HARVEST_MAX: usize = 64;

/// A train of datagrams from one peer, as GRO gathered it; or one datagram.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// The leased buffer it lies in.
    pub buffer: u16,
    /// Where the payload starts in the buffer.
    pub offset: usize,
    /// Bytes of payload.
    pub len: usize,
    /// Length of each datagram; the last may be shorter. Equal to `len` for one datagram.
    pub segment: usize,
    /// Who sent it.
    pub source: SocketAddr,
    /// Whether the kernel had to cut it.
    pub truncated: bool,
}

/// A train to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// The train being filled.
    pub train: u16,
    /// Bytes in it.
    pub len: usize,
    /// Length of each datagram but the last, which may be shorter.
    pub segment: usize,
    /// To whom.
    pub target: SocketAddr,
    /// One datagram that asks whether the path carries its length: its refusal is an answer.
    pub probe: bool,
}

/// What happened since the last look, beside arrivals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Trains that the kernel refused to send.
    pub send_failures: u32,
    /// Of those, the ones with datagrams longer than the base: a path carries less than was thought.
    pub too_long: u32,
    /// Times that the kernel found no receive buffer.
    pub out_of_buffers: u32,
    /// System calls made.
    pub system_calls: u32,
}

impl Events {
    /// The kernel refused to send datagrams of this length. A probe's refusal is no failure.
    pub fn refused(&mut self, segment: usize, probe: bool) {
        if !probe {
            self.send_failures += 1;
            self.too_long += u32::from(segment > DATAGRAM_LEN_MAX);
        }
    }
}

/// Moves datagrams.
pub trait Io {
    /// The label used in status and benchmarks.
    fn label(&self) -> &'static str;

    /// Datagrams that a train may hold: 1 where segmentation is not to be had.
    fn train_datagrams_max(&self) -> usize;

    /// Hands over what has arrived, at most [`HARVEST_MAX`] trains; frees trains that were sent.
    fn harvest(
        &mut self,
        receive: &mut ReceiveArena,
        send: &mut SendArena,
        batch: &mut Vec<Incoming>,
    ) -> Events;

    /// Gives a leased buffer back.
    fn release(&mut self, receive: &mut ReceiveArena, buffer: u16);

    /// Queues a train, or sends it at once.
    fn submit(&mut self, send: &mut SendArena, outgoing: Outgoing);

    /// Whether something may have arrived: cheap, makes no system call, and may be wrong in saying
    /// yes. A spinning worker asks this before it walks the rooms again.
    fn is_ready(&mut self) -> bool;

    /// Tells once, by [`Self::next_readable`], that a socket can be read, under the number that it is
    /// given here; whether this backend can do that. It may tell so when nothing can be read.
    fn watch(&mut self, _socket: BorrowedFd<'_>, _number: u32) -> bool {
        false
    }

    /// Forgets a socket that is watched.
    fn unwatch(&mut self, _number: u32) {}

    /// A socket that can be read, by its number.
    fn next_readable(&mut self) -> Option<u32> {
        None
    }

    /// Lets the kernel work on what was queued; waits up to `wait` for something to happen, or not
    /// at all if it is `None`. A wake-up through the waker's event ends the wait.
    ///
    /// # Errors
    /// What the kernel says, if the backend cannot go on.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()>;
}
