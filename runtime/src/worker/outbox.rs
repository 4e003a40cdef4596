//! Rooms 7 to 9: frames become packed datagrams, and datagrams become sealed trains.
//!
//! ```text
//!  train:  | datagram 0 | datagram 1, as long as 0 | … | last, as long as it is |
//!  datagram:  sealed header 20 | packet header 34 | magic 4 | frames … | zero padding | tag 16
//! ```
//!
//! All that one tunnel has to say in a turn goes into one train, each datagram filled before the
//! next is begun and sealed once at the end. GSO takes datagrams of one length, so the first that is
//! complete sets the length of its train: full datagrams of equal frames carry no padding. How long a
//! datagram may be is the path's to say ([`PathSearch`]).
//!
//! A frame's length is known only when it is written. It goes where the last frame's length would
//! fit, in this datagram or the next, and is moved in the rare case that the guess was wrong.

mod packets;
mod wrap;

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::fault::DropReason;
use ramjet_proto::frame::kind::Kind;
use ramjet_proto::frame::path::PathSearch;
use ramjet_proto::frame::{Head, TASK_PORT, TRAIN_MAGIC};
use ramjet_proto::ids::ChannelId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{OutgoingPacket, TunnelHandle, Tunnels};
use ramjet_proto::wire::beacon::RELAY_HEADER_LEN;
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::{
    FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, PACKET_HEADER_LEN, SEAL_OVERHEAD, SEALED_HEADER_LEN,
    TRAIN_HEADER_LEN,
};

use super::arena::{SEND_LEN_MAX, SEND_TRAINS_MAX, SendArena};
use super::counters::{Counter, Counters};
use super::io::Outgoing;

pub use packets::StreamSink;

/// Where the packet payload starts in a datagram.
const PAYLOAD_START: usize = SEALED_HEADER_LEN + PACKET_HEADER_LEN;

/// What bounds the packing, beside the path.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Datagrams in a train: 1 where segmentation is not to be had.
    pub datagrams_max: usize,
    /// Frames in a datagram: 1 for a datagram a task, which spares the first of a burst the rest of
    /// it on the wire and costs throughput.
    pub frames_max: u16,
}

/// A train being filled.
#[derive(Clone, Copy, Debug)]
struct Filling {
    tunnel: TunnelHandle,
    train: u16,
    /// Length of every datagram of the train but the last: the path's, until one is complete.
    segment: usize,
    /// Bytes that each datagram grows by when it is sent: the beacon's header, where it is relayed.
    header: usize,
    /// Complete datagrams before the current one.
    complete: usize,
    /// Bytes of packet payload in the current one, its magic included.
    fill: usize,
    /// Frames in the current one.
    frames: u16,
    /// Length of the last frame.
    last: usize,
    /// Where the reserved frame is being written.
    reserved: usize,
    /// Fills its datagram to learn about the path.
    probe: bool,
    /// Of a train of packets with headers of their own: the place of the first in the outbox's list.
    packets: Option<usize>,
}

impl Filling {
    /// Bytes of packet payload that a datagram of this train holds.
    fn capacity(&self) -> usize {
        self.segment - SEAL_OVERHEAD
    }

    /// Where the current datagram's next frame begins.
    fn position(&self) -> usize {
        self.complete * self.segment + PAYLOAD_START + self.fill
    }

    fn next_position(&self) -> usize {
        (self.complete + 1) * self.segment + PAYLOAD_START + TRAIN_HEADER_LEN
    }

    /// Whether the current datagram takes a frame of this length.
    fn takes(&self, frame_len: usize, packing: &Packing) -> bool {
        self.frames < packing.frames_max && self.fill + frame_len <= self.capacity()
    }

    /// Whether it holds nothing: space was reserved in it, and what asked had nothing to say.
    fn is_blank(&self) -> bool {
        self.complete == 0 && self.frames == 0 && !self.probe && self.packets.is_none()
    }

    /// Whether the train takes another datagram.
    fn has_next(&self, packing: &Packing) -> bool {
        self.complete + 2 <= packing.datagrams_max
            && (self.complete + 2) * (self.segment + self.header) <= SEND_LEN_MAX
    }
}

/// What all tunnels have to say in this turn.
pub struct Outbox {
    /// By tunnel index: place in `trains` of the train that is open for it, plus one.
    open: Box<[u16]>,
    /// By tunnel index: what its path carries.
    paths: Box<[PathSearch]>,
    /// Trains of this turn, in the order in which they were begun.
    trains: Vec<Filling>,
    /// Headers and payload lengths of the packets in those of them that hold packets.
    packets: Vec<(OutgoingPacket, usize)>,
    /// Place in `trains` of the one that the last packet went to.
    packet_train: Option<usize>,
}

impl Outbox {
    /// Empty, for so many tunnels, with datagrams up to `datagram_len_max` where a path carries them.
    pub fn new(tunnels_max: usize, datagram_len_max: usize) -> Self {
        Outbox {
            open: vec![0; tunnels_max].into_boxed_slice(),
            paths: vec![PathSearch::new(datagram_len_max); tunnels_max].into_boxed_slice(),
            trains: Vec::with_capacity(usize::from(SEND_TRAINS_MAX)),
            packets: Vec::new(),
            packet_train: None,
        }
    }

    /// What is known of a tunnel's path.
    pub fn path(&mut self, tunnel: TunnelHandle) -> &mut PathSearch {
        &mut self.paths[tunnel.index()]
    }

    /// Longest payload of one packet of its own on a tunnel's path.
    pub fn segment_len_max(&self, tunnel: TunnelHandle) -> usize {
        self.paths[tunnel.index()].len() - SEAL_OVERHEAD
    }

    /// The kernel refused a datagram that some path was thought to carry: all begin again.
    pub fn forget_paths(&mut self, now: Time) {
        for path in &mut self.paths {
            path.restart(now);
        }
    }

    /// A place to put frames for one tunnel.
    pub fn sink<'a>(
        &'a mut self,
        send: &'a mut SendArena,
        tunnel: TunnelHandle,
        packing: Packing,
    ) -> TunnelSink<'a> {
        TunnelSink {
            outbox: self,
            send,
            tunnel,
            packing,
        }
    }

    /// A datagram of exactly this length; whether a train was free for it.
    pub fn probe(&mut self, send: &mut SendArena, tunnel: TunnelHandle, length: usize) -> bool {
        let Some(train) = send.take() else {
            return false;
        };
        let payload_len = length - SEAL_OVERHEAD;
        let payload = &mut send.train(train)[PAYLOAD_START..][..payload_len];
        payload.fill(0);
        payload[..TRAIN_HEADER_LEN].copy_from_slice(&TRAIN_MAGIC);
        let auxiliary = u32::try_from(length).expect("at most PATH_LEN_MAX");
        Head::channel(Kind::Probe, ChannelId(0), auxiliary)
            .write(&mut payload[TRAIN_HEADER_LEN..], 0);
        self.trains.push(Filling {
            fill: payload_len,
            probe: true,
            ..self.begun(tunnel, train, length)
        });
        true
    }

    fn begin(&mut self, send: &mut SendArena, tunnel: TunnelHandle) -> Option<usize> {
        let train = send.take()?;
        send.train(train)[PAYLOAD_START..][..TRAIN_HEADER_LEN].copy_from_slice(&TRAIN_MAGIC);
        let length = self.paths[tunnel.index()].len();
        self.trains.push(self.begun(tunnel, train, length));
        let place = self.trains.len();
        self.open[tunnel.index()] = u16::try_from(place).expect("at most SEND_TRAINS_MAX");
        Some(place - 1)
    }

    fn begun(&self, tunnel: TunnelHandle, train: u16, segment: usize) -> Filling {
        let relayed = self.paths[tunnel.index()].is_relayed();
        Filling {
            tunnel,
            train,
            segment,
            header: if relayed { RELAY_HEADER_LEN } else { 0 },
            complete: 0,
            fill: TRAIN_HEADER_LEN,
            frames: 0,
            last: 0,
            reserved: 0,
            probe: false,
            packets: None,
        }
    }

    fn current(&self, tunnel: TunnelHandle) -> Option<usize> {
        let place = usize::from(self.open[tunnel.index()]).checked_sub(1)?;
        // A train of an earlier tenant of the index cannot be open: a turn ends with a flush.
        debug_assert_eq!(self.trains[place].tunnel, tunnel);
        Some(place)
    }

    /// Seals every train and hands it to `submit`, which sends it and frees it; whether any was.
    ///
    /// A job is asked for its next task with a frame's space in hand, and may have none. Such a train
    /// says nothing and does not leave: it would be work, and the turn after it would ask again.
    pub fn flush(
        &mut self,
        now: Time,
        tunnels: &mut Tunnels,
        send: &mut SendArena,
        mut submit: impl FnMut(&mut SendArena, Outgoing),
        counters: &Counters,
    ) -> bool {
        let mut sent = false;
        for filling in self.trains.drain(..) {
            self.open[filling.tunnel.index()] = 0;
            if filling.is_blank() {
                send.free_train(filling.train);
                continue;
            }
            sent = true;
            match seal(now, tunnels, send, &filling, &self.packets) {
                Ok(outgoing) => {
                    counters.add(Counter::TrainsSent, 1);
                    counters.add(Counter::DatagramsSent, filling.complete as u64 + 1);
                    counters.add(Counter::BytesSent, outgoing.len as u64);
                    submit(send, outgoing);
                }
                Err(reason) => {
                    counters.drop_send(reason, 1);
                    send.free_train(filling.train);
                }
            }
        }
        self.packets.clear();
        self.packet_train = None;
        sent
    }
}

/// Room 9: each datagram of a train, once.
fn seal(
    now: Time,
    tunnels: &mut Tunnels,
    send: &mut SendArena,
    filling: &Filling,
    packets: &[(OutgoingPacket, usize)],
) -> Result<Outgoing, DropReason> {
    let route = tunnels.route(filling.tunnel).ok_or(DropReason::NoSession)?;
    let frames = OutgoingPacket {
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
        let (packet, payload_len) = match filling.packets {
            Some(first) => packets[first + index],
            None if index < filling.complete => (frames, filling.capacity()),
            None => (frames, filling.fill),
        };
        let datagram = &mut bytes[index * filling.segment..][..filling.segment];
        len += tunnels
            .seal(filling.tunnel, now, &packet, datagram, payload_len)
            .map_err(|_| DropReason::NoSession)?;
    }
    let mut segment = if filling.complete == 0 {
        len
    } else {
        filling.segment
    };
    if let Some(header) = route.relay {
        (len, segment) = wrap::wrap(bytes, len, segment, header).ok_or(DropReason::TooLong)?;
    }
    Ok(Outgoing {
        train: filling.train,
        len,
        segment,
        target: route.to,
        probe: filling.probe,
    })
}

/// Frames for one tunnel: reserve, write, commit.
pub struct TunnelSink<'a> {
    outbox: &'a mut Outbox,
    send: &'a mut SendArena,
    tunnel: TunnelHandle,
    packing: Packing,
}

impl TunnelSink<'_> {
    /// Ends the current datagram for a frame of `frame_len` bytes, which lies where it was reserved,
    /// and moves that to the head of the next.
    fn close_datagram(&mut self, place: usize, frame_len: usize) {
        let filling = &mut self.outbox.trains[place];
        let from = filling.reserved;
        if filling.complete == 0 && TRAIN_HEADER_LEN + frame_len <= filling.fill {
            // Equal frames pack equally: no padding from here on.
            filling.segment = filling.fill + SEAL_OVERHEAD;
        }
        let pad = filling.position()
            ..filling.complete * filling.segment + PAYLOAD_START + filling.capacity();
        let to = filling.next_position();
        filling.complete += 1;
        filling.frames = 0;
        filling.fill = TRAIN_HEADER_LEN;
        let bytes = self.send.train(filling.train);
        if from != to {
            bytes.copy_within(from..from + frame_len, to);
        }
        // Padding comes after the move: the frame may lie where it goes.
        bytes[pad].fill(0);
        bytes[to - TRAIN_HEADER_LEN..to].copy_from_slice(&TRAIN_MAGIC);
    }

    /// Takes the frame that was reserved to a new train.
    fn change_trains(&mut self, place: usize, frame_len: usize) -> usize {
        let old = self.outbox.trains[place];
        let mut frame = [0; FRAME_HEADER_LEN + FRAME_PAYLOAD_MAX];
        let frame = &mut frame[..frame_len];
        frame.copy_from_slice(&self.send.train(old.train)[old.reserved..][..frame_len]);
        let place = self
            .outbox
            .begin(self.send, self.tunnel)
            .expect("reserve saw a free train");
        let filling = self.outbox.trains[place];
        self.send.train(filling.train)[filling.position()..][..frame_len].copy_from_slice(frame);
        place
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
        let filling = &mut self.outbox.trains[place];
        let frame_max = FRAME_HEADER_LEN + payload_max;
        let fits = filling.takes(frame_max, &self.packing);
        let has_next = filling.has_next(&self.packing) && fits_next(filling, frame_max);
        if !fits && !has_next && self.send.free() == 0 {
            // A commit must always find its place.
            return None;
        }
        let here = fits || !has_next || filling.takes(filling.last, &self.packing);
        filling.reserved = if here {
            filling.position()
        } else {
            filling.next_position()
        };
        let start = filling.reserved + FRAME_HEADER_LEN;
        Some(&mut self.send.train(filling.train)[start..][..payload_max])
    }

    fn commit(&mut self, head: Head, payload_len: usize) {
        let mut place = self
            .outbox
            .current(self.tunnel)
            .expect("a reservation came before");
        // Not a copy of it: that would wait for what `reserve` has just stored.
        let filling = &self.outbox.trains[place];
        let frame_len = FRAME_HEADER_LEN + payload_len;
        let from = filling.reserved;
        let bytes = self.send.train(filling.train);
        head.write(&mut bytes[from..], payload_len);
        if filling.takes(frame_len, &self.packing) {
            let to = filling.position();
            if from != to {
                bytes.copy_within(from..from + frame_len, to);
            }
        } else if filling.has_next(&self.packing) && fits_next(filling, frame_len) {
            self.close_datagram(place, frame_len);
        } else {
            place = self.change_trains(place, frame_len);
        }
        let filling = &mut self.outbox.trains[place];
        filling.fill += frame_len;
        filling.frames += 1;
        filling.last = frame_len;
    }
}

/// Whether a datagram of this train holds such a frame: the first may have set a short length.
fn fits_next(filling: &Filling, frame_len: usize) -> bool {
    TRAIN_HEADER_LEN + frame_len <= filling.capacity()
}
