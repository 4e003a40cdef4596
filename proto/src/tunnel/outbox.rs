//! Datagrams that the tunnels themselves want sent: announcements, requests, pings, pongs,
//! keepalives, beacon messages. A queue of bounded length; what does not fit is not sent, and the
//! sender's own schedule repeats it. Its entries are made when they are first needed and used again:
//! a node with one tunnel holds two or three of them, a worker as many as ever waited at once.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{Route, Transmit};
use crate::wire::limits::DATAGRAM_LEN_MAX;

/// Enough for the answers to a full receive batch of key exchanges.
const CAPACITY: usize = 256;
/// Room kept for answers while timeouts are worked off.
const RESERVE: usize = 32;

struct Entry {
    to: SocketAddr,
    length: usize,
    bytes: [u8; DATAGRAM_LEN_MAX],
}

impl Entry {
    fn new(to: SocketAddr) -> Self {
        Entry {
            to,
            length: 0,
            bytes: [0; DATAGRAM_LEN_MAX],
        }
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    entries: Vec<Entry>,
    /// Places of the entries that wait, the oldest first.
    waiting: VecDeque<usize>,
    free: Vec<usize>,
}

impl Outbox {
    /// Whether timeouts may add more.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.len() + RESERVE > CAPACITY
    }

    /// Queues a datagram that `write` puts into the space; it answers the length. `false` if the
    /// queue is full, and then nothing was written.
    pub(super) fn push_with(
        &mut self,
        route: Route,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        let to = route.to;
        if self.waiting.len() == CAPACITY {
            return false;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::new(to));
            self.entries.len() - 1
        });
        let entry = &mut self.entries[place];
        entry.to = to;
        let header = route.relay.as_ref().map_or(&[][..], |header| header);
        let (before, space) = entry.bytes.split_at_mut(header.len());
        before.copy_from_slice(header);
        entry.length = header.len() + write(space);
        assert!(entry.length <= entry.bytes.len());
        self.waiting.push_back(place);
        true
    }

    /// Queues a whole datagram.
    pub(super) fn push(&mut self, route: Route, datagram: &[u8]) -> bool {
        self.push_with(route, |space| {
            space[..datagram.len()].copy_from_slice(datagram);
            datagram.len()
        })
    }

    /// Copies the oldest datagram to `out`.
    pub(super) fn pop(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let place = self.waiting.pop_front()?;
        let entry = &self.entries[place];
        out[..entry.length].copy_from_slice(&entry.bytes[..entry.length]);
        let transmit = Transmit {
            to: entry.to,
            len: entry.length,
        };
        self.free.push(place);
        Some(transmit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_refuses_what_does_not_fit() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut outbox = Outbox::default();
        let mut out = [0; DATAGRAM_LEN_MAX];
        for round in 0..3 {
            for number in 0..CAPACITY {
                let byte = u8::try_from(number).expect("capacity is 256");
                assert!(outbox.push(Route::direct(to), &[byte, round]));
            }
            assert!(outbox.is_crowded());
            assert!(!outbox.push(Route::direct(to), &[0]));
            for number in 0..CAPACITY {
                assert_eq!(outbox.pop(&mut out), Some(Transmit { to, len: 2 }));
                assert_eq!((usize::from(out[0]), out[1]), (number, round));
            }
            assert_eq!(outbox.pop(&mut out), None);
            assert_eq!(outbox.entries.len(), CAPACITY, "used again");
        }
    }
}
