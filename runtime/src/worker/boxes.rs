//! Job boxes: tasks that run off the worker's core.
//!
//! A worker hands a task over in a box: the payload is copied into it once, so that the receive
//! buffer goes back to the kernel; whoever runs it writes the result and what became of it into the
//! same box and returns it through the worker's inbox. There are two stocks, for the pool and for
//! agents, each with a limit, so that neither takes the other's; no box free means that the task is
//! refused as busy.
//!
//! Invariants: a box belongs to one worker for its life; a stock never makes more than its limit; a
//! box at rest holds at most [`KEPT_LEN_MAX`] bytes of memory for each of payload and result. After
//! the first use of each box nothing is allocated for short tasks.

use std::sync::Arc;

use ramjet_proto::engagement::serving::Admitted;
use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;

use super::mailbox::Inbox;
use crate::handler::{Handler, Outcome};

/// Boxes of one worker for the pool: tasks that wait or run there for it.
pub const POOL_BOXES: usize = 256;
/// Bytes that a box at rest keeps for the next payload, and for the next result.
pub const KEPT_LEN_MAX: usize = 16 << 10;

/// What became of a task that left the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It ran.
    Ran(Outcome),
    /// It did not: why, and when the requester may come again, in microseconds.
    Refused(RefusalCode, u32),
}

/// Which stock a box belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// Tasks for the pool.
    Pool,
    /// Tasks for agents.
    Agents,
}

/// A task on its way through the pool or an agent.
pub struct TaskBox {
    /// The channel it belongs to: place and generation.
    pub channel: (u32, u32),
    /// Who wants it done.
    pub peer: NodeId,
    /// Proof that it is owed an answer.
    pub admitted: Option<Admitted>,
    /// What to run, in the pool.
    pub handler: Option<Arc<dyn Handler>>,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its result, or the reason of a failure.
    pub result: Vec<u8>,
    /// Longest result.
    pub result_len_max: usize,
    /// What became of it.
    pub ended: Ended,
    /// When it started; [`Time::ZERO`] until then.
    pub started: Time,
    /// Handler time, in nanoseconds.
    pub busy_ns: u64,
    /// Who wants it back.
    pub inbox: Arc<Inbox>,
    /// Where it comes from.
    stock: Stock,
}

impl std::fmt::Debug for TaskBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskBox({} bytes)", self.payload.len())
    }
}

impl TaskBox {
    /// An empty box for one worker.
    pub fn new(stock: Stock, inbox: Arc<Inbox>) -> Self {
        TaskBox {
            channel: (0, 0),
            peer: NodeId(0),
            admitted: None,
            handler: None,
            payload: Vec::new(),
            result: Vec::new(),
            result_len_max: 0,
            ended: Ended::Refused(RefusalCode::Late, 0),
            started: Time::ZERO,
            busy_ns: 0,
            inbox,
            stock,
        }
    }

    /// When the task must have started: [`Time::NEVER`] if the requester does not mind.
    pub fn deadline(&self) -> Time {
        let admitted = self.admitted.as_ref();
        admitted.map_or(Time::NEVER, Admitted::deadline)
    }

    /// When the task arrived.
    pub fn arrived(&self) -> Time {
        self.admitted.as_ref().map_or(Time::ZERO, Admitted::arrived)
    }

    /// The task failed: `reason` becomes its answer.
    pub fn fail(&mut self, reason: &str) {
        let len = reason.len().min(self.result_len_max.max(FAILURE_LEN_MAX));
        self.result.clear();
        self.result.extend_from_slice(&reason.as_bytes()[..len]);
        self.ended = Ended::Ran(Outcome::Failed(len));
    }

    /// Gives the box back to its worker, which is woken by the caller.
    pub fn home(self: Box<Self>) {
        let inbox = Arc::clone(&self.inbox);
        // The queue holds every box of its worker, so there is always room.
        let returned = inbox.finished.push(self).is_ok();
        debug_assert!(returned, "more boxes than the worker has");
    }
}

/// Bytes of a reason that are told, however short the results of the skill are.
const FAILURE_LEN_MAX: usize = 1_024;

/// The free boxes of one worker.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "the boxes travel as they are")]
pub struct Boxes {
    free: [Vec<Box<TaskBox>>; 2],
    made: [usize; 2],
    limits: [usize; 2],
    inbox: Arc<Inbox>,
}

impl Boxes {
    /// Two empty stocks, which make boxes as they are needed, up to their limits.
    pub fn new(pool: usize, agents: usize, inbox: Arc<Inbox>) -> Self {
        Boxes {
            free: [Vec::with_capacity(pool), Vec::with_capacity(agents)],
            made: [0; 2],
            limits: [pool, agents],
            inbox,
        }
    }

    /// A free box; none if all of the stock are away.
    pub fn take(&mut self, stock: Stock) -> Option<Box<TaskBox>> {
        let index = stock as usize;
        if let Some(found) = self.free[index].pop() {
            return Some(found);
        }
        if self.made[index] >= self.limits[index] {
            return None;
        }
        self.made[index] += 1;
        Some(Box::new(TaskBox::new(stock, Arc::clone(&self.inbox))))
    }

    /// A box comes home.
    pub fn put(&mut self, mut home: Box<TaskBox>) {
        home.admitted = None;
        home.handler = None;
        home.started = Time::ZERO;
        for memory in [&mut home.payload, &mut home.result] {
            if memory.capacity() > KEPT_LEN_MAX {
                *memory = Vec::new();
            }
        }
        self.free[home.stock as usize].push(home);
    }

    /// Boxes that are away.
    pub fn away(&self) -> usize {
        let made: usize = self.made.iter().sum();
        made - self.free.iter().map(Vec::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stock_makes_no_more_than_its_limit_and_keeps_to_itself() {
        let inbox = Arc::new(Inbox::new(3).expect("an eventfd"));
        let mut boxes = Boxes::new(1, 2, inbox);
        let pooled = boxes.take(Stock::Pool).expect("the one");
        assert!(boxes.take(Stock::Pool).is_none());
        let mut long = boxes.take(Stock::Agents).expect("the first of two");
        let other = boxes.take(Stock::Agents).expect("the second");
        assert!(boxes.take(Stock::Agents).is_none());
        assert_eq!(boxes.away(), 3);
        long.payload = vec![0; KEPT_LEN_MAX + 1];
        boxes.put(long);
        assert!(boxes.take(Stock::Pool).is_none(), "it was the agents'");
        let again = boxes.take(Stock::Agents).expect("come home");
        assert_eq!(again.payload.capacity(), 0, "a long payload's memory goes");
        for home in [pooled, other, again] {
            boxes.put(home);
        }
        assert_eq!(boxes.away(), 0);
    }

    #[test]
    fn a_failure_says_why_even_where_results_are_short() {
        let inbox = Arc::new(Inbox::new(1).expect("an eventfd"));
        let mut failed = Box::new(TaskBox::new(Stock::Agents, Arc::clone(&inbox)));
        failed.result_len_max = 4;
        failed.fail("the agent died while it ran this task");
        failed.home();
        let failed = inbox.finished.pop().expect("at home");
        assert_eq!(failed.ended, Ended::Ran(Outcome::Failed(37)));
        assert_eq!(failed.result, b"the agent died while it ran this task");
    }
}
