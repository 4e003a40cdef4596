//! Rate limits: one moment a bucket instead of a count of tokens.
//!
//! A bucket remembers when it will be empty again. Each event fills it by one interval; an event
//! that would fill it beyond the burst is refused. (The generic cell rate algorithm.)

use core::time::Duration;
use std::net::SocketAddr;

use crate::ids::NodeId;
use crate::time::Time;

/// A rate and the burst it allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// One event per `interval` in the long run, `burst` at once.
    pub(super) const fn new(interval: Duration, burst: u32) -> Self {
        Rate { interval, burst }
    }

    /// `count` a second, and `count` at once.
    pub(super) fn per_second(count: u32) -> Self {
        let count = count.max(1);
        Rate {
            interval: Duration::from_secs(1) / count,
            burst: count,
        }
    }
}

/// How full one source's budget is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    empty_at: Time,
}

impl Bucket {
    /// Whether an event fits now; if so it is counted.
    pub(super) fn take(&mut self, rate: Rate, now: Time) -> bool {
        let filled = self.empty_at.max(now) + rate.interval;
        if filled.since(now) > rate.interval * rate.burst {
            return false;
        }
        self.empty_at = filled;
        true
    }

    fn is_empty(&self, now: Time) -> bool {
        self.empty_at <= now
    }
}

/// Buckets of the table below. Two sources that meet in one bucket share its budget: a collision
/// can only make the limit stricter.
const SOURCES: usize = 1_024;

/// Key exchanges a second from everywhere, unless one source alone is allowed more: each costs a
/// signature check of some 60 µs, so that a flood with forged sources takes an eighth of a core.
const TOTAL_PER_SECOND: u32 = 2_000;

/// A bucket for each source of key exchanges, and one for all.
pub(super) struct SourceLimits {
    rate: Rate,
    buckets: Box<[(u64, Bucket)]>,
    total_rate: Rate,
    total: Bucket,
}

impl SourceLimits {
    pub(super) fn new(per_second: u32) -> Self {
        SourceLimits {
            rate: Rate::per_second(per_second),
            buckets: vec![(0, Bucket::default()); SOURCES].into_boxed_slice(),
            total_rate: Rate::per_second(per_second.max(TOTAL_PER_SECOND)),
            total: Bucket::default(),
        }
    }

    /// Whether another exchange from `source` is accepted; relayed ones count by the node they
    /// claim to come from.
    pub(super) fn take(&mut self, source: Option<SocketAddr>, node: NodeId, now: Time) -> bool {
        let key = match source.map(|source| source.ip().to_canonical()) {
            Some(std::net::IpAddr::V4(ip)) => u64::from(u32::from(ip)),
            Some(std::net::IpAddr::V6(ip)) => fold(u128::from(ip)),
            None => 1 << 32 | u64::from(node.0),
        };
        let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        let (owner, bucket) = &mut self.buckets[usize::try_from(mixed).expect("ten bits")];
        if *owner != key && bucket.is_empty(now) {
            *owner = key;
        }
        bucket.take(self.rate, now) && self.total.take(self.total_rate, now)
    }
}

/// An IPv6 source is its /64: whoever holds one address of it holds all.
fn fold(ip: u128) -> u64 {
    u64::try_from(ip >> 64).expect("64 bits").rotate_left(7)
}

const _: () = assert!(SOURCES == 1 << (64 - 54));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_an_interval() {
        let rate = Rate::per_second(5);
        let mut bucket = Bucket::default();
        let start = Time::ZERO + Duration::from_secs(9);
        let at_once = (0..20).filter(|_| bucket.take(rate, start)).count();
        assert_eq!(at_once, 5);
        let later = start + Duration::from_millis(200);
        assert!(bucket.take(rate, later));
        assert!(!bucket.take(rate, later));
    }

    #[test]
    fn sources_have_budgets_of_their_own_and_ports_share_one() {
        let mut limits = SourceLimits::new(2);
        let source = |text: &str| Some(text.parse().expect("address"));
        let now = Time::ZERO;
        assert!(limits.take(source("10.0.0.1:1"), NodeId(1), now));
        assert!(limits.take(source("10.0.0.1:2"), NodeId(2), now));
        assert!(!limits.take(source("10.0.0.1:3"), NodeId(3), now));
        assert!(limits.take(source("10.0.0.2:1"), NodeId(1), now));
        assert!(limits.take(None, NodeId(1), now));
        assert!(limits.take(source("[2001:db8::1]:1"), NodeId(1), now));
    }

    #[test]
    fn forged_sources_share_what_there_is_for_all() {
        let mut limits = SourceLimits::new(50);
        let accepted = (0..20_000_u32)
            .map(|number| SocketAddr::from((number.wrapping_mul(2_654_435_761).to_be_bytes(), 1)))
            .filter(|source| limits.take(Some(*source), NodeId(1), Time::ZERO))
            .count();
        assert_eq!(accepted, 2_000);
    }
}
