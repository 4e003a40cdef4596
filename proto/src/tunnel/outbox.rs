//! Datagrams that the tunnels themselves want sent: announcements, requests, pings, pongs,
//! keepalives, beacon messages. A ring of fixed capacity; what does not fit is not sent, and the
//! sender's own schedule repeats it.

use std::net::SocketAddr;

use super::Transmit;
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

/// The ring.
pub(super) struct Outbox {
    entries: Box<[Entry]>,
    head: usize,
    length: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let to = SocketAddr::from(([0, 0, 0, 0], 0));
        let entries = (0..CAPACITY)
            .map(|_| Entry {
                to,
                length: 0,
                bytes: [0; DATAGRAM_LEN_MAX],
            })
            .collect();
        Outbox {
            entries,
            head: 0,
            length: 0,
        }
    }

    /// Whether timeouts may add more.
    pub(super) fn is_crowded(&self) -> bool {
        self.length + RESERVE > CAPACITY
    }

    /// Queues a datagram that `write` puts into the space; it answers the length. `false` if the
    /// ring is full, and then nothing was written.
    pub(super) fn push_with(
        &mut self,
        to: SocketAddr,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        if self.length == CAPACITY {
            return false;
        }
        let entry = &mut self.entries[(self.head + self.length) % CAPACITY];
        entry.to = to;
        entry.length = write(&mut entry.bytes);
        assert!(entry.length <= entry.bytes.len());
        self.length += 1;
        true
    }

    /// Queues a whole datagram.
    pub(super) fn push(&mut self, to: SocketAddr, datagram: &[u8]) -> bool {
        self.push_with(to, |space| {
            space[..datagram.len()].copy_from_slice(datagram);
            datagram.len()
        })
    }

    /// Copies the oldest datagram to `out`.
    pub(super) fn pop(&mut self, out: &mut [u8]) -> Option<Transmit> {
        if self.length == 0 {
            return None;
        }
        let entry = &self.entries[self.head];
        out[..entry.length].copy_from_slice(&entry.bytes[..entry.length]);
        self.head = (self.head + 1) % CAPACITY;
        self.length -= 1;
        Some(Transmit {
            to: entry.to,
            len: entry.length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_refuses_what_does_not_fit() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut outbox = Outbox::new();
        let mut out = [0; DATAGRAM_LEN_MAX];
        for round in 0..3 {
            for number in 0..CAPACITY {
                let byte = u8::try_from(number).expect("capacity is 256");
                assert!(outbox.push(to, &[byte, round]));
            }
            assert!(outbox.is_crowded());
            assert!(!outbox.push(to, &[0]));
            for number in 0..CAPACITY {
                assert_eq!(outbox.pop(&mut out), Some(Transmit { to, len: 2 }));
                assert_eq!((usize::from(out[0]), out[1]), (number, round));
            }
            assert_eq!(outbox.pop(&mut out), None);
        }
    }
}
