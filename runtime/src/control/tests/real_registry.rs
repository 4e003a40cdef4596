//! The same stories against the real registry, its store on disk.

use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::market::Filter;
use ramjet_proto::market::message::Query;
use ramjet_registry::{Config, Registry, RegistryHandle};

use super::*;
use crate::control::query::RegistryClient;
use crate::node::EngageOutcome;

pub(super) fn registry(listen: SocketAddr, state: &Path) -> RegistryHandle {
    Registry::start(Config {
        listen,
        beacon: None,
        state_dir: Some(state.to_path_buf()),
        ..Config::default()
    })
    .expect("a registry")
}

pub(super) fn at(registry: SocketAddr, config: NodeConfig) -> NodeConfig {
    NodeConfig { registry, ..config }
}

#[test]
fn a_market_is_resolved_engaged_and_settled_across_a_restart_of_its_registry() {
    let store = tempfile::tempdir().expect("a directory");
    let any = "127.0.0.1:0".parse().expect("an address");
    let market = registry(any, store.path());
    let address = market.tcp_addr();
    let toy = Toy::start();
    let worker = start(at(address, config(&toy, 1, true)));
    let requester = start(at(address, config(&toy, 2, false)));
    let query = Query {
        task_ready: true,
        filters: vec![Filter {
            key: "skills".to_owned(),
            value: "echo".to_owned(),
        }],
        ..Query::default()
    };
    wait_until("the advertisement", || {
        let rows = requester.resolve(query.clone()).expect("workers");
        rows.iter().any(|row| row.node == worker.node_id())
    });
    let (job, gate) = gated(1_000, 500);
    let events = requester.engage(request(job)).expect("an offer");
    wait_for(&events, |event| matches!(event, EngageEvent::FirstResult));
    drop(market);
    gate.store(true, Ordering::Release);
    wait_until("all work, without a registry", || {
        let rows = requester.status().expect("a status").engagements;
        rows.iter().any(|row| row.done == 1_000)
    });
    let market = registry(address, store.path());
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Settled);
    let settlement = end.settlement.expect("settled");
    assert_eq!((settlement.accepted, settlement.earned), (900, 1));
    wait_until("the release", || {
        let rows = requester.engagements(None, 10).expect("rows");
        rows.iter()
            .any(|row| row.state == "released" && row.accepted == 900)
    });
    let who = worker.node_id().to_string();
    let standing = requester.standing(&who).expect("known");
    assert_eq!((standing.polo, standing.worked), (1, (1, 900)));
    // The worker has 1 by now and the requester 0: the skill is open to anyone, and earns nothing.
    let end = wait_end(
        &requester
            .engage(request(Numbers::new(10)))
            .expect("an offer"),
    );
    assert_eq!(end.outcome, EngageOutcome::Settled);
    assert_eq!(end.settlement.expect("settled").earned, 0);
    let offer = EngageRequest {
        skill: "nobody-has-this".to_owned(),
        accept_deadline_ms: 50,
        ..request(Numbers::new(1))
    };
    let end = wait_end(&requester.engage(offer).expect("an offer"));
    let EngageOutcome::Expired { polo, notified, .. } = end.outcome else {
        panic!("{:?}", end.outcome)
    };
    assert_eq!((polo, notified), ((0, -1), 0));
    wait_until("both spools empty", || {
        let spooled = |node: &Node| node.status().expect("a status").spooled;
        spooled(&worker) + spooled(&requester) == 0
    });
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
    drop(market);
}

/// One Pilot request to a registry and its reply.
fn ask(registry: SocketAddr, request: &serde_json::Value) -> serde_json::Value {
    let mut client = RegistryClient::connect(registry).expect("it listens");
    let message = serde_json::to_vec(request).expect("JSON");
    client.send(&message).expect("it reads");
    let reply = client
        .read_message(Instant::now() + PATIENCE)
        .expect("a reply");
    serde_json::from_slice(&reply).expect("JSON")
}

#[test]
fn a_node_that_its_registry_forgot_registers_and_proves_itself_again() {
    let store = tempfile::tempdir().expect("a directory");
    let any = "127.0.0.1:0".parse().expect("an address");
    let market = registry(any, store.path());
    let address = market.tcp_addr();
    let toy = Toy::start();
    let timings = ControlTimings {
        heartbeat: Duration::from_millis(50),
        ..timings()
    };
    let plain = at(address, config(&toy, 1, true));
    let identity = Arc::clone(&plain.identity);
    let node = Node::start_with(plain, timings).expect("a node");
    let who = node.node_id();
    let lookup = serde_json::json!({"type": "lookup", "node_id": who});
    let advertises = || {
        let query = Query {
            task_ready: true,
            ..Query::default()
        };
        let rows = node.resolve(query);
        rows.is_ok_and(|rows| rows.iter().any(|row| row.node == who))
    };
    wait_until("the advertisement", advertises);
    // Somebody who holds the key takes the node out; the next heartbeat finds nobody.
    let signature = identity.sign(format!("deregister:{who}").as_bytes());
    let gone = ask(
        address,
        &serde_json::json!({
            "type": "deregister", "node_id": who, "signature": BASE64.encode(signature),
        }),
    );
    assert_eq!(gone["type"], "deregister_ok", "{gone}");
    wait_until("the registration", || {
        ask(address, &lookup)["type"] == "lookup_ok"
    });
    wait_until("the advertisement after it", advertises);
    assert_eq!(node.node_id(), who);
    let counters = node.status().expect("a status").counters;
    assert!(counters["control_link_refusals"] >= 1, "{counters:?}");
    assert!(counters["control_link_pilot_connects"] >= 2, "{counters:?}");

    // And a registry that was restarted knows it without being told, from its log.
    drop(market);
    let market = registry(address, store.path());
    wait_until("the advertisement after the restart", advertises);
    assert_eq!(ask(address, &lookup)["node_id"], who.0);
    node.shutdown().expect("an end");
    drop(market);
}
