//! The services of plain agents between whole nodes, over tunnels, with a real registry.

use std::path::Path;

use ramjet_registry::{Config, Registry, RegistryHandle};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::control::local_client::LocalClient;
use crate::node::{AgentRequest, Data, DataKind};

fn market() -> RegistryHandle {
    Registry::start(Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        beacon: None,
        state_dir: None,
        ..Config::default()
    })
    .expect("a registry")
}

/// A node with every service and a state directory; the one of seed 2 works.
fn agent(market: &RegistryHandle, seed: u8, state: &Path, public: bool) -> Node {
    let toy = Toy::start();
    start(NodeConfig {
        registry: market.tcp_addr(),
        public,
        pool_threads: 2,
        state: Some(state.join(format!("node-{seed}"))),
        socket: Some(state.join(format!("{seed}.sock"))),
        services: ServiceConfig::default(),
        ..config(&toy, seed, seed == 2)
    })
}

fn pair(public: bool) -> (RegistryHandle, TempDir, Node, Node) {
    let state = tempfile::tempdir().expect("a folder");
    let market = market();
    let a = agent(&market, 1, state.path(), public);
    let b = agent(&market, 2, state.path(), public);
    (market, state, a, b)
}

fn ask(node: &Node, request: AgentRequest) -> Value {
    node.agent(request).expect("an answer")
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("listed").path());
    let files = paths.filter(|path| path.is_file());
    files
        .map(|path| std::fs::read(path).expect("read"))
        .collect()
}

#[test]
fn messages_and_files_travel_between_nodes() {
    let (_market, state, a, b) = pair(true);
    let text = "grüß dich ".repeat(5_000);
    let sent = ask(
        &a,
        AgentRequest::Message {
            to: "node-2".to_owned(),
            kind: DataKind::Text,
            data: Data::Text(text.clone()),
            reply_to: None,
        },
    );
    assert_eq!(sent["ack"], format!("ACK TEXT {} bytes", text.len()));
    let letters = files(&state.path().join("node-2/inbox"));
    let letter: Value = serde_json::from_slice(&letters[0]).expect("JSON");
    assert_eq!(letter["data"], Value::from(text));
    let content: Vec<u8> = (0..2_000_000_u32)
        .map(|i| i.wrapping_mul(i).to_be_bytes()[1])
        .collect();
    let path = state.path().join("content.bin");
    std::fs::write(&path, &content).expect("written");
    let to = b.address();
    let sent = ask(
        &a,
        AgentRequest::File {
            to,
            path,
            name: None,
        },
    );
    assert_eq!(
        (&sent["chunked"], &sent["bytes"]),
        (&Value::from(true), &Value::from(2_000_000))
    );
    assert!(
        files(&state.path().join("node-2/received")) == [content],
        "the file"
    );
    for node in [a, b] {
        node.shutdown().expect("an end");
    }
}

#[test]
fn tasks_are_run_as_messages_and_as_submits() {
    let (_market, state, a, b) = pair(true);
    let local = LocalClient::connect(&state.path().join("1.sock")).expect("a socket");
    let done = local
        .agent(AgentRequest::Request {
            to: b.node_id().to_string(),
            skill: "echo".to_owned(),
            description: "hello".to_owned(),
            params: None,
            timeout_ms: None,
        })
        .expect("a result");
    assert_eq!(
        (&done["status"], &done["result"]),
        (&"completed".into(), &"hello".into())
    );
    let done = local
        .agent(AgentRequest::Submit {
            to: b.node_id().to_string(),
            description: "echo: hello".to_owned(),
            wait_ms: 20_000,
        })
        .expect("a record");
    assert_eq!(
        (&done["status"], &done["results"]),
        (&"SUCCEEDED".into(), &"hello".into()),
        "{done}"
    );
    let refused = local.agent(AgentRequest::Request {
        to: "nobody".to_owned(),
        skill: "echo".to_owned(),
        description: String::new(),
        params: None,
        timeout_ms: None,
    });
    assert!(refused.expect_err("nobody").to_string().contains("nobody"));
    for node in [a, b] {
        node.shutdown().expect("an end");
    }
}

#[test]
fn private_nodes_reach_each_other_once_they_trust_and_no_longer() {
    let (_market, _state, a, b) = pair(false);
    let message = || AgentRequest::Message {
        to: b.node_id().to_string(),
        kind: DataKind::Json,
        data: Data::Text("{}".to_owned()),
        reply_to: None,
    };
    let sent = ask(
        &a,
        AgentRequest::Handshake {
            to: b.node_id().to_string(),
            justification: "work".to_owned(),
        },
    );
    assert_eq!(sent["status"], "relayed");
    wait_until("the request", || {
        let pending = ask(&b, AgentRequest::Pending {});
        pending["pending"][0]["justification"] == "work"
    });
    let to = a.node_id().to_string();
    ask(&b, AgentRequest::Approve { to: to.clone() });
    let waited = ask(
        &a,
        AgentRequest::WaitTrust {
            to: b.node_id().to_string(),
            limit_ms: 20_000,
        },
    );
    assert_eq!(waited["trusted"], true);
    assert_eq!(ask(&a, message())["ack"], "ACK JSON 2 bytes");
    ask(&b, AgentRequest::Revoke { to });
    wait_until("the end of trust", || {
        ask(&a, AgentRequest::Trusted {})["trusted"] == Value::Array(Vec::new())
    });
    for node in [a, b] {
        node.shutdown().expect("an end");
    }
}
