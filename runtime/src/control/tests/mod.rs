//! Whole nodes against a registry of the size of a test, over loopback.

mod agents;
mod driver;
mod engage;
mod ports;
mod real_registry;
mod registry_loss;
mod socket;
mod toy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ramjet_proto::identity::Identity;
use ramjet_proto::market::AcceptFrom;
use ramjet_proto::time::Time;

use super::ControlTimings;
use crate::handler::{Handler, Outcome, Skill};
use crate::job::{Answer, Job, Next, Timing, Verdict};
use crate::node::{
    AgentsConfig, EngageEnd, EngageEvent, EngageRequest, Engagement, Node, NodeConfig,
    ServiceConfig,
};
use crate::worker::{Idle, IoKind, IoOptions};

use toy::Toy;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a task back as it came.
struct Echo;

impl Handler for Echo {
    fn result_len_max(&self, payload_len: usize) -> usize {
        payload_len
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        result[..payload.len()].copy_from_slice(payload);
        Outcome::Done(payload.len())
    }
}

/// Sends numbers, the later ones only once the gate is open, and rejects every tenth result.
struct Numbers {
    count: u64,
    sent: u64,
    answered: u64,
    gate_at: u64,
    gate: Option<Arc<AtomicBool>>,
}

impl Numbers {
    fn new(count: u64) -> Box<Self> {
        Box::new(Numbers {
            count,
            sent: 0,
            answered: 0,
            gate_at: 0,
            gate: None,
        })
    }
}

impl Job for Numbers {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        if self.sent == self.count {
            return Next::End;
        }
        let closed = self
            .gate
            .as_ref()
            .is_some_and(|gate| !gate.load(Ordering::Acquire));
        if closed && self.sent >= self.gate_at {
            return Next::Later;
        }
        space[..8].copy_from_slice(&self.sent.to_be_bytes());
        self.sent += 1;
        Next::Task {
            len: 8,
            token: self.sent - 1,
        }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, _timing: Timing) -> Verdict {
        assert_eq!(answer, Answer::Done(&token.to_be_bytes()), "task {token}");
        self.answered += 1;
        if token % 10 == 9 {
            Verdict::Reject
        } else {
            Verdict::Accept
        }
    }
}

/// A job that stops after `gate_at` tasks until its gate is opened.
fn gated(count: u64, gate_at: u64) -> (Box<Numbers>, Arc<AtomicBool>) {
    let gate = Arc::new(AtomicBool::new(false));
    let job = Numbers {
        gate_at,
        gate: Some(Arc::clone(&gate)),
        ..*Numbers::new(count)
    };
    (Box::new(job), gate)
}

fn timings() -> ControlTimings {
    ControlTimings {
        start: PATIENCE,
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        receipt: Duration::from_millis(100),
        settle: Duration::from_millis(50),
        ask: PATIENCE,
        ..ControlTimings::default()
    }
}

fn config(toy: &Toy, seed: u8, works: bool) -> NodeConfig {
    let skill = Skill {
        name: "echo".to_owned(),
        accept_from: AcceptFrom::Anyone,
        handler: Arc::new(Echo),
    };
    NodeConfig {
        registry: toy.address,
        registry_key: None,
        listen: "127.0.0.1:0".parse().expect("an address"),
        endpoint: None,
        beacon: None,
        identity: Arc::new(Identity::from_seed([seed; 32])),
        owner: format!("node-{seed}"),
        hostname: Some(format!("node-{seed}")),
        public: true,
        skills: if works { vec![skill] } else { Vec::new() },
        capabilities: BTreeMap::new(),
        task_ready: works,
        credits: 64,
        engagements_max: 16,
        unsigned_max: 1_024,
        workers: 1,
        cores: Vec::new(),
        io: IoKind::Uring,
        io_options: IoOptions::default(),
        idle: Idle::Adaptive,
        pool_threads: 0,
        tunnels_max: 64,
        frames_per_datagram_max: u16::MAX,
        datagram_len_max: usize::MAX,
        echo: true,
        state: None,
        socket: None,
        agents: AgentsConfig::none(),
        services: ServiceConfig::NONE,
        sockets: None,
        on_bound: None,
    }
}

fn start(config: NodeConfig) -> Node {
    Node::start_with(config, timings()).expect("a node")
}

fn request(job: Box<dyn Job>) -> EngageRequest {
    EngageRequest {
        skill: "echo".to_owned(),
        filters: Vec::new(),
        min_polo: i64::MIN,
        tasks: 1 << 20,
        concurrency: 64,
        duration_s: 60,
        accept_deadline_ms: 20_000,
        job,
    }
}

/// Waits for an event that `wanted` takes, and hands it back.
fn wait_for(engagement: &Engagement, mut wanted: impl FnMut(&EngageEvent) -> bool) -> EngageEvent {
    let until = Instant::now() + PATIENCE;
    loop {
        let event = engagement.recv_deadline(until).expect("an event in time");
        if wanted(&event) {
            return event;
        }
        assert!(
            !matches!(event, EngageEvent::Ended(_)),
            "ended too early: {event:?}"
        );
    }
}

fn wait_end(engagement: &Engagement) -> EngageEnd {
    match wait_for(engagement, |event| matches!(event, EngageEvent::Ended(_))) {
        EngageEvent::Ended(end) => end,
        other => panic!("not an end: {other:?}"),
    }
}

/// Waits until `holds`, which some other thread brings about.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < until,
            "{what} did not come about within {PATIENCE:?}"
        );
        // Looks again soon, and leaves the cores to those who bring it about.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
