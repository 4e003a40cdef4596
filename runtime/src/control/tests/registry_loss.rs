//! The registry dies, lies and comes back; work goes on and every receipt settles once.

use std::sync::atomic::Ordering;

use ramjet_proto::ids::EngagementId;

use super::toy::{Mischief, Toy};
use super::*;
use crate::node::{EngageOutcome, NodeError};

const FIRST: EngagementId = EngagementId(1);

#[test]
fn a_registry_killed_in_mid_engagement_settles_everything_after_its_restart() {
    let mut toy = Toy::start();
    let worker = start(config(&toy, 1, true));
    let requester = start(config(&toy, 2, false));
    let (job, gate) = gated(3_000, 500);
    let events = requester.engage(request(job)).expect("an offer");
    wait_for(&events, |event| matches!(event, EngageEvent::FirstResult));
    toy.kill();
    gate.store(true, Ordering::Release);
    // All work is done without the registry; only the account waits.
    wait_until("all work, without a registry", || {
        let rows = requester.status().expect("a status").engagements;
        rows.iter().any(|row| row.done == 3_000)
    });
    toy.restart();
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Settled);
    assert_eq!((end.totals.done, end.totals.accepted), (3_000, 2_700));
    let row = toy.state().rows[&FIRST].clone();
    assert_eq!(row.accepted, 2_700);
    assert!(
        row.settlements <= row.k,
        "each receipt moves the registry at most once"
    );
    wait_until("both spools empty", || {
        let spooled = |node: &Node| node.status().expect("a status").spooled;
        spooled(&worker) + spooled(&requester) == 0
    });
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn receipts_of_a_node_that_ends_before_the_registry_returns_settle_after_its_restart() {
    let mut toy = Toy::start();
    let state = tempfile::tempdir().expect("a directory");
    let kept = |seed, works| NodeConfig {
        state: Some(state.path().join(format!("node-{seed}"))),
        ..config(&toy, seed, works)
    };
    let timings = ControlTimings {
        grace: Duration::from_millis(300),
        ..timings()
    };
    let (worker_config, requester_config) = (kept(1, true), kept(2, false));
    let worker = Node::start_with(worker_config.clone(), timings).expect("a node");
    let requester = Node::start_with(requester_config.clone(), timings).expect("a node");
    let (job, gate) = gated(200, 10);
    let events = requester.engage(request(job)).expect("an offer");
    wait_for(&events, |event| matches!(event, EngageEvent::FirstResult));
    toy.kill();
    let before = toy.state().rows[&FIRST].clone();
    gate.store(true, Ordering::Release);
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Spooled);
    assert_eq!(end.totals.accepted, 180);
    assert_eq!(requester.status().expect("a status").spooled, 1);
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
    assert!(
        before.accepted < 180,
        "the last receipt was not settled before"
    );
    toy.restart();
    let requester = Node::start_with(requester_config, timings).expect("the same node again");
    wait_until("the settlement", || {
        toy.state().rows[&FIRST].accepted == 180
    });
    let worker = Node::start_with(worker_config, timings).expect("the same node again");
    wait_until("both spools empty", || {
        let spooled = |node: &Node| node.status().expect("a status").spooled;
        spooled(&worker) + spooled(&requester) == 0
    });
    let row = toy.state().rows[&FIRST].clone();
    assert_eq!(
        row.settlements,
        before.settlements + 1,
        "exactly once, by whichever end"
    );
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn an_answer_lost_with_its_connection_is_asked_for_again() {
    let toy = Toy::start();
    let worker = start(config(&toy, 1, true));
    let requester = start(config(&toy, 2, false));
    toy.state().mischief = Mischief {
        drop_offer: true,
        drop_settle: true,
        ..Mischief::default()
    };
    let events = requester
        .engage(request(Numbers::new(50)))
        .expect("an offer");
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Settled);
    let state = toy.state();
    assert_eq!(
        state.mischief,
        Mischief::default(),
        "both were dropped once"
    );
    assert_eq!(state.rows.len(), 1, "one offer, one engagement");
    assert!(state.offers_heard >= 2, "the offer was repeated");
    let row = &state.rows[&FIRST];
    assert_eq!(row.accepted, 45);
    assert!(row.settlements <= row.k);
    drop(state);
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn garbage_is_named_counted_and_survived() {
    let toy = Toy::start();
    let node = start(config(&toy, 1, false));
    toy.state().mischief.garbage = true;
    let NodeError(error) = node.standing("1").expect_err("garbage");
    assert!(error.contains("unreadable reply"), "{error}");
    toy.state().mischief = Mischief {
        endless: true,
        ..Mischief::default()
    };
    let NodeError(error) = node.standing("1").expect_err("a message of 4 GiB");
    assert!(
        error.contains("4294967295 bytes, at most 1048576"),
        "{error}"
    );
    toy.state().mischief = Mischief::default();
    wait_until("the reconnect", || node.standing("1").is_ok());
    let counters = node.status().expect("a status").counters;
    assert!(
        counters["control_link_unreadable_replies"] >= 2,
        "{counters:?}"
    );
    assert!(counters["control_link_market_downs"] >= 1, "{counters:?}");
    assert_eq!(counters["control_link_unasked_replies"], 1, "{counters:?}");
    node.shutdown().expect("an end");
}

#[test]
fn a_request_that_is_never_answered_ends_the_connection() {
    let toy = Toy::start();
    let timings = ControlTimings {
        request: Duration::from_millis(100),
        ..timings()
    };
    let node = Node::start_with(config(&toy, 1, false), timings).expect("a node");
    toy.state().mischief.mute = true;
    let NodeError(error) = node.standing("1").expect_err("silence");
    assert!(error.contains("no answer within 100ms"), "{error}");
    toy.state().mischief.mute = false;
    wait_until("the reconnect", || node.standing("1").is_ok());
    node.shutdown().expect("an end");
}

#[test]
fn an_offer_without_a_registry_ends_within_its_deadline() {
    let mut toy = Toy::start();
    let node = start(config(&toy, 1, false));
    toy.kill();
    wait_until("the loss", || !node.status().expect("a status").registry.1);
    let offer = EngageRequest {
        accept_deadline_ms: 100,
        ..request(Numbers::new(1))
    };
    let end = wait_end(&node.engage(offer).expect("it is tried"));
    let EngageOutcome::NoRegistry(text) = end.outcome else {
        panic!("{:?}", end.outcome)
    };
    assert!(text.contains(&toy.address.to_string()), "{text}");
    assert!(end.job.is_some(), "the job comes back");
    node.shutdown().expect("an end");
}
