//! `ramjet agent-run`: what stands between the node and the program of an owned agent.
//!
//! The node starts its agents through this process, because what has to be said to the kernel about a
//! new process can only be said by the process itself: that it is killed when its parent dies, and which
//! descriptors the program keeps. Its standard input is the connection. A program that speaks the port
//! takes this process over; one that reads lines or frames runs beside the [`super::adapter`]. Absent:
//! settings; the command is the node's own and not for people.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::adapter;
use super::supervisor::Form;

/// The variable that names the descriptor of an agent's connection.
pub const AGENT_FD: &str = "RAMJET_AGENT_FD";

/// What is run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How it is spoken to; `None` for the program behind an adapter.
    pub form: Option<Form>,
    /// The skill that it runs.
    pub skill: String,
    /// The process that started this one.
    pub parent: u32,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// Becomes the program, or runs the adapter beside it. Returns only what went wrong, or, for an
/// adapter, when its node has ended.
///
/// # Errors
/// What went wrong, for people.
pub fn run(launch: &Launch) -> Result<(), String> {
    let bound = set_parent_process_death_signal(Some(Signal::KILL));
    bound.map_err(|error| format!("agent-run: cannot be bound to its node: {error}"))?;
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != launch.parent {
        // It died before the kernel was told.
        return Err("agent-run: its node has ended".to_owned());
    }
    let (program, arguments) = launch
        .command
        .split_first()
        .ok_or("agent-run: no command; this command is the node's own")?;
    let mut command = Command::new(program);
    command.args(arguments);
    match launch.form {
        None => Err(become_it(command)),
        Some(Form::Port) => {
            let named = |error: std::io::Error| format!("agent-run: {error}");
            // A copy is kept open over exec; standard input becomes empty.
            let connection =
                rustix::io::dup(std::io::stdin().as_fd()).map_err(|error| named(error.into()))?;
            let nothing = std::fs::File::open("/dev/null").map_err(named)?;
            rustix::stdio::dup2_stdin(&nothing).map_err(|error| named(error.into()))?;
            command.env(AGENT_FD, connection.as_raw_fd().to_string());
            let failed = become_it(command);
            drop(connection);
            Err(failed)
        }
        Some(form) => adapter::run(form, &launch.skill, &launch.command),
    }
}

fn become_it(mut command: Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    format!("{program}: {error}")
}

/// A command that runs `command` through this program, to die with it.
///
/// # Errors
/// This process has no number, which cannot be.
pub(super) fn bound_command(command: &[OsString]) -> Command {
    let pid = Pid::as_raw(Some(rustix::process::getpid()));
    let mut bound = Command::new("/proc/self/exe");
    bound
        .arg0("ramjet")
        .args(["agent-run", "--form", "program", "--skill", "program"])
        .args(["--parent", &pid.to_string()])
        .arg("--")
        .args(command);
    bound
}
