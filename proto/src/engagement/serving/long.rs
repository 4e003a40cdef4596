//! Long payloads on their way in, and long results on their way out.
//!
//! A channel sends up to [`PARALLEL_MAX`] results at a time, a few parts of each in turn.

use super::{
    Admitted, Answered, RECEIVING_BYTES_MAX, RETRY_AFTER_US, Serving, SlotState, admission,
};
use crate::engagement::FrameSink;
use crate::engagement::congestion::Congestion;
use crate::engagement::parts::{Part, PartsIn, PartsOut, Whole};
use crate::engagement::requesting::{PARALLEL_MAX, PARTS_A_TURN};
use crate::fault::DropReason;
use crate::frame::kind::{FROM_WORKER, Kind, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;
use crate::wire::limits::FRAME_PAYLOAD_MAX;

impl Serving {
    /// A part of a long task. The last to arrive brings the whole task, to be run.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn admit_part(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
    ) -> Result<Option<(Admitted, Vec<u8>)>, DropReason> {
        let part = Part::parse(frame.payload, frame.auxiliary)?;
        let task = frame.task;
        if self.is_next(task)? {
            self.enter(frame, SlotState::Receiving);
            if self.receiving + part.total > RECEIVING_BYTES_MAX || self.refusal(now).is_some() {
                self.start_running(task);
                let (code, after) = self
                    .refusal(now)
                    .unwrap_or((RefusalCode::Busy, RETRY_AFTER_US));
                self.refuse(admission(now, task, part.detail), code, after, sink);
                return Ok(None);
            }
            self.receiving += part.total;
            self.slots[usize::from(task.slot)].parts_in = Some(Box::new(PartsIn::new(&part)));
        }
        let slot = &mut self.slots[usize::from(task.slot)];
        let Some(parts) = &mut slot.parts_in else {
            // The requester asks with the last part; the others are only late.
            return if part.is_last() {
                Err(self.repeat(task, sink))
            } else {
                Err(DropReason::Duplicate)
            };
        };
        let taken = parts.take(&part);
        if parts.is_ack_due() {
            parts.acknowledge(ack_head(self.channel, task), false, sink);
        } else if parts.list() {
            self.acking.push(task);
        }
        taken?;
        if !parts.is_complete() {
            return Ok(None);
        }
        let parts = slot.parts_in.take().expect("borrowed above");
        self.receiving -= parts.len();
        self.start_running(task);
        let admitted = admission(now, task, parts.detail());
        let admitted = self.run_or_refuse(now, admitted, sink);
        Ok(admitted.map(|admitted| (admitted, parts.into_bytes())))
    }

    fn start_running(&mut self, task: TaskId) {
        self.slots[usize::from(task.slot)].state = SlotState::Running;
        self.running += 1;
    }

    /// Space for an answer that may be longer than a frame, to be filled and handed to
    /// [`Self::answer_long`]. Holds what an earlier answer of this channel left in it.
    pub fn space_for_long(&mut self, len: usize) -> Vec<u8> {
        let mut space = std::mem::take(&mut self.spare);
        space.resize(len, 0);
        space
    }

    /// As [`Self::answer`], for an answer that may be longer than a frame: takes it over, and sends
    /// it whole or puts it on the list of those that go in parts.
    pub fn answer_long(
        &mut self,
        admitted: Admitted,
        answered: Answered,
        busy_ns: u64,
        started: Time,
        mut answer: Vec<u8>,
        sink: &mut impl FrameSink,
    ) {
        if answered == Answered::Failed {
            // A failure is a sentence; parts are for results.
            answer.truncate(FRAME_PAYLOAD_MAX);
        }
        if answer.len() <= FRAME_PAYLOAD_MAX {
            let head = self.answer(admitted, answered, busy_ns, started, &answer);
            sink.send(head, &answer);
            self.spare = answer;
            return;
        }
        let staged_ns = started.nanos_since(admitted.arrived());
        let (_, auxiliary) = self.count(answered, busy_ns, staged_ns);
        let task = admitted.task();
        self.keep(task, Kind::ResultPart, 0, auxiliary, &[]);
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.parts_out = Some(Box::new(PartsOut::new(answer.len())));
        slot.asked = false;
        self.kept += answer.len();
        slot.answer = answer;
        self.queue(task.slot);
    }

    /// Whether [`Self::pump_parts`] has something to do: parts of long answers, or acknowledgments
    /// of parts of long tasks.
    pub fn has_parts(&self) -> bool {
        !self.sending.is_empty() || !self.acking.is_empty()
    }

    /// Acknowledges the parts of long tasks that came since the last turn.
    pub fn acknowledge(&mut self, sink: &mut impl FrameSink) {
        let (channel, slots) = (self.channel, &mut self.slots);
        self.acking.retain(|task| {
            let slot = &mut slots[usize::from(task.slot)];
            let current = slot.generation == task.generation;
            let Some(parts) = slot.parts_in.as_mut().filter(|_| current) else {
                return false;
            };
            // Without a buffer it stays on the list.
            parts.unlist()
                && !parts.acknowledge(ack_head(channel, *task), false, sink)
                && parts.list()
        });
    }

    /// Sends parts of long answers, as the path allows and up to `budget`; how many went.
    pub fn pump_parts(
        &mut self,
        now: Time,
        path: &mut Congestion,
        sink: &mut impl FrameSink,
        budget: usize,
    ) -> usize {
        for mut counted in self.stray.drain(..) {
            path.parts_forgotten(&mut counted);
        }
        let mut sent = 0;
        while sent < budget
            && let Some(index) = self.sending.pop_front()
        {
            let slot = &mut self.slots[usize::from(index)];
            let task = TaskId {
                slot: index,
                generation: slot.generation,
            };
            slot.queued = false;
            let Some(parts) = &mut slot.parts_out else {
                continue;
            };
            if std::mem::take(&mut slot.asked) {
                parts.stalled(now, path);
            }
            let head = Head::task(Kind::ResultPart, self.channel, task, 0);
            let whole = Whole {
                bytes: &slot.answer,
                head: head.with_flags(slot.flags),
                detail: slot.auxiliary,
            };
            let turn = PARTS_A_TURN.min(budget - sent);
            let went = parts.pump(now, path, whole, sink, turn);
            self.totals.repeated += parts.take_repeated();
            slot.queued = parts.may_send();
            if slot.queued {
                // Behind the others that are under way, before those that wait.
                let place = self.sending.len().min(PARALLEL_MAX - 1);
                self.sending.insert(place, index);
                if went == 0 {
                    // The path is full, or no buffer is free: that holds for all.
                    break;
                }
            }
            sent += went;
        }
        sent
    }

    /// Puts a long answer on the list of those with parts to send, if it has any or is asked for.
    pub(super) fn queue(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        let sending = slot.parts_out.as_ref();
        let wanted = sending.is_some_and(|parts| slot.asked || parts.may_send());
        if slot.queued || !wanted {
            return;
        }
        slot.queued = true;
        self.sending.push_back(index);
    }

    /// Takes a PART_ACK.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn part_ack(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let slot = self
            .slots
            .get_mut(usize::from(frame.task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if slot.generation != frame.task.generation {
            return Err(DropReason::Stale);
        }
        let parts = slot.parts_out.as_mut().ok_or(DropReason::OutOfOrder)?;
        parts.ack(now, path, frame)?;
        self.queue(frame.task.slot);
        Ok(())
    }

    /// The channel ends: gives up what the path counts of it.
    pub fn release(&mut self, path: &mut Congestion) {
        for mut counted in self.stray.drain(..) {
            path.parts_forgotten(&mut counted);
        }
        for slot in &mut self.slots {
            if let Some(parts) = &mut slot.parts_out {
                parts.release(path);
            }
        }
    }
}

fn ack_head(channel: ChannelId, task: TaskId) -> Head {
    Head::task(Kind::PartAck, channel, task, 0).with_flags(FROM_WORKER)
}
