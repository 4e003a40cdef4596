//! When to send again: the estimator of RFC 6298 over round trips of segments sent once.

use core::time::Duration;

/// Shortest time-out towards ramjet nodes, which acknowledge within a turn or a millisecond. Below
/// it a stall of a shared core looks like loss.
const TIMEOUT_MIN: Duration = Duration::from_millis(30);
/// The same towards other daemons, which may keep an acknowledgment for 40 ms.
const TIMEOUT_MIN_FOREIGN: Duration = Duration::from_millis(120);
/// Longest, back-off included.
const TIMEOUT_MAX: Duration = Duration::from_secs(8);
/// Before the first sample.
const TIMEOUT_INITIAL: Duration = Duration::from_millis(500);

/// Smoothed round trip and its variation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    smoothed_ns: u64,
    variation_ns: u64,
    shortest_ns: u64,
}

impl RoundTrip {
    /// Takes the round trip of a segment that was sent once.
    pub(super) fn sample(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        if self.smoothed_ns == 0 {
            (self.smoothed_ns, self.variation_ns) = (nanos, nanos / 2);
            self.shortest_ns = nanos;
            return;
        }
        let error = self.smoothed_ns.abs_diff(nanos);
        self.variation_ns = self.variation_ns - self.variation_ns / 4 + error / 4;
        self.smoothed_ns = (self.smoothed_ns - self.smoothed_ns / 8 + nanos / 8).max(1);
        self.shortest_ns = self.shortest_ns.min(nanos);
    }

    /// Smoothed, and its variation; zero before the first sample.
    pub(super) fn smoothed(&self) -> (Duration, Duration) {
        (
            Duration::from_nanos(self.smoothed_ns),
            Duration::from_nanos(self.variation_ns),
        )
    }

    /// The shortest so far; zero before the first sample.
    pub(super) fn shortest(&self) -> Duration {
        Duration::from_nanos(self.shortest_ns)
    }

    /// How long to wait after `backoffs` time-outs in a row.
    pub(super) fn timeout(&self, foreign: bool, backoffs: u32) -> Duration {
        let least = if foreign {
            TIMEOUT_MIN_FOREIGN
        } else {
            TIMEOUT_MIN
        };
        let timeout = if self.smoothed_ns == 0 {
            TIMEOUT_INITIAL
        } else {
            let nanos = self
                .smoothed_ns
                .saturating_add(self.variation_ns.saturating_mul(4));
            Duration::from_nanos(nanos).max(least)
        };
        timeout
            .saturating_mul(1 << backoffs.min(10))
            .min(TIMEOUT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_out_follows_the_samples_and_doubles() {
        let mut round_trip = RoundTrip::default();
        assert_eq!(round_trip.timeout(true, 0), TIMEOUT_INITIAL);
        round_trip.sample(Duration::from_millis(200));
        assert_eq!(round_trip.timeout(false, 0), Duration::from_millis(600));
        assert_eq!(round_trip.timeout(false, 1), Duration::from_millis(1_200));
        assert_eq!(round_trip.timeout(false, 99), TIMEOUT_MAX);
        for _ in 0..200 {
            round_trip.sample(Duration::from_micros(100));
        }
        assert_eq!(round_trip.timeout(false, 0), TIMEOUT_MIN);
        assert_eq!(round_trip.timeout(true, 0), TIMEOUT_MIN_FOREIGN);
        assert_eq!(round_trip.shortest(), Duration::from_micros(100));
    }
}
