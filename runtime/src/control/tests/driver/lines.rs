//! Clients whose socket is lent to the worker of their stream: that nothing is lost, doubled or out of
//! order whenever the loan begins or ends.

use std::io::Write;
use std::net::Shutdown;

use super::streams::{ECHO, dial, receive, to};
use super::*;

/// More rounds than a loan waits for.
const ROUNDS: usize = 100;

/// Asks and is answered by the echo, so many times.
fn converse(client: &mut Script, connection: ConnectionId, rounds: usize) {
    for round in 0..rounds {
        let words = format!("round {round:6}").into_bytes();
        let bytes = &words[..];
        client.tell(&Command::Send { connection, bytes });
        assert_eq!(receive(client, connection, words.len()), words);
    }
}

/// A client of node 2 that takes what comes to its port, and the stream of a client of node 1 to it.
fn pair(world: &World) -> (Script, ConnectionId, Script, ConnectionId) {
    const PORT: u16 = 4_000;
    let (mut asker, mut answerer) = (world.client(1), world.client(2));
    let bind = Command::Bind { port: PORT };
    assert_eq!(answerer.hear_after(&bind), Heard::Bound(PORT));
    let connection = dial(&mut asker, world.node(2), PORT);
    match answerer.hear() {
        Heard::Accepted(PORT, accepted, _) => (asker, connection, answerer, accepted),
        other => panic!("accepted: {other:?}"),
    }
}

/// The same, after rounds enough for a loan at either end.
fn lent(world: &World) -> (Script, ConnectionId, Script, ConnectionId) {
    let (mut asker, connection, mut answerer, accepted) = pair(world);
    for _ in 0..ROUNDS {
        let bytes = b"question";
        asker.tell(&Command::Send { connection, bytes });
        assert_eq!(receive(&mut answerer, accepted, bytes.len()), bytes);
        let bytes = b"answer";
        answerer.tell(&Command::Send {
            connection: accepted,
            bytes,
        });
        assert_eq!(receive(&mut asker, connection, bytes.len()), bytes);
    }
    (asker, connection, answerer, accepted)
}

#[test]
fn a_dialogue_is_lent_and_whatever_else_is_said_is_heard() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let connection = dial(&mut client, world.node(2), ECHO);
    converse(&mut client, connection, ROUNDS);
    assert_eq!(client.ask(&Command::Health)["connections"], 1);
    assert_eq!(world.counter(1, "lines_lent"), 1);
    let frames = world.counter(1, "line_frames");
    assert!(frames > ROUNDS as u64, "{frames} frames of {}", 2 * ROUNDS);

    // A loan that paid is soon made again, and a datagram ends it as a command does.
    converse(&mut client, connection, ROUNDS);
    let mut other = world.client(2);
    other.tell(&Command::SendTo {
        to: to(world.node(1), 6_000),
        bytes: b"by the way",
    });
    match client.hear() {
        Heard::Datagram(_, 6_000, bytes) => assert_eq!(bytes, b"by the way"),
        heard => panic!("{heard:?}"),
    }
    converse(&mut client, connection, ROUNDS);
    let close = Command::Close { connection };
    assert_eq!(client.hear_after(&close), Heard::Closed(connection));
    assert_eq!(world.counter(1, "lines_lent"), 3);
    world.end();
}

#[test]
fn a_backend_that_watches_no_sockets_does_without() {
    let io = IoKind::Mmsg;
    let world = World::of(2, |config| NodeConfig { io, ..config });
    let mut client = world.client(1);
    let connection = dial(&mut client, world.node(2), ECHO);
    converse(&mut client, connection, ROUNDS);
    assert_eq!(world.counter(1, "lines_lent"), 0);
    world.end();
}

/// Everything that ends a loan, in an order that differs with each seed.
#[test]
fn bytes_keep_their_order_whatever_ends_a_loan() {
    let world = World::of(2, |config| config);
    for seed in 1..=6_u64 {
        let mut client = world.client(1);
        let connection = dial(&mut client, world.node(2), ECHO);
        let mut draw = Draw(seed);
        let mut stream = Bytes::new();
        for _ in 0..150 {
            match draw.below(8) {
                0..3 => {
                    for _ in 0..draw.below(24) {
                        let len = 1 + draw.below(200);
                        stream.round(&mut client, connection, &[len], usize::MAX);
                    }
                }
                // Several at once, cut where a frame is not at its end.
                3 => {
                    let lens = [1 + draw.below(900), 1 + draw.below(900), 1 + draw.below(90)];
                    let cut = 1 + draw.below(lens.iter().sum());
                    stream.round(&mut client, connection, &lens, cut);
                }
                // Longer than a worker reads.
                4 => {
                    let lens = [10, 16_000 + draw.below(100_000), 10];
                    stream.round(&mut client, connection, &lens, usize::MAX);
                }
                // More than the path takes at once.
                5 => {
                    let lens = [9_000; 40];
                    stream.round(&mut client, connection, &lens, 100_000);
                }
                // No reply comes to what is sent on a stream that there is not.
                6 => client.tell(&Command::Send {
                    connection: ConnectionId(connection.0 ^ 0x8000_0000),
                    bytes: b"lost",
                }),
                _ => {
                    let health = client.ask(&Command::Health);
                    assert_eq!(health["status"], "ok");
                }
            }
        }
    }
    assert!(world.counter(1, "lines_lent") > 20);
    world.end();
}

/// Numbers that differ with their seed and are the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: usize) -> usize {
        // Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % most as u64).expect("below a usize")
    }
}

/// The bytes of a stream, none like its neighbours.
struct Bytes {
    next: u32,
}

impl Bytes {
    fn new() -> Self {
        Bytes { next: 0 }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let bytes = (self.next..).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8);
        self.next += u32::try_from(len).expect("short");
        bytes.take(len).collect()
    }

    /// Sends frames of these lengths, in two writes of which the first has `cut` bytes, while what
    /// comes back is read and compared.
    fn round(&mut self, client: &mut Script, connection: ConnectionId, lens: &[usize], cut: usize) {
        let mut out = Vec::new();
        let mut expected = Vec::new();
        for len in lens {
            let bytes = self.take(*len);
            let bytes = &bytes[..];
            Command::Send { connection, bytes }.append(&mut out);
            expected.extend_from_slice(bytes);
        }
        let mut writer = client.stream.try_clone().expect("a descriptor");
        let writing = std::thread::spawn(move || {
            let (first, second) = out.split_at(cut.min(out.len()));
            writer.write_all(first).expect("a node that reads");
            writer.write_all(second).expect("a node that reads");
        });
        let echoed = receive(client, connection, expected.len());
        assert!(echoed == expected, "{lens:?} cut at {cut}");
        writing.join().expect("written");
    }
}

/// An answerer that says more than one thing: the next question, which may begin a loan, crosses the
/// rest of the answer to the last one.
#[test]
fn what_crosses_the_beginning_of_a_loan_comes_in_its_order() {
    let world = World::of(2, |config| config);
    for extra in [1_u8, 2, 3] {
        let (mut asker, connection, mut answerer, accepted) = pair(&world);
        let answering = std::thread::spawn(move || {
            let (mut number, mut asked) = (0_u8, 0);
            for question in 1..=200 {
                // Several may come in one frame.
                if asked < 8 * question {
                    asked += receive(&mut answerer, accepted, 8 * question - asked).len();
                }
                for _ in 0..=extra {
                    answerer.tell(&Command::Send {
                        connection: accepted,
                        bytes: &[number; 3],
                    });
                    number = number.wrapping_add(1);
                }
            }
            answerer
        });
        let mut heard = Vec::new();
        for _ in 0..200 {
            asker.tell(&Command::Send {
                connection,
                bytes: b"question",
            });
            // Any part of an answer will do.
            match asker.hear() {
                Heard::Received(_, bytes) => heard.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        let whole = 200 * 3 * (usize::from(extra) + 1);
        heard.extend(receive(&mut asker, connection, whole - heard.len()));
        let expected = (0..=u8::MAX)
            .cycle()
            .flat_map(|number| [number; 3])
            .take(whole);
        assert!(heard.into_iter().eq(expected), "{extra} more at a time");
        let mut answerer = answering.join().expect("answers");
        answerer.hear_after(&Command::Unbind { port: 4_000 });
    }
    world.end();
}

#[test]
fn a_peer_that_closes_ends_the_loan_and_the_client_is_told() {
    let world = World::of(2, |config| config);
    let (mut asker, connection, mut answerer, accepted) = lent(&world);
    answerer.tell(&Command::Send {
        connection: accepted,
        bytes: b"farewell",
    });
    let close = Command::Close {
        connection: accepted,
    };
    assert_eq!(answerer.hear_after(&close), Heard::Closed(accepted));
    assert_eq!(receive(&mut asker, connection, 8), b"farewell");
    assert_eq!(asker.hear(), Heard::Closed(connection));
    assert_eq!(asker.ask(&Command::Health)["status"], "ok");
    for node in [1, 2] {
        assert_eq!(world.counter(node, "lines_lent"), 1, "node {node}");
    }
    world.end();
}

#[test]
fn a_client_that_leaves_in_a_loan_closes_its_stream_and_its_last_words_arrive() {
    let world = World::of(2, |config| config);
    for half in [false, true] {
        let (mut asker, connection, mut answerer, accepted) = lent(&world);
        asker.tell(&Command::Send {
            connection,
            bytes: b"farewell",
        });
        if half {
            asker.stream.write_all(&[0, 0, 0]).expect("a node");
            asker.stream.shutdown(Shutdown::Write).expect("a socket");
        } else {
            drop(asker);
        }
        assert_eq!(receive(&mut answerer, accepted, 8), b"farewell");
        assert_eq!(answerer.hear(), Heard::Closed(accepted));
        answerer.hear_after(&Command::Unbind { port: 4_000 });
    }
    world.end();
}

#[test]
fn a_client_that_does_not_read_gets_all_of_it_when_it_does() {
    let world = World::of(2, |config| config);
    let (mut asker, connection, mut answerer, accepted) = lent(&world);
    // More than the socket holds, and less than the node keeps for it.
    let bytes = Bytes::new().take(900_000);
    answerer.tell(&Command::Send {
        connection: accepted,
        bytes: &bytes,
    });
    answerer.tell(&Command::Send {
        connection: accepted,
        bytes: b"the end",
    });
    assert_eq!(answerer.ask(&Command::Health)["status"], "ok");
    wait_until("the line to come back", || {
        world.counter(1, "line_frames") > 0
    });
    let all = receive(&mut asker, connection, bytes.len() + 7);
    assert!(all == [&bytes[..], b"the end"].concat());
    world.end();
}

#[test]
fn what_cannot_be_read_in_a_loan_is_answered_as_it_is_without() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let connection = dial(&mut client, world.node(2), ECHO);
    converse(&mut client, connection, ROUNDS);
    // A command that there is not, between two that there are.
    let mut out = Vec::new();
    let bytes = b"before";
    Command::Send { connection, bytes }.append(&mut out);
    out.extend([0, 0, 0, 2, 0xEE, 0]);
    client.stream.write_all(&out).expect("a node");
    let mut heard = [client.hear(), client.hear()];
    heard.sort_by_key(|heard| matches!(heard, Heard::Error(_)));
    match heard {
        [Heard::Received(_, bytes), Heard::Error(_)] => assert_eq!(bytes, b"before"),
        other => panic!("{other:?}"),
    }
    converse(&mut client, connection, ROUNDS);
    client.stream.write_all(&[0xFF; 5]).expect("a node");
    match client.hear() {
        Heard::Error(error) => assert!(error.contains("4294967295"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.hear(), Heard::Gone);
    world.end();
}

#[test]
fn a_client_that_leaves_more_than_anybody_takes_is_not_waited_for() {
    let world = World::of(2, |config| config);
    let (mut asker, connection, answerer, _) = lent(&world);
    // The answerer reads no more, so the stream is soon full, and all that is before it.
    let mut out = Vec::new();
    let bytes = &[7; 4_000];
    Command::Send { connection, bytes }.append(&mut out);
    let blocked = Some(Duration::from_secs(2));
    asker.stream.set_write_timeout(blocked).expect("a time-out");
    while asker.stream.write_all(&out).is_ok() {}
    drop(asker);
    wait_until("the client to be given up", || {
        world.counter(1, "control_driver_clients_left_unsent") == 1
    });
    drop(answerer);
    world.end();
}

#[test]
fn a_node_that_stops_leaves_no_client_waiting() {
    let world = World::of(2, |config| config);
    let (mut asker, _, mut answerer, _) = lent(&world);
    world.end();
    for client in [&mut asker, &mut answerer] {
        while client.hear() != Heard::Gone {}
    }
}
