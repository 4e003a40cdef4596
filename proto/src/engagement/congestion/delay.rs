//! The share that parts have of the window: as much as keeps the queue they build at its target.
//!
//! The signal is the shortest round trip of a round beyond the shortest the path has shown. A single
//! late packet therefore moves nothing, and a queue that stands for a whole round does.

use core::time::Duration;

use super::{WINDOW_INITIAL, WINDOW_MAX, WINDOW_MIN};
use crate::time::Time;
use crate::wire::limits::DATAGRAM_LEN_MAX;

/// Queue that parts may build on a path shorter than it: some trains of the kernel at the speed of
/// loopback, and a tenth of what a person notices on any other.
const TARGET_MIN_NS: u64 = 250_000;
/// The same on a long path.
const TARGET_MAX_NS: u64 = 10_000_000;
/// What the path has shown is forgotten after one to two of these.
const BASE_FOR: Duration = Duration::from_secs(10);
/// Parts rest for a round this often, so that the path is seen without them: whoever came later took
/// the queue of the others for a longer path. Once in so many rounds costs a fiftieth.
const REST_EVERY: Duration = Duration::from_secs(1);
const REST_ROUNDS: u64 = 50;

/// How long the queue of parts may be on a path of this length: as long as the path, within bounds,
/// and longer for whoever has little of it, so that shares of unequal size drift together (Swift,
/// 3.5): by the root of two datagrams over the share, twice as long at the least share.
fn target_ns(base_ns: u64, share: usize) -> u64 {
    let target_ns = base_ns.clamp(TARGET_MIN_NS, TARGET_MAX_NS);
    let datagrams = (share / DATAGRAM_LEN_MAX).max(2) as u64;
    let root_of_1024 = ((2 << 20) / datagrams).isqrt();
    target_ns + target_ns * root_of_1024 / 1_024
}

/// The shortest round trip of the last ten to twenty seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    before_ns: u64,
    current_ns: u64,
    renewed_at: Time,
    rested_at: Time,
}

impl Base {
    pub(super) fn new(now: Time) -> Self {
        Base {
            before_ns: u64::MAX,
            current_ns: u64::MAX,
            renewed_at: now,
            rested_at: now,
        }
    }

    pub(super) fn sample(&mut self, now: Time, nanos: u64) {
        if now.since(self.renewed_at) >= BASE_FOR {
            self.before_ns = self.current_ns;
            self.current_ns = u64::MAX;
            self.renewed_at = now;
        }
        self.current_ns = self.current_ns.min(nanos);
    }

    pub(super) fn shortest_ns(&self) -> Option<u64> {
        let shortest = self.before_ns.min(self.current_ns);
        (shortest != u64::MAX).then_some(shortest)
    }

    /// Whether it is time to rest, with rounds of this length; asking takes it.
    pub(super) fn is_rest_due(&mut self, now: Time, round: Duration) -> bool {
        let round_ns = u64::try_from(round.as_nanos()).unwrap_or(u64::MAX);
        let rounds = Duration::from_nanos(round_ns.saturating_mul(REST_ROUNDS));
        let due = now.since(self.rested_at) >= REST_EVERY.max(rounds);
        if due {
            self.rested_at = now;
        }
        due
    }
}

/// The share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    bytes: usize,
    starting: bool,
    cut_at: Time,
    /// What it was before it was lowered for a round to see the path empty.
    rested_from: Option<usize>,
}

impl Share {
    pub(super) fn new() -> Self {
        Share {
            bytes: WINDOW_INITIAL,
            starting: true,
            cut_at: Time::ZERO,
            rested_from: None,
        }
    }

    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it still doubles each round.
    pub(super) fn is_starting(&self) -> bool {
        self.starting
    }

    /// Round trips of what was sent before this do not show the present share.
    pub(super) fn cut_at(&self) -> Time {
        self.cut_at
    }

    /// A round has ended with this queue.
    pub(super) fn move_by(
        &mut self,
        now: Time,
        queue_ns: u64,
        base_ns: u64,
        acked: usize,
        was_full: bool,
    ) {
        if let Some(bytes) = self.rested_from.take() {
            self.bytes = bytes;
            self.cut_at = now;
            return;
        }
        let target_ns = target_ns(base_ns, self.bytes);
        if queue_ns > target_ns {
            // Four fifths of what is too much, never more than half of all (Swift, 3.2).
            let over = u128::from(queue_ns - target_ns) * self.bytes as u128 * 4
                / (u128::from(queue_ns) * 5);
            let over = usize::try_from(over).unwrap_or(self.bytes);
            self.bytes = (self.bytes - over.min(self.bytes / 2)).max(WINDOW_MIN);
            self.starting = false;
            self.cut_at = now;
            return;
        }
        if !was_full {
            return;
        }
        let more = if self.starting {
            acked.min(self.bytes)
        } else {
            // One datagram, as everyone; and up to an eighth while the queue is far from its target, so
            // that a free path is soon used.
            let room = u128::from(target_ns - queue_ns) * (self.bytes / 8) as u128;
            DATAGRAM_LEN_MAX + usize::try_from(room / u128::from(target_ns)).unwrap_or(0)
        };
        self.bytes = (self.bytes + more).min(WINDOW_MAX);
    }

    /// It is a part of the window.
    pub(super) fn limit(&mut self, window: usize) {
        self.bytes = self.bytes.min(window);
    }

    /// Something was lost, and this is what the window has come to.
    pub(super) fn lose(&mut self, window: usize) {
        self.limit(window);
        self.starting = false;
    }

    /// For one round next to nothing goes, so that the path is seen without our own queue.
    pub(super) fn rest(&mut self, now: Time) {
        if self.rested_from.is_none() {
            self.rested_from = Some(self.bytes);
            self.bytes = WINDOW_MIN;
            self.cut_at = now;
        }
    }
}
