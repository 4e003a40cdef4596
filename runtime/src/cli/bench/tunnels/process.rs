//! The worker in a process of its own, so that what its memory grows by is its tunnels' alone.
//!
//! It is `ramjet node` as anybody would start it, with a state folder that goes with it. It ends with
//! this process, also when this process is killed; dropping it ends it at once.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use ramjet_proto::ids::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::super::host::{SOCKET_FILE, Threads};
use super::super::super::identity_file::create_folder;
use crate::control::local_client::LocalClient;
use crate::node::Status;
use crate::worker::{Idle, IoKind};

/// How long it may take until it is registered.
const START_MAX: Duration = Duration::from_secs(20);
/// What of its standard error is quoted when it fails.
const ERROR_LEN_MAX: u64 = 2_000;
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
    child: Child,
    state: PathBuf,
    pub(super) node: NodeId,
    pub(super) listen: SocketAddr,
}

impl WorkerProcess {
    /// Starts it and waits until it is registered.
    pub(super) fn start(spec: &WorkerSpec<'_>) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!(
            "ramjet-bench-tunnels-{}-{number}",
            std::process::id()
        ));
        create_folder(&state).map_err(|failure| failure.message)?;
        let mut worker = WorkerProcess {
            child: command(spec, &state)?
                .spawn()
                .map_err(|error| format!("the worker's process: {error}"))?,
            state,
            node: NodeId(0),
            listen: spec.registry,
        };
        let ready = worker.wait_ready()?;
        let member = |name: &str| ready.get(name).cloned().unwrap_or_default();
        worker.node =
            serde_json::from_value(member("node")).map_err(|error| format!("node: {error}"))?;
        worker.listen =
            serde_json::from_value(member("listen")).map_err(|error| format!("listen: {error}"))?;
        Ok(worker)
    }

    fn wait_ready(&mut self) -> Result<Value, String> {
        let stdout = self.child.stdout.take().ok_or("no standard output")?;
        let (sender, line) = sync_channel(1);
        let reader = thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::<ChildStdout>::new(stdout).read_line(&mut line);
            // Nobody waits any more after the time-out.
            let _ = sender.send(read.map(|_| line));
        });
        let line = match line.recv_timeout(START_MAX) {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return Err(format!("the worker's output: {error}")),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(format!("the worker was not ready within {START_MAX:?}"));
            }
        };
        // It has sent its line and ends.
        let _ = reader.join();
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        if said["event"] == "ready" {
            return Ok(said);
        }
        let mut why = String::new();
        // It has ended, or is of no use; what it said until then is there.
        let _ = self.child.kill();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(ERROR_LEN_MAX).read_to_string(&mut why);
        }
        Err(format!("the worker did not start: {}", why.trim()))
    }

    /// Bytes of its memory that are resident.
    pub(super) fn resident_bytes(&self) -> Result<u64, String> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("Rss:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map(|kib| kib << 10)
            .ok_or_else(|| format!("{path}: no line Rss"))
    }

    /// Its processor time, for whoever does not hold it.
    pub(super) fn clock(&self) -> Clock {
        Clock {
            process: self.child.id(),
        }
    }

    /// What it says of itself.
    pub(super) fn status(&self) -> Result<Status, String> {
        LocalClient::connect(&self.state.join(SOCKET_FILE))
            .and_then(|client| client.status())
            .map_err(|error| error.to_string())
    }

    /// Takes the processor from it until [`Self::resume`].
    pub(super) fn pause(&self) -> Result<(), String> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<(), String> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or("the worker has no process number")?;
        kill_process(pid, signal).map_err(|error| format!("the worker's process: {error}"))
    }
}

/// The processor time of a worker's process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    process: u32,
}

impl Clock {
    /// Of all its threads, in nanoseconds.
    pub(super) fn cpu_ns(self) -> Result<u64, String> {
        let tasks = format!("/proc/{}/task", self.process);
        let named = |error: std::io::Error| format!("{tasks}: {error}");
        let mut sum = 0;
        for task in fs::read_dir(&tasks).map_err(named)? {
            let path = task.map_err(named)?.path().join("schedstat");
            let text = fs::read_to_string(path).map_err(named)?;
            let first = text.split_whitespace().next().unwrap_or_default();
            sum += first.parse::<u64>().map_err(|_| {
                format!("{tasks}: schedstat reads {text:?}, the kernel counts no time")
            })?;
        }
        Ok(sum)
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have ended; its folder holds nothing that anybody wants.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}

/// The command: flags alone decide, no settings file and no environment.
fn command(spec: &WorkerSpec<'_>, state: &std::path::Path) -> Result<Command, String> {
    let settings = state.join("ramjet.toml");
    fs::write(&settings, "").map_err(|error| format!("{}: {error}", settings.display()))?;
    let program =
        std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    let cores: Vec<String> = spec.threads.cores.iter().map(usize::to_string).collect();
    let mut command = Command::new(program);
    command
        .env_clear()
        .args(["bench", "tunnels-worker", "--json", "--task-ready"])
        .args([
            "--skill",
            "echo",
            "--accept-from",
            "anyone",
            "--beacon",
            "none",
        ])
        .arg("--config")
        .arg(settings)
        .arg("--state")
        .arg(state)
        .args(["--registry", &spec.registry.to_string()])
        .args(["--capability", &format!("bench={}", spec.name)])
        .args(["--tunnels-max", &spec.tunnels.to_string()])
        .args(["--engagements-max", &spec.tunnels.to_string()])
        .args(["--credits", &spec.credits.to_string()])
        .args(["--unsigned-max", &UNSIGNED_MAX.to_string()])
        .args(["--workers", &spec.threads.workers.to_string()])
        .args(["--io", io_label(spec.threads.io)])
        .args(["--idle", idle_label(spec.threads.idle)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !cores.is_empty() {
        command.args(["--cores", &cores.join(",")]);
    }
    Ok(command)
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
