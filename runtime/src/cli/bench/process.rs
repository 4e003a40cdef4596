//! A process of this program that is measured, so that what its memory and its processor time grow
//! by is its own work alone.
//!
//! It is started as anybody would start it, with a state folder that goes with it; flags alone
//! decide, no settings file and no environment. It ends with the thread that started it, also when
//! this process is killed; dropping it ends it at once.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::exit::Failure;
use super::super::identity_file::create_folder;

/// How long it may take until it is ready.
const START_MAX: Duration = Duration::from_secs(20);
/// What of its standard error is quoted when it fails.
const ERROR_LEN_MAX: u64 = 2_000;

/// A running process.
pub(super) struct Process {
    child: Child,
    state: PathBuf,
    what: &'static str,
}

/// In the process itself: it ends with the thread that started it.
pub(super) fn end_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::environment(format!("prctl: {error}")))
}

impl Process {
    /// Starts `ramjet bench SUBCOMMAND --json` with the flags that `arguments` adds, and waits for
    /// the object that says it is ready. `what` names it in messages.
    pub(super) fn start(
        what: &'static str,
        subcommand: &str,
        arguments: impl FnOnce(&mut Command),
    ) -> Result<(Self, Value), String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!(
            "ramjet-bench-{subcommand}-{}-{number}",
            std::process::id()
        ));
        create_folder(&state).map_err(|failure| failure.message)?;
        let mut command = command(subcommand, &state)?;
        arguments(&mut command);
        let mut process = Process {
            child: command
                .spawn()
                .map_err(|error| format!("the {what}'s process: {error}"))?,
            state,
            what,
        };
        let ready = process.wait_ready()?;
        Ok((process, ready))
    }

    fn wait_ready(&mut self) -> Result<Value, String> {
        let what = self.what;
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
            Ok(Err(error)) => return Err(format!("the {what}'s output: {error}")),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(format!("the {what} was not ready within {START_MAX:?}"));
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
        Err(format!("the {what} did not start: {}", why.trim()))
    }

    /// Its state folder.
    pub(super) fn state(&self) -> &Path {
        &self.state
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
            .ok_or("the process has no number")?;
        kill_process(pid, signal).map_err(|error| format!("the {}'s process: {error}", self.what))
    }
}

/// The processor time of a process.
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

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended; its folder holds nothing that anybody wants.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}

/// The command, but for what its subcommand is told.
fn command(subcommand: &str, state: &Path) -> Result<Command, String> {
    let settings = state.join("ramjet.toml");
    fs::write(&settings, "").map_err(|error| format!("{}: {error}", settings.display()))?;
    let program =
        std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .args(["bench", subcommand, "--json"])
        .arg("--config")
        .arg(settings)
        .arg("--state")
        .arg(state)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}
