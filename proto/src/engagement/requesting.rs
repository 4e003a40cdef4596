//! The requester's end of a channel.
//!
//! A slot is *free*, *outstanding* (a task is out and is repeated until its answer comes), or
//! *backing off* (the worker was busy; the task goes out again, as the next generation, when the
//! time it named has passed).
//!
//! Who drives it: [`Requesting::pump`] once a turn while the channel is open, [`Requesting::answer`]
//! for each frame about a task, [`Requesting::handle_timeout`] when
//! [`Requesting::next_timeout`] has passed. It calls the [`Job`] for tasks and with answers, each
//! token exactly once.
//!
//! The send window follows loss: it starts at [`WINDOW_INITIAL`], grows by one for each answer until
//! it holds every credit, and halves when a task had to be repeated, at most once a round trip.

use core::time::Duration;

use bytes::Bytes;

use crate::engagement::job::{Answer, Job, Next, Refused, Timing, Verdict};
use crate::engagement::parts::{Part, PartsIn, PartsOut};
use crate::engagement::rtt::Rtt;
use crate::engagement::serving::{RECEIVING_BYTES_MAX, next_generation};
use crate::engagement::{FrameSink, Totals};
use crate::fault::DropReason;
use crate::frame::duration16;
use crate::frame::kind::{Kind, PRIOR_ACCEPTED, PRIOR_REJECTED, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;
use crate::wire::limits::{FRAME_PAYLOAD_MAX, TASK_LEN_MAX};

/// Tasks outstanding before the first answer.
pub const WINDOW_INITIAL: u32 = 64;
/// Least window after losses.
const WINDOW_MIN: u32 = 4;
/// How long a free slot may keep a verdict to itself in the hope of a next task to carry it.
const VERDICT_DELAY: Duration = Duration::from_millis(20);
/// A task that is known to run is asked after this seldom.
const WORKING_PROBE: Duration = Duration::from_millis(500);
/// Silence after which the other end counts as lost while a task is owed an answer.
const LOST_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Outstanding,
    BackingOff,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: SlotState,
    /// Flags that the next frame about this slot owes the worker: 0 when it owes none.
    prior: u8,
    /// Whether the worker said that the task runs.
    working: bool,
    sends: u32,
    token: u64,
    first_sent: Time,
    due: Time,
    payload: Vec<u8>,
    /// A long task on its way out. Boxed, as the next: rare, and every slot holds their place.
    long: Option<Box<Long>>,
    /// A long result on its way in.
    parts_in: Option<Box<PartsIn>>,
    /// Pieces of progress that came in order.
    pieces: u32,
}

#[derive(Debug)]
struct Long {
    payload: Bytes,
    parts: PartsOut,
}

impl Slot {
    const EMPTY: Slot = Slot {
        generation: 0,
        state: SlotState::Free,
        prior: 0,
        working: false,
        sends: 0,
        token: 0,
        first_sent: Time::ZERO,
        due: Time::NEVER,
        payload: Vec::new(),
        long: None,
        parts_in: None,
        pieces: 0,
    };
}

/// What an answer tells the caller beyond the job's own callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progressed {
    /// A task got its answer, after this many nanoseconds.
    Answered(u64),
    /// A task waits for its retry, or is known to run.
    Noted,
}

/// The slots of one channel at its requester.
#[derive(Debug)]
pub struct Requesting {
    channel: ChannelId,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    tasks_max: u64,
    window: u32,
    window_cut_at: Time,
    outstanding: u32,
    ended: bool,
    /// Slots whose long tasks have parts to send.
    sending: Vec<u16>,
    /// Bytes reserved for long results that arrive.
    receiving: usize,
    /// Free slots that owe a verdict, and since when.
    verdicts_owed: u32,
    verdicts_due: Time,
    rtt: Rtt,
    last_heard: Time,
    next_scan: Time,
    totals: Totals,
}

impl Requesting {
    /// A channel that was just opened with this many credits, for at most `tasks_max` tasks.
    pub fn new(channel: ChannelId, credits: u32, tasks_max: u64, now: Time) -> Self {
        let credits = u16::try_from(credits).unwrap_or(u16::MAX);
        Requesting {
            channel,
            slots: (0..credits).map(|_| Slot::EMPTY).collect(),
            free: (0..credits).rev().collect(),
            tasks_max,
            window: WINDOW_INITIAL.min(u32::from(credits)),
            window_cut_at: now,
            outstanding: 0,
            ended: false,
            sending: Vec::new(),
            receiving: 0,
            verdicts_owed: 0,
            verdicts_due: Time::NEVER,
            rtt: Rtt::default(),
            last_heard: now,
            next_scan: Time::NEVER,
            totals: Totals::default(),
        }
    }

    /// What it has come to.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Tasks without an answer.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether the job has ended, or used up its grant, and every task has its answer.
    pub fn is_done(&self) -> bool {
        self.has_ended() && self.outstanding == 0
    }

    fn has_ended(&self) -> bool {
        self.ended || self.totals.tasks >= self.tasks_max
    }

    /// Takes no more tasks from the job.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// More tasks after a renewal.
    pub fn extend(&mut self, tasks_max: u64) {
        self.tasks_max = tasks_max;
    }

    /// Whether the worker has been silent for so long that it must be gone.
    pub fn is_lost(&self, now: Time) -> bool {
        self.outstanding > 0 && now.since(self.last_heard) >= LOST_AFTER
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn next_timeout(&self) -> Time {
        self.next_scan.min(self.verdicts_due)
    }

    /// Takes up to `budget` tasks from the job and sends them; how many.
    pub fn pump(
        &mut self,
        now: Time,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
        budget: usize,
    ) -> usize {
        let mut sent = self.pump_parts(sink, job.deadline_us(), budget);
        while sent < budget && self.may_send() {
            let Some(space) = sink.reserve(FRAME_PAYLOAD_MAX) else {
                break;
            };
            let (len, token) = match job.next(space, now) {
                Next::Task { len, token } => (len, token),
                Next::Large { payload, token } => {
                    if payload.is_empty() || payload.len() > TASK_LEN_MAX {
                        self.totals.refused += 1;
                        job.answer(token, Answer::Refused(Refused::TooBig), Timing::default());
                    } else {
                        self.start_long(now, token, payload);
                        sent += self.pump_parts(sink, job.deadline_us(), budget - sent);
                    }
                    continue;
                }
                Next::Later => break,
                Next::End => {
                    self.ended = true;
                    break;
                }
            };
            let (head, slot) = self.start(now, token, job.deadline_us());
            slot.payload.clear();
            slot.payload.extend_from_slice(&space[..len]);
            sink.commit(head, len);
            sent += 1;
        }
        if sent > 0 {
            self.next_scan = self.next_scan.min(now + self.rtt.timeout());
        }
        if self.is_done() && self.verdicts_owed > 0 {
            self.verdicts_due = now;
        }
        sent
    }

    /// Puts a long task into a free slot; its parts go turn by turn.
    fn start_long(&mut self, now: Time, token: u64, payload: Bytes) {
        let (head, slot) = self.start(now, token, 0);
        slot.long = Some(Box::new(Long {
            parts: PartsOut::new(payload.len()),
            payload,
        }));
        self.sending.push(head.task.slot);
        self.next_scan = self.next_scan.min(now + self.rtt.timeout());
    }

    /// Sends parts of long tasks, as their windows allow; how many went.
    fn pump_parts(&mut self, sink: &mut impl FrameSink, deadline_us: u32, budget: usize) -> usize {
        let (channel, slots) = (self.channel, &mut self.slots);
        let mut sent = 0;
        self.sending.retain(|index| {
            let slot = &mut slots[usize::from(*index)];
            let head = part_head(channel, *index, slot);
            let Some(long) = &mut slot.long else {
                return false;
            };
            sent += long
                .parts
                .pump(&long.payload, head, deadline_us, sink, budget - sent);
            // What the window holds back goes on with the next acknowledgment.
            long.parts.may_send()
        });
        sent
    }

    fn may_send(&self) -> bool {
        !self.has_ended() && !self.free.is_empty() && self.outstanding < self.window
    }

    /// Puts a new task into a free slot.
    fn start(&mut self, now: Time, token: u64, deadline_us: u32) -> (Head, &mut Slot) {
        let index = self.free.pop().expect("may_send saw a free slot");
        let slot = &mut self.slots[usize::from(index)];
        if slot.prior != 0 {
            self.verdicts_owed -= 1;
        }
        slot.generation = next_generation(slot.generation);
        slot.state = SlotState::Outstanding;
        slot.working = false;
        slot.pieces = 0;
        slot.sends = 1;
        slot.token = token;
        slot.first_sent = now;
        slot.due = now + self.rtt.timeout();
        if self.outstanding == 0 {
            // Nobody owed us a word until now.
            self.last_heard = now;
        }
        self.outstanding += 1;
        self.totals.tasks += 1;
        let task = TaskId {
            slot: index,
            generation: slot.generation,
        };
        // A repeat must carry the same verdict: the first copy may be the one that was lost.
        let flags = slot.prior;
        (
            Head {
                flags,
                ..Head::task(Kind::Task, self.channel, task, deadline_us)
            },
            slot,
        )
    }

    /// Takes any frame about a task: RESULT, RESULT_PART, FAILED, REFUSED, WORKING, PROGRESS or
    /// PART_ACK.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn answer(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let timeout = self.rtt.timeout();
        let slot = self
            .slots
            .get_mut(usize::from(frame.task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if slot.generation != frame.task.generation {
            return Err(DropReason::Stale);
        }
        if slot.state != SlotState::Outstanding {
            return Err(DropReason::Duplicate);
        }
        self.last_heard = now;
        match frame.kind {
            Kind::Working => {
                slot.working = true;
                slot.due = now + WORKING_PROBE;
                Ok(Progressed::Noted)
            }
            Kind::PartAck => {
                let long = slot.long.as_mut().ok_or(DropReason::OutOfOrder)?;
                long.parts.ack(frame.auxiliary);
                slot.due = now + timeout;
                if long.parts.may_send() && !self.sending.contains(&frame.task.slot) {
                    self.sending.push(frame.task.slot);
                }
                Ok(Progressed::Noted)
            }
            Kind::Progress => self.progress(now, frame, sink, job),
            Kind::Refused => self.refused(now, frame, job),
            _ if u32::from(frame.flags) > slot.pieces => {
                // Pieces are missing: they come again, and the answer after them.
                let next = slot.pieces;
                sink.send(
                    Head::task(Kind::ProgressAck, self.channel, frame.task, next),
                    &[],
                );
                Ok(Progressed::Noted)
            }
            Kind::ResultPart => self.result_part(now, frame, sink, job),
            Kind::Result => {
                let answer = Answer::Done(frame.payload);
                Ok(self.finish(now, frame.task, frame.auxiliary, answer, job))
            }
            Kind::Failed => {
                let answer = Answer::Failed(frame.payload);
                Ok(self.finish(now, frame.task, frame.auxiliary, answer, job))
            }
            _ => Err(DropReason::OutOfOrder),
        }
    }

    /// A piece of progress: handed on in order; a gap is asked for.
    fn progress(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        slot.working = true;
        slot.due = now + WORKING_PROBE;
        if frame.auxiliary > slot.pieces {
            let next = slot.pieces;
            sink.send(
                Head::task(Kind::ProgressAck, self.channel, frame.task, next),
                &[],
            );
            return Err(DropReason::OutOfOrder);
        }
        if frame.auxiliary < slot.pieces {
            return Err(DropReason::Duplicate);
        }
        slot.pieces += 1;
        job.progress(slot.token, frame.payload);
        Ok(Progressed::Noted)
    }

    /// A part of a long result. The last to arrive completes it.
    fn result_part(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let part = Part::parse(frame.payload, frame.auxiliary)?;
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        slot.due = now + self.rtt.timeout();
        if slot.parts_in.is_none() && self.receiving + part.total > RECEIVING_BYTES_MAX {
            // The worker keeps it and is asked again.
            return Err(DropReason::MemoryLimit);
        }
        let receiving = &mut self.receiving;
        let parts = slot.parts_in.get_or_insert_with(|| {
            *receiving += part.total;
            Box::new(PartsIn::new(&part))
        });
        let taken = parts.take(&part);
        if let Some(offset) = parts.ack_due() {
            sink.send(
                Head::task(Kind::PartAck, self.channel, frame.task, offset),
                &[],
            );
        }
        taken?;
        if !parts.is_complete() {
            return Ok(Progressed::Noted);
        }
        let parts = slot.parts_in.take().expect("borrowed above");
        self.receiving -= parts.len();
        let detail = parts.detail();
        let bytes = parts.into_bytes();
        Ok(self.finish(now, frame.task, detail, Answer::Done(&bytes), job))
    }

    fn refused(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        match refused(frame).ok_or(DropReason::BadFrame)? {
            retry @ (Refused::Busy { .. } | Refused::ReceiptDue) => {
                self.back_off(now, frame.task, retry);
                Ok(Progressed::Noted)
            }
            reason => Ok(self.finish(now, frame.task, 0, Answer::Refused(reason), job)),
        }
    }

    fn back_off(&mut self, now: Time, task: TaskId, retry: Refused) {
        let micros = match retry {
            Refused::Busy { retry_after_us } => retry_after_us,
            _ => crate::engagement::serving::RETRY_AFTER_US,
        };
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.state = SlotState::BackingOff;
        slot.prior = 0;
        slot.due = now + Duration::from_micros(u64::from(micros.max(100)));
        self.next_scan = self.next_scan.min(slot.due);
    }

    /// Hands an answer to the job, counts it and frees its slot.
    fn finish(
        &mut self,
        now: Time,
        task: TaskId,
        auxiliary: u32,
        answer: Answer<'_>,
        job: &mut dyn Job,
    ) -> Progressed {
        let credits = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let slot = &mut self.slots[usize::from(task.slot)];
        let round_trip_ns = now.nanos_since(slot.first_sent);
        if slot.sends == 1 && slot.long.is_none() {
            self.rtt.sample(round_trip_ns);
        }
        self.window = (self.window + 1).min(credits);
        let (busy_ns, staged_ns) = duration16::unpack(auxiliary);
        let verdict = job.answer(
            slot.token,
            answer,
            Timing {
                round_trip_ns,
                busy_ns,
                staged_ns,
            },
        );
        slot.prior = 0;
        slot.long = None;
        if let Some(parts) = slot.parts_in.take() {
            self.receiving -= parts.len();
        }
        match answer {
            Answer::Done(_) => {
                self.totals.done += 1;
                if verdict == Verdict::Accept {
                    self.totals.accepted += 1;
                    self.totals.busy_ns += busy_ns;
                    self.totals.staged_ns += staged_ns;
                    slot.prior = PRIOR_ACCEPTED;
                } else {
                    self.totals.rejected += 1;
                    slot.prior = PRIOR_REJECTED;
                }
                if self.verdicts_owed == 0 {
                    self.verdicts_due = now + VERDICT_DELAY;
                }
                self.verdicts_owed += 1;
            }
            Answer::Failed(_) => self.totals.failed += 1,
            Answer::Refused(Refused::Late) => self.totals.expired += 1,
            Answer::Refused(_) => self.totals.refused += 1,
        }
        slot.state = SlotState::Free;
        slot.due = Time::NEVER;
        self.outstanding -= 1;
        self.free.push(task.slot);
        Progressed::Answered(round_trip_ns)
    }

    /// Repeats what is due, retries what was busy, and tells verdicts that found no task to carry
    /// them.
    pub fn handle_timeout(&mut self, now: Time, sink: &mut impl FrameSink, job: &dyn Job) {
        if now >= self.verdicts_due {
            self.tell_verdicts(now, sink);
        }
        if now < self.next_scan {
            return;
        }
        let mut earliest = Time::NEVER;
        for index in 0..self.slots.len() {
            if self.slots[index].state == SlotState::Free {
                continue;
            }
            if self.slots[index].due <= now {
                self.repeat(now, index, sink, job.deadline_us());
            }
            earliest = earliest.min(self.slots[index].due);
        }
        // Answers move deadlines out without moving the scan; looking again a little late is cheap.
        self.next_scan = match earliest {
            Time::NEVER => Time::NEVER,
            due => due.max(now + Duration::from_millis(1)),
        };
    }

    fn repeat(&mut self, now: Time, index: usize, sink: &mut impl FrameSink, deadline_us: u32) {
        let slot = &mut self.slots[index];
        if slot.state == SlotState::BackingOff {
            slot.generation = next_generation(slot.generation);
            slot.state = SlotState::Outstanding;
            slot.working = false;
            slot.pieces = 0;
            // Its round trip holds the wait, and is no sample of the path.
            slot.sends = 1;
            if let Some(long) = &mut slot.long {
                long.parts = PartsOut::new(long.payload.len());
            }
        } else if !slot.working && now.since(self.window_cut_at) > self.rtt.timeout() {
            self.window = (self.window / 2).max(WINDOW_MIN.min(self.window));
            self.window_cut_at = now;
        }
        slot.sends += 1;
        slot.due = now
            + if slot.working {
                WORKING_PROBE
            } else {
                self.rtt.timeout_after(slot.sends)
            };
        let slot_number = u16::try_from(index).expect("slots are numbered in 16 bits");
        let head = part_head(self.channel, slot_number, slot);
        if let Some(long) = &mut slot.long {
            if long.parts.is_complete() {
                long.parts.probe(&long.payload, head, deadline_us, sink);
            } else {
                long.parts.rewind();
                if !self.sending.contains(&slot_number) {
                    self.sending.push(slot_number);
                }
            }
            self.totals.repeated += u64::from(slot.sends > 1);
            return;
        }
        let head = Head {
            kind: Kind::Task,
            auxiliary: deadline_us,
            ..head
        };
        if sink.send(head, &slot.payload) && slot.sends > 1 {
            self.totals.repeated += 1;
        }
    }

    fn tell_verdicts(&mut self, now: Time, sink: &mut impl FrameSink) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.state != SlotState::Free || slot.prior == 0 {
                continue;
            }
            let slot_number = u16::try_from(index).expect("slots are numbered in 16 bits");
            let task = TaskId {
                slot: slot_number,
                generation: slot.generation,
            };
            let rejected = u32::from(slot.prior == PRIOR_REJECTED);
            let head = Head::task(Kind::Verdict, self.channel, task, rejected);
            if !sink.send(head, &[]) {
                self.verdicts_due = now + Duration::from_millis(1);
                return;
            }
            slot.prior = 0;
            self.verdicts_owed -= 1;
        }
        self.verdicts_due = Time::NEVER;
    }

    /// Gives every task that is still out to the job as `reason`: the channel has ended.
    pub fn abandon(&mut self, now: Time, reason: Refused, job: &mut dyn Job) {
        self.ended = true;
        for slot in &mut self.slots {
            if slot.state == SlotState::Free {
                continue;
            }
            slot.state = SlotState::Free;
            slot.long = None;
            slot.parts_in = None;
            let round_trip_ns = now.nanos_since(slot.first_sent);
            self.totals.refused += 1;
            job.answer(
                slot.token,
                Answer::Refused(reason),
                Timing {
                    round_trip_ns,
                    ..Timing::default()
                },
            );
        }
        self.outstanding = 0;
        self.next_scan = Time::NEVER;
        self.verdicts_due = Time::NEVER;
    }
}

/// The head of a part of a slot's long task; its offset is filled in where it is sent.
fn part_head(channel: ChannelId, index: u16, slot: &Slot) -> Head {
    let task = TaskId {
        slot: index,
        generation: slot.generation,
    };
    // A repeat must carry the same verdict: the first copy may be the one that was lost.
    Head {
        flags: slot.prior,
        ..Head::task(Kind::TaskPart, channel, task, 0)
    }
}

fn refused(frame: &Frame<'_>) -> Option<Refused> {
    Some(match RefusalCode::from_wire(frame.flags)? {
        RefusalCode::Busy => Refused::Busy {
            retry_after_us: frame.auxiliary,
        },
        RefusalCode::Late => Refused::Late,
        RefusalCode::TooBig => Refused::TooBig,
        RefusalCode::NoSkill => Refused::NoSkill,
        RefusalCode::GrantEnded => Refused::GrantEnded,
        RefusalCode::ReceiptDue => Refused::ReceiptDue,
        RefusalCode::Draining => Refused::Draining,
        RefusalCode::Cancelled => Refused::Cancelled,
    })
}
