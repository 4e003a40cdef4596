//! The worker's end of a channel.
//!
//! | slot state | TASK of its generation | TASK of the next | TASK of an older | anything else |
//! |---|---|---|---|---|
//! | free | stale | run | stale | out of order |
//! | receiving parts | out of order; of a part, PART_ACK | out of order | stale | out of order |
//! | running | WORKING | out of order | stale | out of order |
//! | answered | the answer again | run, frees the answer | stale | out of order |
//!
//! Who drives it: for each TASK call [`Serving::admit`], for each TASK_PART
//! [`Serving::admit_part`]; if an [`Admitted`] comes back, run the task and hand the token to
//! [`Serving::answer`] or, if the result may be long, [`Serving::answer_long`], at once or later. The
//! token cannot be copied, so a task is answered once. While [`Serving::has_parts`] says so, call
//! [`Serving::pump_parts`] once a turn, and [`Serving::release`] when the channel ends. Long payloads
//! and results are in [`long`].

mod long;

use std::collections::VecDeque;

use crate::engagement::congestion::Counted;
use crate::engagement::parts::{PartsIn, PartsOut};
use crate::engagement::{FrameSink, Totals};
use crate::fault::DropReason;
use crate::frame::duration16;
use crate::frame::kind::{Kind, PRIOR_ACCEPTED, PRIOR_REJECTED, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;
use crate::wire::limits::FRAME_PAYLOAD_MAX;

/// How soon a requester should come back after `busy` or `receipt_due`, in microseconds.
pub const RETRY_AFTER_US: u32 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Receiving,
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
    /// A long task on its way in. Boxed, as the next: rare, and every slot holds their place.
    parts_in: Option<Box<PartsIn>>,
    /// A long result on its way out: `answer` in parts.
    parts_out: Option<Box<PartsOut>>,
    /// Whether it is on the list of those with parts to send.
    queued: bool,
    /// Whether the requester has asked for it again.
    asked: bool,
    /// Progress of the task, kept until its slot is used again.
    pieces: Vec<Box<[u8]>>,
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
        parts_in: None,
        parts_out: None,
        queued: false,
        asked: false,
        pieces: Vec::new(),
    };

    /// Drops what was kept for the last task. A short answer keeps its memory for the next; a long one
    /// comes back, with what a path counts of it.
    #[inline]
    fn forget(&mut self) -> Option<(Vec<u8>, Counted)> {
        self.pieces.clear();
        if let Some(parts) = self.parts_out.take() {
            return Some((std::mem::take(&mut self.answer), parts.into_counted()));
        }
        self.answer.clear();
        None
    }
}

// Thousands of engagements rest at a time, each with all its slots: one more line of the cache for
// each of them is a line more to fetch for every task of a worker that serves them in turn.
const _: () = assert!(size_of::<Slot>() <= 80);

/// Bytes that the long tasks of one channel may hold while they arrive.
pub const RECEIVING_BYTES_MAX: usize = 64 << 20;
/// Bytes of long answers that a channel keeps before it takes no more tasks: one answer more than
/// this at the most.
pub const KEPT_BYTES_MAX: usize = 64 << 20;
/// Pieces of progress of one task.
pub const PIECES_MAX: usize = 255;

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
    /// Bytes reserved for long tasks that arrive.
    receiving: usize,
    /// Slots whose long answers have parts to send, each once.
    sending: VecDeque<u16>,
    /// Slots whose long tasks have parts that are not acknowledged, each once.
    acking: Vec<TaskId>,
    /// What the path counts of answers that are kept no more, until it is next at hand.
    stray: Vec<Counted>,
    /// Bytes of the long answers that are kept.
    kept: usize,
    /// Memory of the last long answer that is kept no more, for the next.
    spare: Vec<u8>,
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
            receiving: 0,
            sending: VecDeque::new(),
            acking: Vec::new(),
            stray: Vec::new(),
            kept: 0,
            spare: Vec::new(),
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
    #[inline]
    pub fn admit(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Admitted>, DropReason> {
        if !self.is_next(frame.task)? {
            return Err(self.repeat(frame.task, sink));
        }
        self.enter(frame, SlotState::Running);
        let admitted = admission(now, frame.task, frame.auxiliary);
        Ok(self.run_or_refuse(now, admitted, sink))
    }

    /// Whether a task is the next of its slot; false if it is the one the slot has.
    #[inline]
    fn is_next(&self, task: TaskId) -> Result<bool, DropReason> {
        let slot = self
            .slots
            .get(usize::from(task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if task.generation == slot.generation {
            return Ok(false);
        }
        if task.generation != next_generation(slot.generation) {
            let older = slot.generation.wrapping_sub(task.generation) < u32::MAX / 2;
            return Err(if older {
                DropReason::Stale
            } else {
                DropReason::OutOfOrder
            });
        }
        match slot.state {
            SlotState::Running | SlotState::Receiving => Err(DropReason::OutOfOrder),
            SlotState::Free | SlotState::Answered => Ok(true),
        }
    }

    /// The next generation of a slot begins: the last one's answer has arrived, and is judged.
    #[inline]
    fn enter(&mut self, frame: &Frame<'_>, state: SlotState) {
        self.judge(frame.task.slot, frame.flags);
        self.forget(frame.task.slot);
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        slot.generation = frame.task.generation;
        slot.state = state;
        self.running += u32::from(state == SlotState::Running);
    }

    /// The answer that a slot keeps has arrived.
    #[inline]
    fn forget(&mut self, slot: u16) {
        let Some((answer, counted)) = self.slots[usize::from(slot)].forget() else {
            return;
        };
        self.kept -= answer.len();
        self.spare = answer;
        if counted.bytes() > 0 {
            self.stray.push(counted);
        }
    }

    #[inline]
    fn run_or_refuse(
        &mut self,
        now: Time,
        admitted: Admitted,
        sink: &mut impl FrameSink,
    ) -> Option<Admitted> {
        if let Some((code, retry_after_us)) = self.refusal(now) {
            self.refuse(admitted, code, retry_after_us, sink);
            return None;
        }
        self.totals.tasks += 1;
        Some(Admitted {
            counted: true,
            ..admitted
        })
    }

    #[inline]
    fn refusal(&self, now: Time) -> Option<(RefusalCode, u32)> {
        if self.draining {
            Some((RefusalCode::Draining, 0))
        } else if self.totals.tasks >= self.limits.tasks || now >= self.limits.expires_at {
            Some((RefusalCode::GrantEnded, 0))
        } else if self.answers() >= self.covered.saturating_add(self.limits.unsigned_max) {
            Some((RefusalCode::ReceiptDue, RETRY_AFTER_US))
        } else if self.kept > KEPT_BYTES_MAX {
            Some((RefusalCode::Busy, RETRY_AFTER_US))
        } else {
            None
        }
    }

    /// Answers a repeated TASK; the reason for which it is not run.
    fn repeat(&mut self, task: TaskId, sink: &mut impl FrameSink) -> DropReason {
        let slot = &mut self.slots[usize::from(task.slot)];
        match slot.state {
            SlotState::Free => return DropReason::Stale,
            SlotState::Receiving => return DropReason::OutOfOrder,
            SlotState::Answered if slot.parts_out.is_some() => {
                slot.asked = true;
                self.queue(task.slot);
            }
            SlotState::Running => {
                sink.send(Head::task(Kind::Working, self.channel, task, 0), &[]);
            }
            SlotState::Answered => {
                let head = Head::task(slot.kind, self.channel, task, slot.auxiliary)
                    .with_flags(slot.flags);
                sink.send(head, &slot.answer);
                self.totals.repeated += 1;
            }
        }
        DropReason::Duplicate
    }

    /// Counts the verdict on the answer that a slot keeps.
    #[inline]
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
        self.forget(frame.task.slot);
        let flags = if frame.auxiliary == 0 {
            PRIOR_ACCEPTED
        } else {
            PRIOR_REJECTED
        };
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
    #[inline]
    pub fn answer(
        &mut self,
        admitted: Admitted,
        answered: Answered,
        busy_ns: u64,
        started: Time,
        answer: &[u8],
    ) -> Head {
        let staged_ns = started.nanos_since(admitted.arrived);
        let (kind, auxiliary) = self.count(answered, busy_ns, staged_ns);
        self.keep(admitted.task, kind, 0, auxiliary, answer)
    }

    #[inline]
    fn count(&mut self, answered: Answered, busy_ns: u64, staged_ns: u64) -> (Kind, u32) {
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
        (kind, auxiliary)
    }

    /// A piece of progress of a task that runs; false if it has had [`PIECES_MAX`] or runs no more.
    pub fn progress(&mut self, task: TaskId, piece: &[u8], sink: &mut impl FrameSink) -> bool {
        if !self.is_running(task) || piece.len() > FRAME_PAYLOAD_MAX {
            return false;
        }
        let slot = &mut self.slots[usize::from(task.slot)];
        if slot.pieces.len() >= PIECES_MAX {
            return false;
        }
        let index = u32::try_from(slot.pieces.len()).expect("at most PIECES_MAX");
        slot.pieces.push(piece.into());
        sink.send(Head::task(Kind::Progress, self.channel, task, index), piece);
        true
    }

    /// Takes a PROGRESS_ACK: sends the pieces from there on again, and the answer if there is one.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn progress_ack(
        &mut self,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let task = frame.task;
        let slot = self
            .slots
            .get(usize::from(task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if slot.generation != task.generation {
            return Err(DropReason::Stale);
        }
        for (index, piece) in (0_u32..).zip(&slot.pieces).skip(frame.auxiliary as usize) {
            sink.send(Head::task(Kind::Progress, self.channel, task, index), piece);
            self.totals.repeated += 1;
        }
        if slot.state == SlotState::Answered {
            // `repeat` reports the duplicate that this is not.
            let _ = self.repeat(task, sink);
        }
        Ok(())
    }

    #[inline]
    fn keep(&mut self, task: TaskId, kind: Kind, flags: u8, auxiliary: u32, answer: &[u8]) -> Head {
        let slot = &mut self.slots[usize::from(task.slot)];
        assert_eq!(
            slot.generation, task.generation,
            "an answer to another generation"
        );
        assert_eq!(slot.state, SlotState::Running, "a second answer");
        slot.state = SlotState::Answered;
        slot.judged = !matches!(kind, Kind::Result | Kind::ResultPart);
        slot.kind = kind;
        // An answer says how many pieces of progress came before it; a refusal came before any.
        let flags = if kind == Kind::Refused {
            flags
        } else {
            u8::try_from(slot.pieces.len()).expect("at most PIECES_MAX")
        };
        slot.flags = flags;
        slot.auxiliary = auxiliary;
        slot.answer.clear();
        slot.answer.extend_from_slice(answer);
        self.running -= 1;
        Head::task(kind, self.channel, task, auxiliary).with_flags(flags)
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
        let head = self.keep(
            admitted.task,
            Kind::Refused,
            code as u8,
            retry_after_us,
            &[],
        );
        sink.send(head, &[]);
    }
}

fn admission(now: Time, task: TaskId, deadline_us: u32) -> Admitted {
    let deadline = match deadline_us {
        0 => Time::NEVER,
        micros => now + core::time::Duration::from_micros(u64::from(micros)),
    };
    Admitted {
        task,
        arrived: now,
        deadline,
        counted: false,
    }
}

/// The generation after `generation`: 0 is never used again.
pub(crate) fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}
