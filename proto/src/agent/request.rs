//! A task as a JSON message of data exchange, and its result: the way in for plain agents.
//!
//! ```text
//!  {"type": "task_request", "skill": "langid", "description": "…", "params": …, "timeout": 30}
//!  {"type": "task_result", "task_id": "…", "skill": "langid", "status": "completed", "result": …}
//! ```
//!
//! A JSON message with a text `skill` is a request, unless its `type` says that it is something else.
//! What the skill is given is [`TaskRequest::payload`]: a text in `params`, or the text in its member
//! `input`, `data` or `text`, else the whole of `params` as JSON, else the description. The result is
//! JSON where the skill answers JSON, text where it answers UTF-8, else base64 in `result_b64`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::bounded;

/// Longest description, in bytes.
pub const DESCRIPTION_LEN_MAX: usize = 16_384;
/// Longest time that a task may take.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// How long it may take if it does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Members of `params` that hold the payload, in the order in which they are looked for.
const PAYLOAD_MEMBERS: [&str; 3] = ["input", "data", "text"];

/// A task that a plain agent wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRequest {
    /// The sender's own id for it, if it gives one.
    pub task_id: Option<String>,
    /// The skill.
    pub skill: String,
    /// For people, and the payload where there are no params.
    pub description: String,
    /// What the skill is given, in the sender's form.
    pub params: Option<Value>,
    /// How long it may take.
    pub timeout: Duration,
}

impl TaskRequest {
    /// Reads a JSON message; `None` if it is no task request.
    ///
    /// # Errors
    /// A task request with a member out of its bounds, by value.
    pub fn read(content: &[u8]) -> Option<Result<Self, String>> {
        let value: Value = serde_json::from_slice(content).ok()?;
        let members = value.as_object()?;
        let member = |name: &str| {
            members.get(name).or_else(|| {
                // Programs that name members after fields write them with a capital.
                let mut capital = name.to_owned();
                capital[..1].make_ascii_uppercase();
                members.get(&capital)
            })
        };
        match member("type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind == "task_request" => {}
            Some(_) => return None,
        }
        let skill = member("skill")?.as_str()?.to_owned();
        let text = |name: &str| {
            member(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let description = text("description");
        if description.len() > DESCRIPTION_LEN_MAX {
            let len = description.len();
            return Some(Err(format!(
                "description: {len} bytes, at most {DESCRIPTION_LEN_MAX}"
            )));
        }
        let timeout = match read_timeout(member("timeout")) {
            Ok(timeout) => timeout,
            Err(reason) => return Some(Err(reason)),
        };
        Some(Ok(TaskRequest {
            task_id: Some(text("task_id")).filter(|id| super::tasks::is_task_id(id)),
            skill,
            description,
            params: member("params").filter(|params| !params.is_null()).cloned(),
            timeout,
        }))
    }

    /// Reads the description of a task of port 1003: a JSON task request, or `skill: payload`.
    /// `None` if it is neither; whether there is such a skill is not known here.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_description(description: &str) -> Option<Result<Self, String>> {
        if let Some(read) = Self::read(description.as_bytes()) {
            return Some(read);
        }
        let (skill, payload) = description.split_once(':')?;
        let skill = skill.trim();
        crate::market::terms::is_skill_name(skill).then(|| {
            Ok(TaskRequest {
                task_id: None,
                skill: skill.to_owned(),
                description: payload.trim_start().to_owned(),
                params: None,
                timeout: TIMEOUT_DEFAULT,
            })
        })
    }

    /// What the skill is given.
    pub fn payload(&self) -> Vec<u8> {
        let text = |value: &Value| value.as_str().map(|text| text.as_bytes().to_vec());
        let Some(params) = &self.params else {
            return self.description.as_bytes().to_vec();
        };
        let member = PAYLOAD_MEMBERS
            .iter()
            .find_map(|name| params.get(name).and_then(text));
        text(params)
            .or(member)
            .unwrap_or_else(|| params.to_string().into_bytes())
    }

    /// Its JSON.
    pub fn to_json(&self) -> Value {
        let mut members = Map::new();
        members.insert("type".to_owned(), json!("task_request"));
        if let Some(id) = &self.task_id {
            members.insert("task_id".to_owned(), json!(id));
        }
        members.insert("skill".to_owned(), json!(self.skill));
        members.insert("description".to_owned(), json!(self.description));
        if let Some(params) = &self.params {
            members.insert("params".to_owned(), params.clone());
        }
        members.insert("timeout".to_owned(), json!(self.timeout.as_secs_f64()));
        Value::Object(members)
    }
}

/// Seconds as a number, or a text like `30s`, `500ms` or `2m`.
fn read_timeout(value: Option<&Value>) -> Result<Duration, String> {
    let out_of_bounds = |shown: &str| {
        format!(
            "timeout: {}, must be more than 0 and at most {} s, as seconds or as in \"30s\"",
            bounded(shown, 40),
            TIMEOUT_MAX.as_secs()
        )
    };
    let seconds = match value {
        None | Some(Value::Null) => return Ok(TIMEOUT_DEFAULT),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => read_span(text),
        Some(_) => None,
    };
    let shown = value.map(Value::to_string).unwrap_or_default();
    seconds
        .filter(|seconds| *seconds > 0.0 && *seconds <= TIMEOUT_MAX.as_secs_f64())
        .map(Duration::from_secs_f64)
        .ok_or_else(|| out_of_bounds(&shown))
}

fn read_span(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * scale)
}

/// What a task came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    /// The skill has answered.
    Completed(Vec<u8>),
    /// The skill could not do it: its words.
    Failed(String),
    /// It did not run, or not in time: why.
    Refused(String),
}

/// The answer to a [`TaskRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskResult {
    /// The request's id, or one that the worker made up.
    pub task_id: String,
    /// The skill.
    pub skill: String,
    /// What it came to.
    pub status: TaskStatus,
    /// Time from the request's arrival until the skill ran, in milliseconds.
    pub staged_ms: u64,
    /// Time that the skill took, in milliseconds.
    pub busy_ms: u64,
}

impl TaskResult {
    /// Its JSON.
    pub fn to_json(&self) -> Value {
        let mut members = Map::new();
        let mut set = |name: &str, value: Value| members.insert(name.to_owned(), value);
        set("type", json!("task_result"));
        set("task_id", json!(self.task_id));
        set("skill", json!(self.skill));
        let status = match &self.status {
            TaskStatus::Completed(bytes) => {
                match (
                    serde_json::from_slice::<Value>(bytes),
                    core::str::from_utf8(bytes),
                ) {
                    // A bare number is more likely a text than a document.
                    (Ok(value), _) if value.is_object() || value.is_array() => {
                        set("result", value);
                    }
                    (_, Ok(text)) => {
                        set("result", json!(text));
                    }
                    (_, Err(_)) => {
                        set("result_b64", json!(BASE64.encode(bytes)));
                    }
                }
                "completed"
            }
            TaskStatus::Failed(why) => {
                set("error", json!(why));
                "failed"
            }
            TaskStatus::Refused(why) => {
                set("error", json!(why));
                "refused"
            }
        };
        set("status", json!(status));
        set("staged_ms", json!(self.staged_ms));
        set("busy_ms", json!(self.busy_ms));
        Value::Object(members)
    }

    /// Reads a JSON message; `None` if it is no task result.
    pub fn read(content: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(content).ok()?;
        if value.get("type")?.as_str()? != "task_result" {
            return None;
        }
        let text = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        let status = match text("status").as_str() {
            "completed" => TaskStatus::Completed(match value.get("result") {
                Some(Value::String(text)) => text.clone().into_bytes(),
                Some(other) => other.to_string().into_bytes(),
                None => BASE64.decode(text("result_b64")).ok()?,
            }),
            "failed" => TaskStatus::Failed(text("error")),
            "refused" => TaskStatus::Refused(text("error")),
            _ => return None,
        };
        Some(TaskResult {
            task_id: text("task_id"),
            skill: text("skill"),
            status,
            staged_ms: number("staged_ms"),
            busy_ms: number("busy_ms"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(json: &str) -> Option<Result<TaskRequest, String>> {
        TaskRequest::read(json.as_bytes())
    }

    fn payload(json: &str) -> Vec<u8> {
        request(json)
            .expect("a request")
            .expect("in bounds")
            .payload()
    }

    #[test]
    fn a_message_with_a_skill_is_a_request_unless_it_says_otherwise() {
        assert!(request(r#"{"skill":"echo"}"#).is_some());
        assert!(request(r#"{"Skill":"echo","Description":"x"}"#).is_some());
        assert!(request(r#"{"type":"task_request","skill":"echo"}"#).is_some());
        for other in [
            r#"{"type":"note","skill":"echo"}"#,
            r#"{"skill":7}"#,
            r#"{"text":"hi"}"#,
            "[]",
            "hi",
            "",
        ] {
            assert!(request(other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_payload_is_what_the_sender_means() {
        for (json, expected) in [
            (r#"{"skill":"s","description":"d"}"#, "d"),
            (r#"{"skill":"s","description":"d","params":"p"}"#, "p"),
            (r#"{"skill":"s","params":{"text":"t","other":1}}"#, "t"),
            (r#"{"skill":"s","params":{"input":"i","text":"t"}}"#, "i"),
            (r#"{"skill":"s","params":{"n":1}}"#, r#"{"n":1}"#),
            (r#"{"skill":"s","params":[1,2]}"#, "[1,2]"),
        ] {
            assert_eq!(payload(json), expected.as_bytes(), "{json}");
        }
    }

    #[test]
    fn a_timeout_is_seconds_or_a_span_within_an_hour() {
        let timeout = |value: &str| {
            request(&format!(r#"{{"skill":"s","timeout":{value}}}"#))
                .expect("a request")
                .map(|request| request.timeout)
        };
        assert_eq!(timeout("null"), Ok(TIMEOUT_DEFAULT));
        assert_eq!(timeout("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(timeout("\"30s\""), Ok(Duration::from_secs(30)));
        assert_eq!(timeout("\"250ms\""), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("\"1h\""), Ok(TIMEOUT_MAX));
        for bad in ["0", "-1", "3601", "1e300", "\"soon\"", "\"5d\"", "true"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_description_may_name_its_skill() {
        let read = |text| TaskRequest::read_description(text).map(|r| r.expect("in bounds"));
        let named = read("langid: Guten Morgen").expect("a request");
        assert_eq!(
            (named.skill.as_str(), named.payload()),
            ("langid", b"Guten Morgen".to_vec())
        );
        let json = read(r#"{"skill":"echo","params":"x"}"#).expect("a request");
        assert_eq!(
            (json.skill.as_str(), json.payload()),
            ("echo", b"x".to_vec())
        );
        assert!(read("Summarize this text").is_none());
        assert!(read("What is this: a test?").is_none());
    }

    #[test]
    fn results_are_json_text_or_base64() {
        let json = |bytes: &[u8]| {
            TaskResult {
                task_id: "t".to_owned(),
                skill: "s".to_owned(),
                status: TaskStatus::Completed(bytes.to_vec()),
                staged_ms: 0,
                busy_ms: 1,
            }
            .to_json()
        };
        assert_eq!(json(b"{\"lang\":\"deu\"}")["result"]["lang"], "deu");
        assert_eq!(json(b"17")["result"], "17");
        assert_eq!(json(b"\xff\x00")["result_b64"], "/wA=");
        assert_eq!(json(b"x")["status"], "completed");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            skill in "[a-z]{1,9}", text in ".{0,60}", bytes: Vec<u8>, which in 0..3u8,
            seconds in 1u64..3_600, busy_ms in 0u64..(1 << 50),
        ) {
            let asked = TaskRequest {
                task_id: Some("t-1".to_owned()),
                skill: skill.clone(),
                description: text.clone(),
                params: Some(json!({"input": text})),
                timeout: Duration::from_secs(seconds),
            };
            let again = TaskRequest::read(asked.to_json().to_string().as_bytes());
            prop_assert_eq!(again, Some(Ok(asked)));
            let status = match which {
                // Documents are written anew, so only their meaning survives.
                0 if !bytes.starts_with(b"{") && !bytes.starts_with(b"[") => {
                    TaskStatus::Completed(bytes)
                }
                1 => TaskStatus::Failed(text),
                _ => TaskStatus::Refused(text),
            };
            let result = TaskResult { task_id: "t".to_owned(), skill, status, staged_ms: 3, busy_ms };
            let again = TaskResult::read(result.to_json().to_string().as_bytes());
            prop_assert_eq!(again, Some(result));
        }
    }
}
