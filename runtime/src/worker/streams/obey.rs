//! What control asks of streams and datagrams.

use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::stream::{Key, Session, State, Ticket};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{OutgoingPacket, TunnelHandle, Tunnels};
use ramjet_proto::wire::header::Protocol;

use super::arrive::draw;
use super::{Own, Service, WAITING_MAX, WAITING_PEERS_MAX, WaitingDatagram, ticket};
use crate::control::vocabulary::{
    ConnectionRow, DatagramFault, DialFault, PeerRow, Report, StreamCommand, StreamId, StreamReport,
};
use crate::worker::io::Io;
use crate::worker::rooms::Rooms;
use crate::worker::turn::{Worker, entropy};

impl<B: Io> Worker<B> {
    /// What control asks of streams and datagrams.
    pub(in crate::worker) fn stream_command(&mut self, now: Time, command: StreamCommand) {
        let rooms = &mut self.rooms;
        match command {
            StreamCommand::Listen { port } => {
                rooms.streams.listening.insert(port);
            }
            StreamCommand::Unlisten { port } => {
                rooms.streams.listening.remove(&port);
            }
            StreamCommand::Bind { port } => {
                rooms.streams.bound.insert(port);
            }
            StreamCommand::Unbind { port } => {
                rooms.streams.bound.remove(&port);
            }
            StreamCommand::Admit(reach) => rooms.streams.reach = reach,
            StreamCommand::Dial {
                dial,
                peer,
                port,
                limit,
            } => {
                if let Err(fault) = self.dial(now, dial, peer, port, limit) {
                    let report = StreamReport::DialFailed { dial, fault };
                    self.rooms
                        .reporter
                        .report(&self.rooms.counters, Report::Stream(report));
                }
            }
            StreamCommand::CancelDial { dial, .. } => {
                if let Some(ticket) = rooms.streams.dials.remove(&dial) {
                    rooms.reset_stream(now, ticket);
                }
            }
            StreamCommand::Write { stream, bytes } => {
                rooms.with_stream(stream, |tenant| tenant.session.write(bytes));
            }
            StreamCommand::Consumed { stream, len } => {
                rooms.with_stream(stream, |tenant| tenant.session.consumed(len));
            }
            StreamCommand::Lend { stream, line } => self.take_line(stream, line),
            StreamCommand::Recall { stream } => rooms.return_line(ticket(stream)),
            StreamCommand::Close { stream } => rooms.close_stream(now, ticket(stream)),
            StreamCommand::Reset { stream } => rooms.reset_stream(now, ticket(stream)),
            StreamCommand::SendDatagram {
                token,
                peer,
                source_port,
                port,
                bytes,
            } => {
                let datagram = WaitingDatagram {
                    token,
                    source_port,
                    port,
                    bytes,
                };
                self.outgoing_datagram(now, peer, datagram);
            }
            StreamCommand::Rows { token } => self.tell_rows(now, token),
        }
    }

    fn dial(
        &mut self,
        now: Time,
        dial: u64,
        peer: NodeId,
        port: u16,
        limit: Duration,
    ) -> Result<(), DialFault> {
        let connected = self.tunnels.connect(peer, now, &mut entropy);
        let tunnel = connected.map_err(|reason| match reason {
            DropReason::FromSelf => DialFault::Own,
            _ => DialFault::Full,
        })?;
        let streams = &mut self.rooms.streams;
        streams.replies.dialed(peer, now);
        let local_port = streams.table.free_port(peer, port).ok_or(DialFault::Full)?;
        let mut session = Session::dial(now, draw(), limit);
        if self.tunnels.is_established(tunnel) {
            session.begin(now);
        }
        let key = Key {
            peer,
            local_port,
            remote_port: port,
        };
        let own = Own::new(tunnel, Service::Dial(dial));
        let inserted = streams.table.insert(key, session, own);
        let ticket = inserted.map_err(|_| DialFault::Full)?;
        streams.dials.insert(dial, ticket);
        streams.activate(ticket);
        Ok(())
    }

    fn outgoing_datagram(&mut self, now: Time, peer: NodeId, datagram: WaitingDatagram) {
        let token = datagram.token;
        let fault = match self.tunnels.connect(peer, now, &mut entropy) {
            Err(DropReason::FromSelf) => Some(DatagramFault::NoRoute),
            Err(_) => Some(DatagramFault::QueueFull),
            Ok(tunnel) if self.tunnels.is_established(tunnel) => {
                self.rooms.send_datagram(tunnel, &datagram)
            }
            Ok(_) => {
                let waiting = &mut self.rooms.streams.waiting;
                let known = waiting.contains_key(&peer);
                let queue = (known || waiting.len() < WAITING_PEERS_MAX)
                    .then(|| waiting.entry(peer).or_default())
                    .filter(|queue| queue.len() < WAITING_MAX);
                match queue {
                    Some(queue) => {
                        queue.push(datagram);
                        return;
                    }
                    None => Some(DatagramFault::QueueFull),
                }
            }
        };
        self.rooms.tell_datagram(token, fault);
    }

    fn tell_rows(&mut self, now: Time, token: u64) {
        let report = StreamReport::Rows {
            token,
            connections: self.rooms.connection_rows(now),
            peers: peer_rows(&self.tunnels),
        };
        let rooms = &mut self.rooms;
        rooms
            .reporter
            .report(&rooms.counters, Report::Stream(report));
    }

    /// Control stops the worker: peers are told of every stream that is open.
    pub(in crate::worker) fn end_streams(&mut self, now: Time) {
        let tickets: Vec<_> = self.rooms.streams.table.iter().map(|(at, _)| at).collect();
        for ticket in tickets {
            self.rooms.reset_stream(now, ticket);
        }
        self.rooms.pump_streams(now);
        self.flush(now);
        // The worker ends in any case.
        let _ = self.io.enter(None);
        self.stop = true;
    }
}

impl Rooms {
    fn with_stream(
        &mut self,
        stream: StreamId,
        act: impl FnOnce(&mut ramjet_proto::stream::table::Tenant<Own>),
    ) {
        let ticket = ticket(stream);
        if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
            act(tenant);
            self.streams.activate(ticket);
        }
    }

    fn close_stream(&mut self, now: Time, ticket: Ticket) {
        self.return_line(ticket);
        if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
            let path = self.paths.of(tenant.own.tunnel, now);
            tenant.session.close(now, path);
            self.streams.activate(ticket);
        }
    }

    fn reset_stream(&mut self, now: Time, ticket: Ticket) {
        self.return_line(ticket);
        if let Some(tenant) = self.streams.table.tenant_mut(ticket) {
            let path = self.paths.of(tenant.own.tunnel, now);
            tenant.own.service = Service::Nobody;
            tenant.session.reset(path);
            self.streams.activate(ticket);
        }
    }

    /// Puts a datagram where it leaves; what refused it, if something did.
    pub(super) fn send_datagram(
        &mut self,
        tunnel: TunnelHandle,
        datagram: &WaitingDatagram,
    ) -> Option<DatagramFault> {
        let len_max = self.outbox.segment_len_max(tunnel);
        if datagram.bytes.len() > len_max {
            return Some(DatagramFault::TooLong { len_max });
        }
        let packet = OutgoingPacket {
            protocol: Protocol::Datagram,
            flags: 0,
            source_port: datagram.source_port,
            destination_port: datagram.port,
            sequence: 0,
            acknowledgment: 0,
            window: 0,
        };
        let sent = self.outbox.packet(
            &mut self.send,
            tunnel,
            self.packing,
            packet,
            &datagram.bytes,
        );
        (!sent).then_some(DatagramFault::QueueFull)
    }

    fn connection_rows(&mut self, now: Time) -> Vec<ConnectionRow> {
        let worker = u64::from(self.streams.worker);
        let mut rows = Vec::with_capacity(self.streams.table.len());
        for (ticket, tenant) in self.streams.table.iter() {
            let path = self.paths.of(tenant.own.tunnel, now);
            let standing = tenant.session.standing(path);
            let state = match tenant.session.state() {
                State::SynSent => "SYN_SENT",
                State::Established => "ESTABLISHED",
                State::Closing | State::FinWait => "FIN_WAIT",
                State::TimeWait => "TIME_WAIT",
                State::Gone => "CLOSED",
            };
            rows.push(ConnectionRow {
                id: worker << 48
                    | u64::from(ticket.generation & 0xFFFF) << 32
                    | u64::from(ticket.place),
                peer: tenant.key.peer,
                local_port: tenant.key.local_port,
                remote_port: tenant.key.remote_port,
                state,
                window: standing.window,
                in_flight: standing.in_flight,
                unacknowledged: standing.unacknowledged,
                out_of_order: standing.out_of_order,
                peer_window: standing.peer_window,
                own_window: standing.own_window,
                round_trip: standing.round_trip,
                bytes_sent: standing.bytes_sent,
                bytes_received: standing.bytes_received,
                segments_sent: standing.segments_sent,
                segments_received: standing.packets_received,
                retransmits: standing.retransmits,
            });
        }
        rows
    }
}

fn peer_rows(tunnels: &Tunnels) -> Vec<PeerRow> {
    let rows = tunnels.iter().map(|(node, endpoint, established)| PeerRow {
        node,
        endpoint,
        encrypted: established,
        authenticated: established,
        relay: false,
    });
    rows.collect()
}
