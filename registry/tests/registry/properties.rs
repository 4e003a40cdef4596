//! The laws of the market, over random histories: determinism, one winner, the join of receipts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::Base64Bytes;
use ramjet_proto::market::{
    AcceptFrom, AcceptTerms, Advertisement, Gate, Offer, Receipt, SignedReceipt,
};
use ramjet_proto::polo::{Account, reward};
use ramjet_registry::Rules;
use ramjet_registry::command::{Command, Outcome, Registration};
use ramjet_registry::state::State;

fn registration(seed: u8, port: u16) -> Command {
    Command::Register(Registration {
        key: PublicKey([seed; 32]),
        signed: true,
        endpoint: format!("127.0.0.1:{port}"),
        owner: String::new(),
        hostname: if port.is_multiple_of(3) {
            format!("host-{seed}")
        } else {
            String::new()
        },
        version: "1".to_owned(),
        lan_addrs: Vec::new(),
        relay_only: false,
    })
}

fn offer(id: u64, requester: u32, skill: &str, deadline_ms: u32) -> Offer {
    Offer {
        offer: OfferId(id),
        requester: NodeId(requester),
        skill: skill.to_owned(),
        filters: Vec::new(),
        min_polo: -1_000,
        tasks: 100,
        concurrency: 4,
        duration_s: 60,
        accept_deadline_ms: deadline_ms,
    }
}

fn advertisement(node: u32, sequence: u64, skill: &str, accept_from: AcceptFrom) -> Command {
    Command::Advertise(Advertisement {
        node: NodeId(node),
        sequence,
        task_ready: true,
        capabilities: BTreeMap::from([("skills".to_owned(), skill.to_owned())]),
        accept_from: BTreeMap::from([(skill.to_owned(), accept_from)]),
        lease_s: 30,
    })
}

/// As the log thread hands it over: both signatures were verified.
fn settle(receipt: Receipt) -> Command {
    let signed = SignedReceipt {
        receipt,
        requester_signature: [1; 64],
        worker_signature: [2; 64],
    };
    Command::Settle {
        receipt: Base64Bytes(signed.encode().to_vec()),
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let node = 1..6_u32;
    let skill = prop_oneof![Just("echo"), Just("sum")];
    let accept_from = prop_oneof![
        Just(AcceptFrom::Gate),
        Just(AcceptFrom::Trusted),
        Just(AcceptFrom::Anyone),
        (-3..3_i64).prop_map(AcceptFrom::MinPolo),
    ];
    let polo = (node.clone(), -3..4_i64);
    let pair = (node.clone(), node.clone());
    prop_oneof![
        2 => (1..6_u8, 4_000..4_010_u16).prop_map(|(seed, port)| registration(seed, port)),
        1 => node.clone().prop_map(|node| Command::Deregister { node: NodeId(node) }),
        2 => polo.prop_map(|(node, polo)| Command::SetPolo { node: NodeId(node), polo }),
        2 => pair.clone().prop_map(|(node, peer)| Command::ReportTrust {
            node: NodeId(node),
            peer: NodeId(peer),
        }),
        1 => pair.prop_map(|(node, peer)| Command::RevokeTrust {
            node: NodeId(node),
            peer: NodeId(peer),
        }),
        6 => (node.clone(), 0..40_u64, skill.clone(), accept_from)
            .prop_map(|(node, sequence, skill, from)| advertisement(node, sequence, skill, from)),
        8 => (0..20_u64, node.clone(), skill, 1..2_000_u32)
            .prop_map(|(id, node, skill, deadline)| Command::Offer(offer(id, node, skill, deadline))),
        10 => (0..20_u64, node.clone(), 1..8_u32).prop_map(|(id, node, credits)| {
            Command::Accept(AcceptTerms { offer: OfferId(id), worker: NodeId(node), credits })
        }),
        2 => (0..20_u64).prop_map(|id| Command::ExpireOffer { offer: OfferId(id) }),
        6 => (1..12_u64, 1..4_u32, 0..30_u64, 0..4_000_000_000_u64).prop_map(
            |(engagement, k, accepted, busy_ns)| {
                settle(Receipt {
                    engagement: EngagementId(engagement),
                    k,
                    accepted,
                    busy_ns,
                    ..Receipt::default()
                })
            }
        ),
        2 => (1..12_u64, node.clone()).prop_map(|(engagement, node)| Command::Release {
            engagement: EngagementId(engagement),
            node: NodeId(node),
            reason: "finished".to_owned(),
        }),
        1 => (1..12_u64, node, 0..5_u64).prop_map(|(engagement, node, tasks)| Command::Renew {
            engagement: EngagementId(engagement),
            node: NodeId(node),
            tasks,
            duration_s: 5,
        }),
        1 => Just(Command::Interrupted),
        1 => (5..50_usize).prop_map(|engagements_max| Command::Rules(Rules {
            engagements_max,
            ended_offers_max: 8,
            evidence_max: 3,
            ..Rules::default()
        })),
    ]
}

fn history() -> impl Strategy<Value = Vec<(u64, Command)>> {
    let registered = (1..4_u8)
        .map(|seed| (0, registration(seed, 4_000)))
        .collect::<Vec<_>>();
    prop::collection::vec((0..700_u64, any_command()), 1..120).prop_map(move |steps| {
        let mut at_ms = 1_000;
        let mut history = registered.clone();
        for (step, command) in steps {
            at_ms += step;
            history.push((at_ms, command));
        }
        history
    })
}

/// What must hold after every command.
fn check(before: &State, state: &State, outcome: Option<&Outcome>) -> Result<(), TestCaseError> {
    for (_, row) in state.engagements().newest() {
        prop_assert_ne!(row.requester, row.worker, "nobody works for itself");
        if row.gate == Gate::Widened {
            prop_assert_eq!((row.moved_requester, row.moved_worker), (0, 0));
        }
    }
    if let Some(Outcome::Granted {
        engagement,
        repeated: false,
    }) = outcome
    {
        let row = state
            .engagements()
            .row(*engagement)
            .expect("it was just granted");
        prop_assert!(
            before.engagements().row(*engagement).is_err(),
            "numbers are given once"
        );
        let was_open = before.book().offer(row.offer).is_some();
        let is_open = state.book().offer(row.offer).is_some();
        prop_assert!(was_open && !is_open, "one winner an offer");
        let ended = state.book().ended(row.offer).expect("it is remembered");
        prop_assert_eq!(ended.engagement, Some(*engagement));
        let met = row.requester_polo >= row.worker_polo;
        prop_assert_eq!(
            met,
            row.gate == Gate::Met,
            "the gate is judged by both scores"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_same_commands_give_the_same_bytes(history in history(), cut in any::<prop::sample::Index>()) {
        let mut state = State::default();
        let mut log = Vec::new();
        for (at_ms, command) in &history {
            let before = state.clone();
            let outcome = state.apply(*at_ms, command);
            if state.position() == before.position() {
                prop_assert_eq!(&state, &before, "what does not advance changes nothing");
            } else {
                prop_assert_eq!(state.position(), before.position() + 1);
                log.push((state.now_ms(), command.clone()));
            }
            check(&before, &state, outcome.as_ref().ok())?;
        }
        let bytes = state.to_bytes();
        // The log alone replays to the same bytes, with a snapshot taken anywhere on the way.
        let cut = cut.index(log.len() + 1);
        let mut replayed = State::default();
        for (position, (at_ms, command)) in log.iter().enumerate() {
            if position == cut {
                replayed = State::from_bytes(&replayed.to_bytes()).expect("its own snapshot");
            }
            let _ = replayed.apply(*at_ms, command);
        }
        prop_assert_eq!(replayed.to_bytes(), bytes);
        prop_assert_eq!(replayed, state, "the indices agree too");
    }

    #[test]
    fn an_engagement_settles_to_its_greatest_receipt_in_any_order(
        steps in prop::collection::vec((0..20_u64, 0..3_u64, 0..40_000_000_000_u64, 0..9_000_000_000_u64), 1..8),
        deliveries in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
        idle_ms in 0..80_000_u64,
    ) {
        let (mut state, engagement) = engaged(idle_ms);
        let mut chain: Vec<Receipt> = Vec::new();
        for (accepted, rejected, busy_ns, staged_ns) in steps {
            let last = chain.last().copied().unwrap_or_default();
            chain.push(Receipt {
                engagement,
                k: last.k + 1,
                accepted: last.accepted + accepted,
                rejected: last.rejected + rejected,
                busy_ns: last.busy_ns + busy_ns,
                staged_ns: last.staged_ns + staged_ns,
                previous: if last.k == 0 { [0; 32] } else { last.hash() },
                ..last
            });
        }
        let mut newest = 0;
        let mut seen = BTreeSet::new();
        for delivery in deliveries {
            let receipt = chain[delivery.index(chain.len())];
            let outcome = state.apply(600_000, &settle(receipt)).expect("the chain is consistent");
            let Outcome::Settled { settlement, repeated } = outcome else { panic!("{outcome:?}") };
            let is_known = receipt.k <= newest;
            prop_assert_eq!(repeated, is_known);
            newest = newest.max(receipt.k);
            prop_assert_eq!(settlement.k, newest);
            seen.insert(receipt.k);
            // Telescoping: however it was settled, polo is what the newest totals come to.
            let totals = chain[newest as usize - 1];
            let account = Account {
                accepted: totals.accepted,
                expired: 0,
                busy_ns: totals.busy_ns,
                staged_ns: totals.staged_ns,
                idle_ms,
            };
            let worker = state.directory().node(NodeId(2)).expect("registered");
            prop_assert_eq!(worker.polo, reward(&account));
            prop_assert_eq!(worker.worked_results, totals.accepted);
            prop_assert_eq!(settlement.earned, worker.polo);
        }
        // Loss followed by resubmission: the last one alone brings it to the end.
        let last = chain[chain.len() - 1];
        state.apply(600_000, &settle(last)).expect("the chain is consistent");
        let (mut direct, _) = engaged(idle_ms);
        direct.apply(600_000, &settle(last)).expect("the chain is consistent");
        let row = |state: &State| state.engagements().row(engagement).cloned().expect("on file");
        prop_assert_eq!(row(&state), row(&direct), "any order comes to the same engagement");
        prop_assert_eq!(state.directory(), direct.directory());
        prop_assert_eq!(state.engagements().contradictions(), 0);
    }
}

/// Requester 1 and worker 2 in engagement 1, for ten minutes with a thousand slots of tasks.
fn engaged(idle_ms: u64) -> (State, EngagementId) {
    let mut state = State::default();
    let wanted = Offer {
        tasks: 1_000_000,
        duration_s: 3_600,
        ..offer(9, 1, "echo", 300_000)
    };
    let terms = AcceptTerms {
        offer: OfferId(9),
        worker: NodeId(2),
        credits: 4,
    };
    for (at_ms, command) in [
        (0, registration(1, 4_000)),
        (0, registration(2, 4_000)),
        (0, Command::Offer(wanted)),
        (idle_ms, advertisement(2, 1, "echo", AcceptFrom::Gate)),
    ] {
        state.apply(at_ms, &command).expect("valid");
    }
    match state.apply(idle_ms, &Command::Accept(terms)) {
        Ok(Outcome::Granted { engagement, .. }) => (state, engagement),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_once_mattered_to_the_parser_harm_nothing() {
    let framed = |json: &str| {
        [
            &u32::try_from(json.len()).expect("short").to_be_bytes()[..],
            json.as_bytes(),
        ]
        .concat()
    };
    let offer = r#"{"id":1,"type":"market_offer","signature":"","offer":{"offer":1,"requester":1,
        "skill":"echo","filters":[],"min_polo":0,"tasks":1,"concurrency":1,"duration_s":1,
        "accept_deadline_ms":1}}"#;
    let inputs = [
        Vec::new(),
        b"\xff\xff\xff\xff".to_vec(),
        framed("{}"),
        framed("[]"),
        framed(r#"{"type":"set_tags","node_id":1,"tags":["a","b"]}"#),
        framed(r#"{"type":"request_handshake","from_node_id":1,"to_node_id":2}"#),
        [
            framed(offer),
            framed(offer),
            framed(r#"{"type":"lookup","node_id":1}"#),
        ]
        .concat(),
    ];
    for input in inputs {
        ramjet_registry::fuzzing::requests(&input);
        ramjet_registry::fuzzing::beacon(&input);
    }
}
