//! The beacon: discovery, punches, relayed datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{TunnelConfig, Tunnels};

use super::pair::{Node, Pair, address_of, config};

fn beacon() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 9], 9_001))
}

fn with_beacon(mut node: Node) -> Node {
    let config = config(node.id.0, &Arc::clone(&node.identity), 4);
    node.tunnels = Tunnels::new(TunnelConfig {
        beacon: Some(beacon()),
        ..config
    });
    node
}

fn to_beacon(node: &mut Node) -> Vec<Vec<u8>> {
    let sent = std::mem::take(&mut node.sent);
    sent.into_iter()
        .filter(|(to, _)| *to == beacon())
        .map(|(_, bytes)| bytes)
        .collect()
}

#[test]
fn the_node_is_discovered_at_the_start_and_every_minute() {
    let mut node = with_beacon(Node::new(1, 1));
    assert_eq!(node.tunnels.next_timeout(), Time::ZERO);
    node.turn(Time::ZERO);
    assert_eq!(to_beacon(&mut node), [b"\x01\0\0\0\x01".to_vec()]);
    let minute = Time::ZERO + Duration::from_secs(60);
    assert_eq!(node.tunnels.next_timeout(), minute);
    node.turn(Time::ZERO + Duration::from_secs(59));
    assert!(to_beacon(&mut node).is_empty());
    node.turn(minute);
    assert_eq!(to_beacon(&mut node).len(), 1);

    assert_eq!(
        node.receive(minute, beacon(), b"\x02\x04\x7f\0\0\x01\x5d\x91"),
        None
    );
    let observed = node.tunnels.observed_endpoint().expect("told");
    assert_eq!(observed.to_string(), "127.0.0.1:23953");
}

#[test]
fn only_the_beacon_can_command_punches() {
    let mut node = with_beacon(Node::new(1, 2));
    node.turn(Time::ZERO);
    node.sent.clear();
    let command = b"\x04\x04\x7f\0\0\x01\x5d\x67";
    let stranger = SocketAddr::from(([10, 9, 9, 9], 9_002));
    assert_eq!(
        node.receive(Time::ZERO, stranger, command),
        Some(DropReason::BadBeacon)
    );
    node.turn(Time::ZERO);
    assert!(node.sent.is_empty());
    assert_eq!(node.receive(Time::ZERO, beacon(), command), None);
    node.turn(Time::ZERO);
    let punch = (SocketAddr::from(([127, 0, 0, 1], 23_911)), b"PILP".to_vec());
    assert_eq!(node.sent, [punch.clone(), punch.clone(), punch]);
    for rubbish in [
        &b"\x04"[..],
        b"\x04\x05\0\0\0\0\0\0\0",
        b"\x01\0\0\0\x01",
        b"\x0a",
        b"\x0b\x01",
    ] {
        let dropped = node.receive(Time::ZERO, beacon(), rubbish);
        assert_eq!(dropped, Some(DropReason::BadBeacon));
    }
}

#[test]
fn a_dial_asks_the_beacon_for_punches() {
    let mut node = with_beacon(Node::new(1, 3));
    let peer = Node::new(2, 3);
    node.connect(NodeId(2), Time::ZERO);
    let (key, endpoint) = (peer.identity.public(), Some(peer.address));
    let lend = &mut |space: &mut [u8]| space.fill(5);
    node.tunnels
        .peer_key(NodeId(2), Some(key), endpoint, Time::ZERO, lend);
    node.turn(Time::ZERO);
    assert!(to_beacon(&mut node).contains(&b"\x03\0\0\0\x01\0\0\0\x02".to_vec()));
}

#[test]
fn a_relayed_packet_is_delivered_and_moves_no_endpoint() {
    let mut pair = Pair::new(4);
    pair.nodes[0] = with_beacon(Node::new(1, 4));
    pair.connect(0);
    pair.run(Duration::from_millis(20));
    assert!(pair.both_established());
    let now = pair.now;
    let sealed = pair.nodes[1].seal(NodeId(1), now, b"by relay").expect("up");
    let relayed = [&b"\x06\0\0\0\x02"[..], &sealed].concat();
    let node = &mut pair.nodes[0];
    assert_eq!(
        node.receive(now, address_of(2), &relayed),
        Some(DropReason::BadBeacon)
    );
    assert_eq!(node.receive(now, beacon(), &relayed), None);
    assert_eq!(node.delivered, [b"by relay".to_vec()]);
    assert_eq!(node.endpoint(NodeId(2)), Some(address_of(2)));
    assert_eq!(
        node.receive(now, beacon(), &relayed),
        Some(DropReason::Replay)
    );
    let nested = [&b"\x06\0\0\0\x02"[..], &relayed].concat();
    assert_eq!(
        node.receive(now, beacon(), &nested),
        Some(DropReason::BadBeacon)
    );
}

#[test]
fn an_exchange_begun_by_relay_is_answered_directly() {
    let mut pair = Pair::new(5);
    pair.nodes[0] = with_beacon(Node::new(1, 5));
    // Node 2 announces itself, and only the relayed copy arrives.
    pair.weather.loss = 100;
    pair.connect(1);
    let announcement = pair.recorded.iter().find(|r| r.2.starts_with(b"PILA"));
    let relayed = [&b"\x06\0\0\0\x02"[..], &announcement.expect("it dialed").2].concat();
    pair.weather.loss = 0;
    pair.post(beacon(), address_of(1), &relayed);
    pair.run(Duration::from_millis(50));
    assert!(pair.both_established());
    assert_eq!(pair.nodes[0].endpoint(NodeId(2)), Some(address_of(2)));
}
