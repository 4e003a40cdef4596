//! The services that a plain Pilot agent finds at this node, and those that it asks of others.
//!
//! | file | holds |
//! |---|---|
//! | `handshakes`, `trust` | port 444: trust asked for, given, refused, taken back; its state and file |
//! | `exchange`, `receive`, `send`, `inbox` | port 1001: messages and files, both directions, and where they are kept |
//! | `requests`, `executor` | tasks that come as JSON messages; who runs them |
//! | `tasks`, `submit`, `task_store` | port 1003: the task service of Pilot up to 1.9, both ends; its records |
//! | `ask` | what local programs ask, in one vocabulary for every way in |
//! | `calls` | the requests that all of them put to the registry |
//! | `host`, `files` | the node around them; files and times |
//!
//! Everything here runs on the control thread as tasks of its local set and never blocks it: disk
//! and handlers go to the runtime's blocking threads. Every stream, table and queue has a bound, and
//! whoever finds one full is told. What is kept lies below the node's state directory, in the layout
//! of Pilot's `~/.pilot`; a node without one keeps trust and tasks in memory and refuses messages.

mod ask;
mod calls;
mod exchange;
mod executor;
mod files;
mod handshakes;
mod host;
mod inbox;
mod receive;
mod requests;
mod send;
mod submit;
mod task_store;
mod tasks;
#[cfg(test)]
mod tests;
mod trust;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::agent::transfer::TransferId;
use ramjet_proto::agent::{PORT_EXCHANGE, PORT_HANDSHAKE, PORT_TASKS};
use ramjet_proto::ids::NodeId;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;

pub(crate) use ask::AgentAsk;
pub use ask::{AgentRequest, Data, DataKind};
pub(crate) use host::NodeHost;

use crate::handler::Skill;
use crate::node::ServiceConfig;
use exchange::Exchange;
use executor::Executor;
use host::Host;
use inbox::Inbox;
use requests::Waiting;
use task_store::{TaskSide, TaskStore};
use trust::TrustBook;

/// Longest `trust.json` that is read.
const TRUST_FILE_LEN_MAX: u64 = 64 << 20;

/// What the services must know of the node's configuration.
pub(crate) struct AgentSetup {
    pub(crate) services: ServiceConfig,
    pub(crate) state: Option<PathBuf>,
    pub(crate) public: bool,
    pub(crate) skills: Arc<[Skill]>,
    /// Handlers of tasks from messages that run at a time.
    pub(crate) threads: usize,
    pub(crate) pace: Pace,
}

struct Config {
    state: Option<PathBuf>,
    auto_approve: bool,
    pace: Pace,
}

/// Pauses that tests shorten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two looks into the registry's inbox.
    poll: Duration,
    /// The same while a request of our own is young, or the registry is away.
    poll_asking: Duration,
    /// Two looks on demand are at least this far apart.
    poll_min: Duration,
    /// Between the answer to a SUBMIT and the first step that is told.
    record: Duration,
    /// Before a result that did not arrive is sent again; the last pause is for the last attempt.
    again: [Duration; 2],
    /// Between two looks at tasks that have waited too long.
    sweep: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            poll: Duration::from_secs(60),
            poll_asking: Duration::from_secs(2),
            poll_min: Duration::from_secs(1),
            record: Duration::from_millis(500),
            again: [Duration::from_secs(2), Duration::from_secs(10)],
            sweep: Duration::from_secs(10),
        }
    }
}

/// The state that is on disk, opened before the node starts so that its faults stop it by name.
pub(crate) struct Opened {
    setup: AgentSetup,
    inbox: Inbox,
    tasks: TaskStore,
    book: TrustBook,
}

impl Opened {
    /// Opens the folders and files below the state directory.
    ///
    /// # Errors
    /// The path and what is wrong with it.
    pub(crate) fn open(setup: AgentSetup) -> Result<Self, String> {
        let state = setup.state.as_deref();
        Ok(Opened {
            inbox: Inbox::open(state)?,
            tasks: TaskStore::open(state)?,
            book: read_trust(state)?,
            setup,
        })
    }
}

fn read_trust(state: Option<&Path>) -> Result<TrustBook, String> {
    let Some(path) = state.map(|state| state.join("trust.json")) else {
        return Ok(TrustBook::default());
    };
    let named = |what: String| format!("{}: {what}", path.display());
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(TrustBook::default());
        }
        Ok(file) if file.len() > TRUST_FILE_LEN_MAX => {
            let len = file.len();
            return Err(named(format!("{len} bytes, at most {TRUST_FILE_LEN_MAX}")));
        }
        _ => {}
    }
    let bytes = std::fs::read(&path).map_err(|error| named(error.to_string()))?;
    let value = serde_json::from_slice(&bytes).map_err(|error| {
        named(format!(
            "no JSON: {error}; mend it, or move it away to begin with no trust"
        ))
    })?;
    let (book, left_out) = TrustBook::from_json(&value);
    if left_out > 0 {
        tracing::warn!(path = %path.display(), left_out, "rows that cannot be read are left out");
    }
    Ok(book)
}

/// The services of one node.
pub(crate) struct Agent<H> {
    host: H,
    config: Config,
    public: Cell<bool>,
    book: RefCell<TrustBook>,
    trust_news: Notify,
    trust_writing: Mutex<()>,
    poll_wanted: Notify,
    exchange: Exchange,
    inbox: Arc<Inbox>,
    transfers: Rc<RefCell<HashSet<(NodeId, TransferId)>>>,
    /// Peers that do not know tags and chunks.
    old_peers: RefCell<BTreeSet<NodeId>>,
    executor: Executor,
    waiting: RefCell<HashMap<String, Waiting>>,
    tasks: Arc<TaskStore>,
    task_news: Notify,
}

/// The running services; dropping it ends them.
pub(crate) struct Running<H> {
    pub(crate) agent: Rc<Agent<H>>,
    serving: Vec<JoinHandle<()>>,
}

impl<H> Drop for Running<H> {
    fn drop(&mut self) {
        for task in &self.serving {
            task.abort();
        }
    }
}

/// Starts the services on this thread's local set.
///
/// # Errors
/// A port that somebody else has bound.
pub(crate) fn start<H: Host>(host: H, opened: Opened) -> Result<Running<H>, String> {
    let Opened {
        setup,
        inbox,
        tasks,
        book,
    } = opened;
    let services = setup.services;
    let agent = Rc::new(Agent {
        config: Config {
            state: setup.state,
            auto_approve: services.auto_approve,
            pace: setup.pace,
        },
        public: Cell::new(setup.public),
        book: RefCell::new(book),
        trust_news: Notify::new(),
        trust_writing: Mutex::new(()),
        poll_wanted: Notify::new(),
        exchange: Exchange::default(),
        inbox: Arc::new(inbox),
        transfers: Rc::default(),
        old_peers: RefCell::default(),
        executor: Executor::new(setup.skills, setup.threads),
        waiting: RefCell::default(),
        tasks: Arc::new(tasks),
        task_news: Notify::new(),
        host,
    });
    agent.admit();
    let mut serving = Vec::new();
    let listener = agent.host.listen(PORT_HANDSHAKE)?;
    let spawn = tokio::task::spawn_local::<_>;
    serving.push(spawn(
        Box::pin(Rc::clone(&agent).serve_handshakes(listener)) as Serving,
    ));
    serving.push(spawn(Box::pin(Rc::clone(&agent).poll_inbox())));
    if services.exchange {
        let listener = agent.host.listen(PORT_EXCHANGE)?;
        serving.push(spawn(Box::pin(Rc::clone(&agent).serve_exchange(listener))));
    }
    if services.tasks {
        let listener = agent.host.listen(PORT_TASKS)?;
        serving.push(spawn(Box::pin(Rc::clone(&agent).serve_tasks(listener))));
        serving.push(spawn(Box::pin(Rc::clone(&agent).sweep_tasks())));
        // Seen before the first of this life can arrive.
        let mut left = agent.tasks.tasks(TaskSide::Received);
        left.retain(|record| !record.status.is_over());
        serving.push(spawn(Box::pin(Rc::clone(&agent).give_up(left))));
    }
    Ok(Running { agent, serving })
}

/// What serves one port.
type Serving = std::pin::Pin<Box<dyn Future<Output = ()>>>;

impl<H: Host> Agent<H> {
    /// A new id, in the form of those that daemons draw.
    fn new_id(&self) -> String {
        let mut bytes = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the kernel's generator is seeded by now");
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        parts.join("-")
    }

    /// Waits until the node has its number.
    async fn wait_registered(&self) {
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        while self.host.node() == NodeId(0) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
