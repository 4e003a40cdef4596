//! The services over a network in memory: two nodes, the registry's words, no socket.

mod exchange;
mod memory;
mod tasks;
mod trust;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;

use super::{Agent, AgentSetup, Opened, Pace, Running, start};
use crate::handler::{Handler, Outcome, Skill};
use crate::node::ServiceConfig;
use memory::{MemoryHost, Network};

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers a task in capitals, and fails one that is empty.
struct Shout;

impl Handler for Shout {
    fn result_len_max(&self, payload_len: usize) -> usize {
        payload_len.max(8)
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        if payload.is_empty() {
            result[..7].copy_from_slice(b"nothing");
            return Outcome::Failed(7);
        }
        result[..payload.len()].copy_from_slice(payload);
        result[..payload.len()].make_ascii_uppercase();
        Outcome::Done(payload.len())
    }
}

fn shout(accept_from: AcceptFrom) -> Skill {
    Skill {
        name: "shout".to_owned(),
        accept_from,
        handler: Arc::new(Shout),
    }
}

/// How one node of a test is set up.
struct Setup<'a> {
    node: u32,
    public: bool,
    state: Option<&'a Path>,
    skills: Vec<Skill>,
    auto_approve: bool,
}

fn setup(node: u32) -> Setup<'static> {
    Setup {
        node,
        public: true,
        state: None,
        skills: Vec::new(),
        auto_approve: false,
    }
}

struct Node {
    running: Running<MemoryHost>,
    id: NodeId,
}

impl Node {
    fn agent(&self) -> &Rc<Agent<MemoryHost>> {
        &self.running.agent
    }
}

fn run_node(network: &Network, setup: Setup<'_>) -> Node {
    let host = network.host(setup.node, setup.public);
    let id = host.node;
    let milli = Duration::from_millis;
    let opened = Opened::open(AgentSetup {
        services: ServiceConfig {
            auto_approve: setup.auto_approve,
            ..ServiceConfig::default()
        },
        state: setup.state.map(Path::to_path_buf),
        public: setup.public,
        skills: setup.skills.into(),
        threads: 2,
        pace: Pace {
            poll: milli(5),
            poll_asking: milli(5),
            poll_min: milli(1),
            record: milli(1),
            again: [milli(1), milli(1)],
            // Tests look themselves.
            sweep: PATIENCE * 100,
        },
    })
    .expect("a state directory");
    let running = start(host, opened).expect("free ports");
    Node { running, id }
}

/// Runs a test on a thread as the control thread is: one, with a local set.
fn on_control(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let bounded = async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .expect("within its time");
    };
    tokio::task::LocalSet::new().block_on(&runtime, bounded);
}

/// Looks again until it holds: what brings it about runs on this very thread.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"));
}
