//! The pause between attempts: doubling, bounded, and spread by lent entropy.
//!
//! When a registry restarts, all its nodes come back; without the spread they would come at once.

use std::time::Duration;

/// The pauses of one sequence of failures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Backoff {
            min,
            max,
            next: min,
        }
    }

    /// The next pause: between half and the whole of the current step, by `entropy`.
    pub(crate) fn pause(&mut self, entropy: u64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        let half = step / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(entropy % span)
    }

    /// Begins again with the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_stay_in_their_half() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let mut step = min;
        for round in 0..12_u64 {
            let pause = backoff.pause(round.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            assert!(
                pause >= step / 2 && pause < step,
                "round {round}: {pause:?} of {step:?}"
            );
            step = (step * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.pause(u64::MAX) < min);
    }
}
