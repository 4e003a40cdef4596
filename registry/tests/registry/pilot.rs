//! Pilot's own messages, as daemons 1.9.1 and 1.18.0 send them.

use std::net::UdpSocket;
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use ramjet_registry::Config;
use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, config, register, sign_text, start, start_open};

pub(crate) struct Daemon {
    pub(crate) id: NodeId,
    pub(crate) identity: Arc<Identity>,
    pub(crate) connection: Connection,
}

impl Daemon {
    pub(crate) fn join(registry: &ramjet_registry::RegistryHandle, seed: u8) -> Self {
        let identity = Arc::new(Identity::from_seed([seed; 32]));
        let mut connection = Connection::open(registry.tcp_addr());
        let listen = format!("127.0.0.1:{}", 40_000 + u16::from(seed));
        let id = register(&mut connection, &identity, &listen);
        Daemon {
            id,
            identity,
            connection,
        }
    }

    /// Sends `request` with a signature over `challenge`.
    pub(crate) fn signed(&mut self, mut request: Value, challenge: &str) -> Value {
        request["signature"] = json!(sign_text(&self.identity, challenge));
        self.connection.pilot(&request)
    }

    pub(crate) fn own(&mut self, kind: &str, mut fields: Value) -> Value {
        fields["type"] = json!(kind);
        fields["node_id"] = json!(self.id);
        let challenge = format!("{kind}:{}", self.id);
        self.signed(fields, &challenge)
    }

    fn towards(&mut self, kind: &str, peer: NodeId) -> Value {
        let id = self.id;
        let request = json!({"type": kind, "node_id": id, "peer_id": peer});
        self.signed(request, &format!("{kind}:{id}:{peer}"))
    }

    pub(crate) fn resolve(&mut self, node: NodeId) -> Value {
        let id = self.id;
        let request = json!({"type": "resolve", "node_id": node, "requester_id": id});
        self.signed(request, &format!("resolve:{id}:{node}"))
    }
}

pub(crate) fn error(reply: &Value) -> &str {
    assert_eq!(reply["type"], "error", "{reply}");
    reply["error"].as_str().expect("a text")
}

#[test]
fn a_daemon_of_1_9_1_starts_up_unsigned_with_these_replies() {
    let registry = start(Config {
        beacon: None,
        ..config()
    });
    let identity = Identity::from_seed([7; 32]);
    let key = identity.public().to_base64();
    let mut connection = Connection::open(registry.tcp_addr());
    let mut golden = |request: Value, reply: Value| assert_eq!(connection.pilot(&request), reply);
    golden(
        json!({"type": "register", "listen_addr": "[::]:4100", "public_key": key,
               "owner": "someone@example", "version": "dev"}),
        json!({"type": "register_ok", "node_id": 1, "network_id": 0,
               "address": "0:0000.0000.0001", "public_key": key,
               "observed_addr": "127.0.0.1:4100"}),
    );
    golden(
        json!({"type": "set_visibility", "node_id": 1, "public": true,
               "signature": sign_text(&identity, "set_visibility:1")}),
        json!({"type": "set_visibility_ok", "node_id": 1, "visibility": "public"}),
    );
    golden(
        json!({"type": "set_hostname", "node_id": 1, "hostname": "gpu-1",
               "signature": sign_text(&identity, "set_hostname:1")}),
        json!({"type": "set_hostname_ok", "node_id": 1, "hostname": "gpu-1"}),
    );
    golden(
        json!({"type": "lookup", "node_id": 1}),
        json!({"type": "lookup_ok", "node_id": 1, "address": "0:0000.0000.0001", "networks": [0],
               "public_key": key, "public": true, "hostname": "gpu-1", "polo_score": 0,
               "version": "dev", "real_addr": "127.0.0.1:4100"}),
    );
    golden(
        json!({"type": "get_network_policy", "network_id": 0}),
        json!({"type": "get_network_policy_ok", "network_id": 0, "max_members": 0,
               "allowed_ports": [], "description": ""}),
    );
    for _ in 0..2 {
        golden(
            json!({"type": "list_networks"}),
            json!({"type": "list_networks_ok", "networks": [
                {"id": 0, "name": "backbone", "members": 1, "join_rule": "open"}]}),
        );
    }
    golden(
        json!({"type": "beacon_list"}),
        json!({"type": "beacon_list_ok", "beacons": []}),
    );
    golden(
        json!({"type": "poll_handshakes", "node_id": 1,
               "signature": sign_text(&identity, "poll_handshakes:1")}),
        json!({"type": "poll_handshakes_ok", "requests": [], "responses": []}),
    );
    let beat = connection.pilot(&json!({"type": "heartbeat", "node_id": 1,
        "signature": sign_text(&identity, "heartbeat:1")}));
    assert_eq!(beat["type"], "heartbeat_ok");
    assert!(
        beat["time"]
            .as_u64()
            .is_some_and(|time| time > 1_700_000_000),
        "{beat}"
    );
    let counters = registry.counters();
    assert_eq!(counters["requests_answered"], counters["messages_received"]);
}

#[test]
fn a_daemon_of_1_18_registers_signed_and_is_held_to_it() {
    let registry = start(config());
    let mut daemon = Daemon::join(&registry, 7);
    let key = daemon.identity.public().to_base64();
    let unsigned = json!({"type": "register", "listen_addr": "1.2.3.4:1", "public_key": key});
    let reply = daemon.connection.pilot(&unsigned);
    assert!(error(&reply).contains("signature is required"), "{reply}");
    let mut forged = unsigned.clone();
    forged["signature"] = json!(sign_text(&Identity::from_seed([8; 32]), "register:x"));
    assert!(error(&daemon.connection.pilot(&forged)).contains("invalid signature"));
    let again = register(&mut daemon.connection, &daemon.identity, "127.0.0.1:41000");
    assert_eq!(again, daemon.id, "the same key is the same node");
    let resolved = daemon.resolve(daemon.id);
    assert_eq!(resolved["real_addr"], "127.0.0.1:41000", "{resolved}");
    let beacons = daemon.connection.pilot(&json!({"type": "beacon_list"}));
    let own = registry
        .beacon_addr()
        .expect("there is a beacon")
        .to_string();
    assert_eq!(beacons["beacons"], json!([{"id": 1, "addr": own}]));
}

#[test]
fn every_change_needs_the_nodes_own_signature() {
    let registry = start(config());
    let (mut victim, mut thief) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    let (id, key) = (victim.id, thief.identity.public().to_base64());
    for (request, challenge) in [
        (json!({"type": "heartbeat"}), format!("heartbeat:{id}")),
        (
            json!({"type": "set_hostname", "hostname": "x"}),
            format!("set_hostname:{id}"),
        ),
        (
            json!({"type": "set_visibility", "public": true}),
            format!("set_visibility:{id}"),
        ),
        (
            json!({"type": "set_tags", "tags": ["x"]}),
            format!("set_tags:{id}"),
        ),
        (
            json!({"type": "set_task_exec", "enabled": true}),
            format!("set_task_exec:{id}"),
        ),
        (
            json!({"type": "poll_handshakes"}),
            format!("poll_handshakes:{id}"),
        ),
        (json!({"type": "deregister"}), format!("deregister:{id}")),
        (
            json!({"type": "rotate_key", "new_public_key": key}),
            format!("rotate:{id}:{key}"),
        ),
        (
            json!({"type": "report_trust", "peer_id": 2}),
            format!("report_trust:{id}:2"),
        ),
    ] {
        let mut request = request;
        request["node_id"] = json!(id);
        let unsigned = victim.connection.pilot(&request);
        assert!(error(&unsigned).contains("invalid signature"), "{unsigned}");
        let forged = thief.signed(request, &challenge);
        assert!(error(&forged).contains("invalid signature"), "{forged}");
    }
    assert_eq!(registry.counters()["refused_signature"], 18);
    let lookup = victim
        .connection
        .pilot(&json!({"type": "lookup", "node_id": id}));
    assert_eq!(lookup["public_key"], victim.identity.public().to_base64());
    assert_eq!(lookup["public"], false);
}

#[test]
fn settings_are_kept_repeatable_and_checked() {
    let registry = start(config());
    let (mut one, mut other) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    for _ in 0..2 {
        let reply = one.own("set_hostname", json!({"hostname": "gpu"}));
        assert_eq!(reply["hostname"], "gpu", "{reply}");
    }
    assert!(error(&other.own("set_hostname", json!({"hostname": "gpu"}))).contains("already"));
    assert!(error(&other.own("set_hostname", json!({"hostname": "-x"}))).contains("invalid"));
    let found = other
        .connection
        .pilot(&json!({"type": "resolve_hostname", "hostname": "gpu"}));
    assert_eq!(found["node_id"], 1, "daemons do not say who asks: {found}");
    let hidden = json!({"type": "resolve_hostname", "hostname": "gpu", "requester_id": 2});
    assert_eq!(
        error(&other.connection.pilot(&hidden)),
        "hostname \"gpu\" not found"
    );
    let tags = one.own("set_tags", json!({"tags": ["#llm", "cuda-12"]}));
    assert_eq!(tags["tags"], json!(["llm", "cuda-12"]), "{tags}");
    assert!(error(&one.own("set_tags", json!({"tags": ["Not A Tag"]}))).contains("invalid"));
    assert_eq!(
        one.own("set_task_exec", json!({"enabled": true}))["task_exec"],
        true
    );
    let lookup = other
        .connection
        .pilot(&json!({"type": "lookup", "node_id": 1}));
    assert_eq!(
        (&lookup["tags"], &lookup["task_exec"]),
        (&tags["tags"], &json!(true))
    );
    assert_eq!(lookup.get("real_addr"), None, "it is private");

    let next = Identity::from_seed([9; 32]);
    let key = next.public().to_base64();
    let rotate = json!({"type": "rotate_key", "node_id": 1, "new_public_key": key});
    assert_eq!(
        one.signed(rotate, &format!("rotate:1:{key}"))["public_key"],
        json!(key)
    );
    assert!(error(&one.own("heartbeat", json!({}))).contains("invalid signature"));
    one.identity = Arc::new(next);
    assert_eq!(one.own("heartbeat", json!({}))["type"], "heartbeat_ok");

    assert_eq!(one.own("deregister", json!({}))["type"], "deregister_ok");
    assert_eq!(
        one.own("deregister", json!({}))["type"],
        "deregister_ok",
        "gone is gone"
    );
    assert_eq!(
        error(&one.own("heartbeat", json!({}))),
        "node 1: node not found"
    );
    let back = register(&mut one.connection, &one.identity, "127.0.0.1:4000");
    assert_eq!(back, NodeId(1));
    let lookup = one
        .connection
        .pilot(&json!({"type": "lookup", "node_id": 1}));
    assert_eq!(
        (&lookup["hostname"], &lookup["task_exec"]),
        (&json!("gpu"), &json!(true))
    );
}

#[test]
fn a_private_node_is_resolved_by_whom_it_trusts() {
    let registry = start(config());
    let (mut one, mut other) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    let (a, b) = (one.id, other.id);
    assert!(error(&other.resolve(a)).contains("is private (establish mutual trust first)"));
    assert_eq!(other.towards("report_trust", a)["type"], "report_trust_ok");
    assert!(
        error(&other.resolve(a)).contains("private"),
        "one's own word opens nobody else"
    );
    assert_eq!(one.towards("report_trust", b)["type"], "report_trust_ok");
    assert_eq!(other.resolve(a)["real_addr"], "127.0.0.1:40001");
    let check = json!({"type": "check_trust", "node_id": a, "peer_id": b});
    assert_eq!(one.connection.pilot(&check)["trusted"], true);
    let punch = json!({"type": "punch", "requester_id": b, "node_a": b, "node_b": a});
    let punched = other.signed(punch, &format!("punch:{b}:{a}"));
    assert_eq!(
        (&punched["node_a_addr"], &punched["node_b_addr"]),
        (&json!("127.0.0.1:40002"), &json!("127.0.0.1:40001"))
    );
    assert_eq!(one.towards("revoke_trust", b)["type"], "revoke_trust_ok");
    assert!(error(&other.towards("revoke_trust", a)).contains("not found"));
    assert_eq!(one.connection.pilot(&check)["trusted"], false);
    assert!(error(&other.resolve(a)).contains("private"));
    assert_eq!(
        one.own("set_visibility", json!({"public": true}))["visibility"],
        "public"
    );
    assert_eq!(other.resolve(a)["real_addr"], "127.0.0.1:40001");
    assert!(error(&other.resolve(NodeId(99))).contains("not found"));
}

#[test]
fn a_handshake_is_relayed_and_its_approval_is_trust() {
    let registry = start(config());
    let (mut one, mut other) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    let ask = json!({"type": "request_handshake", "from_node_id": 1, "to_node_id": 2,
                     "justification": "work"});
    let reply = one.signed(ask.clone(), "handshake:1:2");
    assert_eq!(
        reply,
        json!({"type": "request_handshake_ok", "status": "delivered"})
    );
    assert!(error(&one.signed(ask, "handshake:1:2")).contains("already waiting"));
    let inbox = other.own("poll_handshakes", json!({}));
    assert_eq!(inbox["requests"][0]["from_node_id"], 1, "{inbox}");
    assert_eq!(inbox["requests"][0]["justification"], "work");
    assert_eq!(
        other.own("poll_handshakes", json!({}))["requests"],
        json!([]),
        "emptied"
    );
    let approve = |peer: u32| json!({"type": "respond_handshake", "node_id": 2, "peer_id": peer, "accept": true});
    assert!(error(&other.signed(approve(3), "respond:2:3")).contains("not found"));
    let reply = other.signed(approve(1), "respond:2:1");
    assert_eq!(
        reply,
        json!({"type": "respond_handshake_ok", "accept": true, "peer_id": 1})
    );
    let inbox = one.own("poll_handshakes", json!({}));
    assert_eq!(inbox["responses"][0]["from_node_id"], 2, "{inbox}");
    assert_eq!(inbox["responses"][0]["accept"], true);
    assert_eq!(one.resolve(NodeId(2))["type"], "resolve_ok");
    assert_eq!(other.resolve(NodeId(1))["type"], "resolve_ok");
}

#[test]
fn unsigned_polo_is_refused_unless_the_network_is_closed() {
    let registry = start(config());
    let mut daemon = Daemon::join(&registry, 1);
    for request in [
        json!({"type": "update_polo_score", "node_id": 1, "delta": 5}),
        json!({"type": "set_polo_score", "node_id": 1, "polo_score": 5}),
    ] {
        let reply = daemon.connection.pilot(&request);
        assert!(error(&reply).contains("allow_unsigned_polo"), "{reply}");
    }
    let score = json!({"type": "get_polo_score", "node_id": 1});
    assert_eq!(daemon.connection.pilot(&score)["polo_score"], 0);

    let registry = start_open();
    let mut daemon = Daemon::join(&registry, 1);
    let mut moved = |kind: &str, field: &str, value: i64| {
        daemon
            .connection
            .pilot(&json!({"type": kind, "node_id": 1, field: value}))["polo_score"]
            .as_i64()
    };
    assert_eq!(
        moved("set_polo_score", "polo_score", 1_000_000),
        Some(1_000_000)
    );
    assert_eq!(
        moved("update_polo_score", "delta", 500_000),
        Some(1_500_000)
    );
    assert_eq!(
        moved("update_polo_score", "delta", -2_000_000),
        Some(-500_000)
    );
    let unknown = json!({"type": "update_polo_score", "node_id": 9, "delta": 1});
    assert!(error(&daemon.connection.pilot(&unknown)).contains("not found"));
}

#[test]
fn the_old_task_gate_is_answered() {
    let registry = start_open();
    let (mut worker, _submitter) = (Daemon::join(&registry, 1), Daemon::join(&registry, 2));
    worker
        .connection
        .pilot(&json!({"type": "set_polo_score", "node_id": 1, "polo_score": 3}));
    let ask = json!({"type": "authorize_task_submit", "caller_node_id": 1,
                     "submitter_node_id": 2, "receiver_node_id": 1});
    let challenge = "authorize_task_submit:1:2:1";
    let refused = worker.signed(ask.clone(), challenge);
    assert_eq!(refused["authorized"], false);
    assert!(
        !refused["reason"].as_str().expect("a reason").contains('3'),
        "no numbers"
    );
    let mut lower = ask;
    lower["min_polo"] = json!(0);
    assert_eq!(worker.signed(lower, challenge)["authorized"], true);
}

#[test]
fn what_this_registry_does_not_offer_is_refused_by_name() {
    let registry = start(config());
    let mut connection = Connection::open(registry.tcp_addr());
    for (request, named) in [
        (
            json!({"type": "join_network", "network_id": 5}),
            "join_network",
        ),
        (
            json!({"type": "list_nodes", "network_id": 0}),
            "cannot be listed",
        ),
        (
            json!({"type": "list_nodes", "network_id": 5}),
            "network 5: not found",
        ),
        (
            json!({"type": "get_expr_policy", "network_id": 0}),
            "not found",
        ),
        (
            json!({"type": "get_network_policy", "network_id": 5}),
            "not found",
        ),
        (json!({"type": "brew_coffee"}), "brew_coffee"),
    ] {
        let reply = connection.pilot(&request);
        assert!(error(&reply).contains(named), "{reply}");
    }
}

#[test]
fn the_beacon_tells_punches_and_relays_between_real_sockets() {
    let registry = start(config());
    let beacon = registry.beacon_addr().expect("there is a beacon");
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        socket.connect(beacon).expect("loopback");
        socket
    };
    let (one, other) = (socket(), socket());
    let receive = |socket: &UdpSocket| {
        let mut buffer = [0; 2_048];
        let length = socket.recv(&mut buffer).expect("an answer");
        buffer[..length].to_vec()
    };
    let seen_as = |kind: u8, socket: &UdpSocket| {
        let port = socket.local_addr().expect("bound").port();
        [&[kind, 4, 127, 0, 0, 1][..], &port.to_be_bytes()].concat()
    };
    for (node, socket) in [(1_u8, &one), (2, &other)] {
        socket.send(&[1, 0, 0, 0, node]).expect("loopback");
        assert_eq!(receive(socket), seen_as(2, socket));
    }
    one.send(&[3, 0, 0, 0, 1, 0, 0, 0, 2]).expect("loopback");
    assert_eq!(receive(&other), seen_as(4, &one));
    assert_eq!(receive(&one), seen_as(4, &other));
    one.send(b"\x05\0\0\0\x01\0\0\0\x02PILSrest")
        .expect("loopback");
    assert_eq!(receive(&other), b"\x06\0\0\0\x01PILSrest");
    one.send(b"\x05\0\0").expect("loopback");
    one.send(b"\x01\0\0\0\0").expect("loopback");
    assert_eq!(receive(&one), seen_as(2, &one));
    let counters = registry.counters();
    assert_eq!(counters["beacon_malformed"], 1);
    assert_eq!(counters["beacon_received"], 6);
}

#[test]
fn the_byte_log_holds_every_byte_of_both_directions() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("bytes");
    let registry = start(Config {
        byte_log: Some(path.clone()),
        ..config()
    });
    let mut connection = Connection::open(registry.tcp_addr());
    let request = br#"{"type":"lookup","node_id":123456}"#;
    connection.send_bytes(request);
    let reply = connection.receive_bytes().expect("a reply");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    let beacon = registry.beacon_addr().expect("there is a beacon");
    let datagram = [1, 0xde, 0xad, 0xbe, 0xef];
    socket.send_to(&datagram, beacon).expect("loopback");
    let mut told = [0; 8];
    socket.recv(&mut told).expect("an answer");
    registry.shutdown();
    let bytes = std::fs::read(path).expect("the log");
    for wanted in [&request[..], &reply, &datagram, &told] {
        assert!(
            bytes.windows(wanted.len()).any(|window| window == wanted),
            "{wanted:?}"
        );
    }
    assert_eq!(
        bytes.len(),
        4 + request.len() + 4 + reply.len() + datagram.len() + told.len()
    );
}
