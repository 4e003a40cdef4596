//! A node spoken to over its local socket.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use ramjet_proto::ids::NodeId;

use super::toy::Toy;
use super::*;
use crate::control::local_client::LocalClient;
use crate::control::local_wire::{
    KIND_JSON, LocalReply, LocalRequest, LocalSubmit, append_json, append_task, read_frame,
    write_out,
};
use crate::control::query::RegistryClient;
use crate::node::{EngageOutcome, NodeError};

#[test]
fn a_client_asks_engages_and_judges_over_the_socket() {
    let toy = Toy::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.sock");
    // A stale file of a node that died: it is replaced.
    drop(UnixListener::bind(&path).expect("bound"));
    let worker = start(config(&toy, 1, true));
    let requester = start(NodeConfig {
        socket: Some(path.clone()),
        ..config(&toy, 2, false)
    });
    let mode = std::fs::metadata(&path)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = LocalClient::connect(&path).expect("a node");
    assert_eq!(client.status().expect("a status").node, NodeId(2));
    assert_eq!(client.standing("1").expect("known").node, NodeId(1));
    let NodeError(error) = client.standing("99").expect_err("unknown");
    assert!(error.contains("no such node"), "{error}");
    assert_eq!(client.engagements(None, 10), Ok(Vec::new()));
    let events = client
        .engage(request(Numbers::new(2_500)))
        .expect("an offer");
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Settled);
    assert_eq!(
        (end.totals.done, end.totals.accepted, end.totals.rejected),
        (2_500, 2_250, 250)
    );
    assert_eq!(end.settlement.expect("settled").accepted, 2_250);
    assert!(end.job.is_some(), "the job comes back");
    let refused = EngageRequest {
        tasks: 0,
        ..request(Numbers::new(1))
    };
    let NodeError(error) = client.engage(refused).expect_err("no tasks");
    assert_eq!(error, "tasks: 0, must be at least 1");
    let other = NodeConfig {
        socket: Some(path.clone()),
        ..config(&toy, 3, false)
    };
    let NodeError(error) = Node::start_with(other, timings())
        .err()
        .expect("it is taken");
    assert!(error.contains("another node listens there"), "{error}");
    requester.shutdown().expect("an end");
    assert!(!path.exists(), "the socket goes with its node");
    worker.shutdown().expect("an end");
}

fn submit() -> LocalSubmit {
    LocalSubmit {
        skill: "echo".to_owned(),
        filters: Vec::new(),
        min_polo: i64::MIN,
        tasks: 100,
        concurrency: 4,
        duration_s: 60,
        accept_deadline_ms: 20_000,
        deadline_us: 0,
    }
}

#[test]
fn a_client_that_leaves_ends_its_engagement() {
    let toy = Toy::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.sock");
    let worker = start(config(&toy, 1, true));
    let requester = start(NodeConfig {
        socket: Some(path.clone()),
        ..config(&toy, 2, false)
    });
    let mut stream = UnixStream::connect(&path).expect("a node");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut out = Vec::new();
    append_json(&mut out, &LocalRequest::Submit(submit()));
    append_task(&mut out, 7, b"payload");
    write_out(&mut stream, &mut out).expect("written");
    loop {
        let (kind, body) = read_frame(&mut stream).expect("a frame");
        let opened = kind == KIND_JSON && String::from_utf8_lossy(&body).contains("first_result");
        if opened {
            break;
        }
    }
    drop(stream);
    // Its one task had its answer: whether the end or the cancellation is seen first is open.
    wait_until("the release", || {
        toy.state().rows.values().any(|row| row.released.is_some())
    });
    wait_until("no engagement", || {
        requester.status().expect("a status").engagements.is_empty()
            && worker.status().expect("a status").engagements.is_empty()
    });
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn what_breaks_the_protocol_is_named_and_closed() {
    let toy = Toy::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.sock");
    let node = start(NodeConfig {
        socket: Some(path.clone()),
        ..config(&toy, 1, false)
    });
    let mut stream = UnixStream::connect(&path).expect("a node");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut out = Vec::new();
    append_json(&mut out, &"no request");
    append_task(&mut out, 1, b"too early");
    append_json(&mut out, &LocalRequest::End {});
    write_out(&mut stream, &mut out).expect("written");
    let expected = [
        "no request",
        "kind 1 before a submit",
        "nothing was submitted",
    ];
    for expected in expected {
        let (_, body) = read_frame(&mut stream).expect("a reply");
        let reply: LocalReply = serde_json::from_slice(&body).expect("JSON");
        let LocalReply::Error { error } = reply else {
            panic!("{reply:?}")
        };
        assert!(error.contains(expected), "{error}");
    }
    std::io::Write::write_all(&mut stream, &[0xFF; 8]).expect("written");
    assert!(
        read_frame(&mut stream).is_err(),
        "a frame of 4 GiB closes the connection"
    );
    drop(stream);
    let mut stream = UnixStream::connect(&path).expect("a node");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    append_json(&mut out, &LocalRequest::Submit(submit()));
    append_task(&mut out, 7, b"once");
    append_task(&mut out, 7, b"twice");
    write_out(&mut stream, &mut out).expect("written");
    let named = loop {
        let (_, body) = read_frame(&mut stream).expect("a reply");
        if let Ok(LocalReply::Error { error }) = serde_json::from_slice(&body) {
            break error;
        }
    };
    assert_eq!(named, "token 7 is in the window already");
    drop(stream);
    let nobody = directory.path().join("nobody.sock");
    let NodeError(error) = LocalClient::connect(&nobody).expect_err("nobody");
    assert!(error.contains("nobody.sock"), "{error}");
    node.shutdown().expect("an end");
}

#[test]
fn a_registry_is_asked_without_a_node() {
    let toy = Toy::start();
    let node = start(config(&toy, 1, false));
    let mut client = RegistryClient::connect(toy.address).expect("a registry");
    assert_eq!(client.standing("1").expect("known").node, NodeId(1));
    let NodeError(error) = client.standing("2").expect_err("unknown");
    assert!(
        error.contains("no such node") && error.contains(&toy.address.to_string()),
        "{error}"
    );
    assert_eq!(client.engagements(None, 1), Ok(Vec::new()));
    node.shutdown().expect("an end");
}
