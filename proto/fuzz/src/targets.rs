//! One function a target: bytes in, a panic if a promise of the protocol is broken.
//!
//! `cargo fuzz run NAME` drives them here; the tests of `ramjet-proto` replay every file in
//! `corpus/NAME/` through the same functions.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::addr::{Address, SocketAddress};
use ramjet_proto::driver;
use ramjet_proto::engagement::FrameSink;
use ramjet_proto::engagement::congestion::Congestion;
use ramjet_proto::engagement::job::{Answer, Job, Next, Refused, Timing, Verdict};
use ramjet_proto::engagement::requesting::Requesting;
use ramjet_proto::engagement::serving::{Admitted, Answered, Serving, ServingLimits};
use ramjet_proto::frame::{Frame, Head, Kind, Train};
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::{ChannelId, NodeId};
use ramjet_proto::market::message::FromRegistry;
use ramjet_proto::market::{SignedGrant, SignedReceipt};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{
    OutgoingPacket, Received, TunnelConfig, TunnelEvent, TunnelHandle, Tunnels,
};
use ramjet_proto::wire::beacon::BeaconMessage;
use ramjet_proto::wire::datagram::Datagram;
use ramjet_proto::wire::header::{PacketFields, Protocol};
use ramjet_proto::wire::limits::{DATAGRAM_LEN_MAX, PACKET_HEADER_LEN, SEALED_HEADER_LEN};

// ---- tunnel ------------------------------------------------------------------------------------

/// Our node in the captured exchange, and its X25519 key there.
const OURS: NodeId = NodeId(28);
const OUR_KEY: [u8; 32] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
    27, 28, 29, 30, 31, 32,
];
/// The daemon that the exchange was captured from, and its Ed25519 key.
const DAEMON: NodeId = NodeId(1);
const DAEMON_IDENTITY: [u8; 32] = [
    0x99, 0x01, 0xc0, 0x2b, 0x05, 0x90, 0x6a, 0x6f, 0xe9, 0xd3, 0xb7, 0x6b, 0xff, 0x0f, 0x53, 0xf8,
    0x6e, 0xd7, 0x5d, 0x70, 0xb6, 0xb9, 0xe3, 0x5b, 0x50, 0xdf, 0x28, 0x27, 0x67, 0x2b, 0x98, 0xe7,
];
/// A peer that lives in this process and holds an established session.
const PEER: NodeId = NodeId(2);

/// What became of an input: the law of conservation, and what a test may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams given to our node.
    pub received: u64,
    /// Packets it delivered.
    pub delivered: u64,
    /// Datagrams that were for the tunnel itself.
    pub handled: u64,
    /// Datagrams it dropped.
    pub dropped: u64,
}

struct World {
    now: Time,
    ours: Tunnels,
    peer: Tunnels,
    tally: Tally,
    drawn: u64,
}

/// Datagrams into a node that is dialing the captured daemon and holds a session with a peer.
///
/// The input is a list of steps: one byte kind, two bytes length (big-endian), that many bytes.
///
/// | kind mod 8 | the bytes are |
/// |---|---|
/// | 0 | a datagram from a stranger |
/// | 1 | a datagram from the daemon's address |
/// | 2 | a datagram from the beacon |
/// | 3 | milliseconds that pass, big-endian, the first four bytes |
/// | 4 | a packet that the peer seals: protocol, flags, port, then payload |
/// | 5 | a packet that we seal, likewise |
/// | 6 | a node to connect to, the first four bytes |
/// | 7 | the registry's word on a node: four bytes, then whether it knows it |
pub fn tunnel(data: &[u8]) -> Tally {
    let mut world = World::new();
    let mut rest = data;
    while let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (bytes, after) = after.split_at(length);
        world.step(kind % 8, bytes);
        rest = after;
    }
    let Tally {
        received,
        delivered,
        handled,
        dropped,
    } = world.tally;
    assert_eq!(received, delivered + handled + dropped);
    world.tally
}

impl World {
    fn new() -> Self {
        let tunnels = |node: NodeId, seed| {
            Tunnels::new(TunnelConfig {
                node,
                identity: Arc::new(Identity::from_seed([seed; 32])),
                tunnels_max: 4,
                key_exchanges_per_second: 50,
                beacon: (node == OURS).then(|| address(9)),
            })
        };
        let mut world = World {
            now: Time::ZERO,
            ours: tunnels(OURS, 28),
            peer: tunnels(PEER, 2),
            tally: Tally::default(),
            drawn: 0,
        };
        // The first key is drawn for the daemon: with the captured one, captured frames open.
        let daemon = PublicKey(DAEMON_IDENTITY);
        world
            .ours
            .connect(DAEMON, world.now, &mut |space| {
                space.copy_from_slice(&OUR_KEY[..space.len()]);
            })
            .expect("room for four");
        world.registry_says(DAEMON, Some(daemon));
        world
            .ours
            .connect(PEER, world.now, &mut entropy(&mut world.drawn))
            .expect("room");
        for _ in 0..3 {
            world.settle();
        }
        let tunnel = world.ours.find(PEER).expect("it was dialed");
        assert!(world.ours.is_established(tunnel));
        world.tally = Tally::default();
        world
    }

    fn step(&mut self, kind: u8, bytes: &[u8]) {
        let number = bytes
            .first_chunk::<4>()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes));
        match kind {
            0 => self.receive(address(66), bytes),
            1 => self.receive(address(1), bytes),
            2 => self.receive(address(9), bytes),
            3 => self.now = self.now + Duration::from_millis(u64::from(number)),
            4 => self.peer_sends(bytes),
            5 => {
                if let Some(tunnel) = self.ours.find(PEER) {
                    seal(&mut self.ours, tunnel, self.now, bytes);
                }
            }
            6 => {
                // Refused for our own node and when the table is full.
                let _ = self
                    .ours
                    .connect(NodeId(number), self.now, &mut entropy(&mut self.drawn));
            }
            _ => {
                let known = bytes.get(4).is_some_and(|byte| byte % 2 == 1);
                let key = known.then_some(PublicKey(DAEMON_IDENTITY));
                self.registry_says(NodeId(number), key);
            }
        }
        self.settle();
    }

    fn receive(&mut self, source: SocketAddr, datagram: &[u8]) {
        let mut bytes = datagram.to_vec();
        self.tally.received += 1;
        let lend = &mut entropy(&mut self.drawn);
        match self.ours.receive(self.now, source, &mut bytes, lend) {
            Received::Packet(opened) => {
                assert_eq!(opened.header.source.address.node, opened.peer);
                assert!(opened.payload.len() + PACKET_HEADER_LEN <= datagram.len());
                self.tally.delivered += 1;
            }
            Received::Handled => self.tally.handled += 1,
            Received::Dropped(_) => self.tally.dropped += 1,
        }
    }

    fn peer_sends(&mut self, bytes: &[u8]) {
        let Some(tunnel) = self.peer.find(OURS) else {
            return;
        };
        if let Some(datagram) = seal(&mut self.peer, tunnel, self.now, bytes) {
            self.receive(address(2), &datagram);
        }
    }

    fn registry_says(&mut self, node: NodeId, key: Option<PublicKey>) {
        let endpoint = Some(address(u8::try_from(node.0 % 200).expect("below 200")));
        self.ours
            .peer_key(node, key, endpoint, self.now, &mut entropy(&mut self.drawn));
    }

    /// Timeouts, the registry's answers about our two peers, and what they say to each other.
    fn settle(&mut self) {
        for _ in 0..4 {
            for datagram in self.exchange() {
                self.receive(address(2), &datagram);
            }
        }
    }

    /// Passes what we send to the peer, and answers what it sends to us.
    fn exchange(&mut self) -> Vec<Vec<u8>> {
        let lend = &mut entropy(&mut self.drawn);
        self.ours.handle_timeout(self.now, lend);
        self.peer.handle_timeout(self.now, lend);
        let identity = |seed| Some(Identity::from_seed([seed; 32]).public());
        while let Some(event) = self.peer.poll_event() {
            if event == TunnelEvent::PeerKeyWanted(OURS) {
                self.peer
                    .peer_key(OURS, identity(28), Some(address(28)), self.now, lend);
            }
        }
        let mut asked = false;
        while let Some(event) = self.ours.poll_event() {
            asked |= event == TunnelEvent::PeerKeyWanted(PEER);
        }
        if asked {
            self.ours
                .peer_key(PEER, identity(2), Some(address(2)), self.now, lend);
        }
        let mut space = [0; DATAGRAM_LEN_MAX];
        while let Some(transmit) = self.ours.poll_transmit(self.now, &mut space) {
            if transmit.to == address(2) {
                self.peer
                    .receive(self.now, address(28), &mut space[..transmit.len], lend);
            }
        }
        let mut sent = Vec::new();
        while let Some(transmit) = self.peer.poll_transmit(self.now, &mut space) {
            if transmit.to == address(28) {
                sent.push(space[..transmit.len].to_vec());
            }
        }
        sent
    }
}

fn seal(tunnels: &mut Tunnels, tunnel: TunnelHandle, now: Time, bytes: &[u8]) -> Option<Vec<u8>> {
    let (&[protocol, flags, port], payload) = bytes.split_first_chunk::<3>()?;
    let packet = OutgoingPacket {
        protocol: Protocol::from_wire(protocol % 4)?,
        flags,
        source_port: 4_000,
        destination_port: u16::from(port),
        sequence: 1,
        acknowledgment: 2,
        window: 3,
    };
    let mut datagram = vec![0; payload.len() + 70];
    datagram[SEALED_HEADER_LEN + PACKET_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
    let length = tunnels
        .seal(tunnel, now, &packet, &mut datagram, payload.len())
        .ok()?;
    assert_eq!(length, datagram.len());
    Some(datagram)
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 4_000))
}

/// The same bytes in every run: a count, spread over the slice.
fn entropy(drawn: &mut u64) -> impl FnMut(&mut [u8]) {
    move |space| {
        for byte in space {
            *drawn += 1;
            *byte = drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
        }
    }
}

// ---- packet ------------------------------------------------------------------------------------

/// Bytes as a packet, a datagram, a beacon message and, if they are text, an address: what is read
/// is written again to the same bytes.
pub fn packet(data: &[u8]) {
    if let Ok((fields, payload_len)) = PacketFields::parse(data) {
        let mut again = data[..PACKET_HEADER_LEN + payload_len].to_vec();
        again[..PACKET_HEADER_LEN].fill(0xEE);
        fields.write(&mut again);
        assert_eq!(again, data[..again.len()]);
    }
    let mut bytes = data.to_vec();
    if let Ok(Datagram::Announcement(announcement)) = Datagram::parse(&mut bytes) {
        let again = announcement.to_bytes();
        assert_eq!(again, data[..again.len()]);
    }
    if let Ok(message) = BeaconMessage::parse(&mut bytes) {
        let mut again = vec![0; data.len()];
        let length = message
            .write(&mut again)
            .expect("it came from as many bytes");
        assert_eq!(again[..length], data[..length]);
    }
    if let Ok(text) = str::from_utf8(data) {
        if let Ok(address) = text.parse::<Address>() {
            assert_eq!(address.to_string().parse(), Ok(address));
            assert_eq!(Address::from_bytes(address.to_bytes()), address);
        }
        if let Ok(address) = text.parse::<SocketAddress>() {
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}

// ---- driver ------------------------------------------------------------------------------------

/// Bytes that a client, or a node, puts on a driver socket: each frame is a command, a reply, both
/// or neither; what is read is written again as something that is read the same.
pub fn driver(data: &[u8]) -> usize {
    let mut rest = data;
    let mut read = 0;
    while let Some((prefix, after)) = rest.split_first_chunk::<4>() {
        let Ok(length) = driver::frame_len(*prefix) else {
            return read;
        };
        let Some((frame, after)) = after.split_at_checked(length) else {
            return read;
        };
        match driver::Command::parse(frame) {
            Ok(command) => {
                if length + GROWTH_MAX <= driver::FRAME_LEN_MAX {
                    let mut again = Vec::new();
                    command.append(&mut again);
                    assert!(again.len() <= 4 + length + GROWTH_MAX);
                    assert_eq!(driver::Command::parse(&again[4..]), Ok(command));
                }
                read += 1;
            }
            Err(fault) => assert!(!fault.to_string().is_empty()),
        }
        if let Some(reply) = driver::Reply::parse(frame) {
            let mut again = Vec::new();
            reply.append(&mut again);
            assert_eq!(driver::Reply::parse(&again[4..]), Some(reply));
            read += 1;
        }
        rest = after;
    }
    read
}

/// How much longer a command may get when its JSON is written in full, with the members that were
/// left out.
const GROWTH_MAX: usize = 256;

// ---- market ------------------------------------------------------------------------------------

/// Bytes as a grant, a receipt and a message of the registry: what is read is written again to
/// the same meaning, and a grant or receipt to the same bytes.
pub fn market(data: &[u8]) {
    if let Ok(grant) = SignedGrant::decode(data) {
        assert_eq!(grant.encode(), data);
    }
    if let Ok(receipt) = SignedReceipt::decode(data) {
        assert_eq!(receipt.encode()[..], *data);
    }
    let Ok(message) = FromRegistry::parse(data) else {
        return;
    };
    let again = match &message {
        FromRegistry::Reply(reply) => serde_json::to_vec(reply),
        FromRegistry::Push(push) => serde_json::to_vec(push),
    };
    let again = again.expect("what was read can be written");
    assert_eq!(
        FromRegistry::parse(&again).expect("what was written can be read"),
        message
    );
}

// ---- frames ------------------------------------------------------------------------------------

/// Takes every frame and never has room for more than so many.
struct Frames {
    space: Vec<u8>,
    room: u32,
}

impl FrameSink for Frames {
    fn reserve(&mut self, payload_max: usize) -> Option<&mut [u8]> {
        self.room = self.room.checked_sub(1)?;
        self.space.resize(payload_max, 0);
        Some(&mut self.space)
    }

    fn commit(&mut self, _head: Head, payload_len: usize) {
        assert!(payload_len <= self.space.len());
    }
}

/// Hands out numbered tasks and checks that each is answered once.
struct Once {
    handed: u64,
    open: BTreeSet<u64>,
}

impl Job for Once {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        let token = self.handed;
        self.handed += 1;
        self.open.insert(token);
        match token % 4 {
            3 => Next::Large {
                payload: vec![0; 5_000].into(),
                token,
            },
            short => {
                let len = usize::try_from(short).expect("below 3") * 100;
                space[..len].fill(1);
                Next::Task { len, token }
            }
        }
    }

    fn answer(&mut self, token: u64, _answer: Answer<'_>, _timing: Timing) -> Verdict {
        assert!(self.open.remove(&token), "token {token} answered twice");
        if token.is_multiple_of(2) {
            Verdict::Accept
        } else {
            Verdict::Reject
        }
    }

    fn progress(&mut self, token: u64, _piece: &[u8]) {
        assert!(
            self.open.contains(&token),
            "progress of {token} after its answer"
        );
    }
}

/// Trains into both ends of a channel.
///
/// The input is a list of steps: one byte kind, two bytes length (big-endian), that many bytes.
///
/// | kind mod 4 | the bytes are |
/// |---|---|
/// | 0 | a train for the worker's end |
/// | 1 | a train for the requester's end |
/// | 2 | milliseconds that pass, big-endian, the first two bytes |
/// | 3 | nothing: a waiting task is done, and the requester takes new ones |
pub fn frames(data: &[u8]) {
    let channel = ChannelId(0);
    let limits = ServingLimits {
        credits: 8,
        tasks: 1_000,
        expires_at: Time::NEVER,
        unsigned_max: 500,
    };
    let mut serving = Serving::new(channel, limits);
    let mut requesting = Requesting::new(channel, 8, 1_000, Time::ZERO);
    let mut our_path = Congestion::new(Time::ZERO);
    let mut their_path = Congestion::new(Time::ZERO);
    let mut job = Once {
        handed: 0,
        open: BTreeSet::new(),
    };
    let mut waiting: Vec<Admitted> = Vec::new();
    let mut now = Time::ZERO;
    let mut rest = data;
    while let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (bytes, after) = after.split_at(length);
        rest = after;
        let mut sink = Frames {
            space: Vec::new(),
            room: u32::from(kind / 4),
        };
        match kind % 4 {
            0 => {
                for frame in Train::open(bytes).into_iter().flatten().flatten() {
                    serve(
                        &mut serving,
                        now,
                        &mut their_path,
                        &frame,
                        &mut sink,
                        &mut waiting,
                    );
                }
            }
            1 => {
                for frame in Train::open(bytes).into_iter().flatten().flatten() {
                    // Refusals by reason are the point; that none of them panics is checked.
                    let _ = requesting.answer(now, &mut our_path, &frame, &mut sink, &mut job);
                }
            }
            2 => {
                let millis = bytes
                    .first_chunk::<2>()
                    .map_or(1, |b| u16::from_be_bytes(*b));
                now = now + Duration::from_millis(u64::from(millis));
                requesting.handle_timeout(now, &mut our_path, &mut sink);
            }
            _ => {
                if let Some(admitted) = waiting.pop() {
                    let answer = vec![7; usize::from(kind) * 40];
                    serving.answer_long(admitted, Answered::Done, 5, now, answer, &mut sink);
                }
                requesting.pump(now, &mut our_path, &mut sink, &mut job, 4);
                requesting.pump_parts(now, &mut our_path, &mut sink, 8);
                serving.acknowledge(&mut sink);
                serving.pump_parts(now, &mut their_path, &mut sink, 8);
            }
        }
        assert_eq!(serving.running() as usize, waiting.len());
        assert_eq!(requesting.outstanding() as usize, job.open.len());
    }
    requesting.abandon(now, &mut our_path, Refused::Lost, &mut job);
    serving.release(&mut their_path);
    assert_eq!(our_path.in_flight(), (0, 0), "an end counts nothing");
    assert_eq!(their_path.in_flight(), (0, 0), "an end counts nothing");
    assert!(job.open.is_empty(), "every token is answered in the end");
}

fn serve(
    serving: &mut Serving,
    now: Time,
    path: &mut Congestion,
    frame: &Frame<'_>,
    sink: &mut Frames,
    waiting: &mut Vec<Admitted>,
) {
    match frame.kind {
        Kind::Task => {
            if let Ok(Some(admitted)) = serving.admit(now, frame, sink) {
                waiting.push(admitted);
            }
        }
        Kind::TaskPart => {
            if let Ok(Some((admitted, _))) = serving.admit_part(now, frame, sink) {
                waiting.push(admitted);
            }
        }
        Kind::Verdict => drop(serving.verdict(frame)),
        Kind::PartAck => drop(serving.part_ack(now, path, frame)),
        Kind::ProgressAck => drop(serving.progress_ack(frame, sink)),
        _ => {}
    }
}
