//! Habits of real daemons: several connections, notices over the beacon, replies that get lost, hosts
//! with many addresses, peers in a hurry.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use ramjet_proto::ids::NodeId;
use ramjet_registry::Config;
use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, config, sign_text, start};
use crate::pilot::{Daemon, error};

#[test]
fn requests_of_one_daemon_may_come_over_any_of_its_connections() {
    let registry = start(config());
    let mut daemon = Daemon::join(&registry, 1);
    let mut pool: Vec<Connection> = (0..3)
        .map(|_| Connection::open(registry.tcp_addr()))
        .collect();
    pool.push(daemon.connection);
    // Round robin, as daemons of 1.18 do.
    for round in 0..8 {
        daemon.connection = pool.remove(0);
        let hostname = format!("gpu-{round}");
        let named = daemon.own("set_hostname", json!({"hostname": hostname}));
        assert_eq!(named["hostname"], json!(hostname), "{named}");
        assert_eq!(daemon.own("heartbeat", json!({}))["type"], "heartbeat_ok");
        pool.push(std::mem::replace(
            &mut daemon.connection,
            Connection::open(registry.tcp_addr()),
        ));
    }
    let found = pool[0].pilot(&json!({"type": "resolve_hostname", "hostname": "gpu-7"}));
    assert_eq!(found["node_id"], 1, "{found}");
}

#[test]
fn a_node_hears_over_the_beacon_that_a_handshake_waits_for_it() {
    let registry = start(config());
    let (mut asker, asked) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    let beacon = registry.beacon_addr().expect("there is a beacon");
    let receive = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("the beacon says something");
        buffer[..length].to_vec()
    };
    let mut ask = |to: NodeId| {
        let request = json!({"type": "request_handshake", "from_node_id": 1, "to_node_id": to});
        asker.signed(request, &format!("handshake:1:{to}"))
    };
    // Where the node is not known to the beacon, the request waits all the same.
    assert_eq!(ask(asked.id)["status"], "delivered");
    let discover = [&[1][..], &asked.id.0.to_be_bytes()].concat();
    socket.send_to(&discover, beacon).expect("loopback");
    assert_eq!(receive()[0], 2, "its address");
    assert!(error(&ask(asked.id)).contains("already waiting"));
    let mut asked = asked;
    let inbox = asked.own("poll_handshakes", json!({}));
    assert_eq!(inbox["requests"][0]["from_node_id"], 1, "{inbox}");
    assert_eq!(ask(asked.id)["status"], "delivered");
    assert_eq!(
        receive(),
        [0x0A, 1],
        "one notice, for the request that was new"
    );
    assert_eq!(registry.counters()["beacon_notices"], 1);
}

#[test]
fn an_approval_whose_reply_was_lost_may_be_said_again() {
    let registry = start(config());
    let (mut one, mut other) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    let ask = json!({"type": "request_handshake", "from_node_id": 1, "to_node_id": 2});
    one.signed(ask.clone(), "handshake:1:2");
    let answer = |accept: bool| json!({"type": "respond_handshake", "node_id": 2, "peer_id": 1, "accept": accept});
    let said: Vec<Value> = (0..2)
        .map(|_| other.signed(answer(true), "respond:2:1"))
        .collect();
    assert_eq!(said[0]["type"], "respond_handshake_ok", "{said:?}");
    assert_eq!(said[0], said[1]);
    let inbox = one.own("poll_handshakes", json!({}));
    assert_eq!(
        inbox["responses"].as_array().map(Vec::len),
        Some(1),
        "{inbox}"
    );
    assert!(error(&other.signed(answer(false), "respond:2:1")).contains("not found"));
    // Who lost its own memory of it asks anew, and is answered anew.
    assert_eq!(one.signed(ask, "handshake:1:2")["status"], "delivered");
    other.signed(answer(true), "respond:2:1");
    let inbox = one.own("poll_handshakes", json!({}));
    assert_eq!(inbox["responses"][0]["accept"], true, "{inbox}");
}

#[test]
fn a_host_with_many_addresses_registers_and_some_are_kept() {
    let registry = start(config());
    let mut daemon = Daemon::join(&registry, 1);
    let key = daemon.identity.public().to_base64();
    let addresses: Vec<String> = (0..40).map(|n| format!("172.17.{n}.1:4000")).collect();
    let request = json!({
        "type": "register", "listen_addr": "127.0.0.1:4000", "public_key": key,
        "lan_addrs": addresses,
        "signature": sign_text(&daemon.identity, &format!("register:127.0.0.1:4000:{key}")),
    });
    let reply = daemon.connection.pilot(&request);
    assert_eq!(reply["type"], "register_ok", "{reply}");
    let resolved = daemon.resolve(daemon.id);
    assert_eq!(resolved["lan_addrs"], json!(addresses[..8]), "{resolved}");
    let mut long = request;
    long["lan_addrs"] = json!(["x".repeat(300)]);
    assert!(error(&daemon.connection.pilot(&long)).contains("too long"));
}

#[test]
fn a_connection_in_a_hurry_is_slowed_down_and_loses_nothing() {
    let mut slow = Config {
        beacon: None,
        ..config()
    };
    slow.limits.messages_per_second = 50;
    slow.limits.messages_burst = 10;
    let registry = start(slow);
    let (mut hasty, mut calm) = (
        Connection::open(registry.tcp_addr()),
        Connection::open(registry.tcp_addr()),
    );
    let began = Instant::now();
    for _ in 0..20 {
        hasty.send_bytes(br#"{"type":"list_networks"}"#);
    }
    // Another connection has its own rate.
    let listed = calm.pilot(&json!({"type": "list_networks"}));
    assert_eq!(listed["type"], "list_networks_ok");
    for _ in 0..20 {
        let reply = hasty.receive_bytes().expect("every request is answered");
        assert!(reply.starts_with(b"{\"networks\""), "{reply:?}");
    }
    assert!(
        began.elapsed() >= Duration::from_millis(180),
        "ten messages beyond the burst take 20 ms each"
    );
    let counters = registry.counters();
    // Fewer if this machine was slower than the rate now and then.
    assert!(
        (1..=10).contains(&counters["messages_paced"]),
        "{counters:?}"
    );
    assert_eq!(counters["requests_answered"], 21);
}
