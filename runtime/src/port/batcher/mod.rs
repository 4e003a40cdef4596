//! Which task waits, which rides in the next batch, and which is refused at the door.
//!
//! One [`Batcher`] for each skill whose agents run tasks in batches. It holds everything that waits,
//! so that deadlines, fairness and refusal are decided here and an agent has at most one batch
//! running and one staged.
//!
//! ```text
//!  offer ─▶ admission ─▶ queue ─▶ forming ─▶ lane ─▶ ended ─▶ cost table
//!             │ Turned     │ late               └─▶ retry, in halves ─▶ poison
//! ```
//!
//! The driving contract: [`Batcher::add_lane`] for each agent that is ready. After any `offer`,
//! `ended`, `failed`, `retry`, `drain`, `add_lane`, `remove_lane`, and when the time of the last
//! [`Next::Wait`] has come, call [`Batcher::next`] for each lane with a free place, those with
//! nothing to do first, and on [`Next::Close`] call [`Batcher::take`].
//!
//! Invariants, each a property test:
//! - No batch is over its items, work units or bytes.
//! - Every task that was let in comes back exactly once: in a batch, in `late`, or from `abandon`.
//!   One in a batch belongs to the caller, who may give it back by `retry`.
//! - No batch starts whose predicted end passes the deadline of a member, but a probe.
//! - Requesters that wait share the work units equally, whatever each has waiting.
//! - Whatever is refused, a task that asks an idle lane is let in as a probe at times, so no belief
//!   about costs lasts for ever.
//! - Once as many tasks and requesters have waited as ever will, nothing is allocated.
//!
//! Absent: a clock, a thread, a socket, the payloads, and the answers.

mod admission;
mod costs;
mod forming;
mod lanes;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;

use admission::{Probes, Slip};
use costs::CostTable;
use lanes::Lanes;
use queue::Queue;

/// Bytes of a region before its tables, and what aligning the results may take.
pub(crate) const BATCH_BYTES: usize = 128;
/// Bytes that each task takes in a region beside payload and result: its entries in both tables.
pub(crate) const TASK_BYTES: usize = 48;
/// Most work units of one task.
pub(crate) const TASK_WORK_MAX: u64 = u32::MAX as u64;

/// What a skill's agents allow in one batch: from their HELLO and the node's flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchPolicy {
    /// Most tasks, at least 1.
    pub(crate) items_max: usize,
    /// Most work units; `u64::MAX` for no bound. A task beyond it is too big.
    pub(crate) work_max: u64,
    /// How long the oldest task may wait for others. A lane that is busy makes it wait longer.
    pub(crate) wait: Duration,
    /// Bytes of a region: tables, payloads, each at a multiple of 8, and room for every result.
    pub(crate) bytes_max: usize,
    /// Room for each result, in bytes.
    pub(crate) result_len_max: usize,
    /// Most tasks that wait, of all requesters, at least 1.
    pub(crate) waiting_max: usize,
    /// From the end of a batch until its answers are on their way; the predicted end is this much
    /// before the earliest deadline.
    pub(crate) margin: Duration,
}

impl BatchPolicy {
    /// Bytes of a region with so many tasks, whose payloads and entries take `footprint`.
    fn region_bytes(&self, items: usize, footprint: usize) -> usize {
        let results = items.saturating_mul(self.result_len_max);
        BATCH_BYTES
            .saturating_add(footprint)
            .saturating_add(results)
    }
}

/// What the batcher knows of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Who asked.
    pub(crate) peer: NodeId,
    /// When it arrived at this node.
    pub(crate) arrived: Time,
    /// When its answer must leave; [`Time::NEVER`] for none.
    pub(crate) deadline: Time,
    /// Its work units; 0 counts as 1.
    pub(crate) work: u64,
    /// Length of its payload in bytes.
    pub(crate) payload_len: usize,
}

impl Wanted {
    /// Bytes it takes in a region beside its result.
    fn footprint(&self) -> usize {
        TASK_BYTES.saturating_add(self.payload_len.saturating_add(7) & !7)
    }
}

/// Why a task was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// By what is known of costs and of the queue before it, it would miss its deadline.
    Late,
    /// It finds no place; one is expected after this many microseconds.
    Busy {
        /// At least 100.
        retry_after_us: u32,
    },
    /// It does not fit into any batch.
    TooBig,
}

/// Why a batch closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClosedBy {
    /// It holds as many tasks as it may.
    Items,
    /// The next task would have been too many work units.
    Work,
    /// The next task would not have found room in the region.
    Bytes,
    /// Its oldest task has waited long enough.
    Wait,
    /// Waiting longer, or one task more, would have made a member miss its deadline.
    Deadline,
    /// Its tasks were in a batch whose agent died.
    Retry,
    /// The skill ends, and nothing more will come.
    Drain,
}

/// What a lane with a free place should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Take a batch now.
    Close,
    /// Ask again at this time, or when something happened.
    Wait(Time),
    /// Nothing waits.
    Empty,
}

/// One agent: it runs its batches one after the other, in the order they were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(u32);

/// One batch on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    lane: Lane,
    number: u64,
}

/// A batch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Names it towards `ended` and `failed`.
    pub(crate) ticket: Ticket,
    /// Why it closed.
    pub(crate) by: ClosedBy,
    /// Sum of its work units.
    pub(crate) work: u64,
    /// Bytes it takes in a region, results included.
    pub(crate) bytes: usize,
    /// Earliest deadline of its members; never, if none has one.
    pub(crate) earliest_deadline: Time,
    /// When its oldest member arrived.
    pub(crate) oldest_arrival: Time,
}

/// Tasks of a batch that died, to be run alone.
type Half<T> = Vec<(Wanted, T)>;

/// The tasks of one skill; see the module's contract.
#[derive(Debug)]
pub(crate) struct Batcher<T> {
    policy: BatchPolicy,
    queue: Queue<T>,
    retries: VecDeque<Half<T>>,
    costs: CostTable,
    lanes: Lanes,
    slip: Slip,
    probes: Probes,
    draining: bool,
}

impl<T> Batcher<T> {
    /// A batcher without lanes, which lets nothing in.
    pub(crate) fn new(policy: BatchPolicy) -> Self {
        let policy = BatchPolicy {
            items_max: policy.items_max.max(1),
            work_max: policy.work_max.max(1),
            waiting_max: policy.waiting_max.max(1),
            ..policy
        };
        Batcher {
            queue: Queue::new(policy.waiting_max),
            retries: VecDeque::new(),
            costs: CostTable::new(),
            lanes: Lanes::default(),
            slip: Slip::new(),
            probes: Probes::new(),
            draining: false,
            policy,
        }
    }

    /// An agent is ready for batches.
    pub(crate) fn add_lane(&mut self) -> Lane {
        self.lanes.add()
    }

    /// An agent has gone; its batches are the caller's, who may give them to [`Batcher::retry`].
    pub(crate) fn remove_lane(&mut self, lane: Lane) {
        self.lanes.remove(lane);
    }

    /// A batch is done: teaches what such a batch costs.
    pub(crate) fn ended(&mut self, now: Time, ticket: Ticket) {
        let Some(ended) = self.lanes.end(now, ticket) else {
            return;
        };
        let flight = ended.flight;
        self.costs.learn(flight.items, flight.work, ended.ran_ns);
        self.probes.ended(now, flight.probe);
    }

    /// A batch ended without having run as it should: it teaches nothing.
    pub(crate) fn failed(&mut self, now: Time, ticket: Ticket) {
        if let Some(ended) = self.lanes.end(now, ticket) {
            self.probes.ended(now, ended.flight.probe);
        }
    }

    /// The tasks of a batch whose agent died: each half of them will run once more, alone in its
    /// batch. A task that was alone when its agent died comes back in `poison`. Leaves `batch`
    /// empty.
    pub(crate) fn retry(&mut self, batch: &mut Vec<(Wanted, T)>, poison: &mut Vec<T>) {
        if batch.len() <= 1 {
            poison.extend(batch.drain(..).map(|(_, task)| task));
            return;
        }
        let second = batch.split_off(batch.len() / 2);
        self.retries.push_back(std::mem::take(batch));
        self.retries.push_back(second);
    }

    /// A batch that its agent never began: it runs as it is, before what was to be run once more.
    pub(crate) fn put_back(&mut self, batch: Vec<(Wanted, T)>) {
        if !batch.is_empty() {
            self.retries.push_front(batch);
        }
    }

    /// Takes out what waits and has passed its deadline. `take` does so too; this is for when no
    /// lane takes anything for long.
    pub(crate) fn expire(&mut self, now: Time, late: &mut Vec<T>) {
        self.queue.expire(now, |waiting| late.push(waiting.task));
        for half in &mut self.retries {
            let expired = half.extract_if(.., |(wanted, _)| wanted.deadline <= now);
            late.extend(expired.map(|(_, task)| task));
        }
        self.retries.retain(|half| !half.is_empty());
    }

    /// How long such a batch takes, in nanoseconds, conservatively; 0 while nothing is known. Never
    /// less for more tasks or more work.
    pub(crate) fn predicted_ns(&self, items: usize, work: u64) -> u64 {
        self.costs.predicted_ns(items, work)
    }

    /// Tasks that wait, those to be run once more included.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len() + self.retries.iter().map(Vec::len).sum::<usize>()
    }

    /// Lets nothing more in, and closes what is there without waiting.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Gives back what waits and has been in no batch: nobody is there to run it.
    pub(crate) fn dismiss(&mut self, unrun: &mut Vec<T>) {
        self.queue.clear(|waiting| unrun.push(waiting.task));
    }

    /// Gives back everything that waits.
    pub(crate) fn abandon(&mut self, all: &mut Vec<T>) {
        self.queue.clear(|waiting| all.push(waiting.task));
        for half in self.retries.drain(..) {
            all.extend(half.into_iter().map(|(_, task)| task));
        }
    }
}
