//! When to send a task again: the estimator of RFC 6298 over task round trips.
//!
//! The round trip of a task includes its handler, so the time-out follows what the worker needs.

use core::time::Duration;

/// Least time before a repeat. Below it, a stall of a shared core would look like loss.
const RTO_MIN: Duration = Duration::from_millis(50);
/// Most, before back-off.
pub(super) const RTO_MAX: Duration = Duration::from_secs(4);
/// Before the first sample (RFC 6298, 2.1 says one second; a tunnel just answered us, so less).
const RTO_INITIAL: Duration = Duration::from_millis(250);

/// Smoothed round trip and its variation, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rtt {
    smoothed_ns: u64,
    variation_ns: u64,
}

impl Rtt {
    /// Takes the round trip of a task that was sent once (Karn's rule).
    #[inline]
    pub fn sample(&mut self, round_trip_ns: u64) {
        if self.smoothed_ns == 0 {
            self.smoothed_ns = round_trip_ns.max(1);
            self.variation_ns = round_trip_ns / 2;
            return;
        }
        let error = self.smoothed_ns.abs_diff(round_trip_ns);
        self.variation_ns = self.variation_ns - self.variation_ns / 4 + error / 4;
        self.smoothed_ns = self.smoothed_ns - self.smoothed_ns / 8 + round_trip_ns / 8;
    }

    /// Time until the first repeat of a task.
    #[inline]
    pub fn timeout(&self) -> Duration {
        if self.smoothed_ns == 0 {
            return RTO_INITIAL;
        }
        let nanos = self
            .smoothed_ns
            .saturating_add(self.variation_ns.saturating_mul(4));
        Duration::from_nanos(nanos).clamp(RTO_MIN, RTO_MAX)
    }

    /// Time until the repeat after `sends` sends: doubled for each, bounded.
    pub fn timeout_after(&self, sends: u32) -> Duration {
        let doublings = sends.saturating_sub(1).min(6);
        (self.timeout() * (1 << doublings)).min(RTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_samples_and_doubles() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(), RTO_INITIAL);
        for _ in 0..200 {
            rtt.sample(100_000_000);
        }
        assert!(rtt.timeout() >= Duration::from_millis(100));
        assert!(rtt.timeout() < Duration::from_millis(130));
        assert!(rtt.timeout_after(3) >= rtt.timeout() * 4);
        assert_eq!(rtt.timeout_after(40), RTO_MAX);
        for _ in 0..200 {
            rtt.sample(20_000);
        }
        assert_eq!(rtt.timeout(), RTO_MIN);
    }
}
