//! The UDP beacon: where a node is seen from, punching, and relaying for those that cannot punch.
//!
//! Byte 0 is the type, integers are big-endian:
//!
//! ```text
//!  01 discover       node 4 [key 32]                 02 reply    length 1 (4 or 16), IP, port 2
//!  03 punch request  requester 4, target 4 [grant 72] 04 command  length 1, IP, port 2
//!  05 relay          sender 4, dest 4, frame          06 deliver  sender 4, frame
//!                                                     0A notice   kind 1: 01, a handshake waits
//! ```
//!
//! Nothing here is authenticated: that is Pilot's protocol, and the tunnel inside does not rely on
//! it. What is bounded: a node's source is held for 30 s against a change, entries live for ten
//! minutes, each source has a rate, and both tables have a size. [`Beacon`] is a pure function of
//! datagrams and time; the socket's loop is below it. A notice spares a node that knows it the
//! wait for its next poll of the registry; others ignore it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ramjet_proto::ids::NodeId;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::fault::Count;
use crate::server::Clock;
use crate::session::Shared;

/// How long a node's entry lives after it was last heard of, in milliseconds.
pub const ENTRY_LIFE_MS: u64 = 600_000;
/// How long a node's source is held against a change, in milliseconds.
pub const SOURCE_HELD_MS: u64 = 30_000;
/// Nodes that are remembered.
pub const ENTRIES_MAX: usize = 65_536;
/// Sources whose rate is remembered.
pub const SOURCES_MAX: usize = 65_536;
/// Punch requests and discovers a second from one source.
pub const REQUESTS_PER_SECOND: u32 = 50;

const DISCOVER: u8 = 0x01;
const DISCOVER_REPLY: u8 = 0x02;
const PUNCH_REQUEST: u8 = 0x03;
const PUNCH_COMMAND: u8 = 0x04;
const RELAY: u8 = 0x05;
const RELAY_DELIVER: u8 = 0x06;
const NOTICE: u8 = 0x0A;
const HANDSHAKE_WAITS: u8 = 0x01;

const DISCOVER_LEN: usize = 5;
const DISCOVER_WITH_KEY_LEN: usize = 5 + 32;
const PUNCH_LEN: usize = 9;
const PUNCH_WITH_GRANT_LEN: usize = 9 + 8 + 64;
const RELAY_HEADER_LEN: usize = 9;

#[derive(Clone, Copy, Debug)]
struct Entry {
    source: SocketAddr,
    seen_ms: u64,
}

/// Tokens of one source, in thousandths.
#[derive(Clone, Copy, Debug)]
struct Rates {
    at_ms: u64,
    requests: u64,
    relays: u64,
}

/// Where nodes are seen from, and how often sources speak.
#[derive(Debug)]
pub struct Beacon {
    entries: BTreeMap<NodeId, Entry>,
    sources: BTreeMap<SocketAddr, Rates>,
    relayed_per_second: u32,
}

impl Beacon {
    /// A beacon that relays so many packets a second for one source.
    pub fn new(relayed_per_second: u32) -> Self {
        Beacon {
            entries: BTreeMap::new(),
            sources: BTreeMap::new(),
            relayed_per_second,
        }
    }

    /// Takes one datagram; what is to be sent is handed to `send`, in order.
    ///
    /// # Errors
    /// The counter of the reason why nothing was done.
    pub fn receive(
        &mut self,
        now_ms: u64,
        source: SocketAddr,
        datagram: &[u8],
        mut send: impl FnMut(SocketAddr, Vec<u8>),
    ) -> Result<(), Count> {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        match (datagram.first(), datagram.len()) {
            (Some(&DISCOVER), DISCOVER_LEN | DISCOVER_WITH_KEY_LEN) => {
                self.admit(now_ms, source, false)?;
                let node = node_at(datagram, 1);
                // Node 0 asks for its endpoint before it has an id.
                let learned = if node.0 == 0 {
                    Ok(())
                } else {
                    self.learn(now_ms, node, source)
                };
                send(source, endpoint_message(DISCOVER_REPLY, source));
                learned
            }
            (Some(&PUNCH_REQUEST), PUNCH_LEN | PUNCH_WITH_GRANT_LEN) => {
                self.admit(now_ms, source, false)?;
                let (requester, target) = (node_at(datagram, 1), node_at(datagram, 5));
                self.learn(now_ms, requester, source)?;
                let target = self.find(now_ms, target)?;
                send(target, endpoint_message(PUNCH_COMMAND, source));
                send(source, endpoint_message(PUNCH_COMMAND, target));
                Ok(())
            }
            (Some(&RELAY), length) if length > RELAY_HEADER_LEN => {
                self.admit(now_ms, source, true)?;
                let target = self.find(now_ms, node_at(datagram, 5))?;
                let mut delivery = Vec::with_capacity(length - 4);
                delivery.push(RELAY_DELIVER);
                delivery.extend_from_slice(&datagram[1..5]);
                delivery.extend_from_slice(&datagram[RELAY_HEADER_LEN..]);
                send(target, delivery);
                Ok(())
            }
            (Some(&(DISCOVER | PUNCH_REQUEST | RELAY)), _) | (None, _) => {
                Err(Count::BeaconMalformed)
            }
            (Some(_), _) => Err(Count::BeaconUnknownType),
        }
    }

    /// What tells `node` that a handshake waits for it at the registry, and where to; `None` if it
    /// has not discovered itself here lately.
    pub fn notice(&self, now_ms: u64, node: NodeId) -> Option<(SocketAddr, [u8; 2])> {
        let target = self.find(now_ms, node).ok()?;
        Some((target, [NOTICE, HANDSHAKE_WAITS]))
    }

    /// Takes a token of the source's rate.
    fn admit(&mut self, now_ms: u64, source: SocketAddr, is_relay: bool) -> Result<(), Count> {
        let full = Rates {
            at_ms: now_ms,
            requests: u64::from(REQUESTS_PER_SECOND) * 1_000,
            relays: u64::from(self.relayed_per_second) * 1_000,
        };
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            // After a second of silence every rate is full again.
            self.sources.retain(|_, rates| rates.at_ms + 1_000 > now_ms);
            if self.sources.len() >= SOURCES_MAX {
                return Err(Count::BeaconFull);
            }
        }
        let rates = self.sources.entry(source).or_insert(full);
        let elapsed_ms = now_ms.saturating_sub(rates.at_ms);
        let gain = |tokens: u64, per_second: u32, full: u64| {
            tokens
                .saturating_add(elapsed_ms.saturating_mul(u64::from(per_second)))
                .min(full)
        };
        rates.requests = gain(rates.requests, REQUESTS_PER_SECOND, full.requests);
        rates.relays = gain(rates.relays, self.relayed_per_second, full.relays);
        rates.at_ms = rates.at_ms.max(now_ms);
        let tokens = if is_relay {
            &mut rates.relays
        } else {
            &mut rates.requests
        };
        if *tokens < 1_000 {
            return Err(Count::BeaconLimited);
        }
        *tokens -= 1_000;
        Ok(())
    }

    fn learn(&mut self, now_ms: u64, node: NodeId, source: SocketAddr) -> Result<(), Count> {
        if let Some(entry) = self.entries.get(&node)
            && entry.source != source
            && entry.seen_ms + SOURCE_HELD_MS > now_ms
        {
            return Err(Count::BeaconSourceHeld);
        }
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&node) {
            self.entries
                .retain(|_, entry| entry.seen_ms + ENTRY_LIFE_MS > now_ms);
            if self.entries.len() >= ENTRIES_MAX {
                return Err(Count::BeaconFull);
            }
        }
        self.entries.insert(
            node,
            Entry {
                source,
                seen_ms: now_ms,
            },
        );
        Ok(())
    }

    fn find(&self, now_ms: u64, node: NodeId) -> Result<SocketAddr, Count> {
        self.entries
            .get(&node)
            .filter(|entry| entry.seen_ms + ENTRY_LIFE_MS > now_ms)
            .map(|entry| entry.source)
            .ok_or(Count::BeaconUnknownNode)
    }
}

fn node_at(datagram: &[u8], at: usize) -> NodeId {
    let bytes = datagram[at..at + 4]
        .try_into()
        .expect("the caller checked the length");
    NodeId(u32::from_be_bytes(bytes))
}

fn endpoint_message(kind: u8, endpoint: SocketAddr) -> Vec<u8> {
    let mut message = vec![kind];
    match endpoint.ip() {
        IpAddr::V4(ip) => {
            message.push(4);
            message.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            message.push(16);
            message.extend_from_slice(&ip.octets());
        }
    }
    message.extend_from_slice(&endpoint.port().to_be_bytes());
    message
}

/// Serves the beacon's socket for ever.
pub async fn serve(
    shared: Arc<Shared>,
    socket: UdpSocket,
    mut notices: mpsc::Receiver<NodeId>,
    clock: Clock,
) {
    let mut beacon = Beacon::new(shared.limits.relayed_per_second);
    let mut buffer = vec![0; ramjet_proto::wire::limits::RECEIVED_LEN_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(node) = notices.recv() => {
                if let Some((to, notice)) = beacon.notice(clock.now_ms(), node) {
                    shared.record(&notice);
                    if socket.send_to(&notice, to).await.is_ok() {
                        shared.counters.add(Count::BeaconNotices);
                    }
                }
                continue;
            }
        };
        let (length, source) = match received {
            Ok(received) => received,
            Err(error) => {
                // A refused port of an earlier receiver is reported here; the socket lives on.
                tracing::debug!(%error, "beacon receive");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let datagram = &buffer[..length];
        shared.record(datagram);
        shared.counters.add(Count::BeaconReceived);
        let mut replies = Vec::with_capacity(2);
        let mut outcome = beacon.receive(clock.now_ms(), source, datagram, |to, message| {
            replies.push((to, message));
        });
        for (to, message) in replies {
            shared.record(&message);
            if socket.send_to(&message, to).await.is_err() {
                outcome = Err(Count::BeaconSendFailed);
            }
        }
        shared
            .counters
            .add(outcome.err().unwrap_or(Count::BeaconAnswered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sent = Vec<(SocketAddr, Vec<u8>)>;

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().expect("an endpoint")
    }

    fn receive(
        beacon: &mut Beacon,
        now_ms: u64,
        source: &str,
        datagram: &[u8],
    ) -> (Result<(), Count>, Sent) {
        let mut sent = Vec::new();
        let outcome = beacon.receive(now_ms, endpoint(source), datagram, |to, message| {
            sent.push((to, message));
        });
        (outcome, sent)
    }

    fn discover(node: u8) -> [u8; 5] {
        [1, 0, 0, 0, node]
    }

    const A: &str = "127.0.0.1:4001";
    const B: &str = "127.0.0.2:4002";

    #[test]
    fn discover_punch_and_relay_have_the_published_bytes() {
        let mut beacon = Beacon::new(4_000);
        let (outcome, sent) = receive(&mut beacon, 0, A, &discover(1));
        assert_eq!(outcome, Ok(()));
        assert_eq!(sent, [(endpoint(A), vec![2, 4, 127, 0, 0, 1, 0x0f, 0xa1])]);
        let (_, sent) = receive(&mut beacon, 0, "[::1]:4003", &discover(0));
        assert_eq!(sent[0].1[..2], [2, 16]);
        assert_eq!(sent[0].1.len(), 2 + 16 + 2);

        let (outcome, sent) = receive(&mut beacon, 0, B, &[3, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(outcome, Ok(()));
        let command = |ip: [u8; 4], port: u16| [&[4, 4][..], &ip, &port.to_be_bytes()].concat();
        assert_eq!(
            sent,
            [
                (endpoint(A), command([127, 0, 0, 2], 4_002)),
                (endpoint(B), command([127, 0, 0, 1], 4_001)),
            ]
        );

        let (outcome, sent) = receive(&mut beacon, 0, A, b"\x05\0\0\0\x01\0\0\0\x02PILSx");
        assert_eq!(outcome, Ok(()));
        assert_eq!(sent, [(endpoint(B), b"\x06\0\0\0\x01PILSx".to_vec())]);
    }

    #[test]
    fn what_is_malformed_or_unknown_is_named_and_unanswered() {
        let mut beacon = Beacon::new(4_000);
        let table: [(&[u8], Count); 7] = [
            (b"", Count::BeaconMalformed),
            (b"\x01\0\0", Count::BeaconMalformed),
            (b"\x03\0\0\0\x01", Count::BeaconMalformed),
            (b"\x05\0\0\0\x01\0\0\0\x02", Count::BeaconMalformed),
            (b"\x07\0", Count::BeaconUnknownType),
            (b"GET / HTTP/1.1", Count::BeaconUnknownType),
            (b"\x05\0\0\0\x01\0\0\0\x09x", Count::BeaconUnknownNode),
        ];
        for (datagram, count) in table {
            assert_eq!(
                receive(&mut beacon, 0, A, datagram),
                (Err(count), Vec::new())
            );
        }
    }

    #[test]
    fn a_source_is_held_and_an_entry_ages() {
        let mut beacon = Beacon::new(4_000);
        receive(&mut beacon, 0, A, &discover(1))
            .0
            .expect("the first source");
        let (outcome, sent) = receive(&mut beacon, SOURCE_HELD_MS - 1, B, &discover(1));
        assert_eq!(outcome, Err(Count::BeaconSourceHeld));
        assert_eq!(
            sent.len(),
            1,
            "it is told its own endpoint, and changes nothing"
        );
        let relay = b"\x05\0\0\0\x09\0\0\0\x01x";
        assert_eq!(
            receive(&mut beacon, SOURCE_HELD_MS, B, relay).1[0].0,
            endpoint(A)
        );
        receive(&mut beacon, SOURCE_HELD_MS, B, &discover(1))
            .0
            .expect("held no longer");
        assert_eq!(
            receive(&mut beacon, SOURCE_HELD_MS, A, relay).1[0].0,
            endpoint(B)
        );
        let late = SOURCE_HELD_MS + ENTRY_LIFE_MS;
        assert_eq!(
            receive(&mut beacon, late, A, relay).0,
            Err(Count::BeaconUnknownNode)
        );
    }

    #[test]
    fn each_source_has_its_rate() {
        let mut beacon = Beacon::new(10);
        receive(&mut beacon, 0, B, &discover(2)).0.expect("known");
        let relay = b"\x05\0\0\0\x01\0\0\0\x02x";
        let passed = |beacon: &mut Beacon, now_ms, source| {
            (0..20)
                .filter(|_| receive(beacon, now_ms, source, relay).0.is_ok())
                .count()
        };
        assert_eq!(passed(&mut beacon, 0, A), 10);
        assert_eq!(passed(&mut beacon, 500, A), 5);
        assert_eq!(passed(&mut beacon, 500, B), 10);
        assert_eq!(
            receive(&mut beacon, 500, A, relay).0,
            Err(Count::BeaconLimited)
        );
    }
}
