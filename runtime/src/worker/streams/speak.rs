//! What sessions send, and what control is told of them.

use ramjet_proto::ids::NodeId;
use ramjet_proto::stream::session::Spoken;
use ramjet_proto::stream::{Event, State, Ticket};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;

use super::{LOOK_AGAIN, QUOTA, SENT_STEP, STREAMS_PER_TURN, Service};
use crate::control::vocabulary::{DatagramFault, DialFault, Report, StreamEnd, StreamReport};
use crate::worker::counters::Counter;
use crate::worker::outbox::StreamSink;
use crate::worker::rooms::Rooms;

/// What became of bytes that had arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handed {
    /// There were none, or not for now.
    Nothing,
    /// They are with whom they are for.
    Over,
    /// Control is busy.
    Waits,
}

impl Rooms {
    /// Lets every stream with something to do do it; whether anything came of it that does not show
    /// in the outbox.
    pub(in crate::worker) fn pump_streams(&mut self, now: Time) -> bool {
        while let Some(ticket) = self.streams.held.pop() {
            self.streams.activate(ticket);
        }
        let mut worked = false;
        for _ in 0..self.streams.active.len() {
            let Some(ticket) = self.streams.active.pop_front() else {
                break;
            };
            if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
                tenant.own.active = false;
                worked |= self.pump_stream(now, ticket);
            }
        }
        worked
    }

    /// Whether anything was handed over, or waits for room.
    fn pump_stream(&mut self, now: Time, ticket: Ticket) -> bool {
        let handed = self.hand_over(ticket);
        let spoken = self.let_speak(now, ticket);
        self.tell_events(now, ticket);
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return true;
        };
        if tenant.session.is_over() {
            self.return_line(ticket);
            self.streams.remove(ticket);
            return true;
        }
        let mut due = tenant.session.next_timeout();
        if handed == Handed::Waits {
            due = due.min(now + LOOK_AGAIN);
        }
        if tenant.session.state() == State::TimeWait
            && !std::mem::replace(&mut tenant.own.remembered, true)
        {
            self.streams.table.remember(ticket);
        }
        self.streams.deadlines.set(ticket.place, due);
        match spoken {
            Spoken::All => {}
            Spoken::Partly => self.streams.activate(ticket),
            Spoken::Held => self.streams.held.push(ticket),
        }
        handed == Handed::Over || spoken == Spoken::Partly
    }

    /// Gives what arrived to whom it is for.
    fn hand_over(&mut self, ticket: Ticket) -> Handed {
        let stream = self.streams.id(ticket);
        let allowance = self.streams.table.allowance();
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return Handed::Nothing;
        };
        let session = &mut tenant.session;
        if !session.has_inbound() {
            return Handed::Nothing;
        }
        if tenant.own.line.is_some() {
            self.tell_line(ticket);
            return Handed::Over;
        }
        match tenant.own.service {
            // Its own acknowledgments bring it back here.
            Service::Echo if session.unsent() >= allowance => return Handed::Nothing,
            Service::Echo => {
                let bytes = session.take_inbound();
                session.consumed(bytes.len());
                self.counters
                    .add(Counter::StreamBytesReceived, bytes.len() as u64);
                session.write(bytes);
            }
            Service::Control if self.reporter.is_backed_up() => return Handed::Waits,
            Service::Control => {
                let bytes = session.take_inbound();
                self.counters
                    .add(Counter::StreamBytesReceived, bytes.len() as u64);
                tenant.own.told += 1;
                let report = StreamReport::Data { stream, bytes };
                self.reporter.report(&self.counters, Report::Stream(report));
            }
            Service::Dial(_) => return Handed::Nothing,
            Service::Nobody => {
                let len = session.take_inbound().len();
                session.consumed(len);
            }
        }
        Handed::Over
    }

    fn let_speak(&mut self, now: Time, ticket: Ticket) -> Spoken {
        let stream = self.streams.id(ticket);
        let allowance = self.streams.table.allowance();
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return Spoken::All;
        };
        let (session, tunnel) = (&mut tenant.session, tenant.own.tunnel);
        session.allow(allowance);
        let len_max = self.outbox.segment_len_max(tunnel);
        let mut sink = StreamSink {
            outbox: &mut self.outbox,
            send: &mut self.send,
            tunnel,
            packing: self.packing,
            ports: (tenant.key.local_port, tenant.key.remote_port),
        };
        let path = self.paths.of(tunnel, now);
        let before = session.sent();
        let mut quota = QUOTA;
        let spoken = session.transmit(now, path, len_max, &mut quota, &mut sink);
        let sent = session.sent();
        self.counters
            .add(Counter::StreamBytesSent, (sent - before) as u64);
        if sent >= SENT_STEP {
            let len = session.take_sent();
            let len = tenant.own.bill(len);
            if tenant.own.service == Service::Control && len > 0 {
                let report = StreamReport::Sent { stream, len };
                self.reporter.report(&self.counters, Report::Stream(report));
            }
        }
        let ramjet = !session.is_foreign();
        let repeats = session.repeats();
        let repeated = std::mem::replace(&mut tenant.own.repeats, repeats) < repeats;
        if ramjet {
            if repeated {
                self.suspect_path(tunnel);
            }
            self.search_path(now, tunnel, now);
        }
        spoken
    }

    fn tell_events(&mut self, now: Time, ticket: Ticket) {
        while let Some(tenant) = self.streams.table.tenant_mut(ticket)
            && let Some(event) = tenant.session.take_event()
        {
            let (service, tunnel) = (tenant.own.service, tenant.own.tunnel);
            let (local_port, foreign) = (tenant.key.local_port, tenant.session.is_foreign());
            let stream = self.streams.id(ticket);
            let report = match (service, event) {
                (Service::Dial(dial), Event::Connected) => {
                    if !foreign {
                        self.outbox.path(tunnel).begin(now);
                    }
                    self.counters.add(Counter::StreamsDialed, 1);
                    self.set_service(ticket, Service::Control);
                    // What came with the answer is handed over next.
                    self.streams.activate(ticket);
                    StreamReport::Dialed {
                        dial,
                        stream,
                        local_port,
                    }
                }
                (Service::Dial(dial), event) => {
                    self.set_service(ticket, Service::Nobody);
                    let fault = match event {
                        Event::TimedOut => DialFault::TimedOut,
                        _ => DialFault::Refused,
                    };
                    StreamReport::DialFailed { dial, fault }
                }
                (Service::Control, event) => {
                    self.return_line(ticket);
                    self.set_service(ticket, Service::Nobody);
                    let end = match event {
                        Event::Connected => continue,
                        Event::Finished => StreamEnd::Finished,
                        Event::Closed => StreamEnd::Closed,
                        Event::Cut => StreamEnd::Cut,
                        Event::Refused | Event::Reset => StreamEnd::Reset,
                        Event::TimedOut => StreamEnd::TimedOut,
                    };
                    StreamReport::Ended { stream, end }
                }
                (Service::Echo | Service::Nobody, _) => continue,
            };
            self.reporter.report(&self.counters, Report::Stream(report));
        }
    }

    fn set_service(&mut self, ticket: Ticket, service: Service) {
        if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
            let before = std::mem::replace(&mut tenant.own.service, service);
            if let Service::Dial(dial) = before {
                self.streams.dials.remove(&dial);
            }
        }
    }

    /// Ends a stream for a reason that is not its session's, and tells control.
    pub(super) fn end_stream(&mut self, now: Time, ticket: Ticket, end: StreamEnd) {
        self.return_line(ticket);
        let stream = self.streams.id(ticket);
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return;
        };
        let path = self.paths.of(tenant.own.tunnel, now);
        tenant.session.vanish(path);
        let report = match tenant.own.service {
            Service::Control => Some(StreamReport::Ended { stream, end }),
            Service::Dial(dial) => Some(StreamReport::DialFailed {
                dial,
                fault: DialFault::Unreachable,
            }),
            Service::Echo | Service::Nobody => None,
        };
        self.streams.remove(ticket);
        if let Some(report) = report {
            self.reporter.report(&self.counters, Report::Stream(report));
        }
    }

    /// Runs what is due on every stream.
    pub(in crate::worker) fn run_stream_timers(&mut self, now: Time) {
        let mut any = false;
        for _ in 0..STREAMS_PER_TURN {
            let Some(place) = self.streams.deadlines.pop_due(now) else {
                break;
            };
            let Some(ticket) = self.streams.table.at(place) else {
                continue;
            };
            if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
                let path = self.paths.of(tenant.own.tunnel, now);
                tenant.session.handle_timeout(now, path);
                any = true;
            }
            self.streams.activate(ticket);
        }
        if any {
            self.pump_streams(now);
        }
    }

    /// A tunnel is up: dials of its peer go on, and so do datagrams that waited.
    pub(in crate::worker) fn streams_established(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        peer: NodeId,
    ) {
        for ticket in self.streams_of(peer) {
            if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
                tenant.own.tunnel = tunnel;
                tenant.session.begin(now);
                if !tenant.session.is_foreign() {
                    self.outbox.path(tunnel).begin(now);
                }
            }
            self.streams.activate(ticket);
        }
        for waiting in self.streams.waiting.remove(&peer).unwrap_or_default() {
            let fault = self.send_datagram(tunnel, &waiting);
            self.tell_datagram(waiting.token, fault);
        }
        // This comes after the turn's pump.
        self.pump_streams(now);
    }

    /// The tunnel to a peer could not be established, or was given up.
    pub(in crate::worker) fn streams_lost(&mut self, now: Time, peer: NodeId) {
        for ticket in self.streams_of(peer) {
            self.end_stream(now, ticket, StreamEnd::Lost);
        }
        for waiting in self.streams.waiting.remove(&peer).unwrap_or_default() {
            self.tell_datagram(waiting.token, Some(DatagramFault::NoRoute));
        }
    }

    fn streams_of(&self, peer: NodeId) -> Vec<Ticket> {
        let streams = self.streams.table.iter();
        streams
            .filter(|(_, tenant)| tenant.key.peer == peer)
            .map(|(ticket, _)| ticket)
            .collect()
    }

    pub(super) fn tell_datagram(&mut self, token: u64, fault: Option<DatagramFault>) {
        let report = StreamReport::DatagramSent { token, fault };
        self.reporter.report(&self.counters, Report::Stream(report));
    }
}
