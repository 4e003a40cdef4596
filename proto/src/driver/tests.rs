//! Vectors as released Pilot programs put them on their sockets, and properties.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{ConnectionId, NodeId};
use crate::market::Filter;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}

/// Code and payload of the one frame that `bytes` are.
fn frame(bytes: &[u8]) -> &[u8] {
    let (prefix, frame) = bytes.split_first_chunk::<4>().expect("a length");
    assert_eq!(frame_len(*prefix), Ok(frame.len()));
    frame
}

fn at(node: u32, port: u16) -> SocketAddress {
    SocketAddress {
        address: Address::backbone(NodeId(node)),
        port,
    }
}

/// Each row: what a program sent, read and written again.
#[test]
fn captured_commands_are_read_and_written() {
    let rows = [
        ("00000001 0d", Command::Info),
        ("00000001 21", Command::Health),
        ("00000003 01 1389", Command::Bind { port: 5_001 }),
        (
            "00000009 03 0000 00000002 0007",
            Command::Dial { to: at(2, 7) },
        ),
        (
            "0000000b 06 00000001 70696e672d30",
            Command::Send {
                connection: ConnectionId(1),
                bytes: b"ping-0",
            },
        ),
        (
            "00000005 08 00000063",
            Command::Close {
                connection: ConnectionId(99),
            },
        ),
        (
            "0000000b 0b 0000 00000002 10e1 6467",
            Command::SendTo {
                to: at(2, 4_321),
                bytes: b"dg",
            },
        ),
        (
            "0000000b 39 0000 00000001 10e1 6467",
            Command::SendToConfirmed {
                to: at(1, 4_321),
                bytes: b"dg",
            },
        ),
        (
            "00000004 11 626565",
            Command::ResolveHostname { hostname: "bee" },
        ),
        ("00000001 13", Command::SetHostname { hostname: "" }),
        ("00000002 15 01", Command::SetVisibility { public: true }),
        ("00000001 17", Command::Deregister),
        (
            "0000000c 19 5b226f6e65222c2274225d",
            Command::SetTags {
                tags: vec!["one".to_owned(), "t".to_owned()],
            },
        ),
        ("00000002 1d 00", Command::SetTaskExec { enabled: false }),
        ("00000001 27", Command::PoloScore),
        (
            "00000005 2d 00000001",
            Command::PreferDirect { node: NodeId(1) },
        ),
    ];
    for (hex, command) in rows {
        let bytes = bytes(hex);
        assert_eq!(Command::parse(frame(&bytes)), Ok(command.clone()), "{hex}");
        let mut out = Vec::new();
        command.append(&mut out);
        assert_eq!(out, bytes, "{hex}");
    }
}

#[test]
fn captured_sub_commands_are_read_and_written() {
    use HandshakeCommand::*;
    let request = Request {
        node: NodeId(2),
        justification: "hello there",
    };
    let wait = Wait {
        node: NodeId(2),
        timeout_ms: 0,
    };
    let reject = Reject {
        node: NodeId(2),
        reason: "no thanks",
    };
    let join = NetworkCommand::Join {
        network: 1,
        token: "",
    };
    let invite = NetworkCommand::Invite {
        network: 1,
        node: NodeId(2),
    };
    let answer = NetworkCommand::RespondInvite {
        network: 1,
        accept: true,
    };
    let rows = [
        (
            "00000011 0f 01 00000002 68656c6c6f207468657265",
            Command::Handshake(request),
        ),
        (
            "00000006 0f 02 0000004d",
            Command::Handshake(Approve { node: NodeId(77) }),
        ),
        (
            "0000000f 0f 03 00000002 6e6f207468616e6b73",
            Command::Handshake(reject),
        ),
        ("00000002 0f 04", Command::Handshake(Pending)),
        ("00000002 0f 05", Command::Handshake(Trusted)),
        (
            "00000006 0f 06 00000002",
            Command::Handshake(Revoke { node: NodeId(2) }),
        ),
        ("0000000a 0f 07 00000002 00000000", Command::Handshake(wait)),
        ("00000003 37 1770", Command::Unbind { port: 6_000 }),
        (
            "00000004 23 02 0000",
            Command::Managed {
                sub: 2,
                arguments: &[0, 0],
            },
        ),
        ("00000002 1f 01", Command::Network(NetworkCommand::List)),
        ("00000004 1f 02 0001", Command::Network(join)),
        (
            "00000004 1f 04 0001",
            Command::Network(NetworkCommand::Members { network: 1 }),
        ),
        ("00000008 1f 05 0001 00000002", Command::Network(invite)),
        (
            "00000002 1f 06",
            Command::Network(NetworkCommand::PollInvites),
        ),
        ("00000005 1f 07 0001 01", Command::Network(answer)),
    ];
    for (hex, command) in rows {
        let bytes = bytes(hex);
        assert_eq!(Command::parse(frame(&bytes)), Ok(command.clone()), "{hex}");
        let mut out = Vec::new();
        command.append(&mut out);
        assert_eq!(out, bytes, "{hex}");
    }
}

#[test]
fn captured_replies_are_read_and_written() {
    let rows = [
        ("00000003 02 1389", Reply::Bound { port: 5_001 }),
        (
            "00000005 04 00000001",
            Reply::Dialed {
                connection: ConnectionId(1),
            },
        ),
        (
            "0000000f 05 1389 00000009 0000 00000001 c000",
            Reply::Accepted {
                local_port: 5_001,
                connection: ConnectionId(9),
                remote: at(1, 49_152),
            },
        ),
        (
            "0000000c 07 00000009 746f2d72656376",
            Reply::Received {
                connection: ConnectionId(9),
                bytes: b"to-recv",
            },
        ),
        (
            "00000005 09 00000009",
            Reply::Closed {
                connection: ConnectionId(9),
            },
        ),
        (
            "00000015 0a 0001 636f6e6e656374696f6e2072656675736564",
            Reply::Error {
                text: "connection refused",
            },
        ),
        (
            "00000014 0c 0000 00000001 c001 138a 746f2d6c697374656e",
            Reply::Datagram {
                source: at(1, 49_153),
                port: 5_002,
                bytes: b"to-listen",
            },
        ),
        (
            "00000011 28 7b22706f6c6f5f73636f7265223a307d",
            Reply::Json {
                command: 0x27,
                json: br#"{"polo_score":0}"#,
            },
        ),
        ("00000003 38 1770", Reply::Unbound { port: 6_000 }),
        ("00000001 3a", Reply::Sent),
    ];
    for (hex, reply) in rows {
        let bytes = bytes(hex);
        assert_eq!(Reply::parse(frame(&bytes)), Some(reply), "{hex}");
        let mut out = Vec::new();
        reply.append(&mut out);
        assert_eq!(out, bytes, "{hex}");
    }
}

#[test]
fn market_frames_are_read_and_written() {
    let capabilities = BTreeMap::from([("skills".to_owned(), "a,b".to_owned())]);
    let submission = Submission {
        skill: "a".to_owned(),
        filters: Vec::new(),
        min_polo: None,
        accept_deadline_ms: 500,
        duration_s: 60,
    };
    let rows = [
        (
            "00000002 a1 01",
            MarketCommand::SetTaskReady { ready: true },
        ),
        (
            "00000011 a3 7b22736b696c6c73223a22612c62227d",
            MarketCommand::SetCapabilities { capabilities },
        ),
        (
            "00000005 a5 00000bb8",
            MarketCommand::AcceptTask { timeout_ms: 3_000 },
        ),
        (
            "0000000c a7 0000000000000007 00 6f6b",
            MarketCommand::CompleteTask {
                task: 7,
                end: TaskEnd::Done,
                bytes: b"ok",
            },
        ),
        (
            "0000000a a9 0000000000000007 70",
            MarketCommand::ReportProgress {
                task: 7,
                bytes: b"p",
            },
        ),
        (
            concat!(
                "0000003e ab 00000036 ",
                "7b22736b696c6c223a2261222c226163636570745f646561646c696e655f6d73",
                "223a3530302c226475726174696f6e5f73223a36307d 686579"
            ),
            MarketCommand::SubmitTask {
                submission,
                payload: b"hey",
            },
        ),
        (
            "0000000d ad 0000000000000007 00000bb8",
            MarketCommand::WaitTaskResult {
                task: 7,
                timeout_ms: 3_000,
            },
        ),
        (
            "00000009 b1 0000000000000007",
            MarketCommand::CancelTask { task: 7 },
        ),
    ];
    for (hex, command) in rows {
        let mut out = Vec::new();
        Command::Market(command.clone()).append(&mut out);
        assert_eq!(out, bytes(hex), "{hex}");
        assert_eq!(Command::parse(frame(&out)), Ok(Command::Market(command)));
    }
}

#[test]
fn a_task_is_its_json_and_its_payload() {
    let reply = Reply::Task {
        command: 0xA5,
        json: br#"{"task":7}"#,
        bytes: b"hey",
    };
    let mut out = Vec::new();
    reply.append(&mut out);
    assert_eq!(
        out,
        bytes("00000012 a6 0000000a 7b227461736b223a377d 686579")
    );
    assert_eq!(Reply::parse(frame(&out)), Some(reply));
}

/// What a client can get wrong, and how it is told.
#[test]
fn what_cannot_be_read_is_named() {
    let rows: &[(&str, &str)] = &[
        ("7f", "unknown command: 0x7F"),
        ("00", "unknown command: 0x00"),
        ("02", "unknown command: 0x02"),
        ("a2", "unknown command: 0xA2"),
        (
            "01",
            "bind: a payload of 0 bytes, must hold a port of 2 bytes",
        ),
        (
            "03 00",
            "dial: a payload of 1 bytes, must hold an address of 6 and a port of 2 bytes",
        ),
        (
            "0f",
            "handshake: a payload of 0 bytes, must hold a sub-command of 1 byte",
        ),
        ("0f 09", "handshake: unknown sub-command 0x09"),
        (
            "0f 01 00",
            "handshake: a payload of 2 bytes, must hold a node of 4 bytes",
        ),
        (
            "11",
            "resolve_hostname: a hostname of 0 bytes, must be at least 1",
        ),
        ("11 ff", "resolve_hostname: a text that is not UTF-8"),
        ("1f 63", "network: unknown sub-command 0x63"),
        (
            "19 5b2261222c2262222c2263222c2264225d",
            "set_tags: 4 tags, at most 3",
        ),
        (
            "a7 0000000000000007 02",
            "complete_task: an end of 2, must be 0 (done) or 1 (failed)",
        ),
    ];
    for (hex, text) in rows {
        let fault = Command::parse(&bytes(hex)).expect_err(hex);
        assert_eq!(fault.to_string(), *text);
    }
    let long = [&b"\xAB\x00\x01\x00\x01"[..], &[b' '; 65_537]].concat();
    let fault = Command::parse(&long).expect_err("too long").to_string();
    assert_eq!(fault, "submit_task: JSON of 65537 bytes, at most 65536");
    let unknown = br#"{"skill":"a","priority":1}"#;
    let mut frame = vec![0xAB, 0, 0, 0, 26];
    frame.extend_from_slice(unknown);
    let fault = Command::parse(&frame).expect_err("an unknown member");
    assert!(fault.to_string().contains("priority"), "{fault}");
}

#[test]
fn lengths_outside_the_limit_are_named() {
    assert_eq!(frame_len([0, 0, 0, 1]), Ok(1));
    assert_eq!(frame_len([0, 0x10, 0, 0]), Ok(FRAME_LEN_MAX));
    for (prefix, text) in [
        ([0; 4], "a frame of 0 bytes, must be 1 to 1048576"),
        (
            [0, 0x10, 0, 1],
            "a frame of 1048577 bytes, must be 1 to 1048576",
        ),
        (
            [0xFF; 4],
            "a frame of 4294967295 bytes, must be 1 to 1048576",
        ),
    ] {
        assert_eq!(frame_len(prefix).expect_err("refused").to_string(), text);
    }
}

#[test]
fn commands_that_are_not_answered_are_those_of_pilot() {
    let silent: Vec<u8> = (0..=255)
        .filter(|code| !Command::is_answered(*code))
        .collect();
    assert_eq!(silent, [0x06, 0x0B, 0x2B, 0xA9]);
}

fn filters() -> impl Strategy<Value = Vec<Filter>> {
    prop::collection::vec(
        ("[a-z]{1,8}", "[a-z,]{0,8}").prop_map(|(key, value)| Filter { key, value }),
        0..4,
    )
}

proptest! {
    #[test]
    fn any_submission_survives(
        skill in "\\PC{0,20}", filters in filters(), min_polo: Option<i64>,
        accept_deadline_ms: u32, duration_s: u32,
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let command = Command::Market(MarketCommand::SubmitTask {
            submission: Submission { skill, filters, min_polo, accept_deadline_ms, duration_s },
            payload: &payload,
        });
        let mut out = Vec::new();
        command.append(&mut out);
        prop_assert_eq!(Command::parse(frame(&out)), Ok(command));
    }

    #[test]
    fn any_stream_bytes_survive(
        connection: u32, bytes in prop::collection::vec(any::<u8>(), 0..2_000),
    ) {
        let (connection, bytes) = (ConnectionId(connection), &bytes[..]);
        let mut out = Vec::new();
        Command::Send { connection, bytes }.append(&mut out);
        let length = out.len();
        Reply::Received { connection, bytes }.append(&mut out);
        prop_assert_eq!(
            Command::parse(frame(&out[..length])), Ok(Command::Send { connection, bytes }));
        prop_assert_eq!(
            Reply::parse(frame(&out[length..])), Some(Reply::Received { connection, bytes }));
    }

    /// What is read is written again as something that is read the same.
    #[test]
    fn no_frame_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(command) = Command::parse(&bytes) {
            let mut out = Vec::new();
            command.append(&mut out);
            prop_assert_eq!(Command::parse(frame(&out)), Ok(command));
        }
        if let Some(reply) = Reply::parse(&bytes) {
            let mut out = Vec::new();
            reply.append(&mut out);
            prop_assert_eq!(Reply::parse(frame(&out)), Some(reply));
        }
    }
}
