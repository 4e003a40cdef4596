//! Packets of streams, and single datagrams, on their way into trains.
//!
//! Unlike frames they are not packed: each is a datagram with a header of its own. Those that one
//! tunnel has to say one after the other, and that are as long as the first of them, leave as one
//! train; a shorter one ends it.

use ramjet_proto::stream::{SegmentHead, SegmentSink};
use ramjet_proto::tunnel::{OutgoingPacket, TunnelHandle};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::SEAL_OVERHEAD;

use super::{Filling, Outbox, PAYLOAD_START, Packing};
use crate::worker::arena::{SEND_LEN_MAX, SendArena};

/// Trains that packets leave to frames and key exchanges.
const TRAINS_KEPT: usize = 8;

impl Filling {
    /// Whether one more packet, `len` bytes long when sealed, may follow in this train of packets.
    fn takes_packet(&self, len: usize, packing: &Packing) -> bool {
        let last_is_full = self.fill + SEAL_OVERHEAD == self.segment;
        let headers = (self.complete + 2) * self.header;
        let after = (self.complete + 1) * self.segment + len + headers;
        last_is_full
            && len <= self.segment
            && self.complete + 2 <= packing.datagrams_max
            && after <= SEND_LEN_MAX
    }
}

impl Outbox {
    /// Takes a packet for one tunnel; whether a train was free for it.
    pub fn packet(
        &mut self,
        send: &mut SendArena,
        tunnel: TunnelHandle,
        packing: Packing,
        packet: OutgoingPacket,
        payload: &[u8],
    ) -> bool {
        let len = payload.len() + SEAL_OVERHEAD;
        let place = self.packet_train.filter(|place| {
            let filling = &self.trains[*place];
            filling.tunnel == tunnel && filling.takes_packet(len, &packing)
        });
        let place = match place {
            Some(place) => {
                self.trains[place].complete += 1;
                place
            }
            None => {
                if send.free() <= TRAINS_KEPT {
                    return false;
                }
                let Some(train) = send.take() else {
                    return false;
                };
                let filling = Filling {
                    packets: Some(self.packets.len()),
                    ..self.begun(tunnel, train, len)
                };
                self.trains.push(filling);
                self.trains.len() - 1
            }
        };
        self.packet_train = Some(place);
        self.packets.push((packet, payload.len()));
        let filling = &mut self.trains[place];
        filling.fill = payload.len();
        let start = filling.complete * filling.segment + PAYLOAD_START;
        send.train(filling.train)[start..][..payload.len()].copy_from_slice(payload);
        true
    }
}

/// Where one stream puts its packets.
pub struct StreamSink<'a> {
    /// What gathers.
    pub outbox: &'a mut Outbox,
    /// Where it lies.
    pub send: &'a mut SendArena,
    /// The way to the peer.
    pub tunnel: TunnelHandle,
    /// What bounds a train.
    pub packing: Packing,
    /// The port here, and the port there.
    pub ports: (u16, u16),
}

impl SegmentSink for StreamSink<'_> {
    fn put(&mut self, head: SegmentHead, payload: &[u8]) -> bool {
        let packet = OutgoingPacket {
            protocol: Protocol::Stream,
            flags: head.flags,
            source_port: self.ports.0,
            destination_port: self.ports.1,
            sequence: head.sequence,
            acknowledgment: head.acknowledgment,
            window: head.window,
        };
        self.outbox
            .packet(self.send, self.tunnel, self.packing, packet, payload)
    }
}
