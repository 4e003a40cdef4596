//! The market's rules over the wire: gate, widening, expiry, settling, release, renewal, queries.

use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, Push, Query, RefusalCode, ReplyBody, RequestBody,
};
use ramjet_proto::market::{AcceptFrom, Filter, Gate, Receipt};
use ramjet_proto::polo::Policy;
use ramjet_registry::Config;
use serde_json::json;

use crate::client::{
    Connection, Node, config, decoded, engage, granted, receipt, refused_as, sign_text, signature,
    signed, start, start_open,
};

#[test]
fn an_engagement_goes_from_offer_to_settlement() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let offer = requester.offer("echo", 60_000);
    assert_eq!(
        requester.submit(&offer),
        ReplyBody::Offered {
            notified: 1,
            diagnosis: None
        },
        "one worker is ready"
    );
    assert_eq!(
        worker.connection.push(),
        Push::Notify {
            offer: offer.clone(),
            requester_polo: 0
        }
    );
    let grant = granted(worker.accept(offer.offer));
    grant
        .verify(&registry.public_key())
        .expect("signed by the registry");
    assert_eq!(grant.grant.gate, Gate::Met);
    assert_eq!(
        grant.grant.concurrency, 8,
        "the smaller of concurrency and credits"
    );
    assert_eq!(grant.grant.requester_key, requester.identity.public());
    assert_eq!(grant.grant.worker_key, worker.identity.public());
    let Push::Grant { grant: pushed } = requester.connection.push() else {
        panic!("no grant")
    };
    assert_eq!(decoded(&pushed), grant);
    assert_eq!(pushed.worker_endpoint, "127.0.0.1:40002");
    assert_eq!(pushed.requester_endpoint, "127.0.0.1:40001");

    assert_eq!(
        granted(worker.accept(offer.offer)),
        grant,
        "asked again, told again"
    );
    assert_eq!(
        requester.submit(&offer),
        ReplyBody::Offered {
            notified: 0,
            diagnosis: None
        },
        "a requester that missed its grant offers again"
    );
    assert!(matches!(requester.connection.push(), Push::Grant { .. }));

    let first = receipt(&grant, 1, 10, None);
    let paper = signed(first, &requester, &worker);
    let ReplyBody::Settled {
        settlement,
        repeated,
    } = worker.settle(&paper)
    else {
        panic!("not settled")
    };
    assert!(!repeated);
    assert_eq!(
        (settlement.k, settlement.accepted, settlement.earned),
        (1, 10, 1)
    );
    assert_eq!(
        (settlement.worker_polo, settlement.requester_polo),
        ((0, 1), (0, 0))
    );
    for node in [&mut requester, &mut worker] {
        let push = Push::Settled {
            settlement: settlement.clone(),
        };
        assert_eq!(node.connection.push(), push, "both ends are told");
    }
    let ReplyBody::Settled {
        settlement: again,
        repeated: true,
    } = requester.settle(&paper)
    else {
        panic!("the other end may hand in the same receipt")
    };
    assert_eq!((again.k, again.earned, again.worker_polo), (1, 1, (1, 1)));

    let release = RequestBody::Release {
        engagement: grant.grant.engagement,
        reason: "finished".to_owned(),
    };
    assert_eq!(
        requester.connection.ask(release.clone()),
        ReplyBody::Done {}
    );
    assert_eq!(
        requester.connection.ask(release),
        ReplyBody::Done {},
        "twice is no error"
    );
    let released = Push::Released {
        engagement: grant.grant.engagement,
        reason: "finished".to_owned(),
    };
    assert_eq!(worker.connection.push(), released);
    assert_eq!(worker.connection.pushes_so_far(), [], "told once");

    let second = receipt(&grant, 2, 20, Some(&first));
    let late = worker.settle(&signed(second, &requester, &worker));
    assert!(
        matches!(
            late,
            ReplyBody::Settled {
                repeated: false,
                ..
            }
        ),
        "late receipts count"
    );
    let list = RequestBody::Engagements {
        who: Some(worker.id.to_string()),
        limit: 10,
    };
    let ReplyBody::Engagements { engagements } = worker.connection.ask(list) else {
        panic!("no list")
    };
    let row = &engagements[0];
    assert_eq!(
        (row.state.as_str(), row.k, row.accepted, row.earned),
        ("released", 2, 20, 1)
    );
}

#[test]
fn the_gate_refuses_at_once_and_names_the_polo_that_would_do() {
    let registry = start_open();
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.set_polo(address, 5);
    worker.advertise("echo", true, AcceptFrom::Gate);
    let refusal = refused_as(
        requester.submit(&requester.offer("echo", 60_000)),
        RefusalCode::Gate,
    );
    let diagnosis = refusal.diagnosis.expect("a gate refusal has one");
    assert_eq!(
        (
            diagnosis.requester_polo,
            diagnosis.capable,
            diagnosis.above_gate
        ),
        (0, 1, 1)
    );
    assert_eq!(diagnosis.polo_needed, Some(5));
    assert!(refusal.reason.contains("your polo is 0") && refusal.reason.contains('5'));
    assert_eq!(requester.polo(), 0, "a refusal costs nothing");
    assert_eq!(registry.counters()["refused_gate"], 1);

    requester.set_polo(address, 5);
    let reply = requester.submit(&requester.offer("echo", 60_000));
    assert!(
        matches!(reply, ReplyBody::Offered { notified: 1, .. }),
        "{reply:?}"
    );
}

#[test]
fn a_widened_gate_serves_and_earns_nothing() {
    let registry = start_open();
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.set_polo(address, 5);

    worker.advertise("echo", true, AcceptFrom::MinPolo(1));
    let refusal = refused_as(
        requester.submit(&requester.offer("echo", 60_000)),
        RefusalCode::Gate,
    );
    assert_eq!(refusal.diagnosis.expect("one").polo_needed, Some(1));
    requester.set_polo(address, 1);
    assert_eq!(
        engage(&mut requester, &mut worker, "echo").grant.gate,
        Gate::Widened
    );

    worker.advertise("echo", true, AcceptFrom::Trusted);
    refused_as(
        requester.submit(&requester.offer("echo", 60_000)),
        RefusalCode::Gate,
    );
    let (a, b) = (requester.id, worker.id);
    let report = |from: &Node, to: NodeId| {
        let node = from.id;
        let signature = sign_text(&from.identity, &format!("report_trust:{node}:{to}"));
        let reply = Connection::open(address).pilot(
            &json!({"type": "report_trust", "node_id": node, "peer_id": to, "signature": signature}),
        );
        assert_eq!(reply["type"], "report_trust_ok", "{reply}");
    };
    report(&requester, b);
    refused_as(
        requester.submit(&requester.offer("echo", 60_000)),
        RefusalCode::Gate,
    );
    report(&worker, a);
    let grant = engage(&mut requester, &mut worker, "echo");
    assert_eq!(grant.grant.gate, Gate::Widened, "trust is mutual now");
    assert_eq!(
        (grant.grant.requester_polo, grant.grant.worker_polo),
        (1, 5)
    );

    let paper = signed(receipt(&grant, 1, 10, None), &requester, &worker);
    let ReplyBody::Settled { settlement, .. } = worker.settle(&paper) else {
        panic!("refused")
    };
    assert_eq!((settlement.earned, settlement.worker_polo), (0, (5, 5)));
    assert_eq!((requester.polo(), worker.polo()), (1, 5));
}

#[test]
fn an_offer_that_nobody_takes_expires_and_costs_one() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let mut requester = Node::join(address, 1);
    let unheard = requester.offer("no-such-skill", 50);
    let ReplyBody::Offered {
        notified: 0,
        diagnosis: Some(diagnosis),
    } = requester.submit(&unheard)
    else {
        panic!("it waits for a worker")
    };
    assert_eq!(diagnosis.capable, 0);
    let Push::Expired {
        offer,
        polo,
        notified,
        diagnosis,
    } = requester.connection.push()
    else {
        panic!("no expiry")
    };
    assert_eq!((offer, polo, notified), (unheard.offer, (0, -1), 0));
    assert_eq!(diagnosis.expect("nobody was notified").capable, 0);

    let mut worker = Node::join(address, 2);
    worker.advertise("echo", true, AcceptFrom::Anyone);
    let ignored = requester.offer("echo", 50);
    let reply = requester.submit(&ignored);
    assert!(
        matches!(reply, ReplyBody::Offered { notified: 1, .. }),
        "{reply:?}"
    );
    let Push::Expired {
        polo,
        notified,
        diagnosis,
        ..
    } = requester.connection.push()
    else {
        panic!("no expiry")
    };
    assert_eq!((polo, notified, diagnosis), ((-1, -2), 1, None));
    assert!(matches!(worker.connection.push(), Push::Notify { .. }));
    assert_eq!(
        worker.connection.push(),
        Push::Withdrawn {
            offer: ignored.offer
        }
    );
    refused_as(worker.accept(ignored.offer), RefusalCode::Taken);
    refused_as(requester.submit(&ignored), RefusalCode::Taken);
    assert_eq!(requester.polo(), -2);
    assert_eq!(registry.counters()["offers_expired"], 2);
}

#[test]
fn under_upstreams_policy_success_costs_the_requester_and_expiry_nothing() {
    let registry = start(Config {
        polo_policy: Policy::Pilot19,
        ..config()
    });
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    requester.submit(&requester.offer("echo", 30));
    let Push::Expired { polo, .. } = requester.connection.push() else {
        panic!("no expiry")
    };
    assert_eq!(polo, (0, 0));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let grant = engage(&mut requester, &mut worker, "echo");
    let first = receipt(&grant, 1, 1, None);
    worker.settle(&signed(first, &requester, &worker));
    let mut second = receipt(&grant, 2, 2, Some(&first));
    second.expired = 3;
    worker.settle(&signed(second, &requester, &worker));
    assert_eq!(
        (requester.polo(), worker.polo()),
        (-1, 0),
        "+1 for the work, -1 for the expiry"
    );
}

#[test]
fn a_worker_that_becomes_ready_is_told_of_the_offers_that_wait() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.advertise("echo", false, AcceptFrom::Gate);
    let offer = requester.offer("echo", 60_000);
    let ReplyBody::Offered {
        notified: 0,
        diagnosis: Some(diagnosis),
    } = requester.submit(&offer)
    else {
        panic!("nobody is ready")
    };
    assert_eq!((diagnosis.capable, diagnosis.not_ready), (1, 1));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let told = Push::Notify {
        offer: offer.clone(),
        requester_polo: 0,
    };
    assert_eq!(worker.connection.push(), told);
    worker.advertise("echo", true, AcceptFrom::Gate);
    assert_eq!(
        worker.connection.pushes_so_far(),
        [],
        "told once on one connection"
    );
    worker.reconnect(address);
    assert_eq!(
        worker.connection.push(),
        told,
        "a new connection has seen nothing"
    );
    granted(worker.accept(offer.offer));
}

#[test]
fn nobody_works_for_itself_and_only_who_suits_may_accept() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (mut one, mut other) = (Node::join(address, 1), Node::join(address, 2));
    one.advertise("echo", true, AcceptFrom::Anyone);
    let own = one.offer("echo", 60_000);
    let reply = one.submit(&own);
    assert!(
        matches!(reply, ReplyBody::Offered { notified: 0, .. }),
        "{reply:?}"
    );
    let refusal = refused_as(one.accept(own.offer), RefusalCode::Invalid);
    assert!(
        refusal.reason.contains("its own offer"),
        "{}",
        refusal.reason
    );
    let refusal = refused_as(other.accept(own.offer), RefusalCode::Invalid);
    assert!(
        refusal.reason.contains("advertise echo first"),
        "{}",
        refusal.reason
    );
    other.advertise("sum", true, AcceptFrom::Anyone);
    refused_as(other.accept(own.offer), RefusalCode::Invalid);
    refused_as(other.accept(OfferId(u64::MAX)), RefusalCode::NotFound);
    other.advertise("sum, echo", true, AcceptFrom::Anyone);
    assert!(matches!(other.connection.push(), Push::Notify { .. }));
    granted(other.accept(own.offer));
}

#[test]
fn a_connection_speaks_only_for_the_node_it_has_proven() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (one, mut other) = (Node::join(address, 1), Node::join(address, 2));
    let mut stranger = Connection::open(address);
    refused_as(
        stranger.ask(one.offer_request(&one.offer("echo", 1_000))),
        RefusalCode::NotProven,
    );
    let prove = RequestBody::Prove {
        signature: Base64Bytes(vec![0; 64]),
    };
    refused_as(stranger.ask(prove.clone()), RefusalCode::NotProven);
    let hello = stranger.ask(RequestBody::Hello { node: one.id });
    assert!(matches!(hello, ReplyBody::Hello { .. }), "{hello:?}");
    refused_as(stranger.ask(prove.clone()), RefusalCode::BadSignature);
    refused_as(stranger.ask(prove), RefusalCode::NotProven);
    refused_as(
        stranger.ask(RequestBody::Hello { node: NodeId(99) }),
        RefusalCode::NotFound,
    );

    let offer = one.offer("echo", 1_000);
    refused_as(
        other.connection.ask(one.offer_request(&offer)),
        RefusalCode::NotProven,
    );
    let mut forged = other.offer("echo", 1_000);
    let paper = signature(&other.identity, &forged.signed_bytes());
    forged.tasks += 1;
    let request = RequestBody::Offer {
        offer: forged,
        signature: paper,
    };
    refused_as(other.connection.ask(request), RefusalCode::BadSignature);
    assert_eq!(registry.counters()["offers_opened"], 0);
}

#[test]
fn receipts_that_contradict_the_grant_or_each_other_are_refused_and_recorded() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let grant = engage(&mut requester, &mut worker, "echo");
    let first = receipt(&grant, 1, 10, None);

    let half = first.sign(&requester.identity);
    refused_as(worker.settle(&half), RefusalCode::BadSignature);
    let own = first.sign(&worker.identity).countersign(&worker.identity);
    refused_as(worker.settle(&own), RefusalCode::BadSignature);
    let unknown = Receipt {
        engagement: EngagementId(77),
        ..first
    };
    refused_as(
        worker.settle(&signed(unknown, &requester, &worker)),
        RefusalCode::NotFound,
    );
    let mut third = Node::join(address, 3);
    refused_as(
        third.settle(&signed(first, &requester, &worker)),
        RefusalCode::NotProven,
    );
    assert_eq!(
        registry.counters()["contradictions_on_file"],
        0,
        "none of these was signed by both"
    );

    worker.settle(&signed(first, &requester, &worker));
    let second = receipt(&grant, 2, 20, Some(&first));
    let contradictions = [
        (
            "more tasks than granted",
            Receipt {
                accepted: 1_001,
                ..second
            },
        ),
        (
            "a year of busy time",
            Receipt {
                busy_ns: 365 * 86_400 * 1_000_000_000,
                ..second
            },
        ),
        (
            "a counter shrinks",
            Receipt {
                accepted: 9,
                ..second
            },
        ),
        (
            "another predecessor",
            Receipt {
                previous: [1; 32],
                ..second
            },
        ),
        (
            "another receipt 1",
            Receipt {
                rejected: 1,
                ..first
            },
        ),
        ("receipts count from 1", Receipt { k: 0, ..first }),
    ];
    for (what, contradiction) in contradictions {
        let paper = signed(contradiction, &requester, &worker);
        let refusal = worker.settle(&paper);
        refused_as(refusal, RefusalCode::Contradiction);
        refused_as(requester.settle(&paper), RefusalCode::Contradiction);
        assert_eq!(worker.polo(), 1, "{what}");
    }
    assert_eq!(
        registry.counters()["contradictions_on_file"],
        6,
        "each recorded once"
    );
    let reply = worker.settle(&signed(second, &requester, &worker));
    assert!(
        matches!(
            reply,
            ReplyBody::Settled {
                repeated: false,
                ..
            }
        ),
        "{reply:?}"
    );
}

#[test]
fn a_renewal_adds_tasks_and_time_and_only_the_requester_may() {
    let registry = start(config());
    let address = registry.tcp_addr();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let grant = engage(&mut requester, &mut worker, "echo").grant;
    let renew = RequestBody::Renew {
        engagement: grant.engagement,
        tasks: 500,
        duration_s: 60,
    };
    refused_as(worker.connection.ask(renew.clone()), RefusalCode::NotProven);
    let renewed = granted(requester.connection.ask(renew.clone()));
    renewed
        .verify(&registry.public_key())
        .expect("signed by the registry");
    assert_eq!(renewed.grant.tasks, 1_500);
    assert_eq!(renewed.grant.expires_at_ms, grant.expires_at_ms + 60_000);
    assert!(matches!(worker.connection.push(), Push::Notify { .. }));
    let Push::Grant { grant: pushed } = worker.connection.push() else {
        panic!("no grant")
    };
    assert_eq!(decoded(&pushed), renewed);
    let long = RequestBody::Renew {
        engagement: grant.engagement,
        tasks: 0,
        duration_s: 10 * 86_400,
    };
    refused_as(requester.connection.ask(long), RefusalCode::Invalid);
    let release = RequestBody::Release {
        engagement: grant.engagement,
        reason: String::new(),
    };
    assert_eq!(worker.connection.ask(release), ReplyBody::Done {});
    refused_as(requester.connection.ask(renew), RefusalCode::Taken);
}

#[test]
fn resolve_filters_by_member_and_sorts_by_polo() {
    let registry = start_open();
    let address = registry.tcp_addr();
    let mut workers: Vec<Node> = (1..=3).map(|seed| Node::join(address, seed)).collect();
    workers[0].advertise("echo, sum", true, AcceptFrom::Gate);
    workers[1].advertise("echo", false, AcceptFrom::Gate);
    workers[2].advertise("echo,langid", true, AcceptFrom::Gate);
    workers[1].set_polo(address, 9);
    workers[2].set_polo(address, 4);
    let mut asker = Connection::open(address);
    let mut nodes = |query: Query| match asker.ask(RequestBody::Resolve(query)) {
        ReplyBody::Workers { workers } => workers.iter().map(|row| row.node.0).collect::<Vec<_>>(),
        reply => panic!("{reply:?}"),
    };
    let filter = |text: &str| text.parse::<Filter>().expect("key=value");
    let echo = Query {
        filters: vec![filter("skills=echo")],
        ..Query::default()
    };
    assert_eq!(nodes(echo.clone()), [2, 3, 1]);
    assert_eq!(
        nodes(Query {
            task_ready: true,
            ..echo.clone()
        }),
        [3, 1]
    );
    assert_eq!(
        nodes(Query {
            min_polo: Some(5),
            ..echo.clone()
        }),
        [2]
    );
    assert_eq!(
        nodes(Query {
            limit: 1,
            ..echo.clone()
        }),
        [2]
    );
    let both = vec![filter("skills=sum"), filter("languages=de")];
    assert_eq!(
        nodes(Query {
            filters: both,
            ..echo
        }),
        [1]
    );
    assert_eq!(
        nodes(Query {
            filters: vec![filter("skills=ech")],
            ..Query::default()
        }),
        [0; 0]
    );
    let greedy = RequestBody::Resolve(Query {
        limit: 1_001,
        ..Query::default()
    });
    refused_as(asker.ask(greedy), RefusalCode::Invalid);
}

#[test]
fn an_advertisement_is_replaced_by_a_later_one_only() {
    let registry = start(config());
    let mut worker = Node::join(registry.tcp_addr(), 1);
    worker.advertise("echo", true, AcceptFrom::Gate);
    let advertisement = ramjet_proto::market::Advertisement {
        node: worker.id,
        sequence: 1,
        lease_s: 60,
        ..Default::default()
    };
    let paper = signature(&worker.identity, &advertisement.signed_bytes());
    let stale = RequestBody::Advertise {
        advertisement,
        signature: paper,
    };
    refused_as(worker.connection.ask(stale), RefusalCode::Stale);
}
