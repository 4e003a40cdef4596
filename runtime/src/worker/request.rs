//! The requester's end of the channels on this worker: opening them, feeding tasks from their jobs,
//! taking answers.

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::engagement::requesting::{Progressed, Requesting};
use ramjet_proto::fault::DropReason;
use ramjet_proto::frame::kind::{CloseReason, Kind};
use ramjet_proto::frame::{Frame, Head};
use ramjet_proto::ids::{EngagementId, NodeId};
use ramjet_proto::market::{RECEIPT_LEN, SignedReceipt};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;
use ramjet_proto::wire::limits::SLOTS_PER_CHANNEL_MAX;

use super::channels::{End, PendingReceipt, RequestEnd, RequestState, channel};
use super::counters::Counter;
use super::rooms::{Rooms, sink};
use super::timers::{PING_EVERY, REPORT_EVERY};
use crate::control::vocabulary::{ChannelTerms, Report, Side};
use crate::job::Job;

impl Rooms {
    /// Control wants an engagement: the channel opens as soon as the tunnel is up.
    pub(super) fn engage(
        &mut self,
        now: Time,
        peer: NodeId,
        tunnel: Option<TunnelHandle>,
        terms: ChannelTerms,
        grant: Box<[u8]>,
        mut job: Box<dyn Job>,
    ) {
        let number = tunnel.and_then(|tunnel| Some((tunnel, self.channels.free_number(tunnel)?)));
        let engagement = terms.engagement;
        let refused = |job| Report::Closed {
            engagement,
            side: Side::Requester,
            reason: CloseReason::Full,
            totals: Default::default(),
            job: Some(job),
        };
        let Some((tunnel, number)) = number else {
            self.reporter.report(&self.counters, refused(job));
            return;
        };
        if self
            .channels
            .of_engagement(engagement, Side::Requester)
            .is_some()
        {
            self.reporter.report(&self.counters, refused(job));
            return;
        }
        job.attach(self.job_waker.clone());
        let end = End::Request(RequestEnd {
            state: RequestState::Opening,
            grant,
            job: Some(job),
            slots: None,
            handshake_due: now,
            handshakes: 0,
            receipt: None,
            receipts_cover: 0,
            unsigned_max: terms.unsigned_max,
            first_result_told: false,
        });
        let channel = channel(terms, peer, tunnel, number, end, now);
        if let Some(place) = self.channels.insert(channel) {
            self.channels.wake(place, now);
        } else {
            // The table is full; the job went with the channel, so control hears without it.
            let report = Report::Closed {
                engagement,
                side: Side::Requester,
                reason: CloseReason::Full,
                totals: Default::default(),
                job: None,
            };
            self.reporter.report(&self.counters, report);
        }
    }

    /// A frame for a channel of ours.
    pub(super) fn request(
        &mut self,
        now: Time,
        place: u32,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        match frame.kind {
            Kind::Result
            | Kind::ResultPart
            | Kind::Failed
            | Kind::Refused
            | Kind::Working
            | Kind::Progress
            | Kind::PartAck => self.answer(place, frame),
            Kind::Opened => self.opened(now, place, frame),
            Kind::Countersigned => self.countersigned(place, frame),
            _ => Err(DropReason::UnknownFrame),
        }
    }

    fn opened(&mut self, now: Time, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Request(end) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        if end.state != RequestState::Opening {
            return Err(DropReason::Duplicate);
        }
        let unsigned: [u8; 8] = frame.payload.try_into().map_err(|_| DropReason::BadFrame)?;
        let credits = frame.auxiliary.min(channel.terms.credits);
        if credits == 0 || credits as usize > SLOTS_PER_CHANNEL_MAX {
            return Err(DropReason::BadFrame);
        }
        end.unsigned_max = u64::from_be_bytes(unsigned).min(end.unsigned_max).max(1);
        end.state = RequestState::Open;
        end.handshake_due = now + PING_EVERY;
        end.slots = Some(Requesting::new(
            channel.channel,
            credits,
            channel.terms.tasks,
            now,
        ));
        channel.report_due = now + REPORT_EVERY;
        self.outbox.path(channel.tunnel).begin(now);
        let report = Report::Opened {
            engagement: channel.engagement,
            credits,
        };
        self.reporter.report(&self.counters, report);
        self.channels.wake(place, now);
        self.activate(place);
        Ok(())
    }

    fn answer(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Request(end) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        let (Some(slots), Some(job)) = (&mut end.slots, &mut end.job) else {
            return Err(DropReason::Duplicate);
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let path = self.paths.of(channel.tunnel, self.at);
        let progressed = slots.answer(self.at, path, frame, &mut sink, job.as_mut())?;
        let due = slots.next_timeout();
        if let Progressed::Answered(round_trip_ns) = progressed {
            self.counters.add(Counter::AnswersReceived, 1);
            self.histograms.round_trip.saturating_record(round_trip_ns);
            if !end.first_result_told {
                end.first_result_told = true;
                let report = Report::FirstResult {
                    engagement: channel.engagement,
                };
                self.reporter.report(&self.counters, report);
            }
        }
        self.channels.wake(place, due);
        Ok(())
    }

    /// The newest receipt came back with both signatures: it need not be sent again.
    fn countersigned(&mut self, place: u32, frame: &Frame<'_>) -> Result<(), DropReason> {
        let signed = SignedReceipt::decode(frame.payload).map_err(|_| DropReason::BadFrame)?;
        let channel = self
            .channels
            .at_mut(place)
            .ok_or(DropReason::UnknownChannel)?;
        let End::Request(end) = &mut channel.end else {
            return Err(DropReason::OutOfOrder);
        };
        let ours = end
            .receipt
            .as_ref()
            .and_then(|pending| SignedReceipt::decode(&pending.bytes[..]).ok());
        if ours.is_some_and(|ours| ours.receipt == signed.receipt) {
            end.receipt = None;
        }
        self.receipt_arrived(place, Side::Requester, frame)
    }

    /// Control signed a receipt.
    pub(super) fn send_receipt(
        &mut self,
        now: Time,
        engagement: EngagementId,
        bytes: Box<[u8; RECEIPT_LEN]>,
    ) {
        let Some(place) = self.channels.of_engagement(engagement, Side::Requester) else {
            return;
        };
        let Some(channel) = self.channels.at_mut(place) else {
            return;
        };
        if let End::Request(end) = &mut channel.end {
            end.receipt = Some(PendingReceipt {
                bytes,
                due: now,
                sends: 0,
            });
            self.channels.wake(place, now);
        }
    }

    /// Control countersigned a receipt of a channel that we serve.
    pub(super) fn send_countersigned(
        &mut self,
        engagement: EngagementId,
        bytes: &[u8; RECEIPT_LEN],
        covered: u64,
    ) {
        let Some(place) = self.channels.of_engagement(engagement, Side::Worker) else {
            return;
        };
        let Some(channel) = self.channels.at_mut(place) else {
            return;
        };
        if let End::Serve(end) = &mut channel.end
            && let Some(slots) = &mut end.slots
        {
            slots.cover(covered);
        }
        let head = Head::channel(Kind::Countersigned, channel.channel, 0);
        sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        )
        .send(head, bytes);
    }
}
