//! The plain story: two nodes, one engagement, its account.

use ramjet_proto::ids::{EngagementId, NodeId};
use ramjet_proto::market::message::Query;

use super::toy::Toy;
use super::*;
use crate::control::vocabulary::CloseReason;
use crate::node::{EngageOutcome, NodeError};

fn one_engagement(io: IoKind) {
    let toy = Toy::start();
    let worker = start(NodeConfig {
        io,
        ..config(&toy, 1, true)
    });
    let requester = start(NodeConfig {
        io,
        ..config(&toy, 2, false)
    });
    assert_eq!(
        (worker.node_id(), requester.node_id()),
        (NodeId(1), NodeId(2))
    );
    assert_eq!(requester.address(), "0:0000.0000.0002");
    let events = requester
        .engage(request(Numbers::new(1_000)))
        .expect("an offer");
    let mut steps = Vec::new();
    let end = loop {
        match wait_for(&events, |_| true) {
            EngageEvent::Ended(end) => break end,
            EngageEvent::Progress(_) => {}
            event => steps.push(event),
        }
    };
    assert!(matches!(steps[0], EngageEvent::Offered { .. }), "{steps:?}");
    assert!(
        matches!(&steps[1], EngageEvent::Granted { worker: NodeId(1), worker_address, .. }
            if worker_address == "0:0000.0000.0001"),
        "{steps:?}"
    );
    assert!(matches!(steps[2], EngageEvent::Opened), "{steps:?}");
    assert!(matches!(steps[3], EngageEvent::FirstResult), "{steps:?}");
    assert!(
        matches!(steps.last(), Some(EngageEvent::Settled(_))),
        "{steps:?}"
    );
    assert_eq!(end.outcome, EngageOutcome::Settled);
    assert_eq!(
        (end.totals.done, end.totals.accepted, end.totals.rejected),
        (1_000, 900, 100)
    );
    assert!(end.job.is_some(), "the job comes back");
    let settlement = end.settlement.expect("settled");
    assert_eq!((settlement.accepted, settlement.worker), (900, NodeId(1)));
    wait_until("the release", || {
        toy.state().rows[&EngagementId(1)].released.is_some()
    });
    wait_until("an empty spool", || {
        let rows = |node: &Node| {
            let status = node.status().expect("a status");
            status.spooled + status.engagements.len()
        };
        rows(&worker) + rows(&requester) == 0
    });
    let row = toy.state().rows[&EngagementId(1)].clone();
    assert_eq!(
        (row.accepted, row.released.as_deref()),
        (900, Some("finished"))
    );
    assert!(row.settlements >= 1 && row.settlements <= row.k, "{row:?}");
    let status = worker.status().expect("a status");
    assert!(status.registry.1 && status.task_ready);
    assert_eq!(status.counters["control_channels_admitted"], 1);
    let histograms = requester.histograms().expect("histograms");
    assert_eq!(histograms.round_trip.len(), 1_000);
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn an_engagement_is_settled_and_released_over_io_uring() {
    one_engagement(IoKind::Uring);
}

#[test]
fn an_engagement_is_settled_and_released_over_plain_sockets() {
    one_engagement(IoKind::Mmsg);
}

#[test]
fn a_node_without_a_registry_does_not_start_and_says_which() {
    let mut toy = Toy::start();
    toy.kill();
    let limit = Duration::from_secs(2);
    let timings = ControlTimings {
        start: limit,
        ..timings()
    };
    let NodeError(error) = Node::start_with(config(&toy, 1, false), timings)
        .err()
        .expect("nobody listens");
    assert!(error.contains(&toy.address.to_string()), "{error}");
    assert!(error.contains("connect"), "{error}");
}

#[test]
fn a_node_that_waits_is_registered_once_the_registry_comes() {
    let mut toy = Toy::start();
    toy.kill();
    let node = Node::start_waiting_with(config(&toy, 1, false), timings()).expect("it waits");
    assert_eq!(node.node_id(), NodeId(0));
    let NodeError(error) = node.resolve(Query::default()).expect_err("not yet");
    assert!(error.contains(&toy.address.to_string()), "{error}");
    toy.restart();
    assert_eq!(node.wait_registered(PATIENCE), Ok(NodeId(1)));
    assert_eq!(node.resolve(Query::default()), Ok(Vec::new()));
    node.shutdown().expect("an end");
    let NodeError(error) = node.resolve(Query::default()).expect_err("it has ended");
    assert!(error.contains("shut down"), "{error}");
}

#[test]
fn a_registry_with_another_key_than_the_pinned_one_is_refused() {
    let toy = Toy::start();
    let other = Identity::from_seed([99; 32]).public();
    let config = NodeConfig {
        registry_key: Some(other),
        ..config(&toy, 1, false)
    };
    let NodeError(error) = Node::start_with(config, timings())
        .err()
        .expect("another key");
    assert!(error.contains(&other.to_string()), "{error}");
}

#[test]
fn what_is_out_of_range_is_refused_by_name_before_anything_runs() {
    let toy = Toy::start();
    let NodeError(error) = Node::start_with(
        NodeConfig {
            workers: 0,
            ..config(&toy, 1, true)
        },
        timings(),
    )
    .err()
    .expect("no worker");
    assert_eq!(error, "workers: 0, must be 1 to 256");
    let node = start(config(&toy, 1, false));
    let refused = EngageRequest {
        concurrency: 5_000,
        ..request(Numbers::new(1))
    };
    let NodeError(error) = node.engage(refused).expect_err("too many slots");
    assert_eq!(error, "concurrency: 5000, must be 1 to 4096");
    node.trust(NodeId(1))
        .expect("the toy trusts anybody it knows");
    let NodeError(error) = node.standing("77").expect_err("nobody");
    assert!(error.contains("no such node"), "{error}");
    node.shutdown().expect("an end");
}

#[test]
fn an_offer_that_nobody_takes_ends_when_the_node_does() {
    let toy = Toy::start();
    let node = start(config(&toy, 1, false));
    let events = node.engage(request(Numbers::new(1))).expect("an offer");
    wait_for(&events, |event| {
        matches!(event, EngageEvent::Offered { notified: 0, .. })
    });
    node.shutdown().expect("an end");
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Closed(CloseReason::Draining));
    assert!(end.job.is_some(), "the job comes back");
}

#[test]
fn a_node_keeps_itself_alive_at_the_registry() {
    let toy = Toy::start();
    let timings = ControlTimings {
        heartbeat: Duration::from_millis(20),
        ..timings()
    };
    let node = Node::start_with(config(&toy, 1, false), timings).expect("a node");
    wait_until("three heartbeats", || toy.state().heartbeats >= 3);
    node.shutdown().expect("an end");
}

#[test]
fn a_worker_that_shuts_down_hands_in_what_was_signed_and_frees_its_requester() {
    let toy = Toy::start();
    let worker = start(config(&toy, 1, true));
    let requester = start(config(&toy, 2, false));
    let (job, _closed) = gated(200, 100);
    let events = requester.engage(request(job)).expect("an offer");
    wait_until("a hundred results", || {
        requester
            .status()
            .expect("a status")
            .engagements
            .iter()
            .any(|row| row.done == 100)
    });
    // Nothing runs any more: the worker waits until the hundred results are signed for.
    worker.shutdown().expect("an end");
    let end = wait_end(&events);
    assert_eq!(end.outcome, EngageOutcome::Closed(CloseReason::Draining));
    assert_eq!(end.totals.done, 100);
    assert!(end.job.is_some(), "the job comes back");
    let row = toy.state().rows[&EngagementId(1)].clone();
    assert_eq!(
        (row.accepted, row.released.as_deref()),
        (90, Some("draining"))
    );
    // The next engagement waits for another worker: nobody is ready now.
    let events = requester
        .engage(request(Numbers::new(1)))
        .expect("an offer");
    wait_for(&events, |event| {
        matches!(event, EngageEvent::Offered { notified: 0, .. })
    });
    let worker = start(config(&toy, 3, true));
    let end = wait_end(
        &requester
            .engage(request(Numbers::new(10)))
            .expect("an offer"),
    );
    assert_eq!(end.outcome, EngageOutcome::Settled);
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

#[test]
fn an_engagement_serves_to_its_slots_and_many_run_beside_each_other() {
    let toy = Toy::start();
    let worker = start(NodeConfig {
        workers: 2,
        ..config(&toy, 1, true)
    });
    let requester = start(NodeConfig {
        workers: 2,
        ..config(&toy, 2, false)
    });
    let engagements: Vec<_> = (1..=8)
        .map(|times| {
            requester
                .engage(request(Numbers::new(100 * times)))
                .expect("an offer")
        })
        .collect();
    for (engagement, times) in engagements.iter().zip(1..) {
        let end = wait_end(engagement);
        assert_eq!(end.outcome, EngageOutcome::Settled);
        assert_eq!(end.totals.accepted, 90 * times);
        assert_eq!(end.settlement.expect("settled").accepted, 90 * times);
    }
    assert_eq!(toy.state().rows.len(), 8);
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}

/// A job with a bug.
struct Faulty;

impl Job for Faulty {
    fn next(&mut self, _space: &mut [u8], _now: Time) -> Next {
        panic!("this job is meant to panic");
    }

    fn answer(&mut self, _token: u64, _answer: Answer<'_>, _timing: Timing) -> Verdict {
        Verdict::Accept
    }
}

#[test]
fn a_job_that_panics_ends_its_engagement_and_the_node_says_why_it_takes_no_more() {
    let toy = Toy::start();
    let worker = start(config(&toy, 1, true));
    let requester = start(config(&toy, 2, false));
    let end = wait_end(
        &requester
            .engage(request(Box::new(Faulty)))
            .expect("an offer"),
    );
    assert_eq!(end.outcome, EngageOutcome::Closed(CloseReason::Lost));
    let NodeError(error) = requester
        .engage(request(Numbers::new(1)))
        .expect_err("no worker");
    assert!(
        error.contains("worker 0 has ended: a bug stopped it"),
        "{error}"
    );
    requester.shutdown().expect("an end");
    worker.shutdown().expect("an end");
}
