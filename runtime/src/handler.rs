//! What runs a task.
//!
//! A handler turns a payload into a result. It reads the payload where the kernel put it and writes
//! the result where the kernel will send it from; it sees no socket, no peer and no clock. Deadlines,
//! fairness, duplicates and refusals are the runtime's.

use std::sync::Arc;

use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::market::AcceptFrom;

use crate::worker::boxes::TaskBox;

/// Where a skill runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On the worker thread, to completion: for work of up to some tens of microseconds.
    Inline,
    /// On the pool's cores: the worker goes on and is told when it is done.
    Pool,
    /// In processes of their own, in batches, through the agent port ([`crate::port`]).
    Agents,
}

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result is this many bytes at the head of the space it was lent.
    Done(usize),
    /// The handler could not do it; the bytes at the head of the space say why, as UTF-8.
    Failed(usize),
}

/// Runs the tasks of one skill. A panic fails the one task.
pub trait Handler: Send + Sync {
    /// Where it runs.
    fn placement(&self) -> Placement {
        Placement::Inline
    }

    /// Longest result for a payload of `payload_len` bytes: the space that [`Self::run`] is lent.
    /// A task for which this exceeds what can be sent is refused as `too_big` before it runs.
    fn result_len_max(&self, payload_len: usize) -> usize;

    /// Runs one task. `result` has exactly [`Self::result_len_max`] bytes.
    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome;

    /// As [`Self::run`], telling the requester how it goes on. `progress` takes a piece of up to
    /// [`FRAME_PAYLOAD_MAX`](ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX) bytes and says whether it
    /// was taken: not when too many wait already, so a handler may join pieces and try again later.
    /// Called for skills placed on the pool alone: an inline task is over before anybody could read
    /// of it.
    fn run_reporting(
        &self,
        payload: &[u8],
        result: &mut [u8],
        progress: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Outcome {
        let _ = progress;
        self.run(payload, result)
    }

    /// Takes a task of a skill placed with agents; the box comes back through its inbox. The worker
    /// calls [`Self::wake_agents`] when it has handed over what it has.
    ///
    /// # Errors
    /// The box, why the task is refused, and when the requester may come again, in microseconds.
    fn hand_over(&self, task: Box<TaskBox>) -> Result<(), (Box<TaskBox>, RefusalCode, u32)> {
        Err((task, RefusalCode::NoSkill, 0))
    }

    /// Wakes whoever was handed tasks.
    fn wake_agents(&self) {}
}

/// One skill of a node.
#[derive(Clone)]
pub struct Skill {
    /// Its name: `[a-z0-9._-]`, 1 to 64 bytes.
    pub name: String,
    /// Whom it serves beyond the gate.
    pub accept_from: AcceptFrom,
    /// What runs it.
    pub handler: Arc<dyn Handler>,
}

impl std::fmt::Debug for Skill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Skill({}, {})", self.name, self.accept_from)
    }
}
