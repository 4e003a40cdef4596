//! The task service of Pilot up to 1.9, port 1003.
//!
//! ```text
//!  1 SUBMIT         {task_id, task_description, from_addr, to_addr}
//!  1 (its answer)   {task_id, status, message}      200 received, 400 refused
//!  3 STATUS_UPDATE  {task_id, status, justification}
//!  4 SEND_RESULTS   {task_id, result_type, result_text | filename + file_data, completed_at, times}
//! ```
//!
//! The frames are those of `framing` with JSON in them; a daemon reads one frame of a stream and only
//! a SUBMIT is answered. Task ids are chosen by the submitter and become names of files, so only
//! what is safe as one is taken. [`TaskState::may_become`] is the whole state machine.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bounded;
use super::exchange::safe_file_name;
use super::framing::{Frame, frame};
use crate::polo::{self, Account};

/// Longest JSON of a frame, in bytes.
pub const TASK_FRAME_LEN_MAX: usize = 1 << 24;
/// Longest description, in bytes: what daemons of 1.9 take.
pub const DESCRIPTION_LEN_MAX: usize = 16_384;
/// Longest text of a result, in bytes.
pub const RESULT_TEXT_LEN_MAX: usize = 1 << 20;
/// Longest file of a result, in bytes: its base64 and the JSON around it fit a frame.
pub const RESULT_FILE_LEN_MAX: usize = 11 << 20;
/// Longest id of a task.
pub const TASK_ID_LEN_MAX: usize = 128;
/// Longest justification that is kept, in characters.
const JUSTIFICATION_LEN_MAX: usize = 1_024;

const KIND_SUBMIT: u32 = 1;
const KIND_STATUS: u32 = 3;
const KIND_RESULTS: u32 = 4;

/// The answer to a SUBMIT that is taken.
pub const STATUS_RECEIVED: u16 = 200;
/// The answer to a SUBMIT that is not.
pub const STATUS_REFUSED: u16 = 400;

/// Whether `id` can name a task and its files: 1 to 128 of `[A-Za-z0-9._-]`, not a dot first.
pub fn is_task_id(id: &str) -> bool {
    (1..=TASK_ID_LEN_MAX).contains(&id.len())
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Received, nobody has taken it.
    New,
    /// Taken.
    Accepted,
    /// Not taken.
    Declined,
    /// It runs.
    Executing,
    /// Its results are here; what daemons before 1.9 call it.
    Completed,
    /// Its results are here.
    Succeeded,
    /// Nobody took it in time, or the worker gave it up.
    Cancelled,
    /// It was taken, and nothing came of it in time.
    Expired,
}

impl TaskState {
    /// Every state.
    pub const ALL: [TaskState; 8] = [
        TaskState::New,
        TaskState::Accepted,
        TaskState::Declined,
        TaskState::Executing,
        TaskState::Completed,
        TaskState::Succeeded,
        TaskState::Cancelled,
        TaskState::Expired,
    ];

    /// Its name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::New => "NEW",
            TaskState::Accepted => "ACCEPTED",
            TaskState::Declined => "DECLINED",
            TaskState::Executing => "EXECUTING",
            TaskState::Completed => "COMPLETED",
            TaskState::Succeeded => "SUCCEEDED",
            TaskState::Cancelled => "CANCELLED",
            TaskState::Expired => "EXPIRED",
        }
    }

    /// Reads a name.
    pub fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a task may go from here to `next`. Every message travels on a stream of its own, so
    /// steps may be missed; none goes back. Results end a task even after its time.
    pub fn may_become(self, next: TaskState) -> bool {
        use TaskState::{
            Accepted, Cancelled, Completed, Declined, Executing, Expired, New, Succeeded,
        };
        match next {
            New => false,
            Accepted | Declined => self == New,
            Executing => matches!(self, New | Accepted),
            Cancelled => matches!(self, New | Accepted | Executing),
            Expired => matches!(self, Accepted | Executing),
            Completed | Succeeded => {
                matches!(self, New | Accepted | Executing | Cancelled | Expired)
            }
        }
    }

    /// Whether nothing but late results can follow.
    pub fn is_over(self) -> bool {
        !matches!(
            self,
            TaskState::New | TaskState::Accepted | TaskState::Executing
        )
    }
}

impl core::fmt::Display for TaskState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// A task as it is handed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Its id, chosen by the submitter.
    pub task_id: String,
    /// What to do.
    #[serde(default)]
    pub task_description: String,
    /// The submitter's address, as it says.
    #[serde(default)]
    pub from_addr: String,
    /// The worker's address.
    #[serde(default)]
    pub to_addr: String,
}

/// The answer to a [`Submit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitReply {
    /// The task.
    #[serde(default)]
    pub task_id: String,
    /// [`STATUS_RECEIVED`] or [`STATUS_REFUSED`].
    pub status: u16,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// A task's state has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusUpdate {
    /// The task.
    pub task_id: String,
    /// Its state.
    pub status: TaskState,
    /// Why.
    #[serde(default)]
    pub justification: String,
}

/// Time a worker spent, in milliseconds, by its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTimes {
    /// From its arrival until it was accepted.
    #[serde(default, rename = "time_idle_ms", skip_serializing_if = "is_zero")]
    pub idle_ms: u64,
    /// From then until it ran.
    #[serde(default, rename = "time_staged_ms", skip_serializing_if = "is_zero")]
    pub staged_ms: u64,
    /// While it ran.
    #[serde(default, rename = "time_cpu_ms", skip_serializing_if = "is_zero")]
    pub busy_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TaskTimes {
    /// What the worker earns for a task of these times by the rule of Pilot up to 1.9, at least 1.
    pub fn reward(self) -> i64 {
        polo::reward(&Account {
            accepted: 1,
            expired: 0,
            busy_ns: self.busy_ms.saturating_mul(1_000_000),
            staged_ns: self.staged_ms.saturating_mul(1_000_000),
            idle_ms: self.idle_ms,
        })
    }
}

/// What a task came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Text.
    Text(String),
    /// A file.
    File {
        /// Its name, safe to use as one.
        name: String,
        /// Its content.
        content: Bytes,
    },
}

/// The results of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results {
    /// The task.
    pub task_id: String,
    /// What it came to.
    pub output: Output,
    /// When, RFC 3339, as the worker says.
    pub completed_at: String,
    /// What it took.
    pub times: TaskTimes,
}

/// [`Results`] as they travel.
#[derive(Serialize, Deserialize)]
struct ResultsWire {
    task_id: String,
    result_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    result_text: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    file_data: String,
    #[serde(default)]
    completed_at: String,
    #[serde(flatten)]
    times: TaskTimes,
}

/// What arrives on port 1003.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskMessage {
    /// To be answered by a [`SubmitReply`].
    Submit(Submit),
    /// Not answered.
    Status(StatusUpdate),
    /// Not answered.
    Results(Results),
}

/// A frame that is no message of this service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFault {
    /// The task, if it could be read and named: a SUBMIT is then answered.
    pub task_id: String,
    /// Whether it was a SUBMIT.
    pub submit: bool,
    /// What is wrong, by value and bound.
    pub reason: String,
}

impl TaskMessage {
    /// Reads a frame.
    ///
    /// # Errors
    /// What is wrong with it, by value and bound.
    pub fn read(frame: &Frame) -> Result<Self, TaskFault> {
        match frame.kind {
            KIND_SUBMIT => read_submit(&frame.payload).map(TaskMessage::Submit),
            KIND_STATUS => read_status(&frame.payload).map(TaskMessage::Status),
            KIND_RESULTS => read_results(&frame.payload).map(TaskMessage::Results),
            other => Err(fault(
                "",
                format!("a task frame of type {other}, must be 1, 3 or 4"),
            )),
        }
    }

    /// Its frame.
    ///
    /// # Errors
    /// A part that is longer than its bound, or an id that is none.
    pub fn frame(&self) -> Result<Bytes, String> {
        let json = match self {
            TaskMessage::Submit(submit) => {
                check_submit(submit)?;
                serde_json::to_vec(submit)
            }
            TaskMessage::Status(status) => {
                check_id(&status.task_id)?;
                serde_json::to_vec(status)
            }
            TaskMessage::Results(results) => serde_json::to_vec(&wire(results)?),
        };
        let json = json.map_err(|error| error.to_string())?;
        let kind = match self {
            TaskMessage::Submit(_) => KIND_SUBMIT,
            TaskMessage::Status(_) => KIND_STATUS,
            TaskMessage::Results(_) => KIND_RESULTS,
        };
        Ok(frame(kind, &[&json]))
    }
}

impl SubmitReply {
    /// Reads the answer to a SUBMIT.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(frame: &Frame) -> Result<Self, String> {
        if frame.kind != KIND_SUBMIT {
            return Err(format!("a task answer of type {}, must be 1", frame.kind));
        }
        serde_json::from_slice(&frame.payload)
            .map_err(|error| format!("a task answer that cannot be read: {error}"))
    }

    /// Its frame.
    pub fn frame(&self) -> Bytes {
        let json = serde_json::to_vec(self).expect("texts and a number serialize");
        frame(KIND_SUBMIT, &[&json])
    }
}

fn fault(task_id: &str, reason: String) -> TaskFault {
    TaskFault {
        task_id: bounded(task_id, TASK_ID_LEN_MAX),
        submit: false,
        reason,
    }
}

fn check_id(id: &str) -> Result<(), String> {
    if is_task_id(id) {
        return Ok(());
    }
    Err(format!(
        "task_id {:?}, must be 1 to {TASK_ID_LEN_MAX} of A-Z a-z 0-9 . _ -, without a dot first",
        bounded(id, 80)
    ))
}

fn check_submit(submit: &Submit) -> Result<(), String> {
    check_id(&submit.task_id)?;
    let len = submit.task_description.len();
    if len > DESCRIPTION_LEN_MAX {
        return Err(format!(
            "submit: task_description {len} > {DESCRIPTION_LEN_MAX} bytes"
        ));
    }
    Ok(())
}

fn read_submit(json: &[u8]) -> Result<Submit, TaskFault> {
    let named = |task_id: &str, reason| TaskFault {
        submit: true,
        ..fault(task_id, reason)
    };
    let submit: Submit = serde_json::from_slice(json)
        .map_err(|error| named("", format!("a submit that cannot be read: {error}")))?;
    check_submit(&submit).map_err(|reason| named(&submit.task_id, reason))?;
    Ok(submit)
}

fn read_status(json: &[u8]) -> Result<StatusUpdate, TaskFault> {
    let mut update: StatusUpdate = serde_json::from_slice(json)
        .map_err(|error| fault("", format!("a status update that cannot be read: {error}")))?;
    check_id(&update.task_id).map_err(|reason| fault("", reason))?;
    update.justification = bounded(&update.justification, JUSTIFICATION_LEN_MAX);
    Ok(update)
}

fn read_results(json: &[u8]) -> Result<Results, TaskFault> {
    let wire: ResultsWire = serde_json::from_slice(json)
        .map_err(|error| fault("", format!("results that cannot be read: {error}")))?;
    check_id(&wire.task_id).map_err(|reason| fault("", reason))?;
    let refused = |reason: String| fault(&wire.task_id, reason);
    let output = match wire.result_type.as_str() {
        "text" => Output::Text(wire.result_text),
        "file" => Output::File {
            name: safe_file_name(&wire.filename).map_err(refused)?,
            content: BASE64
                .decode(&wire.file_data)
                .map_err(|error| refused(format!("file_data is no base64: {error}")))?
                .into(),
        },
        other => {
            let other = bounded(other, 40);
            return Err(refused(format!(
                "result_type {other:?}, must be text or file"
            )));
        }
    };
    check_output(&output).map_err(refused)?;
    Ok(Results {
        task_id: wire.task_id.clone(),
        output,
        completed_at: bounded(&wire.completed_at, 64),
        times: wire.times,
    })
}

fn check_output(output: &Output) -> Result<(), String> {
    let (what, len, max) = match output {
        Output::Text(text) => ("result_text", text.len(), RESULT_TEXT_LEN_MAX),
        Output::File { content, .. } => ("file_data", content.len(), RESULT_FILE_LEN_MAX),
    };
    if len > max {
        return Err(format!("results: {what} {len} > {max} bytes"));
    }
    Ok(())
}

fn wire(results: &Results) -> Result<ResultsWire, String> {
    check_id(&results.task_id)?;
    check_output(&results.output)?;
    let mut wire = ResultsWire {
        task_id: results.task_id.clone(),
        result_type: "text".to_owned(),
        result_text: String::new(),
        filename: String::new(),
        file_data: String::new(),
        completed_at: results.completed_at.clone(),
        times: results.times,
    };
    match &results.output {
        Output::Text(text) => wire.result_text.clone_from(text),
        Output::File { name, content } => {
            "file".clone_into(&mut wire.result_type);
            wire.filename = safe_file_name(name)?;
            wire.file_data = BASE64.encode(content);
        }
    }
    Ok(wire)
}

/// A task's file: `<task_id>.json` in `submitted` or `received`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its id.
    pub task_id: String,
    /// What to do.
    pub task_description: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Where it stands.
    pub status: TaskState,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_justification: String,
    /// The submitter's address.
    pub from: String,
    /// The worker's address.
    pub to: String,
    /// When it was accepted, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accepted_at: String,
    /// When it came to the head of its queue, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub staged_at: String,
    /// When it began to run, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub execute_started_at: String,
    /// When it was over, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub completed_at: String,
    /// What it took.
    #[serde(flatten)]
    pub times: TaskTimes,
    /// `text` or `file`, at the submitter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result_type: String,
    /// The text, or the name of the file, at the submitter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub results: String,
}

#[cfg(test)]
mod tests;
