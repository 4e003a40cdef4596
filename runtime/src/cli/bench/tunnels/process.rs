//! The worker in a process of its own: `ramjet node`, with all the tunnels.

use std::net::SocketAddr;
use std::process::Command;

use ramjet_proto::ids::NodeId;

use super::super::super::host::{SOCKET_FILE, Threads};
use super::super::process::{Clock, Process};
use crate::control::local_client::LocalClient;
use crate::node::Status;
use crate::worker::{Idle, IoKind};

/// Answers without a receipt: more than any run, for its requesters sign none.
const UNSIGNED_MAX: u64 = 1 << 40;

/// What a worker is started with.
pub(super) struct WorkerSpec<'a> {
    pub(super) registry: SocketAddr,
    pub(super) threads: &'a Threads,
    /// The value of its capability `bench`.
    pub(super) name: &'a str,
    /// Tunnels and engagements that it holds.
    pub(super) tunnels: usize,
    /// Slots of each engagement.
    pub(super) credits: u32,
}

/// A running worker.
pub(super) struct WorkerProcess {
    process: Process,
    pub(super) node: NodeId,
    pub(super) listen: SocketAddr,
}

impl WorkerProcess {
    /// Starts it and waits until it is registered.
    pub(super) fn start(spec: &WorkerSpec<'_>) -> Result<Self, String> {
        let (process, ready) =
            Process::start("worker", "tunnels-worker", |command| tell(spec, command))?;
        let member = |name: &str| ready.get(name).cloned().unwrap_or_default();
        Ok(WorkerProcess {
            process,
            node: serde_json::from_value(member("node"))
                .map_err(|error| format!("node: {error}"))?,
            listen: serde_json::from_value(member("listen"))
                .map_err(|error| format!("listen: {error}"))?,
        })
    }

    /// Bytes of its memory that are resident.
    pub(super) fn resident_bytes(&self) -> Result<u64, String> {
        self.process.resident_bytes()
    }

    /// Its processor time, for whoever does not hold it.
    pub(super) fn clock(&self) -> Clock {
        self.process.clock()
    }

    /// What it says of itself.
    pub(super) fn status(&self) -> Result<Status, String> {
        LocalClient::connect(&self.process.state().join(SOCKET_FILE))
            .and_then(|client| client.status())
            .map_err(|error| error.to_string())
    }

    /// Takes the processor from it until [`Self::resume`].
    pub(super) fn pause(&self) -> Result<(), String> {
        self.process.pause()
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<(), String> {
        self.process.resume()
    }
}

/// What the worker is told.
fn tell(spec: &WorkerSpec<'_>, command: &mut Command) {
    let cores: Vec<String> = spec.threads.cores.iter().map(usize::to_string).collect();
    command
        .args(["--task-ready", "--skill", "echo", "--accept-from", "anyone"])
        .args(["--beacon", "none"])
        .args(["--registry", &spec.registry.to_string()])
        .args(["--capability", &format!("bench={}", spec.name)])
        .args(["--tunnels-max", &spec.tunnels.to_string()])
        .args(["--engagements-max", &spec.tunnels.to_string()])
        .args(["--credits", &spec.credits.to_string()])
        .args(["--unsigned-max", &UNSIGNED_MAX.to_string()])
        .args(["--workers", &spec.threads.workers.to_string()])
        .args(["--io", io_label(spec.threads.io)])
        .args(["--idle", idle_label(spec.threads.idle)]);
    if !cores.is_empty() {
        command.args(["--cores", &cores.join(",")]);
    }
}

fn io_label(io: IoKind) -> &'static str {
    match io {
        IoKind::Uring => "uring",
        IoKind::Mmsg => "mmsg",
    }
}

fn idle_label(idle: Idle) -> &'static str {
    match idle {
        Idle::Spin => "spin",
        Idle::Adaptive => "adaptive",
        Idle::Park => "park",
    }
}
