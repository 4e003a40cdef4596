//! Agents that the node starts itself: one process each, started again when it ends.
//!
//! A process is started by way of this program's own `agent-run` ([`super::launch`]), which gives it
//! its end of the connection, has the kernel kill it when the node dies, and becomes it. Each leads a
//! process group of its own, so that what it starts ends with it, and a terminal's ctrl-C reaches the
//! node first, which drains it. Its standard output goes to the node's standard error, since the
//! node's standard output is data.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ramjet_proto::time::Time;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::socket;

/// Pause before the first restart; doubled for each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// An agent that was ready for so long is well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// How a command is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It speaks the port itself.
    Port,
    /// One task a line in, one result a line out.
    Lines,
    /// The same with a length before each.
    Frames,
}

impl Form {
    /// Its word on the command line.
    pub fn label(self) -> &'static str {
        match self {
            Form::Port => "port",
            Form::Lines => "lines",
            Form::Frames => "frames",
        }
    }
}

/// An agent that the node starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedAgent {
    /// The skill that it runs.
    pub skill: String,
    /// How it is spoken to.
    pub form: Form,
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl std::str::FromStr for OwnedAgent {
    type Err = String;

    /// Reads `NAME=COMMAND`; COMMAND may begin with `lines:` or `frames:`, and is split as a shell
    /// would, without being given to one.
    fn from_str(text: &str) -> Result<Self, String> {
        let (skill, command) = text
            .split_once('=')
            .ok_or("is not NAME=COMMAND, as in tr=lines:tr a-z A-Z")?;
        if !ramjet_proto::market::terms::is_skill_name(skill) {
            return Err(format!(
                "names the skill {skill:?}, must be 1 to 64 of [a-z0-9._-]"
            ));
        }
        let forms = [("lines:", Form::Lines), ("frames:", Form::Frames)];
        let found = forms
            .iter()
            .find_map(|(prefix, form)| Some((*form, command.strip_prefix(prefix)?)));
        let (form, command) = found.unwrap_or((Form::Port, command));
        let words = shlex::split(command)
            .ok_or_else(|| format!("has a quote that does not end: {command:?}"))?;
        if words.first().is_none_or(String::is_empty) {
            return Err("names no command after NAME=".to_owned());
        }
        Ok(OwnedAgent {
            skill: skill.to_owned(),
            form,
            command: words,
        })
    }
}

/// A process that runs.
#[derive(Debug)]
struct Running {
    child: Child,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    group: Pid,
    ready_at: Option<Time>,
}

/// How a process ended, and when the next one may start.
#[derive(Debug)]
pub(super) struct Ended {
    /// For people: its exit code or signal.
    pub(super) how: String,
    /// The pause before it is started again.
    pub(super) pause: Duration,
}

/// The process of one [`OwnedAgent`], or the pause before the next.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) agent: OwnedAgent,
    launcher: PathBuf,
    running: Option<Running>,
    /// When to start it, while it does not run; never, once the node ends.
    pub(super) start_at: Time,
    backoff: Duration,
}

impl Process {
    pub(super) fn new(agent: OwnedAgent, launcher: &Path) -> Self {
        Process {
            agent,
            launcher: launcher.to_owned(),
            running: None,
            start_at: Time::ZERO,
            backoff: BACKOFF_MIN,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The process, for people.
    pub(super) fn id(&self) -> u32 {
        self.running
            .as_ref()
            .map_or(0, |running| running.child.id())
    }

    /// Readable once the process has ended.
    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        self.running.as_ref().map(|running| &running.pidfd)
    }

    /// Starts it; our end of its connection.
    ///
    /// # Errors
    /// What the system says; the next try is due after a pause.
    pub(super) fn start(&mut self, now: Time) -> Result<OwnedFd, String> {
        self.spawn().map_err(|error| {
            self.start_at = now + self.pause();
            format!("{}: {error}", self.agent.command[0])
        })
    }

    fn spawn(&mut self) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = socket::pair()?;
        let output = std::io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(&self.launcher);
        command
            .arg0("ramjet")
            .args(["agent-run", "--form", self.agent.form.label()])
            .args(["--skill", &self.agent.skill])
            .args(["--parent", &std::process::id().to_string()])
            .arg("--")
            .args(&self.agent.command)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(output))
            .process_group(0);
        let mut child = command.spawn()?;
        let group = Pid::from_child(&child);
        let pidfd = match pidfd_open(group, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Nobody would notice its end.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        self.running = Some(Running {
            child,
            pidfd,
            group,
            ready_at: None,
        });
        Ok(ours)
    }

    /// Its agent is ready.
    pub(super) fn ready(&mut self, now: Time) {
        if let Some(running) = &mut self.running {
            running.ready_at.get_or_insert(now);
        }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        pause
    }

    /// Looks whether the process has ended; then what it started is ended too.
    pub(super) fn reap(&mut self, now: Time) -> Option<Ended> {
        let running = self.running.as_mut()?;
        let status = match running.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        // The group may be empty by now.
        let _ = kill_process_group(running.group, Signal::KILL);
        let well = running
            .ready_at
            .is_some_and(|ready| now.since(ready) >= WELL_AFTER);
        self.running = None;
        if well {
            self.backoff = BACKOFF_MIN;
        }
        let pause = self.pause();
        if self.start_at != Time::NEVER {
            self.start_at = now + pause;
        }
        Some(Ended { how: status, pause })
    }

    /// Sends a signal to it and to all that it started.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            // It may have ended, and not been looked at yet.
            let _ = kill_process_group(running.group, signal);
        }
    }

    /// It is not started again.
    pub(super) fn retire(&mut self) {
        self.start_at = Time::NEVER;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = kill_process_group(running.group, Signal::KILL);
            // Killed, so it ends.
            let _ = running.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_would() {
        let agent = |text: &str| text.parse::<OwnedAgent>();
        let tr = agent("tr=lines:tr a-z A-Z").expect("valid");
        assert_eq!((tr.skill.as_str(), tr.form), ("tr", Form::Lines));
        assert_eq!(tr.command, ["tr", "a-z", "A-Z"]);
        let python = agent("embed=python3 -c 'print(1, \"a b\")' x=y").expect("valid");
        assert_eq!(python.form, Form::Port);
        assert_eq!(
            python.command,
            ["python3", "-c", "print(1, \"a b\")", "x=y"]
        );
        let framed = agent("f=frames:./run").expect("valid");
        assert_eq!(framed.form, Form::Frames);
        for (text, expected) in [
            ("tr", "is not NAME=COMMAND"),
            ("Tr=tr", "names the skill \"Tr\""),
            ("=tr", "names the skill \"\""),
            ("tr=", "names no command"),
            ("tr=lines:", "names no command"),
            ("tr='a", "a quote that does not end"),
        ] {
            let refusal = agent(text).expect_err(text);
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let agent = "x=true".parse().expect("valid");
        let mut process = Process::new(agent, Path::new("/nonexistent"));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let error = process.start(Time::ZERO).expect_err("no such program");
            assert!(error.starts_with("true: "), "{error}");
            pauses.push(process.start_at.as_nanos() / 1_000_000);
        }
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000];
        assert_eq!(pauses, expected);
        assert!(!process.is_running());
    }
}
