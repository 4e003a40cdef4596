//! Latencies: how workers keep them, and how they are told in buckets.
//!
//! Workers record into [`Histograms`] of their own, always, so that nobody who looks costs the data path anything:
//! control swaps them for empty ones and adds them up. [`Buckets`] are what monitoring systems take.

use hdrhistogram::Histogram;

/// The shortest bucket holds up to 2 to this many nanoseconds: 1.024 µs.
const SHORTEST: u32 = 10;
/// How many buckets: each holds twice as much time as the one before; the last has no bound.
pub const BUCKETS: usize = 28;

/// The bound of each bucket but the last, in nanoseconds: up to 68.7 s.
pub fn bucket_bounds_ns() -> impl Iterator<Item = u64> {
    (0..BUCKETS - 1).map(|bucket| 1 << (bucket + SHORTEST as usize))
}

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// How often, for each bucket by itself.
    pub counts: [u64; BUCKETS],
    /// All times together, in nanoseconds.
    pub sum_ns: u64,
}

impl Buckets {
    /// It took so long once.
    pub fn count(&mut self, ns: u64) {
        self.count_many(ns, 1);
    }

    /// Adds what a histogram holds, to its three digits: the sum too, and what lies that near to a
    /// bound may be in the next bucket.
    pub fn add(&mut self, histogram: &Histogram<u64>) {
        for recorded in histogram.iter_recorded() {
            let middle = histogram.median_equivalent(recorded.value_iterated_to());
            self.count_many(middle, recorded.count_since_last_iteration());
        }
    }

    fn count_many(&mut self, ns: u64, times: u64) {
        let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
        let bucket = (bits.saturating_sub(SHORTEST) as usize).min(BUCKETS - 1);
        self.counts[bucket] += times;
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(times));
    }
}

/// Latencies of one worker, in nanoseconds, three significant digits, 1 ns to 10 minutes.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// Requester: from a task's first send to its answer.
    pub round_trip: Histogram<u64>,
    /// Worker: handler time of a task.
    pub handler: Histogram<u64>,
    /// Worker: from a task's arrival to the start of its handler.
    pub staged: Histogram<u64>,
}

impl Histograms {
    /// Longest latency that is told apart, beyond the last bound of the buckets; what is longer
    /// counts as this.
    pub const MAX_NS: u64 = 600_000_000_000;

    /// Empty ones.
    pub fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, Self::MAX_NS, 3).expect("valid bounds");
        Histograms {
            round_trip: histogram(),
            handler: histogram(),
            staged: histogram(),
        }
    }

    /// Forgets what was recorded. What holds nothing is left alone: each is a quarter of a megabyte.
    pub fn reset(&mut self) {
        for histogram in [&mut self.round_trip, &mut self.handler, &mut self.staged] {
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
    }

    /// Adds another worker's to these.
    pub fn add(&mut self, other: &Histograms) {
        self.round_trip.add(&other.round_trip).expect("same bounds");
        self.handler.add(&other.handler).expect("same bounds");
        self.staged.add(&other.staged).expect("same bounds");
    }
}

impl Default for Histograms {
    fn default() -> Self {
        Self::new()
    }
}

/// The same latencies in buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyBuckets {
    /// Requester: from a task's first send to its answer.
    pub round_trip: Buckets,
    /// Worker: handler time of a task.
    pub handler: Buckets,
    /// Worker: from a task's arrival to the start of its handler.
    pub staged: Buckets,
}

impl LatencyBuckets {
    /// Adds what a worker recorded.
    pub fn add(&mut self, recorded: &Histograms) {
        self.round_trip.add(&recorded.round_trip);
        self.handler.add(&recorded.handler);
        self.staged.add(&recorded.staged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket_of(ns: u64) -> Option<usize> {
        let mut buckets = Buckets::default();
        buckets.count(ns);
        buckets.counts.iter().position(|count| *count == 1)
    }

    #[test]
    fn a_time_lies_in_the_first_bucket_that_holds_it() {
        let bounds: Vec<u64> = bucket_bounds_ns().collect();
        assert_eq!((bounds[0], bounds.len()), (1_024, BUCKETS - 1));
        assert_eq!(bounds[BUCKETS - 2], 1 << 36);
        for (index, bound) in bounds.iter().enumerate() {
            assert_eq!(bucket_of(*bound), Some(index));
            assert_eq!(bucket_of(bound + 1), Some(index + 1));
        }
        assert_eq!(
            (bucket_of(0), bucket_of(u64::MAX)),
            (Some(0), Some(BUCKETS - 1))
        );
    }

    #[test]
    fn a_histogram_tells_the_same_as_its_values_do() {
        let (mut histogram, mut expected) = (Histograms::new().handler, Buckets::default());
        for step in 0_u64..40_000 {
            // From 1 ns to 30 s, and never within a thousandth of a bound.
            let ns = 1 + (step * step * 19) % 30_000_000_000;
            let near = bucket_bounds_ns().any(|bound| bound.abs_diff(ns) * 1_000 <= bound);
            if !near {
                histogram.record(ns).expect("within its bounds");
                expected.count(ns);
            }
        }
        // The longest of all lies beyond every bound.
        histogram.saturating_record(u64::MAX);
        expected.count(Histograms::MAX_NS);
        assert_eq!(expected.counts[BUCKETS - 1], 1);
        let mut told = Buckets::default();
        told.add(&histogram);
        assert_eq!(told.counts, expected.counts);
        let off = told.sum_ns.abs_diff(expected.sum_ns);
        assert!(off * 1_000 <= expected.sum_ns, "{told:?} for {expected:?}");
    }
}
