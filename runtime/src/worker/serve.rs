//! Rooms 5 to 7 at a worker: channels are admitted by control, tasks by the slot table, and run
//! where their skill is placed.

use std::sync::Arc;

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::engagement::serving::{
    Admitted, Answered, RETRY_AFTER_US, Serving, ServingLimits,
};
use ramjet_proto::fault::DropReason;
use ramjet_proto::frame::kind::{CloseReason, Kind, RefusalCode};
use ramjet_proto::frame::{Frame, Head};
use ramjet_proto::ids::{ChannelId, NodeId};
use ramjet_proto::market::{RECEIPT_LEN, SignedGrant};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;
use ramjet_proto::wire::limits::{FRAME_PAYLOAD_MAX, TASK_LEN_MAX};

use super::boxes::{Ended, Stock, TaskBox};
use super::channels::{End, ServeEnd, channel};
use super::clock;
use super::counters::Counter;
use super::mailbox::Piece;
use super::pool::run_guarded;
use super::rooms::{Rooms, sink};
use super::timers::{REPORT_EVERY, SERVE_SILENCE};
use crate::control::vocabulary::{ChannelTerms, Report, Side};
use crate::handler::{Handler, Outcome, Placement};

impl Rooms {
    /// OPEN: a requester presents a grant. Control decides; the channel waits until then.
    pub(super) fn open(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        peer: NodeId,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let number = frame.channel;
        let Ok(signed) = SignedGrant::decode(frame.payload) else {
            self.tell(
                tunnel,
                number,
                Kind::Close,
                Side::Worker,
                CloseReason::BadGrant as u32,
            );
            return Err(DropReason::BadFrame);
        };
        let engagement = signed.grant.engagement;
        if let Some(place) = self.channels.find(tunnel, Side::Worker, number) {
            let known = self.channels.at(place).expect("found above");
            if known.engagement == engagement {
                self.tell_opened(place);
                return Err(DropReason::Duplicate);
            }
            // The requester uses the number again: it has given the old channel up.
            self.end(place, CloseReason::Lost);
        }
        if self.draining.is_some() {
            self.tell(
                tunnel,
                number,
                Kind::Close,
                Side::Worker,
                CloseReason::Draining as u32,
            );
            return Ok(());
        }
        // Control's word replaces these terms before any task is taken.
        let terms = ChannelTerms {
            engagement,
            skill: 0,
            credits: 0,
            tasks: 0,
            expires_at: now + SERVE_SILENCE,
            unsigned_max: 0,
        };
        let end = End::Serve(ServeEnd { slots: None });
        let channel = channel(terms, peer, tunnel, number, end, now);
        let Some(place) = self.channels.insert(channel) else {
            self.tell(
                tunnel,
                number,
                Kind::Close,
                Side::Worker,
                CloseReason::Full as u32,
            );
            return Ok(());
        };
        self.channels.wake(place, now + SERVE_SILENCE);
        let report = Report::OpenWanted {
            peer,
            channel: number,
            grant: frame.payload.into(),
        };
        self.reporter.report(&self.counters, report);
        Ok(())
    }

    /// Control admits a channel.
    pub(super) fn admit(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        number: ChannelId,
        terms: ChannelTerms,
    ) {
        let Some(place) = self.channels.find(tunnel, Side::Worker, number) else {
            return;
        };
        let channel = self.channels.at(place).expect("found above");
        let waits = matches!(&channel.end, End::Serve(ServeEnd { slots: None }));
        if !waits || channel.engagement != terms.engagement {
            return;
        }
        if !self.channels.name(place) {
            self.refuse_channel(tunnel, number, CloseReason::Full);
            return;
        }
        let channel = self.channels.at_mut(place).expect("found above");
        let End::Serve(end) = &mut channel.end else {
            return;
        };
        let limits = ServingLimits {
            credits: terms.credits,
            tasks: terms.tasks,
            expires_at: terms.expires_at,
            unsigned_max: terms.unsigned_max,
        };
        end.slots = Some(Serving::new(number, limits));
        channel.terms = terms;
        channel.last_heard = now;
        channel.report_due = now + REPORT_EVERY;
        self.outbox.path(tunnel).begin(now);
        self.channels.wake(place, now);
        self.tell_opened(place);
    }

    /// Control refuses a channel.
    pub(super) fn refuse_channel(
        &mut self,
        tunnel: TunnelHandle,
        number: ChannelId,
        reason: CloseReason,
    ) {
        if let Some(place) = self.channels.find(tunnel, Side::Worker, number) {
            self.channels.remove(place);
            self.tell(tunnel, number, Kind::Close, Side::Worker, reason as u32);
        }
    }

    fn tell_opened(&mut self, place: u32) {
        let Some(channel) = self.channels.at(place) else {
            return;
        };
        let End::Serve(ServeEnd { slots: Some(slots) }) = &channel.end else {
            return;
        };
        let head = Head::channel(Kind::Opened, channel.channel, slots.credits());
        let unsigned_max = channel.terms.unsigned_max.to_be_bytes();
        sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        )
        .send(head, &unsigned_max);
    }

    /// A frame for a channel that we serve.
    pub(super) fn serve(
        &mut self,
        now: Time,
        place: u32,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        match frame.kind {
            Kind::Task => {
                let used = self.task(now, place, frame);
                if used == Err(DropReason::Duplicate) {
                    // The answer that is asked for again may be a long one.
                    self.activate(place);
                }
                used
            }
            Kind::TaskPart => self.task_part(now, place, frame),
            Kind::PartAck => {
                self.activate(place);
                self.part_ack(place, frame)
            }
            Kind::ProgressAck => {
                self.activate(place);
                self.progress_ack(place, frame)
            }
            Kind::Verdict => self.serving(place)?.verdict(frame),
            Kind::Receipt => self.receipt_arrived(place, Side::Worker, frame),
            Kind::Cancel => {
                // A task that runs, runs on: its answer is what the requester will hold.
                if self.serving(place)?.is_running(frame.task) {
                    Ok(())
                } else {
                    Err(DropReason::Stale)
                }
            }
            _ => Err(DropReason::UnknownFrame),
        }
    }

    fn part_ack(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        slots.part_ack(self.at, self.paths.of(channel.tunnel, self.at), frame)
    }

    fn progress_ack(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        slots.progress_ack(frame, &mut sink)
    }

    fn serving(&mut self, place: u32) -> Result<&mut Serving, DropReason> {
        match self.channels.at_mut(place).map(|channel| &mut channel.end) {
            Some(End::Serve(ServeEnd { slots: Some(slots) })) => Ok(slots),
            _ => Err(DropReason::OutOfOrder),
        }
    }

    /// A receipt, for control to judge.
    pub(super) fn receipt_arrived(
        &mut self,
        place: u32,
        side: Side,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let bytes: [u8; RECEIPT_LEN] =
            frame.payload.try_into().map_err(|_| DropReason::BadFrame)?;
        let channel = self.channels.at(place).ok_or(DropReason::UnknownChannel)?;
        let report = Report::Receipt {
            engagement: channel.engagement,
            side,
            receipt: Box::new(bytes),
            totals: channel.totals(),
        };
        self.reporter.report(&self.counters, report);
        Ok(())
    }

    /// TASK: admitted by its slot, then run or handed to the pool.
    fn task(&mut self, now: Time, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        // Matched in place: passed on by `?`, it would be moved through memory twice.
        let admitted = match slots.admit(now, frame, &mut sink) {
            Ok(Some(admitted)) => admitted,
            Ok(None) => return Ok(()),
            Err(reason) => return Err(reason),
        };
        let handler = &self.skills[channel.terms.skill].handler;
        let result_len_max = handler.result_len_max(frame.payload.len());
        if handler.placement() != Placement::Inline || result_len_max > FRAME_PAYLOAD_MAX {
            self.run_long(place, admitted, Payload::InFrame(frame.payload));
            return Ok(());
        }
        let started = self.at;
        if started > admitted.deadline() {
            slots.refuse(admitted, RefusalCode::Late, 0, &mut sink);
            return Ok(());
        }
        let arrived = admitted.arrived();
        let (space, reserved) = match sink.reserve(result_len_max) {
            Some(space) => (&mut space[..result_len_max], true),
            None => (&mut self.scratch[..result_len_max], false),
        };
        let outcome = run_guarded(handler.as_ref(), frame.payload, space);
        self.at = self.clock.glance();
        self.unread = 0;
        let busy_ns = self.at.nanos_since(started);
        let (answered, len) = split(outcome);
        let head = slots.answer(admitted, answered, busy_ns, started, &space[..len]);
        if reserved {
            sink.commit(head, len);
        } else {
            self.counters.drop_send(DropReason::NoSendBuffer, 1);
        }
        self.counters.add(Counter::TasksRun, 1);
        self.record(busy_ns, started.nanos_since(arrived));
        Ok(())
    }

    /// TASK_PART: the last part to arrive brings the task.
    fn task_part(&mut self, now: Time, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let admitted = slots.admit_part(now, frame, &mut sink);
        if slots.has_parts() {
            self.activate(place);
        }
        if let Some((admitted, payload)) = admitted? {
            self.run_long(place, admitted, Payload::Whole(payload));
        }
        Ok(())
    }

    /// A task that goes to the pool or to agents, or whose payload or result is longer than a frame.
    fn run_long(&mut self, place: u32, admitted: Admitted, payload: Payload<'_>) {
        let ticket = self.channels.ticket(place).expect("found by the caller");
        let channel = self.channels.at_mut(place).expect("found by the caller");
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return;
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let handler = &self.skills[channel.terms.skill].handler;
        let result_len_max = handler.result_len_max(payload.bytes().len());
        if result_len_max > TASK_LEN_MAX {
            slots.refuse(admitted, RefusalCode::TooBig, 0, &mut sink);
            return;
        }
        let stock = match handler.placement() {
            Placement::Inline => None,
            Placement::Pool => Some(Stock::Pool),
            Placement::Agents => Some(Stock::Agents),
        };
        if let Some(stock) = stock {
            let Some(mut job) = self.boxes.take(stock) else {
                let full = match stock {
                    Stock::Pool => Counter::PoolFull,
                    Stock::Agents => Counter::AgentsBusy,
                };
                self.counters.add(full, 1);
                slots.refuse(admitted, RefusalCode::Busy, RETRY_AFTER_US, &mut sink);
                return;
            };
            job.channel = ticket;
            job.peer = channel.peer;
            job.admitted = Some(admitted);
            job.result_len_max = result_len_max;
            payload.fill(&mut job.payload);
            let (skill, handler) = (channel.terms.skill, Arc::clone(handler));
            self.leave(job, stock, skill, handler);
            return;
        }
        let started = clock::now();
        if started > admitted.deadline() {
            slots.refuse(admitted, RefusalCode::Late, 0, &mut sink);
            return;
        }
        let arrived = admitted.arrived();
        let mut result = slots.space_for_long(result_len_max);
        let outcome = run_guarded(handler.as_ref(), payload.bytes(), &mut result);
        self.at = self.clock.read();
        self.unread = 0;
        let busy_ns = self.at.nanos_since(started);
        let (answered, len) = split(outcome);
        result.truncate(len);
        slots.answer_long(admitted, answered, busy_ns, started, result, &mut sink);
        self.counters.add(Counter::TasksRun, 1);
        self.record(busy_ns, started.nanos_since(arrived));
        self.activate(place);
    }

    /// A filled box leaves for the pool, or for the agents of a skill.
    fn leave(
        &mut self,
        mut job: Box<TaskBox>,
        stock: Stock,
        skill: usize,
        handler: Arc<dyn Handler>,
    ) {
        match stock {
            Stock::Pool => {
                self.counters.add(Counter::PoolTasks, 1);
                job.handler = Some(handler);
                // The pool's queue holds every box there is.
                let sent = self.pool.as_ref().map(|pool| pool.try_send(job).is_ok());
                debug_assert_eq!(sent, Some(true), "more boxes than the pool's queue holds");
            }
            Stock::Agents => match handler.hand_over(job) {
                Ok(()) => {
                    self.counters.add(Counter::AgentTasks, 1);
                    if !self.handed.contains(&skill) {
                        self.handed.push(skill);
                    }
                }
                Err((mut job, code, retry_after_us)) => {
                    self.counters.add(Counter::AgentsBusy, 1);
                    job.ended = Ended::Refused(code, retry_after_us);
                    self.finished(job);
                }
            },
        }
    }

    /// Wakes the agents' engines that were handed tasks since this was last called: once for many
    /// tasks, since each waking is a system call.
    pub(super) fn wake_agents(&mut self) {
        while let Some(skill) = self.handed.pop() {
            self.skills[skill].handler.wake_agents();
        }
    }

    /// A piece of progress comes from the pool or an agent.
    pub(super) fn piece(&mut self, piece: &Piece) {
        let Some(channel) = self.channels.redeem(piece.channel) else {
            return;
        };
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return;
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        slots.progress(piece.task, &piece.bytes, &mut sink);
    }

    /// A task comes back from the pool or from agents.
    pub(super) fn finished(&mut self, mut job: Box<TaskBox>) {
        if let Some(admitted) = job.admitted.take() {
            self.answer_box(admitted, &mut job);
        }
        self.boxes.put(job);
    }

    fn answer_box(&mut self, admitted: Admitted, job: &mut TaskBox) {
        let Some(channel) = self.channels.redeem(job.channel) else {
            return;
        };
        let End::Serve(ServeEnd { slots: Some(slots) }) = &mut channel.end else {
            return;
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let (arrived, started) = (admitted.arrived(), job.started);
        let outcome = match job.ended {
            Ended::Ran(outcome) => outcome,
            Ended::Refused(code, retry_after_us) => {
                slots.refuse(admitted, code, retry_after_us, &mut sink);
                return;
            }
        };
        let (answered, len) = split(outcome);
        if len > FRAME_PAYLOAD_MAX {
            let mut result = std::mem::take(&mut job.result);
            result.truncate(len);
            slots.answer_long(admitted, answered, job.busy_ns, started, result, &mut sink);
            self.activate(job.channel.0);
        } else {
            let result = &job.result[..len];
            let head = slots.answer(admitted, answered, job.busy_ns, started, result);
            if !sink.send(head, result) {
                self.counters.drop_send(DropReason::NoSendBuffer, 1);
            }
        }
        self.counters.add(Counter::TasksRun, 1);
        self.record(job.busy_ns, started.nanos_since(arrived));
    }

    fn record(&mut self, busy_ns: u64, staged_ns: u64) {
        self.histograms.handler.saturating_record(busy_ns);
        self.histograms.staged.saturating_record(staged_ns);
    }

    /// Tasks that run or wait on all channels that we serve.
    pub(super) fn running(&self) -> usize {
        let slots =
            self.channels
                .places()
                .filter_map(|place| match &self.channels.at(place)?.end {
                    End::Serve(ServeEnd { slots: Some(slots) }) => Some(slots.running()),
                    _ => None,
                });
        slots.map(|running| running as usize).sum()
    }
}

/// What a handler's outcome means for its slot, and how long the answer is.
fn split(outcome: Outcome) -> (Answered, usize) {
    match outcome {
        Outcome::Done(len) => (Answered::Done, len),
        Outcome::Failed(len) => (Answered::Failed, len),
    }
}

/// A payload that still lies in its datagram, or one that was put together from parts.
enum Payload<'a> {
    InFrame(&'a [u8]),
    Whole(Vec<u8>),
}

impl Payload<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::InFrame(bytes) => bytes,
            Payload::Whole(bytes) => bytes,
        }
    }

    /// Puts it into a job box: the one copy on the way to the pool, or none.
    fn fill(self, space: &mut Vec<u8>) {
        match self {
            Payload::InFrame(bytes) => {
                space.clear();
                space.extend_from_slice(bytes);
            }
            Payload::Whole(bytes) => *space = bytes,
        }
    }
}
