//! Processes a run needs: the other side of the echo, a broker, daemons.
//!
//! Our own sides are this program again (`serve`); foreign programs run under `hold`, which ends
//! them. Both live exactly as long as their standard input is open, so that nothing stays behind
//! when this process ends, in whatever way.
//!
//! Invariants: every wait is bounded; a helper is waited for, so that its processor time is charged
//! to whoever started the run; only what was started here is ended, by its own handle.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;
use std::{io, thread};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::failure::Failure;

/// How long a helper may take until it is ready.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a helper may take to end once its standard input is closed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at something that has no event.
const LOOK: Duration = Duration::from_millis(10);
/// Between two looks whether a held program still runs; rare, as it shares the cores.
const HOLD_LOOK: Duration = Duration::from_millis(200);
/// Longest first line of a helper, in bytes.
const LINE_LEN_MAX: u64 = 16 * 1024;
/// How much of the end of a log is shown when a helper failed, in bytes.
const LOG_SHOWN_MAX: usize = 600;

/// A program that is not ours.
#[derive(Debug)]
pub(crate) struct Foreign<'a> {
    /// Its file.
    pub(crate) program: &'a Path,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// All of its environment.
    pub(crate) environment: &'a [(&'a str, String)],
    /// Where its talk goes.
    pub(crate) log: &'a Path,
}

/// A process started here.
#[derive(Debug)]
pub(crate) struct Helper {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Helper {
    /// Starts this program with `arguments` and returns it with the first line it printed.
    pub(crate) async fn serve(arguments: &[String]) -> Result<(Self, String), Failure> {
        let mut command = Command::new(own_path()?);
        command.arg("serve").args(arguments);
        let mut helper = Helper::start("the serving process".to_owned(), command, None)?;
        let line = helper.first_line().await?;
        Ok((helper, line))
    }

    /// Starts a foreign program that says nothing on its standard output that is needed.
    pub(crate) fn hold(foreign: &Foreign<'_>) -> Result<Self, Failure> {
        Helper::start_foreign(foreign, false)
    }

    /// Starts a foreign program and returns it with the first line it printed.
    pub(crate) async fn hold_printing(foreign: &Foreign<'_>) -> Result<(Self, String), Failure> {
        let mut helper = Helper::start_foreign(foreign, true)?;
        let line = helper.first_line().await?;
        Ok((helper, line))
    }

    fn start_foreign(foreign: &Foreign<'_>, print: bool) -> Result<Self, Failure> {
        let mut command = Command::new(own_path()?);
        command.arg("hold").arg("--log").arg(foreign.log);
        if print {
            command.arg("--print");
        }
        command
            .arg("--")
            .arg(foreign.program)
            .args(&foreign.arguments)
            .env_clear()
            .envs(
                foreign
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            );
        let name = foreign.program.display().to_string();
        Helper::start(name, command, Some(foreign.log.to_owned()))
    }

    fn start(name: String, mut command: Command, log: Option<PathBuf>) -> Result<Self, Failure> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::at(&name, error))?;
        Ok(Helper { name, child, log })
    }

    async fn first_line(&mut self) -> Result<String, Failure> {
        let Some(stdout) = self.child.stdout.take() else {
            return Err(Failure::at(&self.name, "its output was read before"));
        };
        let mut line = String::new();
        let mut reader = BufReader::new(stdout.take(LINE_LEN_MAX));
        match timeout(START_LIMIT, reader.read_line(&mut line)).await {
            Ok(Ok(_)) if line.ends_with('\n') => Ok(line.trim_end().to_owned()),
            Ok(Ok(_)) => Err(self.failed("ended before it was ready")),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => {
                Err(self.failed(&format!("was not ready within {} s", START_LIMIT.as_secs())))
            }
        }
    }

    /// Looks until `attempt` gives something, as long as the helper lives.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut attempt: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(found) = attempt().await {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("ended ({status}) before {what}")));
            }
            if Instant::now() >= deadline {
                return Err(self.failed(&format!("no {what} within {} s", START_LIMIT.as_secs())));
            }
            sleep(LOOK).await;
        }
    }

    /// Ends the helper and waits for it.
    pub(crate) async fn end(mut self) {
        drop(self.child.stdin.take());
        if timeout(END_LIMIT, self.child.wait()).await.is_err() {
            // A helper that ignores the end of its input is ended by its handle.
            let _ = self.child.kill().await;
        }
    }

    fn failed(&self, why: &str) -> Failure {
        let mut text = format!("{}: {why}", self.name);
        if let Some(log) = &self.log {
            let said = std::fs::read(log).unwrap_or_default();
            let shown = &said[said.len().saturating_sub(LOG_SHOWN_MAX)..];
            text.push_str("; its log ends with:\n");
            text.push_str(String::from_utf8_lossy(shown).trim());
        }
        Failure::Environment(text)
    }
}

/// Waits for the end of standard input: whoever started this process has ended it, or itself.
pub(crate) async fn input_ended() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(input.read(&mut buffer).await, Ok(read) if read > 0) {}
}

/// Runs `program` until standard input ends. Its standard error goes to `log`, and its standard
/// output too unless `print` is set.
pub(crate) fn hold(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    log: &Path,
    print: bool,
) -> Result<(), Failure> {
    let open_log = || {
        File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| Failure::at(log.display(), error))
    };
    let output = if print {
        Stdio::inherit()
    } else {
        open_log()?.into()
    };
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(open_log()?)
        .spawn()
        .map_err(|error| Failure::at(program.display(), error))?;
    let (over, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(io::stdin().read(&mut sink), Ok(read) if read > 0) {}
        let _ = over.send(());
    });
    // The program may also end by itself, which has no event that could be waited for beside the
    // other.
    while ended.recv_timeout(HOLD_LOOK).is_err() {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::at(
                program.display(),
                format!("ended by itself: {status}"),
            ));
        }
    }
    // It serves nobody any more and its folder is thrown away, so there is nothing to save.
    let _ = child.kill();
    let _ = child.wait();
    Ok(())
}

/// The path of this program.
pub(crate) fn own_path() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::at("the path of this program", error))
}
