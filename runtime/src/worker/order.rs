//! In which order the trains of a batch are walked: by fair queueing over their senders.
//!
//! A batch is what the socket held, and a sender with much in flight may have most of it. Each train
//! is tagged with the bytes of its sender up to its end, and the trains go by their tags: a sender's
//! own stay in order, and one with little is not behind another's megabyte. That is start-time fair
//! queueing over one batch, with senders as flows.
//!
//! Senders are told apart by a hash of their address into a small table. Two that share a place share
//! its turn, which costs them nothing but a part of their share.

use std::net::{IpAddr, SocketAddr};

use super::io::Incoming;

/// Batches below this many bytes are walked as they came: the last of them waits some tens of
/// microseconds.
const CONTESTED: usize = 48 << 10;
/// Places for senders.
const PLACES: usize = 64;

/// Orders batches; keeps its memory.
#[derive(Default)]
pub struct FairOrder {
    tags: Vec<(usize, usize)>,
    ordered: Vec<Incoming>,
}

impl FairOrder {
    /// Puts the trains of a batch in the order in which they are to be walked.
    pub fn arrange(&mut self, batch: &mut Vec<Incoming>) {
        let bytes: usize = batch.iter().map(|incoming| incoming.len).sum();
        if batch.len() < 2 || bytes < CONTESTED {
            return;
        }
        let mut sent = [0; PLACES];
        let first = place_of(batch[0].source);
        let mut contested = false;
        self.tags.clear();
        for (index, incoming) in batch.iter().enumerate() {
            let place = place_of(incoming.source);
            contested |= place != first;
            sent[place] += incoming.len;
            self.tags.push((sent[place], index));
        }
        if !contested {
            return;
        }
        self.tags.sort_unstable();
        self.ordered.clear();
        self.ordered
            .extend(self.tags.iter().map(|(_, index)| batch[*index]));
        std::mem::swap(batch, &mut self.ordered);
    }
}

fn place_of(source: SocketAddr) -> usize {
    let address = match source.ip() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [high, low] = [address.to_bits() >> 64, address.to_bits()];
            let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
            half(high) ^ half(low)
        }
    };
    let mixed = (address << 16 ^ u64::from(source.port())).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    usize::try_from(mixed >> 58).unwrap_or(0) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(port: u16, len: usize, buffer: u16) -> Incoming {
        Incoming {
            buffer,
            offset: 128,
            len,
            segment: len,
            source: SocketAddr::from(([127, 0, 0, 1], port)),
            truncated: false,
        }
    }

    /// Ports of two senders that do not share a place.
    fn two_ports() -> (u16, u16) {
        let place = |port| place_of(SocketAddr::from(([127, 0, 0, 1], port)));
        let other = (2..).find(|port| place(*port) != place(1));
        (1, other.expect("64 places"))
    }

    fn arranged(trains: &[(u16, usize)]) -> Vec<u16> {
        let mut batch: Vec<Incoming> = (0..)
            .zip(trains)
            .map(|(buffer, (port, len))| train(*port, *len, buffer))
            .collect();
        FairOrder::default().arrange(&mut batch);
        batch.iter().map(|incoming| incoming.buffer).collect()
    }

    #[test]
    fn a_small_sender_is_not_behind_a_large_one() {
        let (large, small) = two_ports();
        let batch = [
            (large, 64_000),
            (large, 64_000),
            (large, 64_000),
            (small, 200),
            (large, 64_000),
            (small, 300),
        ];
        assert_eq!(arranged(&batch), [3, 5, 0, 1, 2, 4]);
    }

    #[test]
    fn equal_senders_take_turns_and_each_keeps_its_order() {
        let (one, other) = two_ports();
        let batch = [
            (one, 60_000),
            (one, 60_000),
            (one, 60_000),
            (other, 60_000),
            (other, 60_000),
            (other, 60_000),
        ];
        assert_eq!(arranged(&batch), [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn what_nobody_waits_for_stays_as_it_came() {
        let (one, other) = two_ports();
        assert_eq!(arranged(&[(one, 20_000), (other, 100)]), [0, 1]);
        assert_eq!(arranged(&[(one, 64_000), (one, 100), (one, 9)]), [0, 1, 2]);
    }
}
