//! What local programs ask of the services: one vocabulary for the Rust interface, the command line,
//! the local socket and the driver socket. Every answer is JSON.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ramjet_proto::addr::Address;
use ramjet_proto::agent::exchange::{Ack, Message, MessageKind, PAYLOAD_LEN_MAX, Tags};
use ramjet_proto::agent::request::{TIMEOUT_MAX, TaskRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Agent;
use super::calls::{self, key_text};
use super::files::named;
use super::host::Host;
use super::task_store::TaskSide;
use crate::control::handle::Respond;
use crate::node::NodeError;

/// The longest that a caller may have the node wait for a task or for trust.
const WAIT_MAX: Duration = TIMEOUT_MAX;

/// A question with whoever wants its answer.
pub(crate) struct AgentAsk {
    pub(crate) request: AgentRequest,
    pub(crate) respond: Respond<Value>,
}

/// What a message carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// UTF-8.
    #[default]
    Text,
    /// JSON.
    Json,
    /// Bytes.
    Binary,
}

/// Where the content of a message is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Here, as text.
    Text(String),
    /// Here, in base64.
    Base64(String),
    /// In this file of the node's host.
    Path(PathBuf),
}

/// What a local program asks. `to` is a node's number, address or hostname.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum AgentRequest {
    /// Sends a message: `{target, type, bytes, ack}`.
    Message {
        /// To whom.
        to: String,
        /// What it is.
        #[serde(default)]
        kind: DataKind,
        /// What it says.
        data: Data,
        /// The id of a message that it answers.
        #[serde(default)]
        reply_to: Option<String>,
    },
    /// Sends a file: `{target, filename, bytes, chunked, ack}`.
    File {
        /// To whom.
        to: String,
        /// Which, on the node's host.
        path: PathBuf,
        /// Its name there, if another.
        #[serde(default)]
        name: Option<String>,
    },
    /// Has a peer do a task that is sent as a JSON message: the task result.
    Request {
        /// Who.
        to: String,
        /// The skill.
        skill: String,
        /// For people, and the payload where there are no params.
        #[serde(default)]
        description: String,
        /// What the skill is given.
        #[serde(default)]
        params: Option<Value>,
        /// How long it may take, in milliseconds.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// Submits a task on port 1003 and waits: the record.
    Submit {
        /// To whom.
        to: String,
        /// What to do.
        description: String,
        /// How long to wait for its results, in milliseconds.
        #[serde(default)]
        wait_ms: u64,
    },
    /// A submitted task, once it is over or after so long: the record.
    Task {
        /// Its id.
        task_id: String,
        /// How long to wait for its results, in milliseconds.
        #[serde(default)]
        wait_ms: u64,
    },
    /// Every task: `{submitted, received}`.
    Tasks {},
    /// Asks for mutual trust: `{node_id, status}`.
    Handshake {
        /// Whom.
        to: String,
        /// Why.
        #[serde(default)]
        justification: String,
    },
    /// Approves a request for trust: `{node_id, status}`.
    Approve {
        /// Whose.
        to: String,
    },
    /// Refuses a request for trust: `{node_id, status}`.
    Reject {
        /// Whose.
        to: String,
        /// Why.
        #[serde(default)]
        reason: String,
    },
    /// Takes trust back: `{node_id, status}`.
    Revoke {
        /// From whom.
        to: String,
    },
    /// Who asks for trust: `{pending: [{node_id, public_key, justification, received_at}]}`.
    Pending {},
    /// Who is trusted: `{trusted: [{node_id, public_key, approved_at, mutual, network}]}`.
    Trusted {},
    /// Waits for trust: `{node_id, trusted}`.
    WaitTrust {
        /// In whom.
        to: String,
        /// How long, in milliseconds.
        limit_ms: u64,
    },
    /// Whether everyone may reach the node's ports: `{public}`.
    Public {
        /// Whether.
        public: bool,
    },
}

impl AgentRequest {
    /// The longest that its answer may take, in the worst of cases.
    pub fn patience(&self) -> Duration {
        let own = match self {
            AgentRequest::Submit { wait_ms, .. } | AgentRequest::Task { wait_ms, .. } => *wait_ms,
            AgentRequest::WaitTrust { limit_ms, .. } => *limit_ms,
            AgentRequest::Request { timeout_ms, .. } => timeout_ms.unwrap_or(60_000),
            // At the slowest that is still of use.
            AgentRequest::File { .. } => 1_800_000,
            _ => 0,
        };
        Duration::from_millis(own).min(WAIT_MAX) + Duration::from_secs(120)
    }
}

impl<H: Host> Agent<H> {
    /// Answers a question from a task of its own.
    pub(crate) fn ask(self: &Rc<Self>, ask: AgentAsk) {
        let agent = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let AgentAsk { request, respond } = ask;
            let patience = request.patience();
            let answer = match tokio::time::timeout(patience, agent.answer_ask(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {patience:?}")),
            };
            respond(answer.map_err(NodeError));
        });
    }

    async fn answer_ask(self: &Rc<Self>, request: AgentRequest) -> Result<Value, String> {
        match request {
            AgentRequest::Message {
                to,
                kind,
                data,
                reply_to,
            } => self.ask_message(&to, kind, data, reply_to).await,
            AgentRequest::File { to, path, name } => {
                let peer = calls::find(&self.host, &to).await?;
                let sent = self.send_file(peer, path, name).await?;
                Ok(json!({
                    "target": Address::backbone(peer).to_string(), "filename": sent.name,
                    "bytes": sent.bytes, "chunked": sent.chunked, "ack": sent.ack,
                }))
            }
            AgentRequest::Request {
                to,
                skill,
                description,
                params,
                timeout_ms,
            } => {
                let peer = calls::find(&self.host, &to).await?;
                let request = TaskRequest {
                    task_id: None,
                    skill,
                    description,
                    params,
                    timeout: wait(timeout_ms.unwrap_or(60_000)).max(Duration::from_millis(1)),
                };
                Ok(self.request_task(peer, request).await?.to_json())
            }
            AgentRequest::Submit {
                to,
                description,
                wait_ms,
            } => {
                let peer = calls::find(&self.host, &to).await?;
                let record = self.submit_task(peer, &description).await?;
                record_json(&self.wait_task(&record.task_id, wait(wait_ms)).await?)
            }
            AgentRequest::Task { task_id, wait_ms } => {
                record_json(&self.wait_task(&task_id, wait(wait_ms)).await?)
            }
            AgentRequest::Tasks {} => {
                let rows = |side| {
                    let rows = self.task_rows(side);
                    rows.iter().map(record_json).collect::<Result<Vec<_>, _>>()
                };
                Ok(json!({
                    "submitted": rows(TaskSide::Submitted)?,
                    "received": rows(TaskSide::Received)?,
                }))
            }
            other => self.ask_trust(other).await,
        }
    }

    async fn ask_message(
        &self,
        to: &str,
        kind: DataKind,
        data: Data,
        reply_to: Option<String>,
    ) -> Result<Value, String> {
        let peer = calls::find(&self.host, to).await?;
        let kind = match kind {
            DataKind::Text => MessageKind::Text,
            DataKind::Json => MessageKind::Json,
            DataKind::Binary => MessageKind::Binary,
        };
        let content = read_data(data).await?;
        if kind == MessageKind::Json
            && let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&content)
        {
            return Err(format!("the message is no JSON: {error}"));
        }
        let len = content.len();
        let tags = Tags {
            message_id: None,
            reply_to,
        };
        match self.send(peer, Message::new(kind, content), tags).await? {
            Ack::Refused { reason, .. } => Err(format!("node {peer}: {reason}")),
            ack @ Ack::Taken { .. } => Ok(json!({
                "target": Address::backbone(peer).to_string(), "type": kind.name(), "bytes": len,
                "ack": ack.to_string(),
            })),
        }
    }

    async fn ask_trust(self: &Rc<Self>, request: AgentRequest) -> Result<Value, String> {
        let find = async |to: String| calls::find(&self.host, &to).await;
        let done = |node, status: &str| Ok(json!({"node_id": node, "status": status}));
        match request {
            AgentRequest::Handshake { to, justification } => {
                let peer = find(to).await?;
                let sent = self.handshake(peer, &justification).await?;
                done(peer, sent.label())
            }
            AgentRequest::Approve { to } => {
                let peer = find(to).await?;
                self.approve(peer).await?;
                done(peer, "approved")
            }
            AgentRequest::Reject { to, reason } => {
                let peer = find(to).await?;
                self.reject(peer, &reason).await?;
                done(peer, "rejected")
            }
            AgentRequest::Revoke { to } => {
                let peer = find(to).await?;
                self.revoke(peer).await?;
                done(peer, "revoked")
            }
            AgentRequest::WaitTrust { to, limit_ms } => {
                let peer = find(to).await?;
                let trusted = self.wait_trusted(peer, wait(limit_ms)).await;
                Ok(json!({"node_id": peer, "trusted": trusted}))
            }
            AgentRequest::Public { public } => {
                self.set_public(public);
                Ok(json!({"public": public}))
            }
            AgentRequest::Trusted {} => {
                let rows: Vec<Value> = self
                    .trusted()
                    .iter()
                    .map(|row| {
                        json!({
                            "node_id": row.node, "public_key": key_text(&row.key),
                            "approved_at": row.approved_at_ms / 1_000, "mutual": row.mutual,
                            "network": row.network,
                        })
                    })
                    .collect();
                Ok(json!({"trusted": rows}))
            }
            // The other questions are not about trust and are answered before.
            _ => {
                let rows: Vec<Value> = self
                    .pending()
                    .iter()
                    .map(|row| {
                        json!({
                            "node_id": row.node,
                            "public_key": row.key.as_ref().map(key_text).unwrap_or_default(),
                            "justification": row.justification, "received_at": row.received_at_s,
                        })
                    })
                    .collect();
                Ok(json!({"pending": rows}))
            }
        }
    }
}

fn wait(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).min(WAIT_MAX)
}

fn record_json(record: &ramjet_proto::agent::tasks::TaskRecord) -> Result<Value, String> {
    serde_json::to_value(record).map_err(|error| error.to_string())
}

async fn read_data(data: Data) -> Result<Bytes, String> {
    let bytes = match data {
        Data::Text(text) => Bytes::from(text),
        Data::Base64(text) => BASE64
            .decode(text)
            .map_err(|error| format!("the message is no base64: {error}"))?
            .into(),
        Data::Path(path) => {
            let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
            read.unwrap_or_else(|_| Err("the node is shutting down".to_owned()))?
        }
    };
    if bytes.len() > PAYLOAD_LEN_MAX {
        let len = bytes.len();
        return Err(format!(
            "a message of {len} bytes, at most {PAYLOAD_LEN_MAX}; send it as a file"
        ));
    }
    Ok(bytes)
}

fn read_file(path: &Path) -> Result<Bytes, String> {
    let error = |error: std::io::Error| named(path, &error);
    let file = std::fs::File::open(path).map_err(error)?;
    let mut bytes = Vec::new();
    let most = PAYLOAD_LEN_MAX as u64 + 1;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, most), &mut bytes).map_err(error)?;
    Ok(bytes.into())
}
