//! Whatever arrives, the tunnel neither panics nor delivers it, and says why.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use ramjet_proto::fault::DropReason;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{OutgoingPacket, SealRefusal, TunnelEvent, Tunnels};
use ramjet_proto::wire::header::Protocol;

use super::pair::{Node, Pair, address_of, config};

fn established(seed: u64) -> Pair {
    let mut pair = Pair::new(seed);
    pair.connect(0);
    pair.run(Duration::from_millis(20));
    assert!(pair.both_established());
    pair
}

/// What an attacker does to a datagram that the peer really sent.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { bit: usize },
    Cut { to: usize },
    Extend { by: usize },
    Replay,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..16_384_usize).prop_map(|bit| Damage::Flip { bit }),
        (0..2_048_usize).prop_map(|to| Damage::Cut { to }),
        (1..70_000_usize).prop_map(|by| Damage::Extend { by }),
        Just(Damage::Replay),
    ]
}

fn apply(damage: Damage, datagram: &mut Vec<u8>) -> bool {
    match damage {
        Damage::Flip { bit } => {
            let bit = bit % (datagram.len() * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        Damage::Cut { to } => datagram.truncate(to % datagram.len()),
        Damage::Extend { by } => datagram.resize(datagram.len() + by, 0x5A),
        Damage::Replay => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_packet_is_dropped_and_the_sound_one_still_opens(
        damages in prop::collection::vec(damage(), 1..40),
        payload in prop::collection::vec(any::<u8>(), 0..1_330),
    ) {
        let mut pair = established(21);
        let now = pair.now;
        let sound = pair.nodes[0].seal(NodeId(2), now, &payload).expect("up");
        let spent = pair.nodes[0].seal(NodeId(2), now, &payload).expect("up");
        let node = &mut pair.nodes[1];
        prop_assert_eq!(node.receive(now, address_of(1), &spent), None);
        let delivered = node.delivered.len();
        for damage in damages {
            let mut datagram = sound.clone();
            let dropped = if apply(damage, &mut datagram) {
                node.receive(now, address_of(66), &datagram)
            } else {
                let dropped = node.receive(now, address_of(66), &spent);
                prop_assert_eq!(dropped, Some(DropReason::Replay));
                dropped
            };
            prop_assert!(dropped.is_some(), "{:?}", damage);
        }
        prop_assert_eq!(node.delivered.len(), delivered);
        prop_assert_eq!(node.endpoint(NodeId(1)), Some(address_of(1)));
        node.assert_conservation();
        prop_assert_eq!(node.receive(now, address_of(1), &sound), None);
        prop_assert_eq!(node.delivered.last(), Some(&payload));
    }

    #[test]
    fn a_damaged_announcement_establishes_nothing(
        damages in prop::collection::vec(damage(), 1..20),
    ) {
        let mut dialer = Pair::new(22);
        dialer.connect(0);
        let announcement = dialer.recorded[0].2.clone();
        prop_assert!(announcement.starts_with(b"PILA"));
        let mut node = Node::new(2, 23);
        let key = dialer.nodes[0].identity.public();
        for damage in damages {
            let mut datagram = announcement.clone();
            // Surplus bytes behind an announcement are ignored, as by every daemon.
            let surplus = matches!(damage, Damage::Extend { .. });
            if !apply(damage, &mut datagram) || surplus {
                continue;
            }
            let now = Time::ZERO + Duration::from_secs(node.received);
            node.receive(now, address_of(1), &datagram);
            node.turn(now);
            for event in std::mem::take(&mut node.events) {
                if let TunnelEvent::PeerKeyWanted(peer) = event {
                    node.tunnels.peer_key(peer, Some(key), None, now, &mut |space| space.fill(3));
                }
            }
            prop_assert_eq!(node.tunnels.len(), 0, "{:?}", damage);
        }
        node.assert_conservation();
    }

    #[test]
    fn no_datagram_panics_or_is_delivered(
        datagrams in prop::collection::vec(
            (0..6_usize, prop::collection::vec(any::<u8>(), 0..300)), 1..60),
    ) {
        let mut pair = established(24);
        let magics: [&[u8]; 6] = [b"PILS\0\0\0\x01", b"PILA\0\0\0\x01", b"PILK\0\0\0\x01", b"PILT", b"\x06", b""];
        for (magic, body) in datagrams {
            let datagram = [magics[magic], &body].concat();
            let node = &mut pair.nodes[1];
            node.receive(pair.now, address_of(66), &datagram);
            node.turn(pair.now);
        }
        prop_assert_eq!(pair.nodes[1].delivered.len(), 0);
        pair.nodes[1].assert_conservation();
        prop_assert!(pair.nodes[1].is_established(NodeId(1)));
    }
}

#[test]
fn each_kind_of_rubbish_has_its_name() {
    let mut pair = established(25);
    let node = &mut pair.nodes[1];
    let mut from_self = b"PILS\0\0\0\x02".to_vec();
    from_self.resize(100, 0);
    let mut announcement_from_self = b"PILA\0\0\0\x02".to_vec();
    announcement_from_self.resize(136, 0);
    let mut forged = b"PILS\0\0\0\x01".to_vec();
    forged.resize(100, 7);
    let mut stranger = b"PILS\0\0\0\x09".to_vec();
    stranger.resize(100, 7);
    let too_long = vec![b'P'; 65_508];
    for (datagram, reason) in [
        (&b""[..], DropReason::TooShort),
        (b"PIL", DropReason::TooShort),
        (b"PILS", DropReason::TooShort),
        (b"PILA\0\0\0\x01", DropReason::TooShort),
        (b"PILK\0\0\0\x01", DropReason::TooShort),
        (b"PILX\0\0\0\x01", DropReason::UnknownMagic),
        (b"GET / HTTP/1.1", DropReason::UnknownMagic),
        (b"PILT anything", DropReason::Plaintext),
        (b"\x04\x04\x7f\0\0\x01\x5d\x67", DropReason::BadBeacon),
        (b"\x06\0\0\0\x01PILP", DropReason::BadBeacon),
        (&from_self, DropReason::FromSelf),
        (&announcement_from_self, DropReason::FromSelf),
        (&forged, DropReason::BadTag),
        (&stranger, DropReason::NoSession),
        (&too_long, DropReason::TooLong),
    ] {
        assert_eq!(
            node.receive(pair.now, address_of(66), datagram),
            Some(reason)
        );
    }
    assert_eq!(node.receive(pair.now, address_of(66), b"PILP"), None);
    node.assert_conservation();
}

#[test]
fn more_exchanges_than_the_limit_are_dropped_and_leave_others_alone() {
    let mut pair = established(26);
    let announcement = pair.recorded.iter().find(|r| r.2.starts_with(b"PILA"));
    let (_, _, announcement) = announcement.expect("dialed").clone();
    let node = &mut pair.nodes[1];
    let verdicts: Vec<_> = (0..80)
        .map(|_| node.receive(pair.now, address_of(66), &announcement))
        .collect();
    let limited = verdicts
        .iter()
        .filter(|v| **v == Some(DropReason::KeyExchangeLimited));
    assert_eq!(limited.count(), 30);
    let other = node.receive(pair.now, address_of(67), &announcement);
    assert_ne!(other, Some(DropReason::KeyExchangeLimited));
}

#[test]
fn a_flood_of_strangers_fills_no_table_and_asks_within_bounds() {
    let mut pair = established(27);
    let node = &mut pair.nodes[1];
    for number in 0..5_000_u32 {
        let mut datagram = b"PILS".to_vec();
        datagram.extend_from_slice(&(number + 100).to_be_bytes());
        datagram.resize(90, 1);
        assert!(node.receive(pair.now, address_of(66), &datagram).is_some());
    }
    node.turn(pair.now);
    let asked = node
        .events
        .iter()
        .filter(|e| matches!(e, TunnelEvent::PeerKeyWanted(_)))
        .count();
    // The peer's own entry is still fresh, and stays.
    assert_eq!(asked, 255);
    assert_eq!(node.tunnels.len(), 1);
    // A node that announces itself is heard above the noise.
    let mut third = Pair::new(28);
    third.nodes[0] = Node::new(3, 28);
    third.connect(0);
    let announcement = third.recorded[0].2.clone();
    assert_eq!(node.receive(pair.now, address_of(3), &announcement), None);
}

#[test]
fn a_full_table_gives_up_embryos_first_then_the_longest_idle() {
    let identity = Arc::new(Identity::from_seed([1; 32]));
    let mut tunnels = Tunnels::new(config(1, &identity, 2));
    let mut lend = |space: &mut [u8]| space.fill(9);
    let now = Time::ZERO;
    let first = tunnels.connect(NodeId(10), now, &mut lend).expect("room");
    tunnels.connect(NodeId(11), now, &mut lend).expect("room");
    assert_eq!(
        tunnels.connect(NodeId(12), now, &mut lend),
        Err(DropReason::TunnelsFull)
    );
    assert_eq!(tunnels.connect(NodeId(10), now, &mut lend), Ok(first));
    assert_eq!(
        tunnels.connect(NodeId(1), now, &mut lend),
        Err(DropReason::FromSelf)
    );
    // The registry knows neither: both are lost, and there is room again.
    tunnels.peer_key(NodeId(10), None, None, now, &mut lend);
    assert_eq!((tunnels.len(), tunnels.peer(first)), (1, None));
    let again = tunnels.connect(NodeId(12), now, &mut lend).expect("room");
    assert_eq!(again.index(), first.index());
    assert_ne!(again, first);
}

#[test]
fn the_longest_idle_tunnel_makes_room() {
    // A node with room for two, and three peers.
    let mut pair = Pair::new(29);
    let identity = Arc::clone(&pair.nodes[0].identity);
    pair.nodes[0].tunnels = Tunnels::new(config(1, &identity, 2));
    let mut handles = Vec::new();
    for peer in 2..5 {
        pair.nodes[1] = Node::new(peer, 30);
        if peer == 4 {
            pair.run(Duration::from_secs(30));
            let (now, random) = (pair.now, &mut pair.nodes[0].random);
            let lend = &mut |space: &mut [u8]| random.fill(space);
            let full = pair.nodes[0].tunnels.connect(NodeId(4), now, lend);
            assert_eq!(full, Err(DropReason::TunnelsFull));
            pair.run(Duration::from_secs(31));
        }
        pair.connect(0);
        pair.run(Duration::from_millis(20));
        assert!(pair.both_established(), "peer {peer}");
        handles.push(pair.nodes[0].tunnels.find(NodeId(peer)).expect("up"));
    }
    assert_eq!(pair.nodes[0].tunnels.len(), 2);
    assert!(
        pair.nodes[0]
            .events
            .contains(&TunnelEvent::Lost { peer: NodeId(2) })
    );
    assert_eq!(pair.nodes[0].tunnels.peer(handles[0]), None);
    assert_eq!(pair.nodes[0].tunnels.peer(handles[1]), Some(NodeId(3)));
    assert_eq!(pair.nodes[0].tunnels.peer(handles[2]), Some(NodeId(4)));
}

#[test]
fn sealing_refuses_what_it_cannot_do_and_says_why() {
    let mut node = Node::new(1, 31);
    let handle = node.connect(NodeId(2), Time::ZERO);
    let packet = OutgoingPacket {
        protocol: Protocol::Stream,
        flags: 2,
        source_port: 1,
        destination_port: 2,
        sequence: 3,
        acknowledgment: 4,
        window: 5,
    };
    let mut space = vec![0; 70_000];
    let seal = |node: &mut Node, space: &mut [u8], length| {
        node.tunnels
            .seal(handle, Time::ZERO, &packet, space, length)
    };
    assert_eq!(
        seal(&mut node, &mut space, 8),
        Err(SealRefusal::NotEstablished)
    );
    let short = seal(&mut node, &mut space[..77], 8);
    assert_eq!(
        short,
        Err(SealRefusal::TooLong {
            needed: 78,
            space: 77
        })
    );
    let long = seal(&mut node, &mut space, 65_438);
    assert_eq!(
        long,
        Err(SealRefusal::TooLong {
            needed: 65_508,
            space: 65_507
        })
    );
    node.tunnels
        .peer_key(NodeId(2), None, None, Time::ZERO, &mut |space| {
            space.fill(1)
        });
    assert_eq!(
        seal(&mut node, &mut space, 8),
        Err(SealRefusal::UnknownTunnel)
    );
    assert!(long.expect_err("refused").to_string().contains("65508"));
}
