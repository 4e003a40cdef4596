//! What a requester sends, and what it does with the answers.
//!
//! A [`Job`] is moved to the worker thread that owns the tunnel to its peer and is called there, so
//! that tasks go from their source into a datagram with no queue between. Its methods must not
//! block: a job that feeds from elsewhere says [`Next::Waiting`] and rings the waker that it was given
//! when it has something, or says [`Next::Later`] and is asked again before long.

use core::task::Waker;

use bytes::Bytes;

use crate::time::Time;

/// The next task of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A task whose payload is the first `len` bytes of the space that was lent.
    Task {
        /// Payload length.
        len: usize,
        /// Handed back with the answer.
        token: u64,
    },
    /// A task whose payload did not fit the space.
    Large {
        /// The payload, up to [`crate::wire::limits::TASK_LEN_MAX`].
        payload: Bytes,
        /// Handed back with the answer.
        token: u64,
    },
    /// Nothing now; ask again before long. A requester that would sleep wakes every half millisecond
    /// for it, so a job that can tell better says [`Next::Waiting`].
    Later,
    /// Nothing before this moment, unless the waker of [`Job::attach`] is rung; [`Time::NEVER`] for
    /// nothing before it is.
    Waiting {
        /// On the clock of `now`.
        until: Time,
    },
    /// Nothing any more: the engagement closes once every answer is in.
    End,
}

/// Why a worker did not run a task, or could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// Too much to do; worth another try after this many microseconds.
    Busy {
        /// The worker's guess, in microseconds.
        retry_after_us: u32,
    },
    /// The deadline passed before it could run.
    Late,
    /// The payload, or the result it could have, is longer than the worker takes.
    TooBig,
    /// The worker has no such skill (any more).
    NoSkill,
    /// The grant has ended: its tasks, its time, or the registry's word.
    GrantEnded,
    /// Too much work without a signed receipt.
    ReceiptDue,
    /// The worker is shutting down.
    Draining,
    /// The requester cancelled it.
    Cancelled,
    /// The tunnel or the worker was lost before an answer came.
    Lost,
}

impl Refused {
    /// The label used in `--json` and in counters.
    pub const fn label(self) -> &'static str {
        match self {
            Refused::Busy { .. } => "busy",
            Refused::Late => "late",
            Refused::TooBig => "too_big",
            Refused::NoSkill => "no_skill",
            Refused::GrantEnded => "grant_ended",
            Refused::ReceiptDue => "receipt_due",
            Refused::Draining => "draining",
            Refused::Cancelled => "cancelled",
            Refused::Lost => "lost",
        }
    }
}

/// What came back for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The result.
    Done(&'a [u8]),
    /// The handler failed; the bytes say why, as UTF-8.
    Failed(&'a [u8]),
    /// It was not run. `Busy` and `ReceiptDue` are not seen here: they are retried.
    Refused(Refused),
}

/// How an answer came about, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From the first send of the task to the arrival of its answer.
    pub round_trip_ns: u64,
    /// Of that, the handler's time.
    pub busy_ns: u64,
    /// Of that, from the task's arrival at the worker to the start of its handler.
    pub staged_ns: u64,
}

/// The requester's judgement of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It counts, and earns.
    Accept,
    /// It does not.
    Reject,
}

/// The source of tasks and the sink of answers of one engagement.
pub trait Job: Send {
    /// Asks for the next task. Called only while a slot is free; writes the payload into `space`.
    fn next(&mut self, space: &mut [u8], now: Time) -> Next;

    /// Gives it what wakes its worker, once, before it is first asked for a task.
    fn attach(&mut self, waker: Waker) {
        let _ = waker;
    }

    /// How long the task that was just handed out may take from its arrival at the worker until it
    /// runs, in microseconds; 0 for as long as it likes. Before the first: what most of them may take.
    fn deadline_us(&self) -> u32 {
        0
    }

    /// Takes one answer. Called exactly once for every token that was handed out.
    /// The verdict matters for [`Answer::Done`] alone.
    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict;

    /// Takes one piece of progress: pieces of a task come in order, before its answer.
    fn progress(&mut self, token: u64, piece: &[u8]) {
        let _ = (token, piece);
    }
}
