//! Who is let in.
//!
//! A task is refused at once if it would miss its deadline: by the work that waits before it under
//! fair sharing, by when the lanes are free, and by the cost table, all of it stretched by how much
//! longer tasks lately waited than was expected. Refusing here costs the requester one round trip;
//! refusing later costs it the deadline.
//!
//! The queue's places are shared out by dynamic thresholds: a requester may hold at most
//! [`SHARE_OF_FREE`] times as many as are free, so one that takes all it can leaves some for
//! whoever comes next.

use std::time::Duration;

use ramjet_proto::time::Time;

use super::queue::{Share, Waiting};
use super::{Batcher, TASK_WORK_MAX, Turned, Wanted};

/// A requester alone may hold 8 of 9 places.
const SHARE_OF_FREE: usize = 8;
/// Shortest and longest time after which a refused requester is asked back.
const RETRY_AFTER_US: std::ops::RangeInclusive<u64> = 100..=5_000_000;
/// Asked back so long from now while nothing is known of costs, or nobody runs anything.
const RETRY_AFTER_UNKNOWN: Duration = Duration::from_millis(20);
/// How long an idle lane stands idle before one task tests the cost table that refuses it.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// The same after many such tests that only confirmed it.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Scale of the slip.
const SLIP_ONE: u64 = 1 << 20;
/// Largest slip: beyond it the cost table is at fault, and learns by itself.
const SLIP_MAX: u64 = 4 * SLIP_ONE;
/// Added for a task that waited longer than the slip says, and 500 times what is taken off for one
/// that did not: so it settles where 1 of 501 waits longer.
const SLIP_UP: u64 = SLIP_ONE / 32;
const SLIP_DOWN: u64 = SLIP_UP / 500;
/// Expected waits that are shorter say nothing: the engine's own steps take as long.
const SLIP_WAIT_MIN: u64 = 200_000;

/// How many times longer tasks wait than was expected when they were let in, all but 1 of 500.
///
/// The expectation knows nothing of what comes later: requesters with little waiting, who are
/// served before one with much; batches that deadlines make smaller; the engine's own time.
#[derive(Debug)]
pub(super) struct Slip(u64);

impl Slip {
    pub(super) fn new() -> Self {
        Slip(SLIP_ONE)
    }

    /// A task leaves the queue and will start at `start`.
    pub(super) fn saw<T>(&mut self, waiting: &Waiting<T>, start: Time) {
        if waiting.expected_wait_ns < SLIP_WAIT_MIN {
            return;
        }
        let waited_ns = start.nanos_since(waiting.offered);
        if waited_ns > self.stretched(waiting.expected_wait_ns) {
            self.0 = (self.0 + SLIP_UP).min(SLIP_MAX);
        } else {
            self.0 = (self.0 - SLIP_DOWN).max(SLIP_ONE);
        }
    }

    fn stretched(&self, wait_ns: u64) -> u64 {
        let stretched = u128::from(wait_ns) * u128::from(self.0) / u128::from(SLIP_ONE);
        u64::try_from(stretched).unwrap_or(u64::MAX)
    }
}

/// When the cost table is next put to the test.
#[derive(Debug)]
pub(super) struct Probes {
    after: Duration,
    /// The last batch ended.
    tested: Time,
}

impl Probes {
    pub(super) fn new() -> Self {
        Probes {
            after: PROBE_WAIT,
            tested: Time::ZERO,
        }
    }

    fn due(&self, now: Time) -> bool {
        now >= self.tested + self.after
    }

    /// A batch ended; `deadline` is that of the probe that it was.
    pub(super) fn ended(&mut self, now: Time, deadline: Option<Time>) {
        self.tested = now;
        self.after = match deadline {
            Some(deadline) if now > deadline => (self.after * 2).min(PROBE_WAIT_MAX),
            _ => PROBE_WAIT,
        };
    }
}

/// What is expected of a task that would be let in.
struct Estimate {
    /// Until it starts, as the table has it.
    wait_ns: u64,
    /// How long its batch takes, conservatively.
    batch_ns: u64,
}

impl<T> Batcher<T> {
    /// Lets a task in, or gives it back with the reason.
    ///
    /// # Errors
    /// The task, and why it was turned away.
    pub(crate) fn offer(&mut self, now: Time, wanted: Wanted, task: T) -> Result<(), (Turned, T)> {
        let wanted = Wanted {
            work: wanted.work.max(1),
            ..wanted
        };
        match self.admit(now, &wanted) {
            Ok((expected_wait_ns, probe)) => {
                self.queue.push(Waiting {
                    wanted,
                    task,
                    offered: now,
                    expected_wait_ns,
                    probe,
                });
                Ok(())
            }
            Err(turned) => Err((turned, task)),
        }
    }

    fn admit(&self, now: Time, wanted: &Wanted) -> Result<(u64, bool), Turned> {
        let policy = &self.policy;
        let alone = self.policy.region_bytes(1, wanted.footprint());
        let work_max = policy.work_max.min(TASK_WORK_MAX);
        if wanted.work > work_max || alone > policy.bytes_max {
            return Err(Turned::TooBig);
        }
        if wanted.deadline <= now {
            return Err(Turned::Late);
        }
        let free = policy.waiting_max.saturating_sub(self.queue.len());
        let share = self.queue.share(wanted.peer);
        let over = free == 0 || share.tasks >= free.saturating_mul(SHARE_OF_FREE);
        if self.draining || self.lanes.len() == 0 || over {
            return Err(self.busy(now));
        }
        let estimate = self.estimate(now, wanted, share);
        if wanted.deadline == Time::NEVER {
            return Ok((estimate.wait_ns, false));
        }
        let stretched = self.slip.stretched(estimate.wait_ns);
        let end = now + Duration::from_nanos(stretched.saturating_add(estimate.batch_ns));
        if end + policy.margin <= wanted.deadline {
            return Ok((estimate.wait_ns, false));
        }
        let idle = self.queue.len() == 0 && self.retries.is_empty() && self.lanes.all_idle();
        if idle && self.probes.due(now) {
            return Ok((0, true));
        }
        Err(Turned::Late)
    }

    /// When the task would start and how long its batch would take, if it were let in now.
    fn estimate(&self, now: Time, wanted: &Wanted, share: Share) -> Estimate {
        let queue = &self.queue;
        let items = queue.len() + 1;
        let work = queue.work() + wanted.work;
        let footprint = queue.bytes().saturating_add(wanted.footprint());
        // Of the others' work, no more goes before it than what this requester has itself, each.
        let own = share.work + wanted.work;
        let others = (queue.work() - share.work).min(own.saturating_mul(queue.requesters() as u64));
        let batches_of = |part: u64| {
            let by_items = (items as u64).div_ceil(self.policy.items_max as u64);
            let by_work = work.div_ceil(self.policy.work_max);
            let room = self.policy.bytes_max.max(1);
            let by_bytes = self.policy.region_bytes(items, footprint).div_ceil(room) as u64;
            let all = by_items.max(by_work).max(by_bytes);
            // All of them, by the part of the work that goes before and with this task.
            let batches = u128::from(all) * u128::from(part);
            let batches = u64::try_from(batches.div_ceil(u128::from(work))).unwrap_or(all);
            (batches.clamp(1, all), all)
        };
        let (batches, all) = batches_of(own + others);
        let batch_items = items.div_ceil(usize::try_from(all).unwrap_or(usize::MAX));
        let batch_work = work.div_ceil(all);
        let expected_ns = self.costs.expected_ns(batch_items, batch_work);
        let (first, mean) = self.lanes.free_in_ns(now);
        let lanes = self.lanes.len().max(1) as u64;
        let before = batches - 1;
        let retries = self.retries.len() as u64;
        let queued_ns = expected_ns.saturating_mul(before + retries) / lanes;
        let wait_ns = if before + retries == 0 {
            first
        } else {
            first.max(mean.saturating_add(queued_ns))
        };
        Estimate {
            wait_ns,
            batch_ns: self.costs.predicted_ns(batch_items, batch_work),
        }
    }

    /// When half of what waits is expected to have gone, and one batch at least.
    fn busy(&self, now: Time) -> Turned {
        let items = self.queue.len().clamp(1, self.policy.items_max);
        let mean_work = self.queue.work() / (self.queue.len().max(1) as u64);
        let work = mean_work
            .saturating_mul(items as u64)
            .min(self.policy.work_max);
        let batch_ns = self.costs.expected_ns(items, work);
        let lanes = self.lanes.len() as u64;
        let after_ns = if lanes == 0 || batch_ns == 0 {
            u64::try_from(RETRY_AFTER_UNKNOWN.as_nanos()).unwrap_or(u64::MAX)
        } else {
            let batches = (self.queue.len() / items / 2).max(1) as u64;
            let (first, _) = self.lanes.free_in_ns(now);
            first.saturating_add(batch_ns.saturating_mul(batches) / lanes)
        };
        let us = (after_ns / 1_000).clamp(*RETRY_AFTER_US.start(), *RETRY_AFTER_US.end());
        Turned::Busy {
            retry_after_us: u32::try_from(us).unwrap_or(u32::MAX),
        }
    }
}
