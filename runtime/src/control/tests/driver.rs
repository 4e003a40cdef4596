//! A node spoken to as Pilot's own programs speak to a daemon, over a real socket and with the real
//! registry.

mod hostile;
mod lines;
mod market;
mod script;
mod streams;

use std::collections::BTreeSet;

use ramjet_proto::addr::{Address, SocketAddress};
use ramjet_proto::driver::{Command, HandshakeCommand, NetworkCommand};
use ramjet_proto::ids::{ConnectionId, NodeId};
use ramjet_registry::RegistryHandle;
use serde_json::{Value, json};

use self::script::{Heard, Script};
use super::real_registry::{at, registry};
use super::toy::Toy;
use super::*;
use crate::control::local_client::LocalClient;

/// A registry and nodes with a socket each.
struct World {
    market: RegistryHandle,
    directory: tempfile::TempDir,
    nodes: Vec<Node>,
}

impl World {
    /// Of `count` nodes, each changed by `with`.
    fn of(count: u8, with: impl Fn(NodeConfig) -> NodeConfig) -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let any = "127.0.0.1:0".parse().expect("an address");
        let market = registry(any, &directory.path().join("registry"));
        let toy = Toy::start();
        let nodes = (1..=count)
            .map(|seed| {
                let base = at(market.tcp_addr(), config(&toy, seed, false));
                let socket = Some(directory.path().join(format!("{seed}.sock")));
                start(with(NodeConfig { socket, ..base }))
            })
            .collect();
        World {
            market,
            directory,
            nodes,
        }
    }

    fn socket(&self, seed: u8) -> std::path::PathBuf {
        self.directory.path().join(format!("{seed}.sock"))
    }

    /// A client of the node of that seed.
    fn client(&self, seed: u8) -> Script {
        Script::connect(&self.socket(seed))
    }

    fn node(&self, seed: u8) -> NodeId {
        self.nodes[usize::from(seed) - 1].node_id()
    }

    fn counter(&self, seed: u8, name: &str) -> u64 {
        let status = self.nodes[usize::from(seed) - 1]
            .status()
            .expect("a status");
        status.counters.get(name).copied().unwrap_or(0)
    }

    fn end(self) {
        for node in &self.nodes {
            node.shutdown().expect("an end");
        }
        drop(self.market);
    }
}

/// The members of an object.
fn members(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

/// The members of info of the daemons 1.9.1 and 1.18.0, as they were captured.
const INFO_1_18: &str = "accept_queue_drops address authenticated_peers beacon_addr bytes_recv bytes_sent \
     conn_list connections email encrypt encrypted_peers endpoint features handshake_pending_count hostname \
     identity motd networks node_id peer_list peers pkts_recv pkts_sent ports public_key relay_peer_count \
     transport tunnel_encryption_failure tunnel_encryption_success uptime_secs version \
     webhook_circuit_skips webhook_queue_dropped";
const CONNECTION_1_18: &str = "bytes_recv bytes_sent cong_win dup_acks fast_retx id in_flight in_recovery \
     local_port ooo_buf peer_recv_win recv_win remote_addr remote_port retransmits rttvar_ms sack_recv \
     sack_sent segs_recv segs_sent srtt_ms ssthresh state unacked";
const HEALTH_1_18: &str = "accept_queue_drops authenticated_peers beacon_addr bytes_recv bytes_sent connections \
     encrypted_peers handshake_pending_count peers relay_peer_count status uptime_seconds \
     webhook_circuit_skips webhook_queue_dropped";

#[test]
fn info_and_health_have_the_members_of_a_daemons() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let info = client.ask(&Command::Info);
    let expected: BTreeSet<&str> = INFO_1_18.split_whitespace().collect();
    assert_eq!(members(&info), expected);
    assert_eq!(info["node_id"], json!(world.node(1)));
    assert_eq!(info["address"], json!(Address::backbone(world.node(1))));
    assert_eq!(info["hostname"], "node-1");
    assert_eq!(info["email"], "node-1");
    let key = Identity::from_seed([1; 32]).public().to_base64();
    assert_eq!(info["public_key"], key.as_str());
    assert_eq!(info["peer_list"], json!([]));
    let health = client.ask(&Command::Health);
    let expected: BTreeSet<&str> = HEALTH_1_18.split_whitespace().collect();
    assert_eq!(members(&health), expected);
    assert_eq!(health["status"], "ok");
    world.end();
}

#[test]
fn names_tags_and_visibility_reach_the_registry_and_its_words_come_back() {
    let world = World::of(2, |config| config);
    let mut client = world.client(1);
    let node = world.node(1);
    let reply = client.ask(&Command::SetHostname { hostname: "aye" });
    assert_eq!(
        reply,
        json!({"type": "set_hostname_ok", "node_id": node, "hostname": "aye"})
    );
    let found = client.ask(&Command::ResolveHostname { hostname: "aye" });
    assert_eq!(
        members(&found),
        BTreeSet::from(["address", "hostname", "node_id", "public", "type"])
    );
    assert_eq!(found["node_id"], json!(node));
    assert_eq!(client.ask(&Command::Info)["hostname"], "aye");
    let unknown = client.fail(&Command::ResolveHostname { hostname: "nope" });
    assert_eq!(
        unknown,
        "resolve_hostname: registry: hostname \"nope\" not found"
    );
    let bad = client.fail(&Command::SetHostname {
        hostname: "Bad_Name",
    });
    assert!(bad.starts_with("set_hostname: registry: "), "{bad}");
    assert_eq!(client.ask(&Command::Info)["hostname"], "aye");
    let tags = vec!["one".to_owned(), "#two".to_owned()];
    let reply = client.ask(&Command::SetTags { tags });
    assert_eq!(reply["tags"], json!(["one", "two"]));
    let reply = client.ask(&Command::SetVisibility { public: false });
    assert_eq!(
        reply,
        json!({"type": "set_visibility_ok", "node_id": node, "visibility": "private"})
    );
    let reply = client.ask(&Command::SetTaskExec { enabled: true });
    assert_eq!(
        reply,
        json!({"type": "set_task_exec_ok", "node_id": node, "task_exec": true})
    );
    assert_eq!(client.ask(&Command::PoloScore), json!({"polo_score": 0}));
    let list = client.ask(&Command::Network(NetworkCommand::List));
    assert_eq!(list["networks"][0]["name"], "backbone");
    let webhook = client.ask(&Command::SetWebhook { url: "" });
    assert_eq!(webhook, json!({"webhook": ""}));
    world.end();
}

#[test]
fn a_signed_request_is_checked_by_another_node() {
    let world = World::of(2, |config| config);
    let (mut signer, mut checker) = (world.client(1), world.client(2));
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let wanted = json!({"audience": "shop.example", "body_hash": hash}).to_string();
    let json = wanted.as_bytes();
    let signed = signer.ask(&Command::SignEnvelope { json });
    let envelope = signed["envelope"].as_str().expect("a text").to_owned();
    assert!(
        envelope.starts_with("pilot-req-v1|000000000001|"),
        "{envelope}"
    );
    let signature = signed["signature"].clone();
    let mut check = |envelope: &str| {
        let json = json!({"envelope": envelope, "signature": signature, "check_standing": true});
        let json = json.to_string();
        checker.ask(&Command::VerifyEnvelope {
            json: json.as_bytes(),
        })
    };
    let valid = check(&envelope);
    assert_eq!(
        (&valid["valid"], &valid["node_id"], &valid["network_member"]),
        (&json!(true), &json!(world.node(1)), &json!(true))
    );
    for broken in [
        envelope.replace("shop", "stop"),
        envelope.replace("000000000001", "000000000002"),
        envelope.replace("000000000001", "000000000063"),
        envelope.replacen('|', "||", 1),
        String::new(),
    ] {
        assert_eq!(check(&broken)["valid"], json!(false), "{broken}");
    }
    let fault = signer.fail(&Command::SignEnvelope { json: b"{}" });
    assert!(fault.starts_with("sign_envelope: audience \"\""), "{fault}");
    world.end();
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let rows = [
        (
            Command::RotateKey,
            "rotate_key: a running node keeps its key",
        ),
        (
            Command::SetWebhook {
                url: "http://127.0.0.1:9/x",
            },
            "set_webhook: this node posts no events",
        ),
        (
            Command::Managed {
                sub: 2,
                arguments: &[0, 0],
            },
            "managed: no active managed networks",
        ),
        (
            Command::Broadcast {
                network: 7,
                port: 1,
                token: b"t",
                bytes: b"x",
            },
            "broadcast: denied to network 7",
        ),
        (
            Command::Network(NetworkCommand::Leave { network: 1 }),
            "network leave: registry: ",
        ),
        (
            Command::SubmitBadge { json: b"[]" },
            "submit_badge: JSON that is no object",
        ),
    ];
    for (command, text) in rows {
        let refusal = client.fail(&command);
        assert!(refusal.starts_with(text), "{refusal}");
    }
    world.end();
}

/// Both protocols on one socket, and the datagram that a client may get before it has spoken.
#[test]
fn one_socket_serves_both_protocols() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let local = LocalClient::connect(&world.socket(1)).expect("a node");
    assert_eq!(local.status().expect("a status").node, world.node(1));
    assert_eq!(client.ask(&Command::Info)["node_id"], json!(world.node(1)));
    assert_eq!(world.counter(1, "control_driver_clients"), 1);
    world.end();
}

#[test]
fn ports_are_bound_given_back_and_freed_when_their_client_leaves() {
    let world = World::of(1, |config| config);
    let (mut one, mut two) = (world.client(1), world.client(1));
    let ports = |client: &mut Script| client.ask(&Command::Info)["ports"].as_u64().expect("count");
    let before = ports(&mut one);
    let bind = Command::Bind { port: 6_000 };
    assert_eq!(one.hear_after(&bind), Heard::Bound(6_000));
    assert_eq!(ports(&mut two), before + 1);
    let taken = two.fail(&bind);
    assert!(taken.starts_with("port 6000 already bound"), "{taken}");
    let unbind = Command::Unbind { port: 6_000 };
    let foreign = two.fail(&unbind);
    assert_eq!(foreign, "unbind: port 6000 is not owned by this client");
    assert_eq!(one.hear_after(&unbind), Heard::Unbound(6_000));
    assert_eq!(two.hear_after(&bind), Heard::Bound(6_000));
    let Heard::Bound(chosen) = one.hear_after(&Command::Bind { port: 0 }) else {
        panic!("not bound")
    };
    assert!(chosen >= 49_152, "{chosen} is not ephemeral");
    drop(two);
    wait_until("its port", || one.hear_after(&bind) == Heard::Bound(6_000));
    assert_eq!(ports(&mut one), before + 2);
    world.end();
}
