//! What two peers live through.

use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelEvent;

use super::pair::{Node, Pair, Random, Weather, address_of};

const MOMENT: Duration = Duration::from_millis(20);

fn established(seed: u64) -> Pair {
    let mut pair = Pair::new(seed);
    pair.connect(0);
    pair.run(MOMENT);
    assert!(pair.both_established());
    pair
}

/// Both ends send; both packets arrive, once.
fn assert_traffic(pair: &mut Pair, text: &[u8]) {
    let before = [0, 1].map(|side: usize| pair.nodes[side].delivered.len());
    assert!(pair.send(0, text));
    assert!(pair.send(1, text));
    pair.run(Duration::from_millis(500));
    for (node, before) in pair.nodes.iter().zip(before) {
        assert_eq!(node.delivered[before..], [text.to_vec()], "{}", node.id);
        node.assert_conservation();
    }
}

#[test]
fn a_dial_establishes_both_ends_and_packets_flow() {
    let mut pair = established(1);
    assert_traffic(&mut pair, b"there and back");
    for node in &pair.nodes {
        assert!(node.drops.is_empty(), "{:?}", node.drops);
        let up = |event: &TunnelEvent| matches!(event, TunnelEvent::Established { .. });
        assert_eq!(node.events.iter().filter(|event| up(event)).count(), 1);
    }
    let exchanged = pair
        .recorded
        .iter()
        .filter(|(.., bytes)| bytes.starts_with(b"PILA"));
    assert_eq!(exchanged.count(), 2);
}

#[test]
fn both_dial_at_once_and_meet_in_one_session() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed);
        pair.weather.jitter_ms = seed % 5;
        pair.nodes[0].connect(NodeId(2), Time::ZERO);
        pair.nodes[1].connect(NodeId(1), Time::ZERO);
        pair.run(Duration::from_millis(200));
        assert!(pair.both_established(), "seed {seed}");
        assert_traffic(&mut pair, b"met");
        for node in &pair.nodes {
            assert_eq!(node.dropped(DropReason::BadTag), 0, "seed {seed}");
        }
    }
}

#[test]
fn a_bad_network_delays_the_exchange_and_doubles_nothing() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed);
        pair.weather = Weather {
            loss: 30,
            duplicates: 20,
            jitter_ms: 50,
        };
        pair.connect(0);
        if seed % 2 == 0 {
            pair.connect(1);
        }
        pair.run(Duration::from_secs(10));
        assert!(pair.both_established(), "seed {seed}");
        for number in 0..50_u8 {
            pair.send(usize::from(number % 2), &[number]);
        }
        pair.run(Duration::from_secs(1));
        for node in &pair.nodes {
            node.assert_conservation();
            let mut distinct = node.delivered.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(
                distinct.len(),
                node.delivered.len(),
                "seed {seed}: delivered twice"
            );
            assert!(!distinct.is_empty());
        }
    }
}

#[test]
fn either_side_restarts_under_traffic() {
    for seed in 0..12_u64 {
        let mut pair = established(seed);
        let side = usize::try_from(seed % 2).expect("0 or 1");
        for round in 0..4 {
            pair.nodes[side].restart();
            // The one that forgot dials, or the other goes on sending.
            if (seed / 2 + round) % 2 == 0 {
                pair.connect(side);
            } else {
                assert!(pair.send(1 - side, b"to a process that is gone"));
            }
            pair.run(Duration::from_secs(3));
            assert!(pair.both_established(), "seed {seed} round {round}");
            assert_traffic(&mut pair, b"again");
        }
        // Both at once.
        pair.nodes[0].restart();
        pair.nodes[1].restart();
        pair.connect(side);
        pair.run(MOMENT);
        assert_traffic(&mut pair, b"both anew");
    }
}

#[test]
fn a_peer_that_is_not_there_is_given_up_after_its_schedule() {
    let mut pair = Pair::new(3);
    pair.weather.loss = 100;
    pair.connect(0);
    pair.run(Duration::from_secs(22));
    assert!(pair.nodes[0].events.is_empty());
    pair.run(Duration::from_secs(1));
    assert_eq!(
        pair.nodes[0].events,
        [TunnelEvent::Lost { peer: NodeId(2) }]
    );
    assert_eq!(pair.nodes[0].tunnels.len(), 0);
    let count = |magic: &[u8]| {
        pair.recorded
            .iter()
            .filter(|r| r.2.starts_with(magic))
            .count()
    };
    assert_eq!((count(b"PILA"), count(b"PILK")), (8, 8));

    pair.weather.loss = 0;
    pair.connect(0);
    pair.run(MOMENT);
    assert_traffic(&mut pair, b"found");
}

#[test]
fn a_peer_that_the_registry_does_not_know_is_given_up_at_once() {
    let mut pair = Pair::new(4);
    pair.forget_keys();
    pair.connect(0);
    pair.run(MOMENT);
    assert_eq!(
        pair.nodes[0].events,
        [TunnelEvent::Lost { peer: NodeId(2) }]
    );
    assert_eq!(pair.nodes[0].tunnels.len(), 0);

    // Nor does an unknown node get in, or more than one question to the registry in a second.
    let mut stranger = Pair::new(5);
    stranger.connect(0);
    let announcement = stranger.recorded.iter().find(|r| r.2.starts_with(b"PILA"));
    let announcement = announcement.expect("it dialed").2.clone();
    let node = &mut pair.nodes[1];
    assert_eq!(node.receive(pair.now, address_of(1), &announcement), None);
    assert_eq!(node.receive(pair.now, address_of(1), &announcement), None);
    node.turn(pair.now);
    assert_eq!(node.events, [TunnelEvent::PeerKeyWanted(NodeId(1))]);
    node.tunnels
        .peer_key(NodeId(1), None, None, pair.now, &mut |space| space.fill(1));
    let again = node.receive(pair.now, address_of(1), &announcement);
    assert_eq!(again, Some(DropReason::UnknownPeer));
    assert_eq!(node.tunnels.len(), 0);
}

#[test]
fn a_registry_that_does_not_answer_is_asked_again_and_then_no_more() {
    let mut node = Node::new(1, 6);
    node.connect(NodeId(2), Time::ZERO);
    let mut now = Time::ZERO;
    for _ in 0..20 {
        node.turn(now);
        now = now + Duration::from_secs(1);
    }
    let asked = node
        .events
        .iter()
        .filter(|e| matches!(e, TunnelEvent::PeerKeyWanted(_)))
        .count();
    assert_eq!(asked, 10);
    assert_eq!(
        node.events.last(),
        Some(&TunnelEvent::Lost { peer: NodeId(2) })
    );
    assert_eq!(node.tunnels.len(), 0);
}

#[test]
fn replaying_all_that_was_ever_sent_moves_nothing_and_is_counted() {
    let mut pair = established(7);
    for number in 0..100 {
        assert!(pair.send(0, &[number]));
        assert!(pair.send(1, &[number]));
    }
    pair.run(Duration::from_secs(2));
    let recorded = pair.recorded.clone();
    let attacker = address_of(66);
    let endpoints = [0, 1].map(|side: usize| pair.nodes[side].endpoint(NodeId([2, 1][side])));
    for side in 0..2 {
        let node = &mut pair.nodes[side];
        let (delivered, handled) = (node.delivered.len(), node.handled);
        let (address, now) = (node.address, pair.now);
        let mut replayed = 0;
        for (_, _, datagram) in recorded.iter().filter(|(_, to, _)| *to == address) {
            node.receive(now, attacker, datagram);
            replayed += 1;
        }
        assert_eq!(node.delivered.len(), delivered);
        let dropped = node.dropped(DropReason::Replay) + node.dropped(DropReason::Duplicate);
        // What is not dropped is the announcement of the live key, which is answered.
        assert!(node.handled - handled <= 1);
        assert_eq!(dropped + (node.handled - handled), replayed);
        node.assert_conservation();
    }
    pair.run(Duration::from_secs(1));
    let after = [0, 1].map(|side: usize| pair.nodes[side].endpoint(NodeId([2, 1][side])));
    assert_eq!(after, endpoints);
    assert_traffic(&mut pair, b"undisturbed");
}

#[test]
fn an_announcement_of_a_former_process_cuts_nothing() {
    let mut pair = established(8);
    let mut former = Vec::new();
    // Announcements that node 1 knows as retired, and one that it has never seen.
    for _ in 0..3 {
        pair.nodes[1].restart();
        pair.recorded.clear();
        pair.connect(1);
        pair.run(MOMENT);
        let (from, to) = (address_of(2), address_of(1));
        let announced = pair.recorded.iter().find(|r| r.0 == from && r.1 == to);
        former.push(announced.expect("it dialed").clone());
    }
    let unseen = {
        let mut other = Pair::new(1_000);
        other.connect(1);
        other
            .recorded
            .iter()
            .find(|r| r.2.starts_with(b"PILA"))
            .expect("dialed")
            .clone()
    };
    former.pop();
    former.push(unseen);
    let attacker = address_of(66);
    pair.recorded.clear();
    for round in 0..50 {
        for (_, to, datagram) in &former {
            pair.post(attacker, *to, datagram);
        }
        assert!(pair.send(0, &[round]));
        assert!(pair.send(1, &[round]));
        pair.run(Duration::from_millis(500));
        assert_eq!(pair.nodes[0].endpoint(NodeId(2)), Some(address_of(2)));
    }
    // Not one packet was lost or sent astray.
    assert_eq!(pair.nodes[0].delivered.len(), 50);
    assert_eq!(pair.nodes[1].delivered.len(), 50);
    assert!(
        pair.nodes[0].dropped(DropReason::Replay) > 0,
        "{:?}",
        pair.nodes[0].drops
    );
    let astray = |r: &&(_, _, Vec<u8>)| r.1 == attacker && r.2.starts_with(b"PILS");
    // Pings under the key that nobody holds are all that the attacker can draw.
    assert!(pair.recorded.iter().filter(astray).all(|r| r.2.len() == 83));
    let to_attacker = pair.recorded.iter().filter(|r| r.1 == attacker).count();
    assert!(to_attacker <= 3 * 50, "{to_attacker} datagrams");
}

#[test]
fn keys_are_rotated_under_traffic_without_a_loss() {
    for seed in 0..4 {
        let mut pair = established(seed);
        pair.weather.jitter_ms = 5 * (seed % 2);
        let mut sent = 0_usize;
        let end = pair.now + Duration::from_secs(5 * 60 * 60);
        while pair.now < end {
            assert!(pair.send(0, b"x"));
            assert!(
                pair.send(1, b"x"),
                "{:?} {:?} {:?}",
                pair.now,
                pair.nodes[0].events,
                pair.nodes[1].events
            );
            sent += 1;
            pair.run(Duration::from_secs(20));
        }
        let mut prefixes = [Vec::new(), Vec::new()];
        for (source, _, bytes) in pair.recorded.iter().filter(|r| r.2.len() == 71) {
            let side = usize::from(*source == address_of(2));
            prefixes[side].push(bytes[8..12].to_vec());
        }
        for (node, mut prefixes) in pair.nodes.iter().zip(prefixes) {
            assert_eq!(node.delivered.len(), sent, "seed {seed}");
            // A ping may overtake the announcement of its key, or meet another key than was told
            // when both ends rotate at once; a packet may not.
            let overtaken = node.dropped(DropReason::BadTag);
            assert!(overtaken <= 8, "seed {seed}: {overtaken}");
            prefixes.sort();
            prefixes.dedup();
            assert!(prefixes.len() >= 3, "two rotations in five hours");
        }
    }
}

#[test]
fn rotation_survives_a_bad_network() {
    for seed in 0..6 {
        let mut pair = established(seed);
        pair.weather = Weather {
            loss: 30,
            duplicates: 10,
            jitter_ms: 40,
        };
        let end = pair.now + Duration::from_secs(3 * 60 * 60);
        let mut sent = 0;
        while pair.now < end {
            sent += usize::from(pair.send(0, b"x"));
            pair.send(1, b"x");
            pair.run(Duration::from_secs(10));
        }
        let arrived = pair.nodes[1].delivered.len();
        assert!(
            arrived * 100 > sent * 60,
            "seed {seed}: {arrived} of {sent}"
        );
        pair.weather = Weather::default();
        pair.run(Duration::from_secs(10));
        assert_traffic(&mut pair, b"clear again");
    }
}

#[test]
fn a_tunnel_in_use_is_kept_alive_and_an_idle_one_is_not() {
    let mut pair = established(9);
    pair.recorded.clear();
    pair.run(Duration::from_secs(290));
    let keepalives = |pair: &Pair| pair.recorded.iter().filter(|r| r.2.len() == 70).count();
    let in_use = keepalives(&pair);
    assert!((26..=30).contains(&in_use), "{in_use} keepalives");
    pair.run(Duration::from_secs(3_000));
    assert!(keepalives(&pair) <= in_use + 4);
    assert!(pair.both_established());
    assert_traffic(&mut pair, b"not forgotten");
}

#[test]
fn a_peer_in_use_that_falls_silent_is_dialed_again_and_lost() {
    let mut pair = established(10);
    // Idle for so long that nothing watches it but the rotation, then in use again.
    pair.run(Duration::from_secs(1_000));
    assert_traffic(&mut pair, b"after a pause");
    pair.weather.loss = 100;
    let mut lost = None;
    for second in 0..120 {
        pair.send(0, b"anybody");
        pair.run(Duration::from_secs(1));
        if pair.nodes[0]
            .events
            .contains(&TunnelEvent::Lost { peer: NodeId(2) })
        {
            lost = Some(second);
            break;
        }
    }
    assert!((80..=86).contains(&lost.expect("given up")), "{lost:?}");
    pair.weather.loss = 0;
    pair.connect(0);
    pair.run(Duration::from_secs(1));
    assert_traffic(&mut pair, b"back");
}

#[test]
fn an_authenticated_packet_moves_the_endpoint_and_a_late_one_does_not() {
    let mut pair = established(11);
    let (now, peer) = (pair.now, NodeId(2));
    let late = pair.nodes[1].seal(NodeId(1), now, b"late").expect("up");
    let newest = pair.nodes[1].seal(NodeId(1), now, b"newest").expect("up");
    let node = &mut pair.nodes[0];
    assert_eq!(node.receive(now, address_of(77), &newest), None);
    assert_eq!(node.endpoint(peer), Some(address_of(77)));
    assert_eq!(node.receive(now, address_of(2), &late), None);
    assert_eq!(node.endpoint(peer), Some(address_of(77)));
    let mut forged = pair.nodes[1].seal(NodeId(1), now, b"forged").expect("up");
    forged[40] ^= 1;
    let node = &mut pair.nodes[0];
    assert_eq!(
        node.receive(now, address_of(66), &forged),
        Some(DropReason::BadTag)
    );
    assert_eq!(node.endpoint(peer), Some(address_of(77)));
}

/// The registry's word about a peer that has a session, to the first node.
fn tell(pair: &mut Pair, endpoint: std::net::SocketAddr) {
    let (now, key) = (pair.now, pair.nodes[1].identity.public());
    let Node {
        tunnels, random, ..
    } = &mut pair.nodes[0];
    tunnels.peer_key(NodeId(2), Some(key), Some(endpoint), now, &mut |space| {
        random.fill(space);
    });
}

#[test]
fn a_peer_that_starts_anew_elsewhere_is_followed() {
    for seed in 0..12_u64 {
        let mut pair = established(seed);
        pair.weather.loss = 15;
        pair.nodes[1].restart();
        pair.nodes[1].address = address_of(9);
        tell(&mut pair, address_of(9));
        pair.run(Duration::from_secs(3));
        pair.weather.loss = 0;
        assert_eq!(pair.nodes[0].endpoint(NodeId(2)), Some(address_of(9)));
        assert_traffic(&mut pair, b"at the new place");
    }
}

#[test]
fn the_registrys_word_alone_moves_no_tunnel() {
    let mut pair = established(14);
    pair.recorded.clear();
    tell(&mut pair, address_of(77));
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.nodes[0].endpoint(NodeId(2)), Some(address_of(2)));
    let looked = pair.recorded.iter().filter(|sent| sent.1 == address_of(77));
    assert!((1..=20).contains(&looked.count()));
    assert_traffic(&mut pair, b"where it was");
}

#[test]
fn a_node_that_changed_its_key_at_the_registry_gets_in_after_a_question() {
    let mut pair = established(12);
    let mut reborn = Node::new(2, 13);
    reborn.identity = std::sync::Arc::new(ramjet_proto::identity::Identity::from_seed([99; 32]));
    reborn.restart();
    pair.nodes[1] = reborn;
    pair.connect(1);
    pair.run(Duration::from_secs(1));
    assert!(pair.nodes[0].dropped(DropReason::WrongIdentity) > 0);
    assert_traffic(&mut pair, b"new papers");
}

/// Whatever two peers lived through, once the weather clears they find each other, and nothing was
/// delivered twice on the way.
#[test]
fn any_history_ends_in_a_working_session() {
    let seeds = std::env::var("RAMJET_TUNNEL_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    for seed in 0..seeds.unwrap_or(100_u64) {
        let mut pair = Pair::new(seed);
        let mut random = Random(seed ^ 0xD1CE);
        let mut serial = 0_u32;
        for _ in 0..random.below(40) {
            let side = usize::try_from(random.below(2)).expect("0 or 1");
            match random.below(10) {
                0 => pair.nodes[side].restart(),
                1 | 2 => pair.connect(side),
                3 => {
                    pair.weather = Weather {
                        loss: random.below(60),
                        duplicates: random.below(30),
                        jitter_ms: random.below(200),
                    };
                }
                4 => pair.run(Duration::from_secs(random.below(4_000))),
                5 => replay_something(&mut pair, &mut random),
                6 => pair.run(Duration::from_millis(random.below(300))),
                _ => {
                    serial += 1;
                    pair.send(side, &serial.to_be_bytes());
                    pair.run(Duration::from_millis(random.below(3_000)));
                }
            }
        }
        for node in &pair.nodes {
            node.assert_conservation();
            let mut distinct = node.delivered.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(
                distinct.len(),
                node.delivered.len(),
                "seed {seed}: delivered twice"
            );
        }
        pair.weather = Weather::default();
        // A dial may be under way, or a session that the other side has forgotten.
        for _ in 0..10 {
            for side in 0..2 {
                pair.connect(side);
                pair.send(side, b"anybody");
            }
            pair.run(Duration::from_secs(10));
        }
        for side in 0..2 {
            let to = pair.nodes[side].endpoint(pair.nodes[1 - side].id);
            assert_eq!(to, Some(pair.nodes[1 - side].address), "seed {seed}");
        }
        assert!(pair.both_established(), "seed {seed}");
        assert_traffic(&mut pair, b"at last");
    }
}

/// An attacker sends again what it heard, from its own address.
fn replay_something(pair: &mut Pair, random: &mut Random) {
    for _ in 0..random.below(20) {
        let count = u64::try_from(pair.recorded.len()).expect("fits");
        if count > 0 {
            let index = usize::try_from(random.below(count)).expect("fits");
            let (_, to, datagram) = pair.recorded[index].clone();
            pair.post(address_of(66), to, &datagram);
        }
    }
}
