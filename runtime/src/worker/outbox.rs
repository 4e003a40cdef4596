//! Rooms 7 to 9: frames become packed datagrams, and datagrams become sealed trains.
//!
//! ```text
//!  train:  | datagram 0, 1,400 bytes | datagram 1, 1,400 bytes | … | last, as long as it is |
//!  datagram:  sealed header 20 | packet header 34 | magic 4 | frames … | zero padding | tag 16
//! ```
//!
//! All that one tunnel has to say in a turn goes into one train, each datagram filled before the
//! next is begun and sealed once at the end. Every datagram but the last is padded to the same
//! length, because that is what GSO takes. A frame is written where the last one ended, before it is
//! known whether it fits; if it does not, it is moved to the head of the next datagram.

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::fault::DropReason;
use ramjet_proto::frame::{Head, TASK_PORT, TRAIN_MAGIC};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{OutgoingPacket, TunnelHandle, Tunnels};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::{
    DATAGRAM_LEN_MAX, FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, PACKET_HEADER_LEN, SEALED_HEADER_LEN,
    TRAIN_HEADER_LEN, TRAIN_LEN_MAX,
};

use super::arena::{SEND_TRAINS, SendArena};
use super::counters::{Counter, Counters};
use super::io::{Io, Outgoing};

/// Where the packet payload starts in a datagram.
const PAYLOAD_START: usize = SEALED_HEADER_LEN + PACKET_HEADER_LEN;

/// A train being filled.
#[derive(Clone, Copy, Debug)]
struct Filling {
    tunnel: TunnelHandle,
    train: u16,
    /// Complete datagrams before the current one.
    complete: usize,
    /// Bytes of packet payload in the current one, its magic included.
    fill: usize,
}

impl Filling {
    fn position(&self) -> usize {
        self.complete * DATAGRAM_LEN_MAX + PAYLOAD_START + self.fill
    }
}

/// What all tunnels have to say in this turn.
pub struct Outbox {
    /// By tunnel index: place in `trains` of the train that is open for it, plus one.
    open: Box<[u16]>,
    /// Trains of this turn, in the order in which they were begun.
    trains: Vec<Filling>,
}

impl Outbox {
    /// Empty, for so many tunnels.
    pub fn new(tunnels_max: usize) -> Self {
        Outbox {
            open: vec![0; tunnels_max].into_boxed_slice(),
            trains: Vec::with_capacity(usize::from(SEND_TRAINS)),
        }
    }

    /// Whether nothing waits to be sealed.
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// A place to put frames for one tunnel.
    pub fn sink<'a>(
        &'a mut self,
        send: &'a mut SendArena,
        tunnel: TunnelHandle,
        datagrams_max: usize,
    ) -> TunnelSink<'a> {
        TunnelSink {
            outbox: self,
            send,
            tunnel,
            datagrams_max,
        }
    }

    fn begin(&mut self, send: &mut SendArena, tunnel: TunnelHandle) -> Option<usize> {
        let train = send.take()?;
        let filling = Filling {
            tunnel,
            train,
            complete: 0,
            fill: TRAIN_HEADER_LEN,
        };
        send.train(train)[PAYLOAD_START..][..TRAIN_HEADER_LEN].copy_from_slice(&TRAIN_MAGIC);
        self.trains.push(filling);
        let place = self.trains.len();
        self.open[tunnel.index()] = u16::try_from(place).expect("at most SEND_TRAINS");
        Some(place - 1)
    }

    fn current(&self, tunnel: TunnelHandle) -> Option<usize> {
        let place = usize::from(self.open[tunnel.index()]).checked_sub(1)?;
        // A train of an earlier tenant of the index cannot be open: a turn ends with a flush.
        debug_assert_eq!(self.trains[place].tunnel, tunnel);
        Some(place)
    }

    /// Seals every train and hands it to the kernel.
    pub fn flush(
        &mut self,
        now: Time,
        tunnels: &mut Tunnels,
        send: &mut SendArena,
        io: &mut impl Io,
        counters: &Counters,
    ) {
        for filling in self.trains.drain(..) {
            self.open[filling.tunnel.index()] = 0;
            match seal(now, tunnels, send, &filling) {
                Ok(outgoing) => {
                    counters.add(Counter::TrainsSent, 1);
                    counters.add(Counter::DatagramsSent, filling.complete as u64 + 1);
                    counters.add(Counter::BytesSent, outgoing.len as u64);
                    io.submit(send, outgoing);
                }
                Err(reason) => {
                    counters.drop_send(reason, 1);
                    send.free_train(filling.train);
                }
            }
        }
    }
}

/// Room 9: each datagram of a train, once.
fn seal(
    now: Time,
    tunnels: &mut Tunnels,
    send: &mut SendArena,
    filling: &Filling,
) -> Result<Outgoing, DropReason> {
    let target = tunnels
        .endpoint(filling.tunnel)
        .ok_or(DropReason::NoSession)?;
    let packet = OutgoingPacket {
        protocol: Protocol::Datagram,
        flags: 0,
        source_port: TASK_PORT,
        destination_port: TASK_PORT,
        sequence: 0,
        acknowledgment: 0,
        window: 0,
    };
    let bytes = send.train(filling.train);
    let mut len = 0;
    for index in 0..=filling.complete {
        let payload_len = if index < filling.complete {
            TRAIN_LEN_MAX
        } else {
            filling.fill
        };
        let datagram = &mut bytes[index * DATAGRAM_LEN_MAX..][..DATAGRAM_LEN_MAX];
        len += tunnels
            .seal(filling.tunnel, now, &packet, datagram, payload_len)
            .map_err(|_| DropReason::NoSession)?;
    }
    let segment = if filling.complete == 0 {
        len
    } else {
        DATAGRAM_LEN_MAX
    };
    Ok(Outgoing {
        train: filling.train,
        len,
        segment,
        target,
    })
}

/// Frames for one tunnel: reserve, write, commit.
pub struct TunnelSink<'a> {
    outbox: &'a mut Outbox,
    send: &'a mut SendArena,
    tunnel: TunnelHandle,
    datagrams_max: usize,
}

impl TunnelSink<'_> {
    /// Ends the current datagram: pads it, and begins the next, in a new train if this one is full.
    /// Returns where the train is, or `None` if no train is free.
    fn next_datagram(&mut self, place: usize) -> Option<usize> {
        let filling = self.outbox.trains[place];
        if filling.complete + 1 == self.datagrams_max {
            return self.outbox.begin(self.send, self.tunnel);
        }
        let bytes = self.send.train(filling.train);
        let start = filling.complete * DATAGRAM_LEN_MAX + PAYLOAD_START;
        bytes[filling.position()..start + TRAIN_LEN_MAX].fill(0);
        let next = (filling.complete + 1) * DATAGRAM_LEN_MAX + PAYLOAD_START;
        bytes[next..][..TRAIN_HEADER_LEN].copy_from_slice(&TRAIN_MAGIC);
        let filling = &mut self.outbox.trains[place];
        filling.complete += 1;
        filling.fill = TRAIN_HEADER_LEN;
        Some(place)
    }
}

impl FrameSink for TunnelSink<'_> {
    fn reserve(&mut self, payload_max: usize) -> Option<&mut [u8]> {
        assert!(
            payload_max <= FRAME_PAYLOAD_MAX,
            "a frame of {payload_max} bytes"
        );
        let place = match self.outbox.current(self.tunnel) {
            Some(place) => place,
            None => self.outbox.begin(self.send, self.tunnel)?,
        };
        let filling = self.outbox.trains[place];
        let fits = filling.fill + FRAME_HEADER_LEN + payload_max <= TRAIN_LEN_MAX;
        if !fits && filling.complete + 1 == self.datagrams_max && self.send.free() == 0 {
            // A commit must always find its place.
            return None;
        }
        let start = filling.position() + FRAME_HEADER_LEN;
        Some(&mut self.send.train(filling.train)[start..][..payload_max])
    }

    fn commit(&mut self, head: Head, payload_len: usize) {
        let place = self
            .outbox
            .current(self.tunnel)
            .expect("a reservation came before");
        let filling = self.outbox.trains[place];
        let frame_len = FRAME_HEADER_LEN + payload_len;
        let from = filling.position();
        head.write(&mut self.send.train(filling.train)[from..], payload_len);
        if filling.fill + frame_len <= TRAIN_LEN_MAX {
            self.outbox.trains[place].fill += frame_len;
            return;
        }
        let mut frame = [0; FRAME_HEADER_LEN + FRAME_PAYLOAD_MAX];
        frame[..frame_len].copy_from_slice(&self.send.train(filling.train)[from..][..frame_len]);
        let place = self.next_datagram(place).expect("reserve saw a free train");
        let filling = self.outbox.trains[place];
        let to = filling.position();
        self.send.train(filling.train)[to..][..frame_len].copy_from_slice(&frame[..frame_len]);
        self.outbox.trains[place].fill += frame_len;
    }
}
