//! Streams and datagrams of driver clients, between two nodes.

use std::io::Write;

use super::*;

pub(super) const ECHO: u16 = 7;

pub(super) fn to(node: NodeId, port: u16) -> SocketAddress {
    SocketAddress {
        address: Address::backbone(node),
        port,
    }
}

pub(super) fn dial(client: &mut Script, node: NodeId, port: u16) -> ConnectionId {
    match client.hear_after(&Command::Dial { to: to(node, port) }) {
        Heard::Dialed(connection) => connection,
        other => panic!("dial: {other:?}"),
    }
}

/// What a stream brings until so many bytes are there.
pub(super) fn receive(client: &mut Script, connection: ConnectionId, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match client.hear() {
            Heard::Received(from, piece) if from == connection => bytes.extend(piece),
            other => panic!("after {} of {len} bytes: {other:?}", bytes.len()),
        }
    }
    bytes
}

#[test]
fn a_stream_is_dialed_echoed_shown_and_closed() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let peer = world.node(2);
    let connection = dial(&mut client, peer, ECHO);
    client.tell(&Command::Send {
        connection,
        bytes: b"ping-0",
    });
    assert_eq!(receive(&mut client, connection, 6), b"ping-0");
    let info = client.ask(&Command::Info);
    let row = &info["conn_list"][0];
    assert_eq!(
        (&row["id"], &row["remote_addr"], &row["remote_port"]),
        (
            &json!(connection),
            &json!(Address::backbone(peer)),
            &json!(ECHO)
        )
    );
    let expected: BTreeSet<&str> = CONNECTION_1_18.split_whitespace().collect();
    assert_eq!(members(row), expected);
    assert_eq!(
        (&row["state"], &row["bytes_sent"]),
        (&json!("ESTABLISHED"), &json!(6))
    );
    let peers = &info["peer_list"][0];
    let expected = ["authenticated", "encrypted", "endpoint", "node_id", "relay"];
    assert_eq!(members(peers), BTreeSet::from(expected));
    assert_eq!(
        (
            &peers["node_id"],
            &peers["encrypted"],
            &peers["authenticated"]
        ),
        (&json!(peer), &json!(true), &json!(true))
    );
    assert_eq!(client.ask(&Command::Health)["connections"], 1);
    let close = Command::Close { connection };
    assert_eq!(client.hear_after(&close), Heard::Closed(connection));
    // One that is gone, or never was, is closed.
    assert_eq!(client.hear_after(&close), Heard::Closed(connection));
    wait_until("its end", || {
        client.ask(&Command::Health)["connections"] == 0
    });
    world.end();
}

#[test]
fn a_dial_that_fails_says_why_and_one_that_is_given_up_says_nothing() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let refused = client.fail(&Command::Dial {
        to: to(world.node(2), 5_000),
    });
    assert!(refused.contains("connection refused"), "{refused}");
    let unknown = client.fail(&Command::Dial {
        to: to(NodeId(4_242), ECHO),
    });
    assert!(unknown.contains("node 4242"), "{unknown}");
    // A key exchange with nobody takes as long as it may: the client thinks better of it.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let nobody = crate::control::member::Member::register(
        world.market.tcp_addr(),
        [127, 0, 0, 1].into(),
        silent.local_addr().expect("an address"),
        Arc::new(Identity::from_seed([77; 32])),
    )
    .expect("a number");
    client.tell(&Command::Dial {
        to: to(nobody.node(), ECHO),
    });
    client.tell(&Command::CancelDials);
    let connection = dial(&mut client, world.node(2), ECHO);
    assert_eq!(
        client.hear_after(&Command::Close { connection }),
        Heard::Closed(connection)
    );
    world.end();
}

#[test]
fn a_stream_is_accepted_and_either_end_may_close_it() {
    let world = World::of(2, |config| config);
    let (mut one, mut two) = (world.client(1), world.client(2));
    assert_eq!(
        two.hear_after(&Command::Bind { port: 5_001 }),
        Heard::Bound(5_001)
    );
    let near = dial(&mut one, world.node(2), 5_001);
    let Heard::Accepted(5_001, far, remote) = two.hear() else {
        panic!("not accepted")
    };
    assert_eq!(remote.address, Address::backbone(world.node(1)));
    one.tell(&Command::Send {
        connection: near,
        bytes: b"to-recv",
    });
    assert_eq!(two.hear(), Heard::Received(far, b"to-recv".to_vec()));
    two.tell(&Command::Send {
        connection: far,
        bytes: b"and back",
    });
    assert_eq!(one.hear(), Heard::Received(near, b"and back".to_vec()));
    // Only its own client sends on a stream; any client of the node may close it.
    let mut other = world.client(2);
    other.tell(&Command::Send {
        connection: far,
        bytes: b"forged",
    });
    let close = Command::Close { connection: far };
    assert_eq!(other.hear_after(&close), Heard::Closed(far));
    assert_eq!(two.hear(), Heard::Closed(far));
    assert_eq!(one.hear(), Heard::Closed(near));
    assert_eq!(world.counter(2, "control_driver_sends_dropped"), 1);
    world.end();
}

/// More than any window or budget on the way, written and read at once, in pieces of any length.
#[test]
fn a_long_stream_comes_back_whole() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let connection = dial(&mut client, world.node(2), ECHO);
    let sent: Vec<u8> = (0..8_u32 << 20)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect();
    let mut writer = client.stream.try_clone().expect("another handle");
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        let mut rest = &bytes[..];
        let mut len = 1;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            let mut out = Vec::new();
            Command::Send {
                connection,
                bytes: piece,
            }
            .append(&mut out);
            writer.write_all(&out).expect("a node that reads");
            rest = after;
            len = (len * 3 + 1) % 200_000 + 1;
        }
    });
    let received = receive(&mut client, connection, sent.len());
    writing.join().expect("all written");
    assert!(received == sent, "the bytes differ");
    world.end();
}

/// A program that writes and ends: what it wrote arrives, and nothing of it stays.
#[test]
fn what_a_client_wrote_before_it_left_arrives() {
    let world = World::of(2, |config| config);
    let (mut one, mut two) = (world.client(1), world.client(2));
    assert_eq!(
        two.hear_after(&Command::Bind { port: 5_001 }),
        Heard::Bound(5_001)
    );
    let near = dial(&mut one, world.node(2), 5_001);
    let Heard::Accepted(_, far, _) = two.hear() else {
        panic!("not accepted")
    };
    let last = vec![9; 300_000];
    one.tell(&Command::Send {
        connection: near,
        bytes: &last,
    });
    drop(one);
    assert_eq!(receive(&mut two, far, last.len()), last);
    assert_eq!(two.hear(), Heard::Closed(far));
    let mut other = world.client(1);
    wait_until("its end", || {
        other.ask(&Command::Health)["connections"] == 0
    });
    world.end();
}

/// A client that does not read holds up its own streams and nobody else's.
#[test]
fn a_client_that_does_not_read_holds_back_its_own_stream_alone() {
    let world = World::of(2, |config| config);
    let (mut one, mut two) = (world.client(1), world.client(2));
    assert_eq!(
        two.hear_after(&Command::Bind { port: 5_001 }),
        Heard::Bound(5_001)
    );
    let near = dial(&mut one, world.node(2), 5_001);
    // 32 MiB for a client that does not look: they cannot all be on the way.
    one.stream.set_nonblocking(true).expect("a mode");
    let mut out = Vec::new();
    Command::Send {
        connection: near,
        bytes: &[1; 1 << 16],
    }
    .append(&mut out);
    let mut written = 0;
    let mut stuck_for = 0;
    wait_until("the end of what fits", || {
        match one.stream.write(&out[written % out.len()..]) {
            Ok(len) => {
                written += len;
                stuck_for = 0;
            }
            Err(_) => stuck_for += 1,
        }
        assert!(written < 32 << 20, "nothing holds it back");
        stuck_for > 300
    });
    let mut other = world.client(1);
    let connection = dial(&mut other, world.node(2), ECHO);
    other.tell(&Command::Send {
        connection,
        bytes: b"still here",
    });
    assert_eq!(receive(&mut other, connection, 10), b"still here");
    drop(one);
    world.end();
}

#[test]
fn datagrams_are_confirmed_and_reach_every_client_even_one_that_is_silent() {
    let world = World::of(2, |config| config);
    let mut sender = world.client(1);
    let mut silent = world.client(2);
    let mut speaking = world.client(2);
    speaking.ask(&Command::Health);
    let confirmed = Command::SendToConfirmed {
        to: to(world.node(2), 5_002),
        bytes: b"to-listen",
    };
    assert_eq!(sender.hear_after(&confirmed), Heard::Sent);
    for client in [&mut silent, &mut speaking] {
        let Heard::Datagram(source, 5_002, bytes) = client.hear() else {
            panic!("no datagram")
        };
        assert_eq!(source.address, Address::backbone(world.node(1)));
        assert!(source.port >= 49_152, "{source}");
        assert_eq!(bytes, b"to-listen");
    }
    // Whoever only listened may speak afterwards.
    assert_eq!(silent.ask(&Command::Info)["node_id"], json!(world.node(2)));
    sender.tell(&Command::SendTo {
        to: to(world.node(2), 5_003),
        bytes: b"unconfirmed",
    });
    let Heard::Datagram(_, 5_003, _) = speaking.hear() else {
        panic!("no datagram")
    };
    let unknown = sender.fail(&Command::SendToConfirmed {
        to: to(NodeId(4_242), 1),
        bytes: b"x",
    });
    assert!(unknown.starts_with("sendto: "), "{unknown}");
    let long = sender.fail(&Command::SendToConfirmed {
        to: to(world.node(2), 1),
        bytes: &[0; 70_000],
    });
    assert!(
        long.starts_with("sendto: ") && long.contains("70000"),
        "{long}"
    );
    world.end();
}

/// A private node hears nobody but those it trusts, and for a while those it has dialed, where
/// answers arrive.
#[test]
fn a_private_node_is_answered_by_whom_it_dialed() {
    use ramjet_proto::agent::PORT_EXCHANGE;
    let private = |config: NodeConfig| NodeConfig {
        public: config.owner != "node-1",
        services: ServiceConfig::NONE,
        ..config
    };
    let world = World::of(2, private);
    let (mut one, mut two) = (world.client(1), world.client(2));
    let connection = dial(&mut one, world.node(2), ECHO);
    one.hear_after(&Command::Close { connection });
    for port in [PORT_EXCHANGE, 5_001] {
        assert_eq!(one.hear_after(&Command::Bind { port }), Heard::Bound(port));
    }
    let back = dial(&mut two, world.node(1), PORT_EXCHANGE);
    assert!(matches!(one.hear(), Heard::Accepted(PORT_EXCHANGE, ..)));
    assert_eq!(
        two.hear_after(&Command::Close { connection: back }),
        Heard::Closed(back)
    );
    two.tell(&Command::Dial {
        to: to(world.node(1), 5_001),
    });
    wait_until("the drop", || world.counter(1, "dropped_untrusted") > 0);
    two.tell(&Command::CancelDials);
    world.end();
}

#[test]
fn trust_is_asked_for_given_refused_and_taken_back() {
    use HandshakeCommand::*;
    let world = World::of(2, |config| config);
    let (mut one, mut two) = (world.client(1), world.client(2));
    let (first, second) = (world.node(1), world.node(2));
    let ask = |client: &mut Script, command| client.ask(&Command::Handshake(command));
    let pending = |client: &mut Script| ask(client, Pending)["pending"].clone();
    let trusted = |client: &mut Script| ask(client, Trusted)["trusted"].clone();
    wait_until("a peer that anyone may reach", || {
        let hostname = "node-2";
        one.ask(&Command::ResolveHostname { hostname })["public"] == json!(true)
    });
    assert_eq!(ask(&mut one, Pending), json!({"pending": []}));
    assert_eq!(ask(&mut one, Trusted), json!({"trusted": []}));
    // The same words within the same second would be taken for a repeat.
    let request = |justification| Request {
        node: second,
        justification,
    };
    assert_eq!(
        ask(&mut one, request("work together")),
        json!({"node_id": second, "status": "sent"})
    );
    wait_until("the request", || pending(&mut two) != json!([]));
    let row = pending(&mut two)[0].clone();
    assert_eq!(
        members(&row),
        BTreeSet::from(["justification", "node_id", "public_key", "received_at"])
    );
    assert_eq!(
        (&row["node_id"], &row["justification"]),
        (&json!(first), &json!("work together"))
    );
    assert_eq!(two.ask(&Command::Health)["handshake_pending_count"], 1);
    let reject = Reject {
        node: first,
        reason: "not today",
    };
    assert_eq!(ask(&mut two, reject)["status"], "rejected");
    assert_eq!(pending(&mut two), json!([]));
    let waited = |client: &mut Script, node, timeout_ms| {
        ask(client, Wait { node, timeout_ms })["trusted"] == json!(true)
    };
    assert!(!waited(&mut one, second, 0));
    ask(&mut one, request("once more"));
    wait_until("the next request", || pending(&mut two) != json!([]));
    assert_eq!(ask(&mut two, Approve { node: first })["status"], "approved");
    assert!(waited(&mut one, second, 20_000) && waited(&mut two, first, 20_000));
    let row = trusted(&mut one)[0].clone();
    assert_eq!(
        members(&row),
        BTreeSet::from(["approved_at", "mutual", "network", "node_id", "public_key"])
    );
    assert_eq!(ask(&mut one, Revoke { node: second })["status"], "revoked");
    wait_until("the end of trust", || trusted(&mut two) == json!([]));
    let nobody = one.fail(&Command::Handshake(Revoke { node: NodeId(77) }));
    assert_eq!(nobody, "handshake revoke: node 77 is not trusted");
    world.end();
}
