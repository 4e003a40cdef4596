//! Processes, and a market made of them.
//!
//! Invariants: a [`Process`] is dead when it is dropped; standard output is read only as far as the
//! test asks for it, so that a test can hold a run in its middle; every wait ends by [`PATIENCE`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Standard output is read in pieces of this length, and one piece is read ahead of the test: with
/// the pipe far less than a run prints that is to be held in its middle.
const PIECE_LEN: usize = 64 << 10;
const PIECES_AHEAD: usize = 1;
/// Between two questions to the command line, so that asking does not starve who is asked.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The binary with an environment of its own: what the caller's shell sets does not reach it.
pub(crate) fn ramjet(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ramjet"));
    command
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    command
}

/// Asks until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(ASK_AGAIN);
    }
}

/// A running process. Dropping it kills it and waits for its end.
pub(crate) struct Process {
    name: String,
    child: Child,
    pieces: Option<Receiver<Vec<String>>>,
    /// Lines that were taken from the channel and not asked for yet.
    lines: RefCell<VecDeque<String>>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// Sends whole lines, as many as came together, until the end or until nobody wants them.
fn read_lines(mut source: impl Read, sender: &SyncSender<Vec<String>>) {
    let (mut space, mut rest) = (vec![0; PIECE_LEN], Vec::new());
    loop {
        let len = source.read(&mut space).unwrap_or(0);
        rest.extend_from_slice(&space[..len]);
        let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
        let mut lines: Vec<String> = Vec::new();
        if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
            lines.extend(rest[..end].split(|byte| *byte == b'\n').map(text));
            rest.drain(..=end);
        }
        if len == 0 && !rest.is_empty() {
            lines.push(text(&std::mem::take(&mut rest)));
        }
        if (!lines.is_empty() && sender.send(lines).is_err()) || len == 0 {
            return;
        }
    }
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Lines of standard output that had not been read.
    pub(crate) lines: Vec<String>,
    /// Standard error.
    pub(crate) errors: String,
}

impl Ended {
    /// Itself, if it ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code of {self:#?}");
        self
    }

    /// Its last line of standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self
            .lines
            .last()
            .unwrap_or_else(|| panic!("no output of {self:#?}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Process {
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let stdout = child.stdout.take().expect("piped");
        let out = std::thread::spawn(move || read_lines(stdout, &sender));
        let errors = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&errors);
        let mut stderr = child.stderr.take().expect("piped");
        let err = std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(len) = stderr.read(&mut bytes)
                && len > 0
            {
                let text = String::from_utf8_lossy(&bytes[..len]);
                shared.lock().expect("no panic while held").push_str(&text);
            }
        });
        let readers = vec![out, err];
        let (name, pieces, lines) = (name.to_owned(), Some(pieces), RefCell::default());
        Process {
            name,
            child,
            pieces,
            lines,
            errors,
            readers,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its next line of standard output; none at its end.
    #[track_caller]
    pub(crate) fn line(&self) -> Option<String> {
        let mut lines = self.lines.borrow_mut();
        if lines.is_empty() {
            match self
                .pieces
                .as_ref()
                .expect("there until the end")
                .recv_timeout(PATIENCE)
            {
                Ok(piece) => lines.extend(piece),
                Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{}: no line within {PATIENCE:?}", self.name)
                }
            }
        }
        lines.pop_front()
    }

    /// Its next line, which is JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self
            .line()
            .unwrap_or_else(|| panic!("{}: no line\n{}", self.name, self.errors()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// What it has said on standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.lock().expect("no panic while held").clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child, not yet waited for");
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Reads it to its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let mut lines = Vec::new();
        while let Some(line) = self.line() {
            lines.push(line);
        }
        self.wait();
        let status = self.child.wait().expect("our child");
        for reader in self.readers.drain(..) {
            reader.join().expect("reading does not panic");
        }
        Ended {
            code: status.code(),
            lines,
            errors: self.errors(),
        }
    }

    /// Waits for its end, which closes its output too.
    #[track_caller]
    fn wait(&self) {
        let file =
            pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("our child");
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&limit)).expect("polled");
        assert_eq!(
            ended,
            1,
            "{} did not end within {PATIENCE:?}\n{}",
            self.name,
            self.errors()
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for one that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A reader that waits for room in the channel ends with the channel.
        self.pieces = None;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("--- standard error of {}:\n{}", self.name, self.errors());
        }
    }
}

/// A registry process, and a folder for all that takes part in its market.
pub(crate) struct Market {
    // Processes are dropped before the folder that they write to.
    registry: Option<Process>,
    /// Where the registry listens; the same after a restart.
    pub(crate) registry_addr: SocketAddr,
    /// Its beacon.
    pub(crate) beacon_addr: SocketAddr,
    public_key: String,
    /// Where its metrics are.
    pub(crate) metrics: SocketAddr,
    folder: TempDir,
}

/// A worker process that has said that it is ready.
pub(crate) struct Worker {
    pub(crate) process: Process,
    pub(crate) node: u64,
    pub(crate) address: String,
    pub(crate) listen: SocketAddr,
    pub(crate) socket: PathBuf,
    /// Where its metrics are, if it serves them.
    pub(crate) metrics: Option<SocketAddr>,
}

fn address(value: &Value) -> SocketAddr {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value}"))
}

/// The address in a URL; none for null.
fn host_of(url: &Value) -> Option<SocketAddr> {
    let host = url.as_str()?.strip_prefix("http://")?.split('/').next()?;
    Some(host.parse().unwrap_or_else(|_| panic!("{url}")))
}

impl Market {
    pub(crate) fn start() -> Self {
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut market = Market {
            registry: None,
            registry_addr: unset,
            beacon_addr: unset,
            public_key: String::new(),
            metrics: unset,
            folder: tempfile::tempdir().expect("temporary folder"),
        };
        market.start_registry();
        market
    }

    /// Starts the registry: on ports that the kernel chooses, later on the same.
    pub(crate) fn start_registry(&mut self) {
        assert!(self.registry.is_none(), "one at a time");
        let process = Process::start(
            "registry",
            self.ramjet()
                .args([
                    "registry",
                    "--json",
                    "--listen",
                    &self.registry_addr.to_string(),
                ])
                .args(["--beacon", &self.beacon_addr.to_string(), "--state"])
                .arg(self.path("registry"))
                .arg("--byte-log")
                .arg(self.byte_log())
                .args(["--metrics", "127.0.0.1:0"]),
        );
        let ready = process.json();
        assert_eq!(ready["event"], "ready");
        let key = ready["public_key"].as_str().expect("text");
        assert!(
            self.public_key.is_empty() || self.public_key == key,
            "the registry keeps its key over restarts"
        );
        key.clone_into(&mut self.public_key);
        self.registry_addr = address(&ready["listen"]);
        self.beacon_addr = address(&ready["beacon"]);
        self.metrics = host_of(&ready["metrics"]).expect("it serves them");
        self.registry = Some(process);
    }

    /// Kill -9 of the registry; it is gone when this returns.
    pub(crate) fn kill_registry(&mut self) {
        self.registry.take().expect("it runs").kill();
    }

    /// Ends the registry in good order.
    pub(crate) fn stop_registry(&mut self) -> Ended {
        self.registry.take().expect("it runs").terminate()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every byte that the registry received and sent.
    pub(crate) fn byte_log(&self) -> PathBuf {
        self.path("bytes.log")
    }

    /// A file in the market's folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    pub(crate) fn ramjet(&self) -> Command {
        ramjet(self.folder.path())
    }

    /// `node`, with its state in the folder `name`.
    pub(crate) fn node_command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.ramjet();
        command
            .args([
                "node",
                "--json",
                "--registry",
                &self.registry_addr.to_string(),
                "--state",
            ])
            .arg(self.path(name))
            .args(arguments);
        command
    }

    /// Starts a node and waits until it is ready.
    pub(crate) fn node(&self, name: &str, arguments: &[&str]) -> Worker {
        Worker::ready(Process::start(
            name,
            &mut self.node_command(name, arguments),
        ))
    }

    /// Starts a task-ready node for these skills and waits until the registry lists it.
    pub(crate) fn worker(&self, name: &str, skills: &str, arguments: &[&str]) -> Worker {
        let mut all = vec!["--skill", skills, "--task-ready", "--public"];
        all.extend_from_slice(arguments);
        let worker = self.node(name, &all);
        self.listed(worker.node);
        worker
    }

    /// Waits until the registry lists a node as task-ready.
    pub(crate) fn listed(&self, node: u64) {
        until("the worker is listed", || {
            let ended = self.run(&["resolve", "--json", "--capability", "task-ready"]);
            let rows = ended.json();
            rows.as_array()?
                .iter()
                .any(|row| row["node"] == node)
                .then_some(())
        });
    }

    /// `submit` by the identity in the folder `who`, as it starts.
    pub(crate) fn submit_command(&self, who: &str, skill: &str) -> Command {
        let mut command = self.ramjet();
        command
            .args([
                "submit",
                "--skill",
                skill,
                "--registry",
                &self.registry_addr.to_string(),
            ])
            .arg("--state")
            .arg(self.path(who));
        command
    }

    /// `submit` by the identity in the folder `who`, to its end.
    #[track_caller]
    pub(crate) fn submit(&self, who: &str, skill: &str, arguments: &[&str]) -> Ended {
        Process::start("submit", self.submit_command(who, skill).args(arguments)).end()
    }

    /// A command that asks the registry, to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.ramjet();
        command
            .args(arguments)
            .args(["--registry", &self.registry_addr.to_string()]);
        Process::start(arguments[0], &mut command).end()
    }

    /// The standing of a node.
    #[track_caller]
    pub(crate) fn standing(&self, who: &str) -> Value {
        self.run(&["polo", who, "--json"]).expect(0).json()
    }

    #[track_caller]
    pub(crate) fn polo(&self, who: u64) -> i64 {
        self.standing(&who.to_string())["polo"]
            .as_i64()
            .expect("a number")
    }

    /// The newest engagements of a node.
    #[track_caller]
    pub(crate) fn engagements(&self, who: u64) -> Vec<Value> {
        let ended = self
            .run(&["engagements", &who.to_string(), "--json"])
            .expect(0);
        ended.json().as_array().expect("an array").clone()
    }
}

impl Worker {
    /// A node that says on its first line that it is ready.
    pub(crate) fn ready(process: Process) -> Self {
        let ready = process.json();
        assert_eq!(ready["event"], "ready");
        Worker {
            node: ready["node"].as_u64().expect("a number"),
            address: ready["address"].as_str().expect("text").to_owned(),
            listen: address(&ready["listen"]),
            socket: ready["socket"].as_str().expect("a path").into(),
            metrics: host_of(&ready["metrics"]),
            process,
        }
    }

    /// What it says of itself through its socket.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let home = self.socket.parent().expect("in its state folder");
        let mut command = ramjet(home);
        command
            .args(["status", "--json", "--socket"])
            .arg(&self.socket);
        Process::start("status", &mut command)
            .end()
            .expect(0)
            .json()
    }

    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        counter(&self.status(), name)
    }
}

/// A counter in a status.
#[track_caller]
pub(crate) fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {name} in {status}"))
}
