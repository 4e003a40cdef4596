//! A ramjet node and a scripted daemon of the released kind.

use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelEvent;
use ramjet_proto::wire::header::Protocol;

use super::daemon::Daemon;
use super::pair::Node;

struct Mixed {
    now: Time,
    node: Node,
    daemon: Daemon,
    /// Datagrams of the daemon to lose.
    lose: usize,
}

impl Mixed {
    fn new(node: u32, daemon: u32) -> Self {
        let node = Node::new(node, 7);
        let daemon = Daemon::new(daemon, node.id, node.identity.public(), 99);
        Mixed {
            now: Time::ZERO,
            node,
            daemon,
            lose: 0,
        }
    }

    /// Passes datagrams to and fro for `duration`, one step a millisecond.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let now = self.now;
            self.node.turn(now);
            for event in std::mem::take(&mut self.node.events) {
                if event == TunnelEvent::PeerKeyWanted(self.daemon.id) {
                    let (key, at) = (self.daemon.identity.public(), self.daemon.address);
                    let random = &mut self.node.random;
                    let lend = &mut |space: &mut [u8]| random.fill(space);
                    self.node
                        .tunnels
                        .peer_key(self.daemon.id, Some(key), Some(at), now, lend);
                }
            }
            self.node.turn(now);
            for (to, datagram) in std::mem::take(&mut self.node.sent) {
                assert_eq!(to, self.daemon.address);
                self.daemon.receive(now, self.node.address, &datagram);
            }
            for datagram in std::mem::take(&mut self.daemon.sent) {
                if self.lose > 0 {
                    self.lose -= 1;
                    continue;
                }
                self.node.receive(now, self.daemon.address, &datagram);
            }
            self.now = now + Duration::from_millis(1);
        }
        self.node.assert_conservation();
    }

    fn exchange(&mut self, text: &[u8]) {
        let (delivered, arrived) = (self.node.delivered.len(), self.daemon.delivered.len());
        assert!(self.node.send(self.daemon.id, self.now, text), "no session");
        self.daemon.send(text);
        self.run(Duration::from_millis(20));
        assert_eq!(self.node.delivered[delivered..], [text.to_vec()]);
        assert_eq!(self.daemon.delivered[arrived..], [text.to_vec()]);
    }
}

#[test]
fn we_dial_a_daemon() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(20));
    mixed.exchange(b"hello");
    assert_eq!(mixed.daemon.sessions, 1);
}

#[test]
fn a_daemon_dials_us_and_its_queue_precedes_its_announcement() {
    for ids in [(1, 2), (2, 1)] {
        let mut mixed = Mixed::new(ids.0, ids.1);
        mixed.daemon.send(b"early");
        mixed.run(Duration::from_millis(20));
        assert!(mixed.node.is_established(mixed.daemon.id));
        mixed.exchange(b"hello");
        assert_eq!(mixed.daemon.sessions, 1);
    }
}

#[test]
fn a_daemon_that_seals_before_it_announces_is_understood_after() {
    let mut mixed = Mixed::new(1, 2);
    mixed.daemon.pending.push(b"too early".to_vec());
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(20));
    assert_eq!(mixed.node.dropped(DropReason::NoSession), 1);
    mixed.exchange(b"in time");
}

#[test]
fn a_lost_answer_of_a_daemon_is_requested() {
    let mut mixed = Mixed::new(1, 2);
    // The daemon takes our announcement; its own is lost, and it stays silent for repetitions.
    mixed.lose = 1;
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(400));
    mixed.exchange(b"after a request");
}

#[test]
fn a_daemon_restarts() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_secs(5));
    for round in 0..12 {
        mixed.daemon.restart();
        // It speaks first, or we do.
        if round % 2 == 0 {
            mixed.daemon.send(b"first");
        } else {
            assert!(mixed.node.send(NodeId(2), mixed.now, b"into the void"));
        }
        mixed.run(Duration::from_secs(2));
        mixed.exchange(b"again");
    }
}

#[test]
fn a_daemon_loses_its_session_and_counts_anew_under_the_same_key() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_secs(5));
    for round in 0..20 {
        mixed.daemon.lose_session();
        // A packet under the old session makes the daemon announce and request.
        assert!(mixed.node.send(NodeId(2), mixed.now, b"lost"));
        mixed.run(Duration::from_secs(3));
        assert!(
            mixed.daemon.has_session(),
            "round {round} {:?}",
            mixed.node.drops
        );
        mixed.exchange(b"again");
    }
    assert_eq!(mixed.node.dropped(DropReason::OutsideWindow), 0);
}

#[test]
fn we_restart_under_a_daemon() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_secs(5));
    for round in 0..6 {
        mixed.node.restart();
        if round % 2 == 0 {
            mixed.node.connect(NodeId(2), mixed.now);
        } else {
            for _ in 0..6 {
                mixed.daemon.send(b"to a process that is gone");
            }
        }
        mixed.run(Duration::from_secs(2));
        mixed.exchange(b"again");
    }
}

#[test]
fn our_key_is_rotated_under_a_daemon() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(20));
    let hours = Duration::from_secs(2 * 60 * 60);
    // Silence of hours would be a lost peer: the clock jumps, the packets of both sides follow.
    mixed.now = mixed.now + hours;
    mixed.daemon.send(b"still here");
    mixed.run(Duration::from_secs(1));
    mixed.exchange(b"under the new key");
    assert_eq!(mixed.daemon.sessions, 2);
}

#[test]
fn what_an_authenticated_peer_may_not_send_is_dropped_by_name() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(20));
    let sound = mixed.daemon.fields(NodeId(2), Protocol::Datagram);
    let spoofed = mixed.daemon.fields(NodeId(3), Protocol::Datagram);
    let mut foreign = sound;
    foreign.destination.address.node = NodeId(9);
    let mut broadcast = sound;
    broadcast.destination.address.node = NodeId(u32::MAX);
    let anonymous = mixed.daemon.fields(NodeId(0), Protocol::Control);
    let spoofed_ping = mixed.daemon.fields(NodeId(3), Protocol::Control);
    for (fields, payload, verdict) in [
        (sound, &b"x"[..], None),
        (broadcast, b"x", None),
        (spoofed, b"x", Some(DropReason::SpoofedSource)),
        (foreign, b"x", Some(DropReason::WrongDestination)),
        (anonymous, b"", None),
        (anonymous, b"x", Some(DropReason::SpoofedSource)),
        (spoofed_ping, b"x", Some(DropReason::SpoofedSource)),
        (spoofed_ping, b"", Some(DropReason::SpoofedSource)),
    ] {
        let datagram = mixed.daemon.seal(&fields, payload);
        let dropped = mixed
            .node
            .receive(mixed.now, mixed.daemon.address, &datagram);
        assert_eq!(dropped, verdict, "{fields:?}");
        let again = mixed
            .node
            .receive(mixed.now, mixed.daemon.address, &datagram);
        assert_eq!(again, Some(DropReason::Replay));
    }
    // The tag proves what the checksum covers, so a wrong checksum under a right tag says nothing.
    for (at, verdict) in [(0, Some(DropReason::BadPacket)), (33, None)] {
        let mut bytes = mixed.daemon.seal(&sound, b"x");
        let end = bytes.len() - 16;
        sound.write(&mut bytes[20..end]);
        bytes[20 + at] ^= 0x30;
        mixed.daemon.seal_packet(&mut bytes);
        assert_eq!(
            mixed.node.receive(mixed.now, mixed.daemon.address, &bytes),
            verdict
        );
    }
    mixed.node.assert_conservation();
}

#[test]
fn a_ping_is_answered_and_a_pong_is_not() {
    let mut mixed = Mixed::new(1, 2);
    mixed.node.connect(NodeId(2), Time::ZERO);
    mixed.run(Duration::from_millis(20));
    let mut ping = mixed.daemon.fields(NodeId(2), Protocol::Control);
    ping.sequence = 7;
    ping.source.address.network = 3;
    ping.destination.address.network = 3;
    let datagram = mixed.daemon.seal(&ping, b"pathprobe.v1");
    assert_eq!(
        mixed
            .node
            .receive(mixed.now, mixed.daemon.address, &datagram),
        None
    );
    mixed.node.turn(mixed.now);
    assert_eq!(mixed.node.sent.len(), 1);
    assert_eq!(mixed.node.sent[0].1.len(), 70 + 12);
    mixed.node.sent.clear();
    ping.flags = 2;
    let datagram = mixed.daemon.seal(&ping, b"pathprobe.v1");
    assert_eq!(
        mixed
            .node
            .receive(mixed.now, mixed.daemon.address, &datagram),
        None
    );
    mixed.node.turn(mixed.now);
    assert!(mixed.node.sent.is_empty());
    // A ping whose pong would not fit a datagram of ours is refused, not cut.
    ping.flags = 0;
    let datagram = mixed.daemon.seal(&ping, &[0; 1_331]);
    let dropped = mixed
        .node
        .receive(mixed.now, mixed.daemon.address, &datagram);
    assert_eq!(dropped, Some(DropReason::TooLong));
}
