//! Exit codes, and the one error type that ends a command.
//!
//! | code | label | meaning |
//! |---|---|---|
//! | 0 | `ok` | the work is done |
//! | 1 | `failed` | the work ran and failed: a task failed, was not run, or was answered wrongly |
//! | 2 | `usage` | an argument, a setting or an input file is wrong; nothing was started |
//! | 3 | `unmatched` | nobody matched, or nobody took the offer in time |
//! | 4 | `refused` | the registry refused: the polo gate, a limit, a signature |
//! | 5 | `environment` | the host is in the way: registry away, port in use, io_uring blocked |
//! | 130 | `interrupted` | a signal, or the reader of the output went away |

use std::fmt;

use crate::node::NodeError;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// The work is done.
    Ok = 0,
    /// The work ran and failed.
    Failed = 1,
    /// An argument, a setting or an input is wrong.
    Usage = 2,
    /// Nobody matched, or nobody took the offer in time.
    Unmatched = 3,
    /// The registry refused.
    Refused = 4,
    /// The host is in the way.
    Environment = 5,
    /// A signal, or the reader of the output went away.
    Interrupted = 130,
}

impl Exit {
    /// Every exit, in the order of its code.
    pub const ALL: [Exit; 7] = [
        Exit::Ok,
        Exit::Failed,
        Exit::Usage,
        Exit::Unmatched,
        Exit::Refused,
        Exit::Environment,
        Exit::Interrupted,
    ];

    /// The code that the process returns.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The label used in `--json`.
    pub const fn label(self) -> &'static str {
        match self {
            Exit::Ok => "ok",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Unmatched => "unmatched",
            Exit::Refused => "refused",
            Exit::Environment => "environment",
            Exit::Interrupted => "interrupted",
        }
    }
}

/// Why a command did not do its work: the thing, its value, the bound, and what to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For people; may span lines. Empty if everything has been said.
    pub message: String,
    /// For programs: members beside the error in the object that `--json` prints.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl Failure {
    /// A failure without details.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure {
            exit,
            message: message.into(),
            details: serde_json::Map::new(),
        }
    }

    /// Wrong input or settings.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// Something about the host.
    pub fn environment(message: impl Into<String>) -> Self {
        Failure::new(Exit::Environment, message)
    }

    /// The same with one more member for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: serde_json::Value) -> Self {
        self.details.insert(key.to_owned(), value);
        self
    }

    /// The object that `--json` prints.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = self.details.clone();
        object.insert(
            "error".to_owned(),
            serde_json::json!({
                "code": self.exit.code(),
                "kind": self.exit.label(),
                "message": self.message,
            }),
        );
        serde_json::Value::Object(object)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<NodeError> for Failure {
    /// A node that cannot start, or cannot reach what it asks, meets its environment.
    fn from(error: NodeError) -> Self {
        Failure::environment(error.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_labels_are_distinct_and_ascend() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
        let mut labels: Vec<_> = Exit::ALL.iter().map(|exit| exit.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Exit::ALL.len());
    }

    #[test]
    fn a_failure_in_json_has_its_code_kind_message_and_details() {
        let failure = Failure::new(Exit::Unmatched, "nobody").with("notified", 0.into());
        assert_eq!(
            failure.to_json(),
            serde_json::json!({
                "notified": 0,
                "error": {"code": 3, "kind": "unmatched", "message": "nobody"}
            })
        );
    }
}
