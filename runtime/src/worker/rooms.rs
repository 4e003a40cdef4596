//! Rooms 4 to 8, and what they share: the channels, the outbox, the counters.
//!
//! A packet that the tunnel opened comes in; frames go to the end they concern ([`super::serve`],
//! [`super::request`]); what they answer gathers in the outbox until the turn's flush. A frame that
//! cannot be used is counted by its reason and never ends the batch.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::Sender;
use ramjet_proto::engagement::FrameSink;
use ramjet_proto::fault::DropReason;
use ramjet_proto::frame::kind::{CloseReason, FROM_WORKER, Kind};
use ramjet_proto::frame::path::CONFIRM_EVERY;
use ramjet_proto::frame::{Frame, Head, TASK_PORT, TRAIN_MAGIC, Train};
use ramjet_proto::ids::{ChannelId, NodeId};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{Opened, TunnelHandle};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::FRAME_HEADER_LEN;

use super::arena::SendArena;
use super::boxes::{Boxes, TaskBox};
use super::channels::{Channels, End, ServeEnd};
use super::clock::Stopwatch;
use super::counters::{Counter, Counters};
use super::mailbox::ReportSender;
use super::outbox::{Outbox, Packing, TunnelSink};
use super::paths::Paths;
use super::pump::Active;
use super::streams::StreamRoom;
use super::timers::REPORT_EVERY;
use crate::control::vocabulary::{Report, Side};
use crate::handler::Skill;
use crate::latency::Histograms;

/// Reports that wait when control's queue is full. Above it, repeatable ones are dropped.
const BACKLOG_MAX: usize = 65_536;

/// Bytes opened between two looks at the clock: some microseconds of work.
const CLOCK_EVERY_LEN: usize = 2_048;

/// The way to control, which may be busy.
pub struct Reporter {
    sender: ReportSender,
    backlog: VecDeque<Report>,
}

impl Reporter {
    /// Nothing waits.
    pub fn new(sender: ReportSender) -> Self {
        Reporter {
            sender,
            backlog: VecDeque::new(),
        }
    }

    /// Reports now, or as soon as control has room: in order, never blocking.
    pub fn report(&mut self, counters: &Counters, report: Report) {
        self.retry();
        let refused = if self.backlog.is_empty() {
            match report {
                // Only whoever looks at the status wants it; thousands of engagements that each
                // wake control five times a second would keep it from everything else.
                Report::Progress {
                    receipt_due: false, ..
                } => self.sender.leave(report).err(),
                _ => self.sender.push(report).err(),
            }
        } else {
            Some(report)
        };
        let Some(report) = refused else { return };
        // A peer repeats what it wants, and progress is told again; the rest must not be lost.
        let repeatable = matches!(
            report,
            Report::PeerWanted { .. }
                | Report::Progress {
                    receipt_due: false,
                    ..
                }
                | Report::Receipt {
                    side: Side::Worker,
                    ..
                }
        );
        if repeatable || self.backlog.len() >= BACKLOG_MAX {
            counters.drop_send(DropReason::ControlBusy, 1);
        } else {
            counters.add(Counter::ReportsDeferred, 1);
            self.backlog.push_back(report);
        }
    }

    /// Whether reports wait because control is busy.
    pub fn is_backed_up(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Hands over what waits, as far as there is room.
    pub fn retry(&mut self) {
        while let Some(report) = self.backlog.pop_front() {
            if let Err(report) = self.sender.push(report) {
                self.backlog.push_front(report);
                return;
            }
        }
    }
}

/// What rooms 4 to 8 work with.
pub struct Rooms {
    /// The engagements.
    pub channels: Channels,
    /// What goes out at the end of the turn.
    pub outbox: Outbox,
    /// Where it lies.
    pub send: SendArena,
    /// What this node can do.
    pub skills: Arc<[Skill]>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// How long it took.
    pub histograms: Box<Histograms>,
    /// The way to control.
    pub reporter: Reporter,
    /// The way to the pool.
    pub pool: Option<Sender<Box<TaskBox>>>,
    /// Job boxes.
    pub boxes: Boxes,
    /// Skills whose agents have been handed tasks since they were last woken.
    pub handed: Vec<usize>,
    /// What each tunnel's path may carry.
    pub paths: Paths,
    /// Channels with something to send each turn.
    pub active: Active,
    /// When the pace lets parts go that it held back in the last turn.
    pub pacing_due: Time,
    /// Pilot streams and datagrams.
    pub streams: StreamRoom,
    /// Where a result is made when no send buffer is free: it is kept, and sent when asked again.
    pub scratch: Box<[u8]>,
    /// What bounds the packing of frames.
    pub packing: Packing,
    /// Whether control said to drain, and has been told that nothing runs.
    pub draining: Option<bool>,
    /// Whether a job has to be asked again before long, as of the last pump.
    pub polling: bool,
    /// What a job rings.
    pub job_waker: std::task::Waker,
    /// Tasks of ours that are out, as of the last pump.
    pub outstanding: usize,
    /// Bytes of the last packet's payload for each of its frames.
    pub frame_len: usize,
    /// The clock as it was last read: when a batch begins, every [`CLOCK_EVERY_LEN`] bytes of it, and
    /// when an inline task ends, which is when the next starts.
    pub at: Time,
    /// What it is read with.
    pub clock: Stopwatch,
    /// Bytes opened since.
    pub unread: usize,
}

/// A place for frames to one tunnel, from the fields it needs, so that the channel can be borrowed
/// beside it.
pub fn sink<'a>(
    outbox: &'a mut Outbox,
    send: &'a mut SendArena,
    tunnel: TunnelHandle,
    packing: Packing,
) -> TunnelSink<'a> {
    outbox.sink(send, tunnel, packing)
}

impl Rooms {
    /// Reads the clock.
    pub fn read_clock(&mut self) {
        self.at = self.clock.read();
        self.unread = 0;
    }

    /// Room 4: the frames of one packet, in order. `now` is when its batch arrived.
    pub fn packet(&mut self, now: Time, opened: &Opened<'_>) {
        let header = &opened.header;
        let frames = match header.protocol {
            Protocol::Datagram => {
                // A plain agent's datagram to the same port is for whoever has bound it.
                header.destination.port == TASK_PORT
                    && (opened.payload.starts_with(&TRAIN_MAGIC)
                        || !self.streams.is_bound(TASK_PORT))
            }
            Protocol::Stream | Protocol::Control => false,
        };
        if !frames {
            let used = match header.protocol {
                Protocol::Stream => self.stream_packet(now, opened),
                Protocol::Datagram => self.datagram_packet(opened),
                Protocol::Control => Err(DropReason::UnservedPort),
            };
            match used {
                Ok(()) => self.counters.add(Counter::DatagramsDelivered, 1),
                Err(reason) => self.counters.drop_datagram(reason),
            }
            return;
        }
        let payload_len = opened.payload.len();
        let train = match Train::open(opened.payload) {
            Ok(train) => train,
            Err(reason) => {
                self.counters.drop_datagram(reason);
                return;
            }
        };
        self.counters.add(Counter::DatagramsDelivered, 1);
        let mut frames = 0;
        for frame in train {
            frames += 1;
            if self.unread >= CLOCK_EVERY_LEN {
                self.read_clock();
            }
            if let Ok(frame) = &frame {
                self.unread += FRAME_HEADER_LEN + frame.payload.len();
            }
            let used = frame.and_then(|frame| self.frame(now, opened.tunnel, opened.peer, &frame));
            if let Err(reason) = used {
                self.counters.drop_frame(reason);
                if reason == DropReason::Duplicate {
                    // The other end repeats what it had no answer to: one of both was lost.
                    self.suspect_path(opened.tunnel);
                }
            }
        }
        if let Some(mean) = payload_len.checked_div(frames) {
            self.frame_len = mean;
        }
        self.counters.add(Counter::FramesReceived, frames as u64);
    }

    fn frame(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        peer: NodeId,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let side = match frame.kind {
            Kind::Open => return self.open(now, tunnel, peer, frame),
            Kind::Probe => {
                self.tell(
                    tunnel,
                    ChannelId(0),
                    Kind::ProbeAck,
                    Side::Requester,
                    frame.auxiliary,
                );
                return Ok(());
            }
            Kind::ProbeAck => {
                let path = self.outbox.path(tunnel);
                path.acknowledged(self.at, frame.auxiliary)?;
                let due = path.due();
                self.channels.wake_tunnel(tunnel, due);
                return Ok(());
            }
            Kind::Task
            | Kind::TaskPart
            | Kind::ProgressAck
            | Kind::Cancel
            | Kind::Verdict
            | Kind::Receipt => Side::Worker,
            Kind::Opened
            | Kind::Result
            | Kind::ResultPart
            | Kind::Failed
            | Kind::Refused
            | Kind::Working
            | Kind::Progress
            | Kind::Countersigned => Side::Requester,
            Kind::Close | Kind::Closed | Kind::PartAck | Kind::Ping | Kind::Pong => {
                if frame.flags & FROM_WORKER == 0 {
                    Side::Worker
                } else {
                    Side::Requester
                }
            }
        };
        let Some(place) = self.channels.find(tunnel, side, frame.channel) else {
            self.answer_stranger(tunnel, side, frame);
            return Err(DropReason::UnknownChannel);
        };
        if let Some(channel) = self.channels.at_mut(place) {
            channel.last_heard = now;
            if channel.report_due == Time::NEVER {
                // At rest until now: control hears of what comes.
                channel.report_due = now + REPORT_EVERY;
                self.channels.wake(place, now + REPORT_EVERY);
            }
        }
        match frame.kind {
            Kind::Close => self.closed_by_peer(place, frame),
            Kind::Closed => self.close_confirmed(place, frame),
            Kind::Ping => {
                self.answer_ping(place);
                Ok(())
            }
            Kind::Pong => Ok(()),
            _ if side == Side::Worker => self.serve(now, place, frame),
            _ => self.request(now, place, frame),
        }
    }

    /// A frame for a channel that is not here: one end was restarted, or the channel has just
    /// closed. A CLOSE is confirmed again; a task or a ping is told that nobody serves it.
    fn answer_stranger(&mut self, tunnel: TunnelHandle, side: Side, frame: &Frame<'_>) {
        let kind = match frame.kind {
            Kind::Close => Kind::Closed,
            Kind::Task | Kind::TaskPart | Kind::Ping | Kind::Receipt if side == Side::Worker => {
                Kind::Close
            }
            _ => return,
        };
        let reason = if kind == Kind::Close {
            CloseReason::Lost as u32
        } else {
            frame.auxiliary
        };
        self.tell(tunnel, frame.channel, kind, side, reason);
    }

    /// A frame about a whole channel, from the given side of it.
    pub fn tell(
        &mut self,
        tunnel: TunnelHandle,
        channel: ChannelId,
        kind: Kind,
        side: Side,
        auxiliary: u32,
    ) -> bool {
        let flags = if side == Side::Worker { FROM_WORKER } else { 0 };
        let head = Head::channel(kind, channel, auxiliary).with_flags(flags);
        sink(&mut self.outbox, &mut self.send, tunnel, self.packing).send(head, &[])
    }

    /// Something had to be repeated in a tunnel: its path is asked again.
    pub(super) fn suspect_path(&mut self, tunnel: TunnelHandle) {
        let path = self.outbox.path(tunnel);
        path.suspect();
        let due = path.due();
        self.channels.wake_tunnel(tunnel, due);
    }

    /// Asks the path of a tunnel, when that is due; when to ask again. A channel that is silent asks
    /// nothing.
    pub fn search_path(&mut self, now: Time, tunnel: TunnelHandle, last_heard: Time) -> Time {
        let path = self.outbox.path(tunnel);
        if now < path.due() {
            return path.due();
        }
        if now.since(last_heard) >= CONFIRM_EVERY {
            return now + CONFIRM_EVERY;
        }
        let probe = path.next_probe(now);
        let due = path.due();
        if let Some(length) = probe {
            self.counters.add(Counter::PathProbes, 1);
            self.outbox.probe(&mut self.send, tunnel, length);
        }
        due
    }

    fn answer_ping(&mut self, place: u32) {
        if let Some(channel) = self.channels.at(place) {
            let (tunnel, number, side) = (channel.tunnel, channel.channel, channel.side());
            self.tell(tunnel, number, Kind::Pong, side, 0);
        }
    }

    /// The other end says CLOSE.
    fn closed_by_peer(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let reason = CloseReason::from_wire(frame.auxiliary);
        let channel = self.channels.at(place).ok_or(DropReason::UnknownChannel)?;
        let (tunnel, number, side) = (channel.tunnel, channel.channel, channel.side());
        self.tell(tunnel, number, Kind::Closed, side, frame.auxiliary);
        self.end(place, reason);
        Ok(())
    }

    /// The other end confirms our CLOSE.
    fn close_confirmed(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        use super::channels::RequestState;
        let channel = self.channels.at(place).ok_or(DropReason::UnknownChannel)?;
        match &channel.end {
            End::Request(end) => match end.state {
                RequestState::Closing(reason) => {
                    self.end(place, reason);
                    Ok(())
                }
                _ => Err(DropReason::OutOfOrder),
            },
            End::Serve(_) => {
                self.end(place, CloseReason::from_wire(frame.auxiliary));
                Ok(())
            }
        }
    }

    /// Takes a channel out and tells control; a job that is still here gets its last answers.
    pub fn end(&mut self, place: u32, reason: CloseReason) {
        let Some(mut channel) = self.channels.remove(place) else {
            return;
        };
        let side = channel.side();
        let path = self.paths.of(channel.tunnel, channel.last_heard);
        let job = match &mut channel.end {
            End::Request(end) => {
                if let (Some(slots), Some(job)) = (&mut end.slots, &mut end.job) {
                    let refused = match reason {
                        CloseReason::Cancelled | CloseReason::Finished => {
                            crate::job::Refused::Cancelled
                        }
                        CloseReason::Draining => crate::job::Refused::Draining,
                        CloseReason::Expired => crate::job::Refused::GrantEnded,
                        _ => crate::job::Refused::Lost,
                    };
                    slots.abandon(channel.last_heard, path, refused, job.as_mut());
                }
                end.job.take()
            }
            // Never admitted: the engagement is a stranger's claim, and control knows of none.
            End::Serve(ServeEnd { slots: None }) => return,
            End::Serve(ServeEnd { slots: Some(slots) }) => {
                slots.release(path);
                None
            }
        };
        let report = Report::Closed {
            engagement: channel.engagement,
            side,
            reason,
            totals: channel.totals(),
            job,
        };
        self.reporter.report(&self.counters, report);
    }
}
