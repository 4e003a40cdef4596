//! Whatever arrives on the port is named and counted, and harms nobody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use ramjet_registry::{Config, RegistryHandle};
use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, config, start};

/// Sends bytes, closes its own direction, and gives all that comes back.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the registry listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    stream.write_all(bytes).expect("the registry reads");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("half of it closes");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the registry closes");
    answer
}

fn framed(json: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(json.len()).expect("short").to_be_bytes()[..],
        json,
    ]
    .concat()
}

fn error_of(answer: &[u8]) -> String {
    let json = answer.get(4..).expect("a frame");
    let value: Value = serde_json::from_slice(json).expect("one JSON object");
    assert_eq!(value["type"], "error", "{value}");
    value["error"].as_str().expect("a text").to_owned()
}

fn still_serves(registry: &RegistryHandle) {
    let reply = Connection::open(registry.tcp_addr()).pilot(&json!({"type": "list_networks"}));
    assert_eq!(reply["type"], "list_networks_ok");
}

#[test]
fn what_is_no_frame_is_answered_counted_and_closed() {
    let registry = start(config());
    let table: [(&[u8], &str, &str); 6] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame_http", "HTTP"),
        (b"\x16\x03\x01\x00\xa5\x01", "frame_tls", "TLS"),
        (
            b"PILT\x01\0\0\0\x01\x02",
            "frame_binary_mode",
            "binary mode",
        ),
        (b"\xff\xff\xff\xff\xff\xff", "frame_too_long", "4294967295"),
        (b"\0\x10\0\x01{", "frame_too_long", "1048577"),
        (b"\0\0\0\0", "frame_empty", "zero"),
    ];
    for (bytes, label, named) in table {
        let before = registry.counters()[label];
        let error = error_of(&exchange(registry.tcp_addr(), bytes));
        assert!(error.contains(named), "{error}");
        assert_eq!(registry.counters()[label], before + 1, "{label}");
    }
    for truncated in [&b"\0"[..], b"\0\0\0\x10{\"type\""] {
        assert_eq!(exchange(registry.tcp_addr(), truncated), b"");
    }
    assert_eq!(registry.counters()["frame_truncated"], 2);
    still_serves(&registry);
}

#[test]
fn what_is_no_message_is_answered_and_the_connection_goes_on() {
    let registry = start(config());
    let deep = format!("{{\"type\":\"lookup\",\"x\":{}", "[".repeat(500_000));
    let table: [(&[u8], &str); 8] = [
        (b"\xc3\x28", "message_not_utf8"),
        (b"lookup", "message_not_json"),
        (deep.as_bytes(), "message_not_json"),
        (b"[1,2,3]", "message_no_type"),
        (b"{\"type\":null}", "message_no_type"),
        (b"{\"type\":\"join_the_army\"}", "message_unknown_type"),
        (
            b"{\"type\":\"market_hello\",\"id\":1,\"node\":\"one\"}",
            "message_malformed",
        ),
        (
            b"{\"type\":\"market_hello\",\"node\":-1}",
            "message_malformed",
        ),
    ];
    let mut connection = Connection::open(registry.tcp_addr());
    for (bytes, label) in table {
        let before = registry.counters()[label];
        connection.send_bytes(bytes);
        let answer = connection.receive_bytes().expect("an answer");
        let value: Value = serde_json::from_slice(&answer).expect("JSON");
        match label {
            "message_malformed" => assert_eq!(value["code"], "malformed", "{value}"),
            _ => assert_eq!(value["type"], "error", "{value}"),
        }
        assert_eq!(registry.counters()[label], before + 1, "{label}");
    }
    assert_eq!(
        connection.pilot(&json!({"type": "beacon_list"}))["type"],
        "beacon_list_ok"
    );
    let counters = registry.counters();
    let faults: u64 = [
        "not_utf8",
        "not_json",
        "no_type",
        "unknown_type",
        "malformed",
    ]
    .iter()
    .map(|fault| counters[&format!("message_{fault}")])
    .sum();
    assert_eq!(
        counters["messages_received"],
        counters["requests_answered"] + counters["requests_refused"] + faults
    );
}

#[test]
fn a_peer_that_sends_nothing_else_is_closed() {
    let registry = start(config());
    let nonsense = framed(b"nonsense").repeat(1_000);
    let answers = exchange(registry.tcp_addr(), &nonsense);
    let one = exchange(registry.tcp_addr(), &framed(b"nonsense")).len();
    assert_eq!(
        answers.len() / one,
        100,
        "as many answers as faults are borne"
    );
    assert_eq!(registry.counters()["too_many_faults"], 1);
    still_serves(&registry);
}

#[test]
fn wrong_kinds_of_fields_read_as_absent_and_echo_no_flood() {
    let registry = start(config());
    let mut connection = Connection::open(registry.tcp_addr());
    for request in [
        json!({"type": "lookup", "node_id": "1"}),
        json!({"type": "lookup", "node_id": 1e99}),
        json!({"type": "heartbeat", "node_id": -5, "signature": 7}),
        json!({"type": "set_tags", "node_id": [], "tags": "x"}),
    ] {
        let reply = connection.pilot(&request);
        assert_eq!(reply["error"], "node 0: node not found", "{request}");
    }
    let reply = connection.pilot(&json!({"type": "register", "public_key": "AAAA"}));
    assert!(
        reply["error"]
            .as_str()
            .is_some_and(|error| error.contains("public_key")),
        "{reply}"
    );
    let long = "\u{1}".repeat(150_000);
    connection.send_bytes(
        json!({"type": "resolve_hostname", "hostname": long})
            .to_string()
            .as_bytes(),
    );
    let answer = connection.receive_bytes().expect("an answer");
    assert!(
        answer.len() < 10_000,
        "{} bytes repeat what was sent",
        answer.len()
    );
}

#[test]
fn connections_beyond_the_cap_are_told_so() {
    let mut capped: Config = config();
    capped.limits.connections_max = 2;
    let registry = start(capped);
    let mut held: Vec<Connection> = (0..2)
        .map(|_| Connection::open(registry.tcp_addr()))
        .collect();
    for connection in &mut held {
        connection.pilot(&json!({"type": "beacon_list"}));
    }
    let mut third = Connection::open(registry.tcp_addr());
    let answer = third.receive_bytes().expect("a word before it closes");
    assert!(String::from_utf8_lossy(&answer).contains("at most 2"));
    assert_eq!(third.receive_bytes(), None);
    assert_eq!(registry.counters()["connections_refused"], 1);
}

#[test]
fn a_silent_peer_is_closed_at_the_read_deadline() {
    let mut impatient = config();
    impatient.limits.read_timeout = std::time::Duration::from_millis(50);
    let registry = start(impatient);
    let mut connection = Connection::open(registry.tcp_addr());
    assert_eq!(
        connection.receive_bytes(),
        None,
        "closed without a word, as Pilot's registry does"
    );
    assert_eq!(registry.counters()["read_timeout"], 1);
}

#[test]
fn a_peer_that_does_not_read_is_closed_and_the_others_are_served() {
    let mut tight = config();
    tight.limits.outgoing_bytes_per_connection = 2 << 20;
    tight.limits.write_timeout = std::time::Duration::from_secs(1);
    let registry = start(tight);
    let mut stream = TcpStream::connect(registry.tcp_addr()).expect("the registry listens");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a socket option");
    // Each query is answered by more bytes than it has; nothing is ever read.
    let query = framed(br#"{"type":"market_engagements","id":1,"limit":0}"#);
    let flood = query.repeat(10_000);
    let closed = (0..1_000).any(|_| stream.write_all(&flood).is_err());
    assert!(
        closed,
        "the registry went on reading for a peer that does not read"
    );
    still_serves(&registry);
    let counters = registry.counters();
    assert!(
        counters["outgoing_full"] + counters["write_timeout"] >= 1,
        "{counters:?}"
    );
}
