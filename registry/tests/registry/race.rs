//! Two workers race for every offer of a thousand: one winner each, in log order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::thread;

use ramjet_proto::ids::OfferId;
use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::message::{Push, RefusalCode, ReplyBody};

use crate::client::{Node, config, decoded, granted, start};

const OFFERS: usize = 1_000;

/// Accepts whatever it is told of, and gives what it won, what it lost, and what was withdrawn
/// before it was asked.
fn race(mut worker: Node, start: &Barrier) -> (BTreeMap<u64, OfferId>, BTreeSet<OfferId>) {
    start.wait();
    let mut asked = BTreeMap::new();
    let mut withdrawn = BTreeSet::new();
    while asked.len() < OFFERS {
        match worker.connection.push() {
            Push::Notify { offer, .. } => {
                let request = worker.accept_request(offer.offer);
                let id = worker.connection.send(request);
                assert!(asked.insert(offer.offer, id).is_none(), "notified once");
            }
            Push::Withdrawn { offer } => assert!(withdrawn.insert(offer), "withdrawn once"),
            push => panic!("{push:?}"),
        }
    }
    let mut won = BTreeMap::new();
    let mut lost = BTreeSet::new();
    for (&offer, &id) in &asked {
        match worker.connection.wait_for(id) {
            reply @ ReplyBody::Granted { .. } => {
                let grant = granted(reply).grant;
                assert_eq!((grant.offer, grant.worker), (offer, worker.id));
                won.insert(grant.engagement.0, offer);
            }
            ReplyBody::Refused(refusal) => {
                assert_eq!(refusal.code, RefusalCode::Taken, "{}", refusal.reason);
                lost.insert(offer);
            }
            reply => panic!("{reply:?}"),
        }
    }
    for push in worker.connection.pushes_so_far() {
        let Push::Withdrawn { offer } = push else {
            panic!("{push:?}")
        };
        assert!(withdrawn.insert(offer), "withdrawn once");
    }
    assert_eq!(withdrawn, lost, "every loser is told, and no winner");
    (won, lost)
}

fn run(address: SocketAddr) -> Vec<(BTreeMap<u64, OfferId>, BTreeSet<OfferId>)> {
    let mut requester = Node::join(address, 1);
    let barrier = Arc::new(Barrier::new(3));
    let workers: Vec<_> = [2, 3]
        .map(|seed| {
            let mut worker = Node::join(address, seed);
            worker.advertise("echo", true, AcceptFrom::Gate);
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || race(worker, &barrier))
        })
        .into();
    barrier.wait();
    let ids: Vec<u64> = (0..OFFERS)
        .map(|_| {
            let offer = requester.offer("echo", 60_000);
            let request = requester.offer_request(&offer);
            requester.connection.send(request)
        })
        .collect();
    for id in ids {
        let reply = requester.connection.wait_for(id);
        assert!(
            matches!(reply, ReplyBody::Offered { notified: 2, .. }),
            "{reply:?}"
        );
    }
    let mut grants = BTreeSet::new();
    for _ in 0..OFFERS {
        let Push::Grant { grant } = requester.connection.push() else {
            panic!("no grant")
        };
        assert!(
            grants.insert(decoded(&grant).grant.engagement.0),
            "granted once"
        );
    }
    assert_eq!(requester.connection.pushes_so_far(), []);
    assert_eq!(requester.polo(), 0, "an offer that is taken costs nothing");
    let results: Vec<_> = workers
        .into_iter()
        .map(|worker| worker.join().expect("the worker's checks"))
        .collect();
    let won: BTreeSet<u64> = results
        .iter()
        .flat_map(|(won, _)| won.keys().copied())
        .collect();
    assert_eq!(
        won, grants,
        "requester and workers were told of the same engagements"
    );
    results
}

#[test]
fn of_two_workers_that_race_for_a_thousand_offers_one_wins_each() {
    let registry = start(config());
    let results = run(registry.tcp_addr());
    let (first, second) = (&results[0], &results[1]);
    let won: BTreeSet<OfferId> = first.0.values().chain(second.0.values()).copied().collect();
    assert_eq!(won.len(), OFFERS, "every offer has a winner");
    assert_eq!(first.0.len() + second.0.len(), OFFERS, "and only one");
    assert_eq!(first.1.len() + second.1.len(), OFFERS, "and one loser");
    let counters = registry.counters();
    assert_eq!(counters["grants"], OFFERS as u64);
    assert_eq!(counters["refused_taken"], OFFERS as u64);
    assert_eq!(
        counters["messages_received"],
        counters["requests_answered"] + counters["requests_refused"],
        "every message has one end"
    );
    assert!(
        counters["batches_committed"] < counters["commands_logged"],
        "commits are grouped"
    );
}
