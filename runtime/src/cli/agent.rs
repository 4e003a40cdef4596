//! `ramjet message`, `file`, `trust` and `task`: what the local node says to plain Pilot agents.
//!
//! `--json` prints the node's answer as one object. Exit code 1: the peer was reached and refused,
//! or the task did not succeed.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::access;
use super::agent_args::{
    FileArgs, Kind, MessageArgs, TaskArgs, TaskCommand, TrustArgs, TrustCommand,
};
use super::exit::{Exit, Failure};
use super::host;
use super::output::{Output, printable, table};
use super::settings::Settings;
use crate::node::{AgentRequest, Data, DataKind};

/// Longest message from standard input, in bytes: what one request to the local node carries.
const STDIN_LEN_MAX: u64 = 700 << 10;

pub(super) fn message(
    args: &MessageArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let data = match (&args.data, &args.file) {
        (Some(text), _) => Data::Text(text.clone()),
        (None, Some(path)) if path.as_os_str() == "-" => Data::Base64(read_stdin()?),
        (None, Some(path)) => Data::Path(absolute(path)?),
        (None, None) => return Err(Failure::usage("message: add --data TEXT or --file FILE")),
    };
    let request = AgentRequest::Message {
        to: args.to.clone(),
        kind: match args.kind {
            Kind::Text => DataKind::Text,
            Kind::Json => DataKind::Json,
            Kind::Binary => DataKind::Binary,
        },
        data,
        reply_to: args.reply_to.clone(),
    };
    let answer = ask(settings, request)?;
    show(output, &answer, || text(&answer, "ack"))?;
    Ok(Exit::Ok)
}

pub(super) fn file(
    args: &FileArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let request = AgentRequest::File {
        to: args.to.clone(),
        path: absolute(&args.path)?,
        name: args.name.clone(),
    };
    let answer = ask(settings, request)?;
    show(output, &answer, || text(&answer, "ack"))?;
    Ok(Exit::Ok)
}

pub(super) fn trust(
    args: &TrustArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let request = match &args.what {
        TrustCommand::List => AgentRequest::Trusted {},
        TrustCommand::Pending => AgentRequest::Pending {},
        TrustCommand::Ask {
            node,
            justification,
            ..
        } => AgentRequest::Handshake {
            to: node.clone(),
            justification: justification.clone(),
        },
        TrustCommand::Approve { node } => AgentRequest::Approve { to: node.clone() },
        TrustCommand::Reject { node, reason } => AgentRequest::Reject {
            to: node.clone(),
            reason: reason.clone(),
        },
        TrustCommand::Revoke { node } => AgentRequest::Revoke { to: node.clone() },
    };
    let mut answer = ask(settings, request)?;
    let mut exit = Exit::Ok;
    if let TrustCommand::Ask {
        node,
        wait: Some(wait),
        ..
    } = &args.what
    {
        let wait = AgentRequest::WaitTrust {
            to: node.clone(),
            limit_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let waited = ask(settings, wait)?;
        if waited.get("trusted").and_then(Value::as_bool) == Some(true) {
            answer["status"] = Value::from("trusted");
        } else {
            output.say(&format!("node {node} has not accepted yet"));
            exit = Exit::Failed;
        }
    }
    show(output, &answer, || trust_page(&args.what, &answer))?;
    Ok(exit)
}

fn trust_page(what: &TrustCommand, answer: &Value) -> String {
    let rows = |member: &str, columns: &[&str]| {
        let rows = answer.get(member).and_then(Value::as_array);
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .flatten()
            .map(|row| columns.iter().map(|column| text(row, column)).collect())
            .collect();
        rows
    };
    match what {
        TrustCommand::List => table(
            &["NODE", "MUTUAL", "APPROVED AT", "KEY"],
            &rows(
                "trusted",
                &["node_id", "mutual", "approved_at", "public_key"],
            ),
        ),
        TrustCommand::Pending => table(
            &["NODE", "RECEIVED AT", "JUSTIFICATION"],
            &rows("pending", &["node_id", "received_at", "justification"]),
        ),
        _ => text(answer, "status"),
    }
}

pub(super) fn task(
    args: &TaskArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let request = match &args.what {
        TaskCommand::Submit { to, task, wait } => AgentRequest::Submit {
            to: to.clone(),
            description: task.clone(),
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        },
        TaskCommand::Request {
            to,
            skill,
            data,
            timeout,
        } => AgentRequest::Request {
            to: to.clone(),
            skill: skill.clone(),
            description: data.clone(),
            params: None,
            timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        },
        TaskCommand::Show { task_id } => AgentRequest::Task {
            task_id: task_id.clone(),
            wait_ms: 0,
        },
        TaskCommand::List => AgentRequest::Tasks {},
    };
    let answer = ask(settings, request)?;
    show(output, &answer, || task_page(&args.what, &answer))?;
    let status = text(&answer, "status");
    let failed = match &args.what {
        TaskCommand::Submit { .. } => status != "SUCCEEDED",
        TaskCommand::Request { .. } => status != "completed",
        TaskCommand::Show { .. } | TaskCommand::List => false,
    };
    if failed {
        let why = [
            text(&answer, "status_justification"),
            text(&answer, "error"),
        ];
        output.say(&format!("{status}: {}", why.concat()));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Ok)
}

fn task_page(what: &TaskCommand, answer: &Value) -> String {
    let columns = ["task_id", "status", "from", "to", "task_description"];
    match what {
        TaskCommand::List => {
            let rows = |side: &str| {
                let rows = answer.get(side).and_then(Value::as_array).cloned();
                let rows = rows.unwrap_or_default();
                rows.iter()
                    .map(|row| {
                        let cells = columns.iter().map(|column| text(row, column));
                        [side.to_owned()].into_iter().chain(cells).collect()
                    })
                    .collect::<Vec<Vec<String>>>()
            };
            let header = ["SIDE", "TASK", "STATUS", "FROM", "TO", "DESCRIPTION"];
            table(&header, &[rows("submitted"), rows("received")].concat())
        }
        TaskCommand::Show { .. } => format!("{} {}", text(answer, "status"), result(answer)),
        TaskCommand::Submit { .. } | TaskCommand::Request { .. } => result(answer),
    }
}

/// What a task came to, in whichever form it travelled.
fn result(answer: &Value) -> String {
    ["results", "result", "result_b64"]
        .iter()
        .map(|member| text(answer, member))
        .collect()
}

/// A member as people read it; nothing if it is not there.
fn text(value: &Value, member: &str) -> String {
    match value.get(member) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => printable(text),
        Some(other) => printable(&other.to_string()),
    }
}

fn show(output: &Output, answer: &Value, page: impl FnOnce() -> String) -> Result<(), Failure> {
    if output.json {
        return output.object(answer);
    }
    let page = page();
    if page.is_empty() {
        return Ok(());
    }
    output.data(&page)
}

fn ask(settings: &Settings, request: AgentRequest) -> Result<Value, Failure> {
    let client = access::connect(&host::socket_path(settings)?)?;
    client
        .agent(request)
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

/// The node has a folder of its own.
fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn read_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin()
        .take(STDIN_LEN_MAX + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    if bytes.len() as u64 > STDIN_LEN_MAX {
        return Err(Failure::usage(format!(
            "standard input: more than {STDIN_LEN_MAX} bytes; write them to a file and name it"
        )));
    }
    Ok(BASE64.encode(bytes))
}
