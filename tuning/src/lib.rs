//! What this host lacks for a worker, what the lack costs, and the command that mends it.
//!
//! [`report`] reads the kernel's files under `/proc` and `/sys` and gives one [`Finding`] a
//! setting, in a fixed order. Each finding says what is, what would be better, why, and how to
//! change it and back.
//!
//! Invariants:
//! * Judging only reads. What changes a setting is [`apply`] and [`undo`], which are told to.
//! * Advice is a pure function of [`Readings`], so that every rule is tested on fixtures.
//! * A file that is absent is never taken for a bad value: the finding says that the kernel does
//!   not tell.
//!
//! Who may call it: the command line (`doctor`). Absent: probes that need a socket, a ring or a clock.
//! Their owner runs them and turns the outcome into a finding with [`ring_probe`], [`offload_probe`] or
//! [`nat_probe`], or adds what it has measured to a finding.

#![forbid(unsafe_code)]

mod advice;
mod change;
mod readings;

use std::path::Path;

use serde::Serialize;

pub use advice::{nat_probe, offload_probe, ring_probe};
pub use change::{Change, Outcome, Record, apply, undo};
pub use readings::Readings;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// It works, and would work better after the command.
    Advice,
    /// A worker cannot run as it should until this is mended.
    Problem,
}

/// One setting of this host, judged.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Stable name of the setting, such as `rmem_max`.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is set now, with its unit.
    pub what_is: String,
    /// What would be better; empty where nothing is to do.
    pub better: String,
    /// Why, with the expected effect.
    pub why: &'static str,
    /// What was measured of it here and now, with its unit; absent where nothing was.
    pub measured: Option<String>,
    /// The command that changes it, run as root; absent where no command can.
    pub command: Option<String>,
    /// The command that changes it back to what is set now.
    pub undo: Option<String>,
    /// The same as a change that [`apply`] can make; absent where that is not safe or not possible.
    pub change: Option<Change>,
}

/// Reads the host whose files lie below `root` (`/` for this one) and judges every setting that
/// matters to a worker.
#[must_use]
pub fn report(root: &Path) -> Vec<Finding> {
    judge(&Readings::read(root))
}

/// Judges readings taken earlier, or elsewhere.
#[must_use]
pub fn judge(readings: &Readings) -> Vec<Finding> {
    advice::RULES.iter().map(|rule| rule(readings)).collect()
}

impl Finding {
    fn fine(id: &'static str, what_is: impl Into<String>, why: &'static str) -> Self {
        Self {
            id,
            severity: Severity::Ok,
            what_is: what_is.into(),
            better: String::new(),
            why,
            measured: None,
            command: None,
            undo: None,
            change: None,
        }
    }

    fn lacking(
        severity: Severity,
        id: &'static str,
        what_is: impl Into<String>,
        better: impl Into<String>,
        why: &'static str,
    ) -> Self {
        Self {
            id,
            severity,
            what_is: what_is.into(),
            better: better.into(),
            why,
            measured: None,
            command: None,
            undo: None,
            change: None,
        }
    }

    /// Mended by writing `to` into a file of the kernel that holds `from`.
    fn mended_by_writing(self, file: &str, from: &str, to: &str) -> Self {
        let change = Change {
            id: self.id.to_owned(),
            file: file.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let mut finding = self.mended_by(change.command(to), change.command(from));
        finding.change = Some(change);
        finding
    }

    fn mended_by(mut self, command: impl Into<String>, undo: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self.undo = Some(undo.into());
        self
    }
}
