//! The worker's end of a channel.
//!
//! | slot state | TASK of its generation | TASK of the next | TASK of an older | anything else |
//! |---|---|---|---|---|
//! | free | - | run | stale | out of order |
//! | running | WORKING | out of order | stale | out of order |
//! | answered | the answer again | run, frees the answer | stale | out of order |
//!
//! Who drives it: for each TASK call [`Serving::admit`]; if it returns an [`Admitted`], run the task
//! and hand the token to [`Serving::answer`], at once or later. The token cannot be copied, so a
//! task is answered once.

use crate::engagement::{FrameSink, Totals};
use crate::fault::DropReason;
use crate::frame::duration16;
use crate::frame::kind::{Kind, PRIOR_ACCEPTED, PRIOR_REJECTED, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;

/// How soon a requester should come back after `busy` or `receipt_due`, in microseconds.
pub const RETRY_AFTER_US: u32 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Running,
    Answered,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: SlotState,
    /// Whether the verdict on the kept answer is already counted.
    judged: bool,
    kind: Kind,
    flags: u8,
    auxiliary: u32,
    answer: Vec<u8>,
}

impl Slot {
    const EMPTY: Slot = Slot {
        generation: 0,
        state: SlotState::Free,
        judged: true,
        kind: Kind::Result,
        flags: 0,
        auxiliary: 0,
        answer: Vec::new(),
    };
}

/// Proof that a task may run, and must be answered: made by [`Serving::admit`] alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted {
    task: TaskId,
    arrived: Time,
    deadline: Time,
    counted: bool,
}

impl Admitted {
    /// Which task.
    pub fn task(&self) -> TaskId {
        self.task
    }

    /// When it arrived.
    pub fn arrived(&self) -> Time {
        self.arrived
    }

    /// When it must have started: [`Time::NEVER`] if the requester does not mind.
    pub fn deadline(&self) -> Time {
        self.deadline
    }
}

/// What a task came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// A result.
    Done,
    /// The handler failed.
    Failed,
}

/// What a channel may still do, decided by control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingLimits {
    /// Slots.
    pub credits: u32,
    /// Tasks in all.
    pub tasks: u64,
    /// When it ends.
    pub expires_at: Time,
    /// Answers that may be out without a signed receipt that covers them.
    pub unsigned_max: u64,
}

/// The slots of one channel at its worker.
#[derive(Debug)]
pub struct Serving {
    channel: ChannelId,
    limits: ServingLimits,
    slots: Box<[Slot]>,
    running: u32,
    covered: u64,
    draining: bool,
    totals: Totals,
}

impl Serving {
    /// A channel with every slot free. Allocates its slots here; later only the first answer of a
    /// slot that is longer than all before it in that slot does.
    pub fn new(channel: ChannelId, limits: ServingLimits) -> Self {
        let slots = (0..limits.credits).map(|_| Slot::EMPTY).collect();
        Serving {
            channel,
            limits,
            slots,
            running: 0,
            covered: 0,
            draining: false,
            totals: Totals::default(),
        }
    }

    /// What it has come to.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Slots granted.
    pub fn credits(&self) -> u32 {
        self.limits.credits
    }

    /// Tasks that run or wait now.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Takes no new task from now on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// New limits after a renewal.
    pub fn extend(&mut self, tasks: u64, expires_at: Time) {
        self.limits.tasks = tasks;
        self.limits.expires_at = expires_at;
    }

    /// A receipt covers this many answers in all.
    pub fn cover(&mut self, answers: u64) {
        self.covered = self.covered.max(answers);
    }

    fn answers(&self) -> u64 {
        self.totals.done + self.totals.failed + self.totals.expired
    }

    /// Room 5: decides on one TASK. Repeats and refusals are answered into `sink`; only a task that
    /// must run comes back.
    ///
    /// # Errors
    /// The reason for which the frame was dropped. `Duplicate` means that it was answered again.
    pub fn admit(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Admitted>, DropReason> {
        let task = frame.task;
        let slot = self
            .slots
            .get_mut(usize::from(task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if task.generation == slot.generation {
            return self.repeat(task, sink);
        }
        if task.generation != next_generation(slot.generation) {
            let older = slot.generation.wrapping_sub(task.generation) < u32::MAX / 2;
            return Err(if older { DropReason::Stale } else { DropReason::OutOfOrder });
        }
        if slot.state == SlotState::Running {
            return Err(DropReason::OutOfOrder);
        }
        self.judge(task.slot, frame.flags);
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.generation = task.generation;
        slot.state = SlotState::Running;
        self.running += 1;
        let deadline = match frame.auxiliary {
            0 => Time::NEVER,
            micros => now + core::time::Duration::from_micros(u64::from(micros)),
        };
        let admitted = Admitted { task, arrived: now, deadline, counted: false };
        if let Some((code, retry_after_us)) = self.refusal(now) {
            self.refuse(admitted, code, retry_after_us, sink);
            return Ok(None);
        }
        self.totals.tasks += 1;
        Ok(Some(Admitted { counted: true, ..admitted }))
    }

    fn refusal(&self, now: Time) -> Option<(RefusalCode, u32)> {
        if self.draining {
            Some((RefusalCode::Draining, 0))
        } else if self.totals.tasks >= self.limits.tasks || now >= self.limits.expires_at {
            Some((RefusalCode::GrantEnded, 0))
        } else if self.answers() >= self.covered.saturating_add(self.limits.unsigned_max) {
            Some((RefusalCode::ReceiptDue, RETRY_AFTER_US))
        } else {
            None
        }
    }

    /// Answers a repeated TASK.
    fn repeat(
        &mut self,
        task: TaskId,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Admitted>, DropReason> {
        let slot = &self.slots[usize::from(task.slot)];
        match slot.state {
            SlotState::Free => return Err(DropReason::Stale),
            SlotState::Running => {
                sink.send(Head::task(Kind::Working, self.channel, task, 0), &[]);
            }
            SlotState::Answered => {
                let head = Head {
                    flags: slot.flags,
                    ..Head::task(slot.kind, self.channel, task, slot.auxiliary)
                };
                sink.send(head, &slot.answer);
                self.totals.repeated += 1;
            }
        }
        Err(DropReason::Duplicate)
    }

    /// Counts the verdict on the answer that a slot keeps.
    fn judge(&mut self, slot: u16, flags: u8) {
        let slot = &mut self.slots[usize::from(slot)];
        if slot.judged {
            return;
        }
        slot.judged = true;
        if flags & PRIOR_REJECTED != 0 {
            self.totals.rejected += 1;
        } else if flags & PRIOR_ACCEPTED != 0 {
            self.totals.accepted += 1;
        }
    }

    /// Takes a VERDICT: the requester holds the answer, so it need not be kept.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn verdict(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let slot = self
            .slots
            .get_mut(usize::from(frame.task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if slot.generation != frame.task.generation {
            return Err(DropReason::Stale);
        }
        if slot.state != SlotState::Answered {
            return Err(DropReason::OutOfOrder);
        }
        slot.state = SlotState::Free;
        slot.answer.clear();
        let flags = if frame.auxiliary == 0 { PRIOR_ACCEPTED } else { PRIOR_REJECTED };
        self.judge(frame.task.slot, flags);
        Ok(())
    }

    /// Whether the task of this frame is admitted and unanswered: what CANCEL asks.
    pub fn is_running(&self, task: TaskId) -> bool {
        self.slots.get(usize::from(task.slot)).is_some_and(|slot| {
            slot.generation == task.generation && slot.state == SlotState::Running
        })
    }

    /// Rooms 7 and 8: the answer to an admitted task. Keeps a copy until the requester shows that it
    /// has it, and returns the head of the frame that carries it: the caller has written `answer`
    /// where it will be sent from, and commits it.
    pub fn answer(
        &mut self,
        admitted: Admitted,
        answered: Answered,
        busy_ns: u64,
        started: Time,
        answer: &[u8],
    ) -> Head {
        let staged_ns = started.nanos_since(admitted.arrived);
        let auxiliary = duration16::pack(busy_ns, staged_ns);
        let kind = match answered {
            Answered::Done => {
                // As the requester will decode and sum them, so that the accounts can be compared.
                let (busy_ns, staged_ns) = duration16::unpack(auxiliary);
                self.totals.done += 1;
                self.totals.busy_ns += busy_ns;
                self.totals.staged_ns += staged_ns;
                Kind::Result
            }
            Answered::Failed => {
                self.totals.failed += 1;
                Kind::Failed
            }
        };
        self.keep(admitted.task, kind, 0, auxiliary, answer)
    }

    fn keep(
        &mut self,
        task: TaskId,
        kind: Kind,
        flags: u8,
        auxiliary: u32,
        answer: &[u8],
    ) -> Head {
        let slot = &mut self.slots[usize::from(task.slot)];
        assert_eq!(slot.generation, task.generation, "an answer to another generation");
        assert_eq!(slot.state, SlotState::Running, "a second answer");
        slot.state = SlotState::Answered;
        slot.judged = kind != Kind::Result;
        slot.kind = kind;
        slot.flags = flags;
        slot.auxiliary = auxiliary;
        slot.answer.clear();
        slot.answer.extend_from_slice(answer);
        self.running -= 1;
        Head { flags, ..Head::task(kind, self.channel, task, auxiliary) }
    }

    /// Answers an admitted task with a refusal.
    pub fn refuse(
        &mut self,
        admitted: Admitted,
        code: RefusalCode,
        retry_after_us: u32,
        sink: &mut impl FrameSink,
    ) {
        if code == RefusalCode::Late {
            self.totals.expired += 1;
        } else {
            self.totals.refused += 1;
            // Only what ran, or expired waiting to run, uses up the grant.
            self.totals.tasks -= u64::from(admitted.counted);
        }
        let head = self.keep(admitted.task, Kind::Refused, code as u8, retry_after_us, &[]);
        sink.send(head, &[]);
    }
}

/// The generation after `generation`: 0 is never used again.
pub(crate) fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}
