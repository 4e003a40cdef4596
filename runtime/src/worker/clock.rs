//! The clock that every worker of this process reads: nanoseconds of the host's monotonic clock.
//!
//! A read through the kernel's page ([`now`]) takes some 26 ns here, a fifth of what a packed task costs.
//! [`Stopwatch`] adds the processor's own counter, read in 10 ns, to the last such read, for as short a
//! time as the two cannot drift apart.

use std::time::{SystemTime, UNIX_EPOCH};

use ramjet_proto::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now, on the monotonic clock, without the arithmetic of [`std::time::Instant`] that would double
/// its cost.
#[inline]
pub fn now() -> Time {
    let read = clock_gettime(ClockId::Monotonic);
    // The monotonic clock counts up from boot, and 584 years fit.
    Time::from_nanos(read.tv_sec.unsigned_abs() * 1_000_000_000 + read.tv_nsec.unsigned_abs())
}

/// Milliseconds since the Unix epoch, on the wall clock: for grants and the market only.
pub fn unix_ms() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// How long the counter is trusted. Its calibration takes place while other threads run, so it may be off by some
/// per mille: 100 ns in this time, by which a later read of the clock may even lie before a glance.
const TRUSTED_NS: u64 = 100_000;

/// Reads the clock often, cheaply.
#[derive(Debug)]
pub struct Stopwatch {
    counter: quanta::Clock,
    /// The last read of the monotonic clock, and the counter then.
    read: Time,
    raw: u64,
}

impl Stopwatch {
    /// Takes up to 200 ms the first time in a process, to calibrate the counter. Where the processor
    /// has none to rely on, the monotonic clock is read instead.
    pub fn new() -> Self {
        let counter = quanta::Clock::new();
        let raw = counter.raw();
        Stopwatch {
            counter,
            read: now(),
            raw,
        }
    }

    /// Now, on the monotonic clock.
    pub fn read(&mut self) -> Time {
        self.read = now();
        self.raw = self.counter.raw();
        self.read
    }

    /// Now, by the counter if the last read is not long ago; never before that read.
    #[inline]
    pub fn glance(&mut self) -> Time {
        let since = self.counter.delta_as_nanos(self.raw, self.counter.raw());
        if since > TRUSTED_NS {
            return self.read();
        }
        self.read + core::time::Duration::from_nanos(since)
    }
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A calibration worse than this is a fault, and so is a counter that is not scaled.
    const SLACK_NS: u64 = TRUSTED_NS / 10;

    #[test]
    fn a_glance_is_the_time() {
        let mut stopwatch = Stopwatch::new();
        for _ in 0..200 {
            let read = stopwatch.read();
            let mut glanced = read;
            // Past the time for which the counter is trusted, too.
            while glanced.nanos_since(read) < 2 * TRUSTED_NS {
                let before = glanced;
                glanced = stopwatch.glance();
                // A thread that is held up between the two is behind, never ahead.
                let ahead = glanced.nanos_since(now());
                let back = before.nanos_since(glanced);
                assert!(glanced >= read, "{glanced:?} before {read:?}");
                assert!(ahead < SLACK_NS, "{ahead} ns ahead of the clock");
                assert!(back < SLACK_NS, "{back} ns back");
            }
        }
    }
}
