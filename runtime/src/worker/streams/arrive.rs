//! Packets of streams and datagrams, as the tunnel opened them.

use bytes::Bytes;
use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::stream::{Key, SegmentHead, Session, Ticket};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{Opened, OutgoingPacket, TunnelHandle};
use ramjet_proto::wire::header::{FLAG_ACK, FLAG_RST, FLAG_SYN, Protocol};

use super::{ECHO_PORT, Own, Service, TRUST_PORT};
use crate::control::vocabulary::{Report, StreamEnd, StreamReport};
use crate::worker::counters::Counter;
use crate::worker::rooms::Rooms;
use crate::worker::turn::entropy;

impl Rooms {
    /// A packet of a stream.
    pub(in crate::worker) fn stream_packet(
        &mut self,
        now: Time,
        opened: &Opened<'_>,
    ) -> Result<(), DropReason> {
        let header = &opened.header;
        let key = Key {
            peer: opened.peer,
            local_port: header.destination.port,
            remote_port: header.source.port,
        };
        let head = SegmentHead {
            flags: header.flags,
            sequence: header.sequence,
            acknowledgment: header.acknowledgment,
            window: header.window,
        };
        let opens = head.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST) == FLAG_SYN;
        let mut known = self.streams.table.find(&key);
        if opens
            && let Some(ticket) = known
            && let Some(tenant) = self.streams.table.tenant(ticket)
            && tenant.session.is_superseded(now, &head)
        {
            self.end_stream(now, ticket, StreamEnd::Reset);
            known = None;
        }
        match known {
            Some(ticket) => self.segment(now, ticket, &head, opened.payload),
            None if opens => self.syn(now, opened.tunnel, key, &head, opened.payload),
            None => Err(DropReason::UnknownStream),
        }
    }

    /// A packet of a stream that is here.
    fn segment(
        &mut self,
        now: Time,
        ticket: Ticket,
        head: &SegmentHead,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let allowance = self.streams.table.allowance();
        let tenant = self.streams.table.tenant_mut(ticket);
        let tenant = tenant.ok_or(DropReason::UnknownStream)?;
        let path = self.paths.of(tenant.own.tunnel, now);
        let used = tenant.session.receive(now, head, payload, path, allowance);
        self.streams.activate(ticket);
        used
    }

    /// A peer wants to open a stream.
    fn syn(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        key: Key,
        head: &SegmentHead,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if !self.may_reach(tunnel, key.peer, key.local_port)
            && !self.streams.replies.admit(key.peer, key.local_port, now)
        {
            return Err(DropReason::Untrusted);
        }
        if !self.streams.table.admit_syn(now, key.peer) {
            return Err(DropReason::SynLimited);
        }
        if self.reporter.is_backed_up() {
            return Err(DropReason::ControlBusy);
        }
        let service = match key.local_port {
            ECHO_PORT if self.streams.echo => Service::Echo,
            port if self.streams.listening.contains(&port) => Service::Control,
            _ => {
                self.refuse_stream(tunnel, &key);
                return Ok(());
            }
        };
        let allowance = self.streams.table.allowance();
        let session = Session::accept(now, draw(), head, payload, allowance);
        if !session.is_foreign() {
            self.outbox.path(tunnel).begin(now);
        }
        let own = Own::new(tunnel, service);
        let Ok(ticket) = self.streams.table.insert(key, session, own) else {
            self.refuse_stream(tunnel, &key);
            return Ok(());
        };
        self.counters.add(Counter::StreamsAccepted, 1);
        self.streams.activate(ticket);
        if service == Service::Control {
            let report = StreamReport::Accepted {
                stream: self.streams.id(ticket),
                peer: key.peer,
                local_port: key.local_port,
                remote_port: key.remote_port,
            };
            self.reporter.report(&self.counters, Report::Stream(report));
        }
        Ok(())
    }

    /// RST: nobody serves this port, or there is no room. If there is none for the answer either,
    /// the peer asks again.
    fn refuse_stream(&mut self, tunnel: TunnelHandle, key: &Key) {
        let packet = OutgoingPacket {
            protocol: Protocol::Stream,
            flags: FLAG_RST,
            source_port: key.local_port,
            destination_port: key.remote_port,
            sequence: 0,
            acknowledgment: 0,
            window: 0,
        };
        self.outbox
            .packet(&mut self.send, tunnel, self.packing, packet, &[]);
    }

    /// Whether a peer may reach a port.
    fn may_reach(&self, tunnel: TunnelHandle, peer: NodeId, port: u16) -> bool {
        let reach = &self.streams.reach;
        reach.public
            || port == TRUST_PORT
            || reach.trusted.contains(&peer)
            || self.channels.has_admitted(tunnel)
    }

    /// A datagram that is no train of frames.
    pub(in crate::worker) fn datagram_packet(
        &mut self,
        opened: &Opened<'_>,
    ) -> Result<(), DropReason> {
        let header = &opened.header;
        let port = header.destination.port;
        if !self.streams.is_bound(port) {
            return Err(DropReason::UnservedPort);
        }
        if !self.may_reach(opened.tunnel, opened.peer, port) {
            return Err(DropReason::Untrusted);
        }
        if opened.payload.is_empty() {
            return Err(DropReason::TooShort);
        }
        if self.reporter.is_backed_up() {
            return Err(DropReason::ControlBusy);
        }
        let report = StreamReport::Datagram {
            peer: opened.peer,
            source_port: header.source.port,
            port,
            bytes: Bytes::copy_from_slice(opened.payload),
        };
        self.reporter.report(&self.counters, Report::Stream(report));
        Ok(())
    }
}

/// A first sequence number that nobody can guess.
pub(super) fn draw() -> u32 {
    let mut bytes = [0; 4];
    entropy(&mut bytes);
    u32::from_be_bytes(bytes)
}
