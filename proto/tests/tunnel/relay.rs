//! Peers that cannot reach each other directly, or not any more, or again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::tunnel::TunnelEvent;

use super::pair::{Pair, Weather, address_of, beacon_address};

const PEERS: [NodeId; 2] = [NodeId(2), NodeId(1)];

/// Nothing passes directly, in either direction.
fn wall(pair: &mut Pair) {
    let (one, two) = (pair.nodes[0].address, pair.nodes[1].address);
    pair.walls = vec![(one, two), (two, one)];
}

/// Both sides send for so long, ten times a second; how many packets arrived at each.
fn talk(pair: &mut Pair, duration: Duration) -> [usize; 2] {
    let before = [0, 1].map(|side: usize| pair.nodes[side].delivered.len());
    let end = pair.now + duration;
    while pair.now < end {
        pair.send(0, b"from one");
        pair.send(1, b"from two");
        pair.run(Duration::from_millis(100));
    }
    [0, 1].map(|side: usize| pair.nodes[side].delivered.len() - before[side])
}

fn relayed(pair: &Pair) -> [bool; 2] {
    [0, 1].map(|side: usize| pair.nodes[side].is_relayed(PEERS[side]))
}

fn is_lost(pair: &Pair) -> bool {
    let lost = |event: &TunnelEvent| matches!(event, TunnelEvent::Lost { .. });
    pair.nodes.iter().any(|node| node.events.iter().any(lost))
}

/// The direct datagrams of a kind that were sent since the recording was cleared.
fn sent_directly(pair: &Pair, magic: &[u8]) -> usize {
    let directly = |r: &&(_, SocketAddr, Vec<u8>)| r.1 != beacon_address();
    let of_kind = |r: &&(_, SocketAddr, Vec<u8>)| r.2.starts_with(magic);
    pair.recorded
        .iter()
        .filter(directly)
        .filter(of_kind)
        .count()
}

#[test]
fn peers_that_never_meet_directly_meet_over_the_beacon() {
    for seed in 0..8 {
        let mut pair = Pair::with_beacon(seed);
        wall(&mut pair);
        if seed % 2 == 1 {
            pair.weather = Weather {
                loss: 10,
                duplicates: 10,
                jitter_ms: 20,
            };
        }
        pair.connect(0);
        pair.run(Duration::from_secs(3));
        assert!(pair.both_established(), "seed {seed}");
        pair.weather = Weather::default();
        pair.run(Duration::from_secs(1));
        assert_eq!(relayed(&pair), [true, true], "seed {seed}");
        assert_eq!(talk(&mut pair, Duration::from_secs(30)), [300, 300]);
        // What came over the beacon says nothing of where the peer is.
        for (side, peer) in PEERS.into_iter().enumerate() {
            let node = &pair.nodes[side];
            assert_eq!(node.endpoint(peer), Some(address_of(peer.0)));
            node.assert_conservation();
        }
        assert!(!is_lost(&pair), "seed {seed}");
    }
}

#[test]
fn a_direct_way_that_opens_is_taken() {
    let mut pair = Pair::with_beacon(20);
    wall(&mut pair);
    pair.connect(0);
    pair.run(Duration::from_secs(2));
    assert_eq!(relayed(&pair), [true, true]);
    talk(&mut pair, Duration::from_secs(5));
    pair.walls.clear();
    assert_eq!(talk(&mut pair, Duration::from_secs(20)), [200, 200]);
    assert_eq!(relayed(&pair), [false, false]);
    pair.recorded.clear();
    talk(&mut pair, Duration::from_secs(5));
    assert_eq!(
        sent_directly(&pair, b"PILS"),
        100,
        "and nothing else is sent"
    );
    let rerouted: Vec<_> = pair.nodes[0]
        .events
        .iter()
        .filter_map(|event| match event {
            TunnelEvent::Rerouted { relayed, .. } => Some(*relayed),
            _ => None,
        })
        .collect();
    assert_eq!(rerouted, [true, false]);
}

#[test]
fn a_direct_way_that_closes_is_left_before_anybody_gives_up() {
    for seed in 30..34 {
        let mut pair = Pair::with_beacon(seed);
        pair.connect(0);
        pair.run(Duration::from_secs(1));
        assert_eq!(talk(&mut pair, Duration::from_secs(5)), [50, 50]);
        assert_eq!(relayed(&pair), [false, false]);
        wall(&mut pair);
        talk(&mut pair, Duration::from_millis(5_500));
        assert_eq!(relayed(&pair), [true, true], "seed {seed}");
        assert_eq!(talk(&mut pair, Duration::from_secs(60)), [600, 600]);
        assert!(!is_lost(&pair));
        pair.walls.clear();
        talk(&mut pair, Duration::from_secs(17));
        assert_eq!(relayed(&pair), [false, false], "seed {seed}");
    }
}

#[test]
fn a_wall_in_one_direction_is_gone_round_in_that_direction_only() {
    let mut pair = Pair::with_beacon(40);
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    pair.walls = vec![(address_of(1), address_of(2))];
    // Both ask at the same time, so both go over the beacon at first.
    talk(&mut pair, Duration::from_secs(25));
    assert_eq!(relayed(&pair), [true, false]);
    assert_eq!(talk(&mut pair, Duration::from_secs(60)), [600, 600]);
    assert_eq!(relayed(&pair), [true, false], "and stays so");
    pair.walls.clear();
    talk(&mut pair, Duration::from_secs(17));
    assert_eq!(relayed(&pair), [false, false]);
}

#[test]
fn a_bad_network_and_a_silent_peer_are_no_reason_to_leave() {
    let mut pair = Pair::with_beacon(50);
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    pair.weather = Weather {
        loss: 20,
        duplicates: 5,
        jitter_ms: 50,
    };
    talk(&mut pair, Duration::from_secs(120));
    assert_eq!(relayed(&pair), [false, false]);
    // Only one side speaks: pings tell it that the other one hears.
    pair.weather = Weather::default();
    for _ in 0..600 {
        assert!(pair.send(0, b"anybody there?"));
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(relayed(&pair), [false, false]);
    // And a peer that is gone does not make the beacon a way to it.
    let both = [address_of(2), beacon_address()].map(|from| (from, address_of(1)));
    pair.walls = both.to_vec();
    for _ in 0..300 {
        pair.send(0, b"and now?");
        pair.run(Duration::from_millis(100));
    }
    assert!(!pair.nodes[0].is_relayed(NodeId(2)));
}

#[test]
fn holes_are_punched_where_only_the_beacon_knows_the_addresses() {
    for seed in 60..66 {
        let mut pair = Pair::with_beacon(seed);
        // The registry knows what stands behind the NATs, which nobody else can reach.
        pair.told =
            [[192, 168, 1, 5], [192, 168, 7, 9]].map(|ip| Some(SocketAddr::from((ip, 4_000))));
        pair.nats = [1, 2].map(|_| Some(vec![beacon_address()]));
        pair.connect(0);
        pair.run(Duration::from_secs(1));
        talk(&mut pair, Duration::from_secs(3));
        assert!(pair.both_established(), "seed {seed}");
        assert_eq!(relayed(&pair), [false, false], "seed {seed}");
        for (side, peer) in PEERS.into_iter().enumerate() {
            assert_eq!(pair.nodes[side].endpoint(peer), Some(address_of(peer.0)));
        }
        assert_eq!(talk(&mut pair, Duration::from_secs(10)), [100, 100]);
    }
}

#[test]
fn a_peer_whose_address_the_registry_does_not_tell_is_reached() {
    let mut pair = Pair::with_beacon(70);
    pair.nodes[0].connect(NodeId(2), pair.now);
    let key = pair.nodes[1].identity.public();
    // A private node: its key is known, its address is not.
    let now = pair.now;
    let node = &mut pair.nodes[0];
    node.turn(now);
    node.events.clear();
    node.tunnels
        .peer_key(NodeId(2), Some(key), None, now, &mut |space| space.fill(9));
    pair.run(Duration::from_secs(1));
    assert!(pair.both_established());
    assert_eq!(talk(&mut pair, Duration::from_secs(1)), [10, 10]);
    // The first datagrams told both where the other one is.
    assert_eq!(relayed(&pair), [false, false]);
}

#[test]
fn a_peer_that_moves_is_followed() {
    let mut pair = Pair::with_beacon(80);
    pair.told[1] = Some(address_of(2));
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    // It speaks first at its new address, as a node behind a NAT that was restarted does.
    pair.nodes[1].address = SocketAddr::from(([10, 0, 0, 77], 4_077));
    assert!(pair.send(1, b"here I am"));
    pair.run(Duration::from_millis(10));
    assert_eq!(
        pair.nodes[0].endpoint(NodeId(2)),
        Some(pair.nodes[1].address)
    );
    assert_eq!(talk(&mut pair, Duration::from_secs(5)), [50, 50]);
    assert_eq!(relayed(&pair), [false, false]);

    // It moves and says nothing: what is sent to its old address is lost, but the beacon hears of it
    // within a minute, and by it the peer, and by that the new address.
    pair.nodes[1].address = SocketAddr::from(([10, 0, 0, 78], 4_078));
    for _ in 0..800 {
        pair.send(0, b"where are you?");
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(
        pair.nodes[0].endpoint(NodeId(2)),
        Some(pair.nodes[1].address)
    );
    assert_eq!(relayed(&pair), [false, false]);
    assert!(!is_lost(&pair));
}

#[test]
fn either_side_restarts_behind_the_beacon() {
    for seed in 90..96 {
        let mut pair = Pair::with_beacon(seed);
        wall(&mut pair);
        pair.connect(0);
        pair.run(Duration::from_secs(2));
        let side = usize::try_from(seed % 2).expect("0 or 1");
        pair.restart_with_beacon(side);
        if seed % 3 == 0 {
            pair.connect(side);
        } else {
            assert!(pair.send(1 - side, b"to a process that is gone"));
        }
        pair.run(Duration::from_secs(4));
        assert!(pair.both_established(), "seed {seed}");
        assert_eq!(
            talk(&mut pair, Duration::from_secs(2)),
            [20, 20],
            "seed {seed}"
        );
        assert_eq!(relayed(&pair), [true, true]);
    }
}

#[test]
fn a_beacon_that_lies_moves_nothing() {
    let mut pair = Pair::with_beacon(100);
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    let attacker = SocketAddr::from(([10, 0, 0, 66], 6_666));
    let node = &mut pair.nodes[0];
    // Commands that nobody asked for draw punches and nothing that is sealed.
    let command = [4, 4, 10, 0, 0, 66, 0x1a, 0x0a];
    let now = pair.now + Duration::from_secs(10);
    assert_eq!(node.receive(now, beacon_address(), &command), None);
    node.turn(now);
    let drawn: Vec<_> = node.sent.iter().filter(|(to, _)| *to == attacker).collect();
    assert_eq!(drawn.len(), 3);
    assert!(drawn.iter().all(|(_, bytes)| bytes == b"PILP"));
    // What was relayed before is worth nothing again.
    let sealed = pair.nodes[1].seal(NodeId(1), now, b"once").expect("up");
    let relayed_once = [&b"\x06\0\0\0\x02"[..], &sealed].concat();
    let node = &mut pair.nodes[0];
    assert_eq!(node.receive(now, beacon_address(), &relayed_once), None);
    let again = node.receive(now, beacon_address(), &relayed_once);
    assert_eq!(again, Some(DropReason::Replay));
    assert_eq!(node.endpoint(NodeId(2)), Some(address_of(2)));
    assert!(!node.is_relayed(NodeId(2)));
    // A notice is no more than that.
    assert_eq!(node.receive(now, beacon_address(), &[0x0A, 1]), None);
    assert_eq!(
        node.receive(now, attacker, &[0x0A, 1]),
        Some(DropReason::BadBeacon)
    );
}

#[test]
fn without_a_beacon_nothing_is_relayed() {
    let mut pair = Pair::new(110);
    assert_eq!(pair.beacon, None::<BTreeMap<NodeId, SocketAddr>>);
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    wall(&mut pair);
    talk(&mut pair, Duration::from_secs(50));
    let to_others = |r: &&(_, SocketAddr, _)| r.1 != address_of(1) && r.1 != address_of(2);
    assert_eq!(pair.recorded.iter().filter(to_others).count(), 0);
    assert_eq!(relayed(&pair), [false, false]);
}
