//! A program between two pipes, or a pipe and a terminal.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::records::Records;
use crate::port::launch::bound_command;
use crate::port::supervisor::Form;

/// Bytes read at a time.
const READ_LEN: usize = 64 << 10;

/// A running program.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    input: OwnedFd,
    output: OwnedFd,
    space: Vec<u8>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A terminal that passes bytes on as they are: our end, and the program's.
fn terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty())?;
    let mut modes = tcgetattr(&theirs)?;
    modes.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    Ok((ours, theirs))
}

fn pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

impl Program {
    /// Starts it, to end with this process.
    pub(super) fn start(form: Form, command: &[OsString]) -> Result<Self, String> {
        let named = |error: Errno| error.to_string();
        let (their_input, input) = pipe().map_err(named)?;
        let (output, their_output) = match form {
            // Where there are no terminals, a pipe will do for programs that flush.
            Form::Lines => terminal().or_else(|_| pipe()),
            Form::Frames | Form::Port => pipe(),
        }
        .map_err(named)?;
        let child = bound_command(command)
            .stdin(Stdio::from(their_input))
            .stdout(Stdio::from(their_output))
            .env("TERM", "dumb")
            .spawn()
            .map_err(|error| error.to_string())?;
        for ours in [&input, &output] {
            rustix::io::ioctl_fionbio(ours, true).map_err(named)?;
        }
        Ok(Program {
            child,
            input,
            output,
            space: vec![0; READ_LEN],
        })
    }

    /// To be waited for.
    pub(super) fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Reads what it has written.
    ///
    /// # Errors
    /// It has ended, or closed its output.
    pub(super) fn read(&mut self, records: &mut Records) -> Result<(), String> {
        match rustix::io::read(&self.output, &mut self.space[..]) {
            Ok(len) if len > 0 => {
                records.feed(&self.space[..len]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            // A terminal whose other end is closed gives EIO.
            Ok(_) | Err(Errno::IO) => Err(match self.child.try_wait() {
                Ok(Some(status)) => format!("the program ended: {status}"),
                _ => "the program closed its output".to_owned(),
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until it takes or gives something, writes on, and reads; whether the node is gone.
    ///
    /// # Errors
    /// It has ended, or closed a pipe.
    pub(super) fn exchange(
        &mut self,
        node: BorrowedFd<'_>,
        input: &[u8],
        written: &mut usize,
        records: &mut Records,
    ) -> Result<bool, String> {
        let rest = &input[*written..];
        let (readable, writable, node_ended) = {
            let wants = if rest.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            let mut files = [
                PollFd::new(&self.output, PollFlags::IN),
                // Its end is told unasked; what it says is read between batches.
                PollFd::from_borrowed_fd(node, PollFlags::empty()),
                PollFd::new(&self.input, wants),
            ];
            // A program that reads no more and still writes is heard to its end.
            let count = if rest.is_empty() { 2 } else { 3 };
            match poll(&mut files[..count], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
            let told = |at: usize| !files[at].revents().is_empty();
            (told(0), count == 3 && told(2), told(1))
        };
        if writable {
            match rustix::io::write(&self.input, rest) {
                Ok(len) => *written += len,
                Err(Errno::AGAIN | Errno::INTR) => {}
                // What it wrote before its end is read first.
                Err(Errno::PIPE) if readable => {}
                Err(error) => return Err(format!("the program reads no more: {error}")),
            }
        }
        if readable {
            self.read(records)?;
        }
        Ok(node_ended)
    }
}
