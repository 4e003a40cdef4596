//! The load over a byte stream: requests one after the other, replies in the same order.
//!
//! [`Window`] owns no socket and no clock: it writes the next requests into a buffer and takes what
//! came back in pieces of any length.
//!
//! Invariants: never more requests are outstanding than the window allows; replies are compared in
//! the order of their requests, byte by byte, and a reply nobody asked for is an error.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::failure::Failure;
use crate::load::{Load, Measured, number_of, write_payload};

/// Requests outstanding on one stream.
#[derive(Debug)]
pub(crate) struct Window {
    payload_len: usize,
    limit: usize,
    /// When each outstanding request was written, the oldest first.
    sent: VecDeque<Instant>,
    next: u64,
    oldest: u64,
    /// The head of a reply whose rest has not come yet.
    partial: Vec<u8>,
}

impl Window {
    /// An empty window of `limit` requests.
    pub(crate) fn new(load: &Load, limit: usize) -> Self {
        Window {
            payload_len: load.payload_len,
            limit,
            sent: VecDeque::with_capacity(limit),
            next: 0,
            oldest: 0,
            partial: Vec::with_capacity(load.payload_len),
        }
    }

    /// How many more requests may be written.
    pub(crate) fn room(&self) -> usize {
        self.limit - self.sent.len()
    }

    /// Whether every request has its reply.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Appends the next request to `out`. Legal only while there is [`Window::room`].
    pub(crate) fn write_next(&mut self, now: Instant, out: &mut Vec<u8>) {
        debug_assert!(self.room() > 0, "the window is full");
        write_payload(self.next, self.payload_len, |part| {
            out.extend_from_slice(part);
        });
        self.sent.push_back(now);
        self.next += 1;
    }

    /// Takes what came back.
    ///
    /// # Errors
    /// If it is not what was sent, or more than was sent.
    pub(crate) fn receive(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        measured: &mut Measured,
    ) -> Result<(), Failure> {
        if !self.partial.is_empty() {
            let missing = (self.payload_len - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.partial.len() < self.payload_len {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.partial);
            self.complete(&whole, now, measured)?;
            self.partial = whole;
            self.partial.clear();
        }
        let mut replies = bytes.chunks_exact(self.payload_len);
        for reply in &mut replies {
            self.complete(reply, now, measured)?;
        }
        self.partial.extend_from_slice(replies.remainder());
        Ok(())
    }

    fn complete(
        &mut self,
        reply: &[u8],
        now: Instant,
        measured: &mut Measured,
    ) -> Result<(), Failure> {
        let number = number_of(reply, self.payload_len)?;
        let Some(sent) = self.sent.pop_front() else {
            return Err(Failure::Wrong(format!(
                "a reply numbered {number} came when none was outstanding"
            )));
        };
        if number != self.oldest {
            return Err(Failure::Wrong(format!(
                "the reply numbered {number} came in place of {}",
                self.oldest
            )));
        }
        self.oldest += 1;
        measured.record(sent, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Phase;

    const LOAD: Load = Load {
        payload_len: 24,
        window: 8,
        warm_up: Duration::ZERO,
        run: Duration::from_secs(1),
    };

    fn begin() -> (Window, Measured) {
        let measured = Measured::new(Phase::begin(&LOAD)).expect("a histogram");
        (Window::new(&LOAD, LOAD.window), measured)
    }

    /// An echo that hands back what it was given in pieces of `piece` bytes, a millisecond each.
    async fn fake_transport(piece: usize, requests: u64) -> (Window, Measured) {
        let (mut window, mut measured) = begin();
        let mut wire = Vec::new();
        let mut written = 0;
        while written < requests || !window.is_empty() {
            while window.room() > 0 && written < requests {
                window.write_next(Instant::now(), &mut wire);
                written += 1;
            }
            assert!(window.sent.len() <= LOAD.window);
            tokio::time::advance(Duration::from_millis(1)).await;
            let back: Vec<u8> = wire.drain(..piece.min(wire.len())).collect();
            window
                .receive(&back, Instant::now(), &mut measured)
                .expect("a true echo");
        }
        (window, measured)
    }

    #[tokio::test(start_paused = true)]
    async fn replies_are_counted_whatever_the_pieces_they_come_in() {
        for piece in [1, 7, 24, 25, 48, 1_000] {
            let (window, measured) = fake_transport(piece, 30).await;
            assert_eq!((window.next, window.oldest), (30, 30), "{piece}");
            assert_eq!(measured.tasks(), 30, "{piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_latency_is_from_writing_to_the_last_byte() {
        let (mut window, mut measured) = begin();
        let mut wire = Vec::new();
        window.write_next(Instant::now(), &mut wire);
        for half in wire.chunks(12) {
            tokio::time::advance(Duration::from_millis(2)).await;
            window
                .receive(half, Instant::now(), &mut measured)
                .expect("a true echo");
        }
        let p50_us = measured.quantile_us(0.5);
        assert!((3_995.0..4_005.0).contains(&p50_us), "{p50_us}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_is_refused() {
        let now = Instant::now();
        let mut wire = Vec::new();
        let (mut window, mut measured) = begin();
        window.write_next(now, &mut wire);
        window.write_next(now, &mut wire);
        let refused = |window: &mut Window, measured: &mut Measured, bytes: &[u8]| match window
            .receive(bytes, now, measured)
        {
            Err(Failure::Wrong(text)) => text,
            other => panic!("{other:?}"),
        };
        let swapped = [&wire[24..], &wire[..24]].concat();
        let text = refused(&mut window, &mut measured, &swapped);
        assert!(text.contains("in place of 0"), "{text}");
        let (mut window, mut measured) = begin();
        let text = refused(&mut window, &mut measured, &wire);
        assert!(text.contains("none was outstanding"), "{text}");
        let (mut window, mut measured) = begin();
        window.write_next(now, &mut Vec::new());
        wire[10] ^= 0x80;
        let text = refused(&mut window, &mut measured, &wire[..24]);
        assert!(text.contains("differs"), "{text}");
        assert_eq!(measured.tasks(), 0);
    }
}
