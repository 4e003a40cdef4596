//! What a turn of the ledger must keep to, with a disk that can be full.

use super::*;
use crate::config::Rules;
use crate::store::tests::Disk;
use ramjet_proto::ids::OfferId;
use ramjet_proto::market::message::{Base64Bytes, FromRegistry, Push, RefusalCode};
use ramjet_proto::market::{AcceptTerms, Advertisement, Offer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tokio::sync::mpsc::UnboundedReceiver;

/// A ledger on a disk that can be full, and two connections that have proven nodes 1 and 2.
struct Bench {
    disk: Arc<Disk>,
    ledger: Ledger,
    ends: Vec<(Arc<Outbox>, UnboundedReceiver<Option<Bytes>>)>,
}

fn open(disk: &Arc<Disk>, now_ms: u64) -> Ledger {
    let (store, recovered) = Store::open(disk.medium(), 1_000, [7; 32]).expect("readable");
    let limits = Limits {
        rules: Rules::default(),
        ..Limits::default()
    };
    let conduct = Conduct {
        allow_unsigned_polo: false,
        beacon: None,
        notices: None,
        limits,
    };
    let counters = Arc::new(Counters::default());
    Ledger::new(
        store,
        recovered.state,
        recovered.identity,
        conduct,
        counters,
        now_ms,
    )
    .expect("writable")
}

impl Bench {
    fn new() -> Self {
        let disk = Arc::new(Disk::default());
        let mut ledger = open(&disk, 1_000);
        let mut ends = Vec::new();
        for id in 1..=2_u8 {
            let key = Identity::from_seed([id; 32]).public();
            let registration = Registration {
                key,
                signed: true,
                endpoint: "127.0.0.1:4000".to_owned(),
                owner: String::new(),
                hostname: String::new(),
                version: String::new(),
                lan_addrs: Vec::new(),
                relay_only: false,
            };
            ledger
                .log(1_000, Command::Register(registration))
                .expect("a new key");
            let source = IpAddr::from([127, 0, 0, 1]);
            let counters = Arc::new(Counters::default());
            let (outbox, queue) = Outbox::new(u64::from(id), source, 1 << 20, counters);
            ledger.desk.connect(NodeId(u32::from(id)), key, &outbox);
            ends.push((outbox, queue));
        }
        let advertisement = Advertisement {
            node: NodeId(2),
            sequence: 1,
            task_ready: true,
            capabilities: BTreeMap::from([("skills".to_owned(), "echo".to_owned())]),
            accept_from: BTreeMap::new(),
            lease_s: 3_600,
        };
        ledger
            .log(1_000, Command::Advertise(advertisement))
            .expect("node 2 is registered");
        ledger.commit().expect("room");
        Bench { disk, ledger, ends }
    }

    fn job(&self, node: usize, id: u64, body: RequestBody) -> Job {
        let outbox = Arc::clone(&self.ends[node - 1].0);
        Job::Market {
            id,
            body: Box::new(body),
            reply_to: ReplyTo {
                outbox,
                permit: None,
            },
        }
    }

    fn offer(&self, id: u64, deadline_ms: u32) -> Job {
        let offer = Offer {
            offer: OfferId(id),
            requester: NodeId(1),
            skill: "echo".to_owned(),
            filters: Vec::new(),
            min_polo: 0,
            tasks: 10,
            concurrency: 1,
            duration_s: 60,
            accept_deadline_ms: deadline_ms,
        };
        self.job(
            1,
            id,
            RequestBody::Offer {
                offer,
                signature: Base64Bytes::default(),
            },
        )
    }

    fn accept(&self, id: u64) -> Job {
        let terms = AcceptTerms {
            offer: OfferId(id),
            worker: NodeId(2),
            credits: 1,
        };
        self.job(
            2,
            id,
            RequestBody::Accept {
                terms,
                signature: Base64Bytes::default(),
            },
        )
    }

    fn said_to(&mut self, node: usize) -> Vec<FromRegistry> {
        let mut said = Vec::new();
        while let Ok(Some(frame)) = self.ends[node - 1].1.try_recv() {
            said.push(FromRegistry::parse(&frame[4..]).expect("a market message"));
        }
        said
    }
}

fn is_unavailable(said: &FromRegistry) -> bool {
    matches!(said, FromRegistry::Reply(Reply { body: ReplyBody::Refused(refusal), .. })
        if refusal.code == RefusalCode::Unavailable)
}

#[test]
fn nothing_leaves_before_it_is_durable_and_a_full_disk_undoes_the_turn() {
    let mut bench = Bench::new();
    let jobs = vec![bench.offer(1, 60_000)];
    bench.ledger.turn(2_000, jobs);
    assert_eq!((bench.said_to(1).len(), bench.said_to(2).len()), (1, 1));
    let durable = bench.ledger.state.to_bytes();

    bench.disk.set_full(true);
    let jobs = vec![bench.accept(1), bench.offer(2, 60_000)];
    bench.ledger.turn(3_000, jobs);
    for node in [1, 2] {
        let said = bench.said_to(node);
        assert!(said.len() == 1 && is_unavailable(&said[0]), "{said:?}");
    }
    let jobs = vec![bench.offer(3, 60_000)];
    bench.ledger.turn(4_000, jobs);
    assert!(
        is_unavailable(&bench.said_to(1)[0]),
        "while the disk is full, nothing is served"
    );
    assert_eq!(bench.ledger.next_due_ms(), None, "and no deadline passes");

    bench.disk.set_full(false);
    let jobs = vec![bench.accept(1)];
    bench.ledger.turn(500_000, jobs);
    let said = bench.said_to(2);
    let granted = |said: &FromRegistry| {
        matches!(
            said,
            FromRegistry::Reply(Reply {
                body: ReplyBody::Granted { .. },
                ..
            })
        )
    };
    assert!(
        granted(&said[0]),
        "the offer's time started again: {said:?}"
    );
    assert!(matches!(
        bench.said_to(1)[..],
        [FromRegistry::Push(Push::Grant { .. })]
    ));
    let state = bench.ledger.state.to_bytes();
    assert_ne!(state, durable);
    let disk = Arc::clone(&bench.disk);
    drop(bench);
    assert_eq!(
        open(&disk, 500_000).state.to_bytes(),
        state,
        "what was said is on disk"
    );
}

#[test]
fn time_that_the_registry_could_not_serve_costs_nobody_polo() {
    let mut bench = Bench::new();
    let jobs = vec![bench.offer(1, 50)];
    bench.ledger.turn(2_000, jobs);
    bench.disk.set_full(true);
    let jobs = vec![bench.accept(1)];
    bench.ledger.turn(2_010, jobs);
    bench.disk.set_full(false);
    bench.ledger.turn(9_000, Vec::new());
    assert_eq!(
        bench.ledger.next_due_ms(),
        Some(9_050),
        "it waits its whole time again"
    );
    bench.said_to(1);
    bench.ledger.turn(9_050, Vec::new());
    let said = bench.said_to(1);
    let FromRegistry::Push(Push::Expired { polo, .. }) = &said[0] else {
        panic!("{said:?}")
    };
    assert_eq!(*polo, (0, 0));

    let jobs = vec![bench.offer(2, 50)];
    bench.ledger.turn(10_000, jobs);
    bench.ledger.turn(10_049, Vec::new());
    assert_eq!(bench.said_to(1).len(), 1, "its reply, and no expiry yet");
    bench.ledger.turn(10_050, Vec::new());
    let said = bench.said_to(1);
    let FromRegistry::Push(Push::Expired { polo, .. }) = &said[0] else {
        panic!("{said:?}")
    };
    assert_eq!(
        *polo,
        (0, -1),
        "an offer that could be taken all the time costs 1"
    );
}

#[test]
fn a_rotated_key_must_prove_its_connection_again() {
    let mut bench = Bench::new();
    let key = Identity::from_seed([9; 32]).public();
    bench
        .ledger
        .log(
            1_500,
            Command::RotateKey {
                node: NodeId(1),
                key,
            },
        )
        .expect("registered");
    bench.ledger.commit().expect("room");
    let jobs = vec![bench.offer(1, 50)];
    bench.ledger.turn(2_000, jobs);
    let said = bench.said_to(1);
    let FromRegistry::Reply(Reply {
        body: ReplyBody::Refused(refusal),
        ..
    }) = &said[0]
    else {
        panic!("{said:?}")
    };
    assert_eq!(refusal.code, RefusalCode::NotProven);
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    assert_eq!(shorten("short"), "short");
    let long = "ä".repeat(REASON_LEN_MAX);
    assert_eq!(shorten(&long).len(), REASON_LEN_MAX);
    let odd = format!("x{long}");
    assert_eq!(shorten(&odd).len(), REASON_LEN_MAX - 1);
}
