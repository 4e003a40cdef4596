//! The task market for programs in other languages: be a worker, or hand in tasks, through the
//! node's socket.
//!
//! A worker says what it can do ([`MarketCommand::SetCapabilities`]) and that it wants tasks
//! ([`MarketCommand::SetTaskReady`]), then takes one task after the other
//! ([`MarketCommand::AcceptTask`]) and answers each ([`MarketCommand::CompleteTask`]). A requester
//! hands in a task ([`MarketCommand::SubmitTask`]) and fetches its result
//! ([`MarketCommand::WaitTaskResult`]). Tasks are numbered by the node; a number is valid for the
//! client that was told it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::payload::{CommandFault, Payload};
use super::{Reader, push_counted};
use crate::market::Filter;

/// Longest JSON of a submission.
pub const SUBMISSION_LEN_MAX: usize = 64 << 10;

/// The commands A1 to B1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarketCommand<'a> {
    /// A1: whether the node wants tasks.
    SetTaskReady {
        /// Whether.
        ready: bool,
    },
    /// A3: replaces what the node says it can do; the member `skills`, separated by commas, names
    /// what this client will run.
    SetCapabilities {
        /// Key to value.
        capabilities: BTreeMap<String, String>,
    },
    /// A5: the next task for this client.
    AcceptTask {
        /// How long to wait for one, in milliseconds.
        timeout_ms: u32,
    },
    /// A7: the answer to an accepted task.
    CompleteTask {
        /// The task.
        task: u64,
        /// How it ended.
        end: TaskEnd,
        /// Its result, or why it failed, as UTF-8.
        bytes: &'a [u8],
    },
    /// A9: a piece of progress of an accepted task. No reply.
    ReportProgress {
        /// The task.
        task: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// AB: hands in a task.
    SubmitTask {
        /// What is wanted.
        submission: Submission,
        /// What its handler gets.
        payload: &'a [u8],
    },
    /// AD: the result of a submitted task, which is forgotten once it was told.
    WaitTaskResult {
        /// The task.
        task: u64,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u32,
    },
    /// B1: nobody wants the result of a submitted task any more.
    CancelTask {
        /// The task.
        task: u64,
    },
}

/// How an accepted task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// 0: with a result.
    Done,
    /// 1: without one.
    Failed,
}

/// What a submitted task wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The skill.
    pub skill: String,
    /// Conditions on the worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Least polo of the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_polo: Option<i64>,
    /// How long to wait for a worker to take it, in milliseconds.
    #[serde(default = "accept_deadline_default")]
    pub accept_deadline_ms: u32,
    /// How long the worker may take, in seconds.
    #[serde(default = "duration_default")]
    pub duration_s: u32,
}

fn accept_deadline_default() -> u32 {
    10_000
}

fn duration_default() -> u32 {
    60
}

impl<'a> MarketCommand<'a> {
    pub(super) fn parse(code: u8, mut payload: Payload<'a>) -> Result<Self, CommandFault> {
        Ok(match code {
            0xA1 => MarketCommand::SetTaskReady {
                ready: payload.take("a value of 1 byte", Reader::u8)? == 1,
            },
            0xA3 => {
                let capabilities =
                    serde_json::from_slice(payload.reader.rest()).map_err(|error| {
                        payload.invalid(format_args!("no JSON object of texts: {error}"))
                    })?;
                MarketCommand::SetCapabilities { capabilities }
            }
            0xA5 => MarketCommand::AcceptTask {
                timeout_ms: timeout(&mut payload)?,
            },
            0xA7 => MarketCommand::CompleteTask {
                task: task(&mut payload)?,
                end: match payload.take("an end of 1 byte", Reader::u8)? {
                    0 => TaskEnd::Done,
                    1 => TaskEnd::Failed,
                    other => {
                        let why = format_args!("an end of {other}, must be 0 (done) or 1 (failed)");
                        return Err(payload.invalid(why));
                    }
                },
                bytes: payload.reader.rest(),
            },
            0xA9 => MarketCommand::ReportProgress {
                task: task(&mut payload)?,
                bytes: payload.reader.rest(),
            },
            0xAB => MarketCommand::SubmitTask {
                submission: submission(&mut payload)?,
                payload: payload.reader.rest(),
            },
            0xAD => MarketCommand::WaitTaskResult {
                task: task(&mut payload)?,
                timeout_ms: timeout(&mut payload)?,
            },
            _ => MarketCommand::CancelTask {
                task: task(&mut payload)?,
            },
        })
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            MarketCommand::SetTaskReady { .. } => 0xA1,
            MarketCommand::SetCapabilities { .. } => 0xA3,
            MarketCommand::AcceptTask { .. } => 0xA5,
            MarketCommand::CompleteTask { .. } => 0xA7,
            MarketCommand::ReportProgress { .. } => 0xA9,
            MarketCommand::SubmitTask { .. } => 0xAB,
            MarketCommand::WaitTaskResult { .. } => 0xAD,
            MarketCommand::CancelTask { .. } => 0xB1,
        }
    }

    pub(super) fn append_payload(&self, out: &mut Vec<u8>) {
        match self {
            MarketCommand::SetTaskReady { ready } => out.push(u8::from(*ready)),
            MarketCommand::SetCapabilities { capabilities } => {
                serde_json::to_writer(out, capabilities).expect("texts serialize into memory");
            }
            MarketCommand::AcceptTask { timeout_ms } => out.extend(timeout_ms.to_be_bytes()),
            MarketCommand::CompleteTask { task, end, bytes } => {
                out.extend(task.to_be_bytes());
                out.push(u8::from(*end == TaskEnd::Failed));
                out.extend_from_slice(bytes);
            }
            MarketCommand::ReportProgress { task, bytes } => {
                out.extend(task.to_be_bytes());
                out.extend_from_slice(bytes);
            }
            MarketCommand::SubmitTask {
                submission,
                payload,
            } => {
                let json = serde_json::to_vec(submission).expect("texts and numbers serialize");
                push_counted(out, &json);
                out.extend_from_slice(payload);
            }
            MarketCommand::WaitTaskResult { task, timeout_ms } => {
                out.extend(task.to_be_bytes());
                out.extend(timeout_ms.to_be_bytes());
            }
            MarketCommand::CancelTask { task } => out.extend(task.to_be_bytes()),
        }
    }
}

fn task(payload: &mut Payload<'_>) -> Result<u64, CommandFault> {
    payload.take("a task of 8 bytes", Reader::u64)
}

fn timeout(payload: &mut Payload<'_>) -> Result<u32, CommandFault> {
    payload.take("a time-out of 4 bytes", Reader::u32)
}

fn submission(payload: &mut Payload<'_>) -> Result<Submission, CommandFault> {
    let json = payload.take("JSON of 4 bytes length and that many", Reader::counted)?;
    if json.len() > SUBMISSION_LEN_MAX {
        let why = format_args!("JSON of {} bytes, at most {SUBMISSION_LEN_MAX}", json.len());
        return Err(payload.invalid(why));
    }
    serde_json::from_slice(json).map_err(|error| payload.invalid(format_args!("JSON: {error}")))
}

pub(super) fn name(code: u8) -> Option<&'static str> {
    Some(match code {
        0xA1 => "set_task_ready",
        0xA3 => "set_capabilities",
        0xA5 => "accept_task",
        0xA7 => "complete_task",
        0xA9 => "report_progress",
        0xAB => "submit_task",
        0xAD => "wait_task_result",
        0xB1 => "cancel_task",
        _ => return None,
    })
}
