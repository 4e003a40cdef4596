//! What a batch costs, learned from the batches that ran.
//!
//! Two curves of time over size, one by items and one by work units. Each has at most one point for
//! every power of two: the mean size and mean time of the batches in that bucket, and how far off
//! its predictions were (exponentially weighted). Between points a curve is a straight line, below
//! its first point it is flat, and beyond its last it grows with the size. Predictions come from the
//! curve that has been less wrong so far.
//!
//! Invariants:
//! - Means and bounds of the points grow with the size, so that every prediction is monotone. Where
//!   a batch contradicts its neighbours, the newest evidence wins and the neighbours give way.
//! - Nothing is believed for ever. A point above the one just learned moves a little towards what
//!   that one implies by growing with the size, so that a size that was slow once is tried again. Two
//!   surprises in a row in one direction start the point anew and shift the whole curve with it. A
//!   first measurement that the second undercuts by half was a warm-up and is dropped.
//! - One surprise alone moves the bound, not the mean, and counts as at most [`OUTLIER_FACTOR`]
//!   times what was expected.
//!
//! Absent: a clock, floating-point numbers, allocation.

/// Power-of-two buckets of a 64-bit size.
const BUCKETS: usize = 65;
/// Deviations above the mean that a conservative prediction lies: of a normal distribution, whose
/// mean absolute deviation is 0.8 σ, it holds 99 % of the batches.
const DEVIATIONS: u64 = 3;
/// Newest sample's weight, once a point has this many: a change is believed after about as many.
const SAMPLES_MAX: u64 = 8;
/// Largest part of one sample that is believed, in expected times.
const OUTLIER_FACTOR: u64 = 4;
/// A sample this many times above or below what was expected is a surprise.
const SURPRISE_FACTOR: u64 = 2;
/// Part of the way that a larger size moves towards what a smaller one implies, each time.
const RELAX_PART: u64 = 64;
/// Longest batch believed: an hour. Keeps every product within 64 bits.
const NS_MAX: u64 = 3_600_000_000_000;
/// Scale of the relative error of a curve.
const ERROR_ONE: u64 = 1 << 10;

/// What is known of the batches of one bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    /// Batches seen, at most [`SAMPLES_MAX`]; 0 for none.
    samples: u64,
    /// Mean size.
    size: u64,
    /// Mean time, in nanoseconds.
    mean_ns: u64,
    /// Mean distance of the time from what was expected, in nanoseconds.
    deviation_ns: u64,
    /// Surprises in a row: above zero slower ones, below zero faster ones.
    surprises: i8,
}

impl Point {
    fn first(size: u64, ns: u64) -> Self {
        Point {
            samples: 1,
            size,
            mean_ns: ns,
            deviation_ns: ns / 4,
            surprises: 0,
        }
    }

    /// Conservative time: a floor of one 64th for the deviation, since no machine is exact.
    fn bound_ns(&self) -> u64 {
        self.mean_ns + DEVIATIONS * self.deviation_ns.max(self.mean_ns / 64)
    }

    fn learn(&mut self, size: u64, ns: u64, expected_ns: u64) {
        self.samples = (self.samples + 1).min(SAMPLES_MAX);
        let ns = ns.min(expected_ns.saturating_mul(OUTLIER_FACTOR));
        self.deviation_ns = mix(self.deviation_ns, ns.abs_diff(expected_ns), self.samples);
        if self.surprises == 0 {
            self.size = mix(self.size, size, self.samples);
            self.mean_ns = mix(self.mean_ns, ns, self.samples);
        }
    }

    /// Lowers what it says to at most `below`: a larger batch has just cost no more.
    fn lower(&mut self, below: &Point) {
        self.mean_ns = self.mean_ns.min(below.mean_ns);
        let room = below.bound_ns().saturating_sub(self.mean_ns) / DEVIATIONS;
        self.deviation_ns = self.deviation_ns.min(room);
    }

    /// Raises what it says to at least `above`: a smaller batch has just cost as much.
    fn raise(&mut self, above: &Point) {
        self.mean_ns = self.mean_ns.max(above.mean_ns);
        let missing = above.bound_ns().saturating_sub(self.mean_ns);
        self.deviation_ns = self.deviation_ns.max(missing.div_ceil(DEVIATIONS));
    }

    /// Moves a little towards what `known`, a smaller size, implies by growing with the size.
    fn relax(&mut self, known: &Point) {
        let mean = scaled(known.mean_ns, self.size, known.size);
        let deviation = scaled(known.deviation_ns, self.size, known.size);
        self.mean_ns -= self.mean_ns.saturating_sub(mean).div_ceil(RELAX_PART);
        self.deviation_ns -= self
            .deviation_ns
            .saturating_sub(deviation)
            .div_ceil(RELAX_PART);
    }
}

/// The mean after one more of `count` samples.
fn mix(mean: u64, sample: u64, count: u64) -> u64 {
    let sum = u128::from(mean) * u128::from(count - 1) + u128::from(sample);
    u64::try_from(sum / u128::from(count)).unwrap_or(u64::MAX)
}

/// `value` × `numerator` / `denominator`, rounded up, without overflow.
fn scaled(value: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(value) * u128::from(numerator);
    u64::try_from(product.div_ceil(u128::from(denominator.max(1)))).unwrap_or(u64::MAX)
}

fn bucket(size: u64) -> usize {
    (u64::BITS - (size.max(1) - 1).leading_zeros()) as usize
}

/// Time over one kind of size.
#[derive(Debug)]
struct Curve {
    points: [Point; BUCKETS],
    /// Mean relative error of its predictions, of [`ERROR_ONE`].
    error: u64,
}

impl Curve {
    fn new() -> Self {
        Curve {
            points: [Point::default(); BUCKETS],
            error: 0,
        }
    }

    /// What `value` says of `size`; 0 while nothing is known.
    fn at(&self, size: u64, value: impl Fn(&Point) -> u64) -> u64 {
        let known = |point: &&Point| point.samples > 0;
        let at = bucket(size);
        // The bucket's own mean size may lie on either side of `size`.
        let smaller = self.points[..=at]
            .iter()
            .rev()
            .filter(known)
            .find(|point| point.size <= size);
        let larger = self.points[at..]
            .iter()
            .filter(known)
            .find(|point| point.size > size);
        match (smaller, larger) {
            (None, None) => 0,
            (None, Some(larger)) => value(larger),
            (Some(smaller), None) => scaled(value(smaller), size, smaller.size),
            (Some(smaller), Some(larger)) => {
                let rise = value(larger).saturating_sub(value(smaller));
                value(smaller) + scaled(rise, size - smaller.size, larger.size - smaller.size)
            }
        }
    }

    fn learn(&mut self, size: u64, ns: u64) {
        let expected_ns = self.at(size, |point| point.mean_ns);
        let at = bucket(size);
        if expected_ns > 0 {
            let off = scaled(ns.abs_diff(expected_ns), ERROR_ONE, ns);
            self.error = mix(self.error, off.min(ERROR_ONE), SAMPLES_MAX);
        }
        let point = &mut self.points[at];
        let slower = ns > expected_ns.saturating_mul(SURPRISE_FACTOR);
        let faster = ns < expected_ns / SURPRISE_FACTOR;
        point.surprises = match (slower, faster) {
            (true, _) => point.surprises.max(0) + 1,
            (_, true) => point.surprises.min(0) - 1,
            _ => 0,
        };
        if point.samples == 0 || (point.samples == 1 && faster) {
            *point = Point::first(size, ns);
        } else if point.surprises.abs() == 2 {
            *point = Point::first(size, ns);
            self.shift(at, ns, expected_ns);
        } else {
            point.learn(size, ns, expected_ns);
        }
        self.agree(at);
    }

    /// Scales every other point as the one at `at` has changed, by at most the outlier's factor.
    fn shift(&mut self, at: usize, ns: u64, expected_ns: u64) {
        let ns = ns.clamp(
            expected_ns / OUTLIER_FACTOR,
            expected_ns.saturating_mul(OUTLIER_FACTOR),
        );
        for (index, point) in self.points.iter_mut().enumerate() {
            if index != at && point.samples > 0 {
                point.mean_ns = scaled(point.mean_ns, ns, expected_ns).min(NS_MAX);
                point.deviation_ns = scaled(point.deviation_ns, ns, expected_ns).min(NS_MAX);
            }
        }
    }

    /// Makes the other points agree with the one that was just learned.
    fn agree(&mut self, at: usize) {
        let learned = self.points[at];
        let (below, above) = self.points.split_at_mut(at);
        let known = |point: &&mut Point| point.samples > 0;
        let mut over = learned;
        for point in below.iter_mut().rev().filter(known) {
            point.lower(&over);
            over = *point;
        }
        let mut under = learned;
        for point in above[1..].iter_mut().filter(known) {
            point.relax(&learned);
            point.raise(&under);
            under = *point;
        }
    }
}

/// The table of one skill.
#[derive(Debug)]
pub(super) struct CostTable {
    by_items: Curve,
    by_work: Curve,
}

impl CostTable {
    pub(super) fn new() -> Self {
        CostTable {
            by_items: Curve::new(),
            by_work: Curve::new(),
        }
    }

    /// A batch of `items` tasks and `work` units took `ns`.
    pub(super) fn learn(&mut self, items: usize, work: u64, ns: u64) {
        let ns = ns.clamp(1, NS_MAX);
        self.by_items.learn(items as u64, ns);
        self.by_work.learn(work, ns);
    }

    /// What such a batch takes in the mean; 0 while nothing is known.
    pub(super) fn expected_ns(&self, items: usize, work: u64) -> u64 {
        self.better(items, work, |point| point.mean_ns)
    }

    /// What such a batch takes at most, 99 times of 100; 0 while nothing is known. Grows with both.
    pub(super) fn predicted_ns(&self, items: usize, work: u64) -> u64 {
        self.better(items, work, Point::bound_ns)
    }

    fn better(&self, items: usize, work: u64, value: impl Fn(&Point) -> u64) -> u64 {
        if self.by_work.error < self.by_items.error {
            self.by_work.at(work, value)
        } else {
            self.by_items.at(items as u64, value)
        }
    }
}
