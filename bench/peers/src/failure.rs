//! Why no figure is printed, and the exit code that says so.
//!
//! The codes are those of `ramjet`: 1 the echo was wrong, 2 an argument is wrong, 5 the host is in
//! the way (a peer that is not installed, of another version, or does not start), 130 a signal.

use std::fmt;
use std::process::ExitCode;

/// Why no figure is printed. The text names the thing, what was seen and the next step.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A reply differed from what was sent.
    Wrong(String),
    /// An argument is wrong; nothing was started.
    Usage(String),
    /// The host is in the way.
    Environment(String),
    /// A signal came.
    Interrupted,
}

impl Failure {
    /// What `what` met: an error of the host or of a peer.
    pub(crate) fn at(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Failure::Environment(format!("{what}: {error}"))
    }

    /// The same, with `place` named before it.
    pub(crate) fn within(self, place: &str) -> Self {
        match self {
            Failure::Wrong(text) => Failure::Wrong(format!("{place}: {text}")),
            Failure::Usage(text) => Failure::Usage(format!("{place}: {text}")),
            Failure::Environment(text) => Failure::Environment(format!("{place}: {text}")),
            Failure::Interrupted => Failure::Interrupted,
        }
    }

    /// The code that the process returns.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Wrong(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Environment(_) => 5,
            Failure::Interrupted => 130,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Wrong(text) | Failure::Usage(text) | Failure::Environment(text) => {
                out.write_str(text)
            }
            Failure::Interrupted => out.write_str("interrupted by a signal"),
        }
    }
}

impl std::error::Error for Failure {}
