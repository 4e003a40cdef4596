//! Long payloads on their way out, and long results on their way in.
//!
//! A channel sends up to [`PARALLEL_MAX`] payloads at a time, a few parts of each in turn, so that a
//! short one does not wait for a long one, and the worker does not hold the beginnings of hundreds.

use bytes::Bytes;

use super::{Progressed, Requesting, SlotState, task_head};
use crate::engagement::FrameSink;
use crate::engagement::congestion::Congestion;
use crate::engagement::job::{Answer, Job};
use crate::engagement::parts::{Part, PartsIn, PartsOut, Whole};
use crate::engagement::rtt::RTO_MAX;
use crate::engagement::serving::RECEIVING_BYTES_MAX;
use crate::fault::DropReason;
use crate::frame::kind::Kind;
use crate::frame::{Frame, Head};
use crate::time::Time;

/// The job is asked for no more tasks while so many bytes of long ones were never sent.
pub(super) const UNSENT_MAX: usize = 4 << 20;
/// Transfers of a channel that are under way at a time.
pub(crate) const PARALLEL_MAX: usize = 4;
/// Parts of one transfer before it is the next one's turn.
pub(crate) const PARTS_A_TURN: usize = 12;

#[derive(Debug)]
pub(super) struct Long {
    pub(super) payload: Bytes,
    pub(super) parts: PartsOut,
}

impl Requesting {
    /// Puts a long task into a free slot; its parts go turn by turn.
    pub(super) fn start_long(&mut self, now: Time, token: u64, payload: Bytes) {
        let (head, slot) = self.start(now, token, 0);
        let parts = PartsOut::new(payload.len());
        let unsent = parts.unsent();
        slot.long = Some(Box::new(Long { payload, parts }));
        if !std::mem::replace(&mut slot.queued, true) {
            self.sending.push_back(head.task_id().slot);
        }
        self.unsent += unsent;
    }

    /// Whether a long task has parts that may go, as far as the channel is concerned.
    pub fn has_parts(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Sends parts of long tasks, as the path allows and up to `budget`; how many went.
    pub fn pump_parts(
        &mut self,
        now: Time,
        path: &mut Congestion,
        sink: &mut impl FrameSink,
        budget: usize,
    ) -> usize {
        let mut sent = 0;
        while sent < budget
            && let Some(index) = self.sending.pop_front()
        {
            let slot = &mut self.slots[usize::from(index)];
            slot.queued = false;
            let head = task_head(Kind::TaskPart, self.channel, index, slot, 0);
            let outstanding = slot.state == SlotState::Outstanding;
            let Some(long) = slot.long.as_mut().filter(|_| outstanding) else {
                continue;
            };
            let whole = Whole {
                bytes: &long.payload,
                head,
                detail: slot.deadline_us,
            };
            self.unsent -= long.parts.unsent();
            let turn = PARTS_A_TURN.min(budget - sent);
            let went = long.parts.pump(now, path, whole, sink, turn);
            self.unsent += long.parts.unsent();
            self.totals.repeated += long.parts.take_repeated();
            slot.queued = long.parts.may_send();
            if slot.queued {
                // Behind the others that are under way, before those that wait.
                let place = self.sending.len().min(PARALLEL_MAX - 1);
                self.sending.insert(place, index);
            }
            if went > 0 {
                slot.due = now + path.probe_after();
                self.next_scan = self.next_scan.min(slot.due);
            } else if slot.queued {
                // The path is full, or no buffer is free: that holds for all.
                break;
            }
            sent += went;
        }
        sent
    }

    /// Takes a PART_ACK.
    pub(super) fn part_ack(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
    ) -> Result<Progressed, DropReason> {
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        let long = slot.long.as_mut().ok_or(DropReason::OutOfOrder)?;
        self.unsent -= long.parts.unsent();
        let taken = long.parts.ack(now, path, frame);
        self.unsent += long.parts.unsent();
        taken?;
        slot.sends = 1;
        slot.due = now
            + if long.parts.is_complete() {
                self.rtt.timeout()
            } else {
                path.probe_after()
            };
        self.queue(frame.task.slot);
        Ok(Progressed::Noted)
    }

    /// Puts a long task on the list of those with parts to send, if it has any.
    fn queue(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        if !slot.queued && slot.long.as_ref().is_some_and(|long| long.parts.may_send()) {
            slot.queued = true;
            // It was begun before those that wait.
            self.sending.push_front(index);
        }
    }

    /// A transfer was silent for its time-out: asks the worker how it stands.
    pub(super) fn ask(
        &mut self,
        now: Time,
        path: &mut Congestion,
        index: u16,
        sink: &mut impl FrameSink,
    ) {
        let doublings = self.slots[usize::from(index)].sends.clamp(2, 8) - 2;
        let again = now + (path.probe_after() * (1 << doublings)).min(RTO_MAX);
        let slot = &mut self.slots[usize::from(index)];
        let head = task_head(Kind::TaskPart, self.channel, index, slot, 0);
        if let Some(parts) = &mut slot.parts_in {
            let head = Head::task(Kind::PartAck, self.channel, head.task_id(), 0);
            parts.acknowledge(head, true, sink);
            slot.due = again;
            return;
        }
        let Some(long) = &mut slot.long else { return };
        if !long.parts.is_complete() {
            slot.due = again;
        }
        if !long.parts.is_in_flight() && !long.parts.is_complete() {
            // It only waits for its turn.
            slot.sends = 1;
        } else {
            let whole = Whole {
                bytes: &long.payload,
                head,
                detail: slot.deadline_us,
            };
            long.parts.probe(now, whole, sink);
            self.totals.repeated += long.parts.take_repeated();
        }
        self.queue(index);
    }

    /// A part of a long result. The last to arrive completes it.
    pub(super) fn result_part(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let part = Part::parse(frame.payload, frame.auxiliary)?;
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        slot.settle(now, path, None);
        slot.sends = slot.sends.min(2);
        slot.due = now + path.probe_after();
        self.next_scan = self.next_scan.min(slot.due);
        if slot.parts_in.is_none() && self.receiving + part.total > RECEIVING_BYTES_MAX {
            // The worker keeps it and is asked again.
            slot.due = now + self.rtt.timeout();
            return Err(DropReason::MemoryLimit);
        }
        let receiving = &mut self.receiving;
        let parts = slot.parts_in.get_or_insert_with(|| {
            *receiving += part.total;
            Box::new(PartsIn::new(&part))
        });
        let taken = parts.take(&part);
        if parts.is_ack_due() {
            let head = Head::task(Kind::PartAck, self.channel, frame.task, 0);
            parts.acknowledge(head, false, sink);
        } else if parts.list() {
            self.acking.push(frame.task);
        }
        taken?;
        if !parts.is_complete() {
            return Ok(Progressed::Noted);
        }
        let parts = slot.parts_in.take().expect("borrowed above");
        self.receiving -= parts.len();
        let detail = parts.detail();
        let bytes = parts.into_bytes();
        Ok(self.finish(now, path, frame.task, detail, Answer::Done(&bytes), job))
    }

    /// Acknowledges the parts of long results that came since the last turn.
    pub(super) fn acknowledge(&mut self, sink: &mut impl FrameSink) {
        let (channel, slots) = (self.channel, &mut self.slots);
        self.acking.retain(|task| {
            let slot = &mut slots[usize::from(task.slot)];
            let current =
                slot.generation == task.generation && slot.state == SlotState::Outstanding;
            let Some(parts) = slot.parts_in.as_mut().filter(|_| current) else {
                return false;
            };
            // Without a buffer it stays on the list.
            parts.unlist()
                && !parts.acknowledge(Head::task(Kind::PartAck, channel, *task, 0), false, sink)
                && parts.list()
        });
    }
}
