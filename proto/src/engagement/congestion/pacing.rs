//! A token bucket by time: parts leave no faster than the path takes them, in bursts of at most one
//! train.

use core::time::Duration;

use super::WINDOW_INITIAL;
use crate::time::Time;
use crate::wire::limits::DATAGRAM_LEN_MAX;

/// Bytes that may go at once: what one segmented send of the kernel holds.
const BURST_MAX: u64 = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    /// Bytes that may go; below zero after a part that was longer than what was left.
    tokens: i64,
    filled_at: Time,
}

impl Pacer {
    pub(super) fn new(now: Time) -> Self {
        Pacer {
            tokens: signed(WINDOW_INITIAL as u64),
            filled_at: now,
        }
    }

    /// Whether something may go at this rate, in bytes a second; else when it may.
    pub(super) fn check(&mut self, now: Time, rate: u64) -> Result<(), Time> {
        if self.tokens > 0 {
            return Ok(());
        }
        let rate = rate.max(1);
        let nanos = now.nanos_since(self.filled_at);
        let filled = u128::from(nanos) * u128::from(rate) / 1_000_000_000;
        // What a millisecond brings goes together, so that a fast path is not sent single parts.
        let enough = (rate / 1_000).clamp(DATAGRAM_LEN_MAX as u64, BURST_MAX / 4);
        let enough = signed(enough) - self.tokens;
        if filled >= u128::from(enough.unsigned_abs()) {
            let most = (rate / 500).clamp(WINDOW_INITIAL as u64, BURST_MAX);
            let filled = u64::try_from(filled).unwrap_or(u64::MAX);
            self.tokens = signed(most).min(self.tokens.saturating_add(signed(filled)));
            self.filled_at = now;
            return Ok(());
        }
        let wait_ns = enough.unsigned_abs() * 1_000_000_000 / rate + 1;
        Err(self.filled_at + Duration::from_nanos(wait_ns))
    }

    /// So many bytes went.
    pub(super) fn spend(&mut self, len: usize) {
        let least = -signed(BURST_MAX);
        self.tokens = (self.tokens - signed(len as u64)).max(least);
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
