//! Two nodes, a network between them that loses, doubles and reorders, and a clock that is a
//! number. Everything follows from one seed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{
    OutgoingPacket, Received, SealRefusal, TunnelConfig, TunnelEvent, TunnelHandle, Tunnels,
};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::{DATAGRAM_LEN_MAX, PACKET_HEADER_LEN, SEALED_HEADER_LEN};

pub(crate) const PAYLOAD_AT: usize = SEALED_HEADER_LEN + PACKET_HEADER_LEN;

/// SplitMix64: small, and the same on every machine.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = u8::try_from(self.next() & 0xFF).expect("a byte");
        }
    }
}

/// A node and what happened to it.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) identity: Arc<Identity>,
    pub(crate) tunnels: Tunnels,
    pub(crate) random: Random,
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) drops: BTreeMap<DropReason, u64>,
    pub(crate) received: u64,
    pub(crate) handled: u64,
    pub(crate) events: Vec<TunnelEvent>,
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
}

pub(crate) fn config(id: u32, identity: &Arc<Identity>, tunnels_max: usize) -> TunnelConfig {
    TunnelConfig {
        node: NodeId(id),
        identity: Arc::clone(identity),
        tunnels_max,
        key_exchanges_per_second: 50,
        beacon: None,
    }
}

pub(crate) fn address_of(id: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(id).expect("a small id")], 4_000))
}

impl Node {
    pub(crate) fn new(id: u32, seed: u64) -> Self {
        let identity = Arc::new(Identity::from_seed(
            [u8::try_from(id).expect("small id"); 32],
        ));
        let mut node = Node {
            id: NodeId(id),
            address: address_of(id),
            tunnels: Tunnels::new(config(id, &identity, 16)),
            identity,
            random: Random(seed ^ u64::from(id) << 32),
            delivered: Vec::new(),
            drops: BTreeMap::new(),
            received: 0,
            handled: 0,
            events: Vec::new(),
            sent: Vec::new(),
        };
        // Streams of entropy of two nodes never meet.
        node.random.next();
        node
    }

    /// Forgets every key, as a process does when it ends.
    pub(crate) fn restart(&mut self) {
        self.tunnels = Tunnels::new(config(self.id.0, &self.identity, 16));
        self.events.clear();
        self.sent.clear();
    }

    pub(crate) fn receive(
        &mut self,
        now: Time,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Option<DropReason> {
        self.received += 1;
        let mut bytes = datagram.to_vec();
        let random = &mut self.random;
        let received = self
            .tunnels
            .receive(now, source, &mut bytes, &mut |space| random.fill(space));
        match received {
            Received::Packet(opened) => {
                self.delivered.push(opened.payload.to_vec());
                None
            }
            Received::Handled => {
                self.handled += 1;
                None
            }
            Received::Dropped(reason) => {
                *self.drops.entry(reason).or_default() += 1;
                Some(reason)
            }
        }
    }

    pub(crate) fn connect(&mut self, peer: NodeId, now: Time) -> TunnelHandle {
        let random = &mut self.random;
        self.tunnels
            .connect(peer, now, &mut |space| random.fill(space))
            .expect("there is room")
    }

    /// Timeouts, then everything that is to be sent and said.
    pub(crate) fn turn(&mut self, now: Time) {
        let random = &mut self.random;
        while self.tunnels.next_timeout() <= now {
            self.tunnels
                .handle_timeout(now, &mut |space| random.fill(space));
            Self::drain(&mut self.tunnels, &mut self.sent, now);
        }
        Self::drain(&mut self.tunnels, &mut self.sent, now);
        while let Some(event) = self.tunnels.poll_event() {
            self.events.push(event);
        }
    }

    fn drain(tunnels: &mut Tunnels, sent: &mut Vec<(SocketAddr, Vec<u8>)>, now: Time) {
        let mut out = [0; DATAGRAM_LEN_MAX];
        while let Some(transmit) = tunnels.poll_transmit(now, &mut out) {
            sent.push((transmit.to, out[..transmit.len].to_vec()));
        }
    }

    pub(crate) fn seal(
        &mut self,
        peer: NodeId,
        now: Time,
        payload: &[u8],
    ) -> Result<Vec<u8>, SealRefusal> {
        let handle = self.tunnels.find(peer).ok_or(SealRefusal::UnknownTunnel)?;
        let mut bytes = vec![0; payload.len() + 70];
        bytes[PAYLOAD_AT..][..payload.len()].copy_from_slice(payload);
        let packet = OutgoingPacket {
            protocol: Protocol::Datagram,
            flags: 0,
            source_port: 2_000,
            destination_port: 2_000,
            sequence: 0,
            acknowledgment: 0,
            window: 0,
        };
        let length = self
            .tunnels
            .seal(handle, now, &packet, &mut bytes, payload.len())?;
        assert_eq!(length, bytes.len());
        Ok(bytes)
    }

    /// Seals a packet and sends it to where the tunnel points.
    pub(crate) fn send(&mut self, peer: NodeId, now: Time, payload: &[u8]) -> bool {
        let Ok(datagram) = self.seal(peer, now, payload) else {
            return false;
        };
        let handle = self.tunnels.find(peer).expect("it sealed");
        let Some(route) = self.tunnels.route(handle) else {
            return false;
        };
        let header = route.relay.map_or(Vec::new(), Vec::from);
        self.sent.push((route.to, [header, datagram].concat()));
        true
    }

    pub(crate) fn is_established(&self, peer: NodeId) -> bool {
        self.tunnels
            .find(peer)
            .is_some_and(|handle| self.tunnels.is_established(handle))
    }

    pub(crate) fn is_relayed(&self, peer: NodeId) -> bool {
        let handle = self.tunnels.find(peer).expect("a tunnel");
        self.tunnels.is_relayed(handle)
    }

    pub(crate) fn endpoint(&self, peer: NodeId) -> Option<SocketAddr> {
        self.tunnels.endpoint(self.tunnels.find(peer)?)
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(&reason).copied().unwrap_or(0)
    }

    /// Received = delivered + handled + dropped, always.
    pub(crate) fn assert_conservation(&self) {
        let dropped: u64 = self.drops.values().sum();
        let delivered = u64::try_from(self.delivered.len()).expect("fits");
        assert_eq!(self.received, delivered + self.handled + dropped);
    }
}

/// How bad the network is, in percent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) jitter_ms: u64,
}

/// The two nodes, what is under way between them, and the registry that knows both.
pub(crate) struct Pair {
    pub(crate) now: Time,
    pub(crate) nodes: [Node; 2],
    pub(crate) weather: Weather,
    pub(crate) random: Random,
    pub(crate) recorded: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    under_way: BTreeMap<(Time, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    serial: u64,
    registry_knows: bool,
    /// What the registry tells of each side's address, if that is not so.
    pub(crate) told: [Option<SocketAddr>; 2],
    /// Where the beacon sees the nodes; `None` if there is no beacon.
    pub(crate) beacon: Option<BTreeMap<NodeId, SocketAddr>>,
    /// Datagrams from the first address to the second are lost.
    pub(crate) walls: Vec<(SocketAddr, SocketAddr)>,
    /// For a side behind a NAT that lets in what it has sent to: where it has sent to.
    pub(crate) nats: [Option<Vec<SocketAddr>>; 2],
}

pub(crate) fn beacon_address() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 9], 9_001))
}

impl Pair {
    pub(crate) fn new(seed: u64) -> Self {
        Pair {
            now: Time::ZERO,
            nodes: [Node::new(1, seed), Node::new(2, seed)],
            weather: Weather::default(),
            random: Random(seed),
            recorded: Vec::new(),
            under_way: BTreeMap::new(),
            serial: 0,
            registry_knows: true,
            told: [None, None],
            beacon: None,
            walls: Vec::new(),
            nats: [None, None],
        }
    }

    /// With a beacon that both nodes know.
    pub(crate) fn with_beacon(seed: u64) -> Self {
        let mut pair = Pair::new(seed);
        pair.beacon = Some(BTreeMap::new());
        for node in &mut pair.nodes {
            node.tunnels = Tunnels::new(TunnelConfig {
                beacon: Some(beacon_address()),
                ..config(node.id.0, &node.identity, 16)
            });
        }
        // They are discovered.
        pair.run(Duration::from_millis(10));
        pair
    }

    /// One of them forgets every key, and knows the beacon again.
    pub(crate) fn restart_with_beacon(&mut self, side: usize) {
        let node = &mut self.nodes[side];
        node.restart();
        node.tunnels = Tunnels::new(TunnelConfig {
            beacon: Some(beacon_address()),
            ..config(node.id.0, &node.identity, 16)
        });
    }

    pub(crate) fn forget_keys(&mut self) {
        self.registry_knows = false;
    }

    pub(crate) fn connect(&mut self, from: usize) {
        let peer = self.nodes[1 - from].id;
        let now = self.now;
        self.nodes[from].connect(peer, now);
        self.turn();
    }

    pub(crate) fn both_established(&self) -> bool {
        (0..2).all(|side| self.nodes[side].is_established(self.nodes[1 - side].id))
    }

    /// Lets a node send a packet; `false` if it has no session.
    pub(crate) fn send(&mut self, from: usize, payload: &[u8]) -> bool {
        let (now, peer) = (self.now, self.nodes[1 - from].id);
        let sent = self.nodes[from].send(peer, now, payload);
        self.turn();
        sent
    }

    /// Moves time and lets everything happen that happens within.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.turn();
            let timeouts = self.nodes.iter().map(|node| node.tunnels.next_timeout());
            let arrival = self.under_way.keys().next().map(|(at, _)| *at);
            let next = timeouts.chain(arrival).min().unwrap_or(Time::NEVER);
            if next > end {
                break;
            }
            assert!(
                next > self.now || arrival == Some(next),
                "nothing moves at {:?}",
                self.now
            );
            self.now = self.now.max(next);
        }
        self.now = end;
        self.turn();
    }

    /// What is due now, and what it causes.
    fn turn(&mut self) {
        let now = self.now;
        while let Some(entry) = self.under_way.first_entry().filter(|e| e.key().0 <= now) {
            let (source, to, datagram) = entry.remove();
            if to == beacon_address() {
                self.beacon_receives(source, &datagram);
                continue;
            }
            let Some(side) = self.nodes.iter().position(|node| node.address == to) else {
                continue;
            };
            if self.nats[side]
                .as_ref()
                .is_none_or(|known| known.contains(&source))
            {
                self.nodes[side].receive(now, source, &datagram);
            }
        }
        for side in 0..2 {
            self.nodes[side].turn(now);
            self.answer_registry_questions(side);
            self.nodes[side].turn(now);
            let source = self.nodes[side].address;
            for (to, datagram) in std::mem::take(&mut self.nodes[side].sent) {
                if let Some(known) = &mut self.nats[side] {
                    known.push(to);
                }
                self.recorded.push((source, to, datagram.clone()));
                self.post(source, to, &datagram);
            }
        }
    }

    /// What a beacon does, as its protocol says.
    fn beacon_receives(&mut self, source: SocketAddr, datagram: &[u8]) {
        let Some(seen) = &mut self.beacon else { return };
        let node_at = |at: usize| {
            let bytes = datagram[at..at + 4].try_into().expect("four bytes");
            NodeId(u32::from_be_bytes(bytes))
        };
        let command = |kind: u8, address: SocketAddr| {
            let SocketAddr::V4(address) = address else {
                panic!("the harness has IPv4 only")
            };
            let port = address.port().to_be_bytes();
            [&[kind, 4][..], &address.ip().octets(), &port].concat()
        };
        let mut out = Vec::new();
        match datagram[0] {
            1 => {
                seen.insert(node_at(1), source);
                out.push((source, command(2, source)));
            }
            3 => {
                seen.insert(node_at(1), source);
                if let Some(target) = seen.get(&node_at(5)) {
                    out.push((*target, command(4, source)));
                    out.push((source, command(4, *target)));
                }
            }
            5 => {
                if let Some(target) = seen.get(&node_at(5)) {
                    out.push((*target, [&[6], &datagram[1..5], &datagram[9..]].concat()));
                }
            }
            other => panic!("a node never sends the beacon {other}"),
        }
        for (to, datagram) in out {
            self.post(beacon_address(), to, &datagram);
        }
    }

    fn answer_registry_questions(&mut self, side: usize) {
        let now = self.now;
        let (mut asked, mut kept) = (Vec::new(), Vec::new());
        for event in self.nodes[side].events.drain(..) {
            match event {
                TunnelEvent::PeerKeyWanted(node) => asked.push(node),
                other => kept.push(other),
            }
        }
        self.nodes[side].events = kept;
        for node in asked {
            let known = self.nodes.iter().position(|peer| peer.id == node);
            let known = known.filter(|_| self.registry_knows);
            let key = known.map(|side| self.nodes[side].identity.public());
            let endpoint = known.map(|side| self.told[side].unwrap_or(self.nodes[side].address));
            let asker = &mut self.nodes[side];
            let random = &mut asker.random;
            asker
                .tunnels
                .peer_key(node, key, endpoint, now, &mut |space| random.fill(space));
        }
    }

    /// Puts a datagram on its way.
    pub(crate) fn post(&mut self, source: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        if self.walls.contains(&(source, to)) {
            return;
        }
        let copies = 1 + u64::from(self.random.percent(self.weather.duplicates));
        for _ in 0..copies {
            if self.random.percent(self.weather.loss) {
                continue;
            }
            let jitter_us = self.random.below(self.weather.jitter_ms * 1_000 + 1);
            let at = self.now + Duration::from_millis(1) + Duration::from_micros(jitter_us);
            self.serial += 1;
            self.under_way
                .insert((at, self.serial), (source, to, datagram.to_vec()));
        }
    }
}
