//! Trust between nodes: the services decide and carry out, this says it in a daemon's words.

use std::rc::Rc;
use std::time::Duration;

use ramjet_proto::driver::HandshakeCommand;
use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};

use super::Hub;
use super::registry::{Work, text};

/// The longest that a client may wait for trust in one command.
const WAIT_MAX: Duration = Duration::from_secs(600);

impl Hub {
    /// Begins a command of the handshake.
    pub(super) fn trust_work(
        self: &Rc<Self>,
        command: &HandshakeCommand<'_>,
    ) -> Result<Work, String> {
        let agent = Rc::clone(&self.agent);
        Ok(match *command {
            HandshakeCommand::Request {
                node,
                justification,
            } => {
                let justification = text("handshake request", justification)?;
                Box::pin(async move {
                    let sent = agent.handshake(node, &justification).await;
                    let sent = sent.map_err(|error| format!("handshake request: {error}"))?;
                    Ok(done(node, sent.label()))
                })
            }
            HandshakeCommand::Approve { node } => Box::pin(async move {
                let approved = agent.approve(node).await;
                approved.map_err(|error| format!("handshake approve: {error}"))?;
                Ok(done(node, "approved"))
            }),
            HandshakeCommand::Reject { node, reason } => {
                let reason = text("handshake reject", reason)?;
                Box::pin(async move {
                    let rejected = agent.reject(node, &reason).await;
                    rejected.map_err(|error| format!("handshake reject: {error}"))?;
                    Ok(done(node, "rejected"))
                })
            }
            HandshakeCommand::Revoke { node } => Box::pin(async move {
                let revoked = agent.revoke(node).await;
                revoked.map_err(|error| format!("handshake revoke: {error}"))?;
                Ok(done(node, "revoked"))
            }),
            HandshakeCommand::Pending => {
                let pending = self.pending_json();
                Box::pin(async { Ok(pending) })
            }
            HandshakeCommand::Trusted => {
                let trusted = self.trusted_json();
                Box::pin(async { Ok(trusted) })
            }
            HandshakeCommand::Wait { node, timeout_ms } => {
                let limit = Duration::from_millis(u64::from(timeout_ms)).min(WAIT_MAX);
                Box::pin(async move {
                    let trusted = agent.wait_trusted(node, limit).await;
                    Ok(json!({"node_id": node, "trusted": trusted}))
                })
            }
        })
    }

    fn pending_json(&self) -> Value {
        let pending = self.agent.pending();
        let rows = pending.iter().map(|row| {
            json!({
                "node_id": row.node,
                "public_key": row.key.map(|key| key.to_base64()).unwrap_or_default(),
                "justification": row.justification,
                "received_at": row.received_at_s,
            })
        });
        json!({"pending": rows.collect::<Vec<_>>()})
    }

    fn trusted_json(&self) -> Value {
        let trusted = self.agent.trusted();
        let rows = trusted.iter().map(|row| {
            json!({
                "node_id": row.node,
                "public_key": row.key.to_base64(),
                "approved_at": row.approved_at_ms / 1_000,
                "mutual": row.mutual,
                "network": row.network,
            })
        });
        json!({"trusted": rows.collect::<Vec<_>>()})
    }

    /// How many nodes ask for trust.
    pub(super) fn pending_count(&self) -> usize {
        self.agent.pending().len()
    }

    /// Whether a node is trusted.
    pub(super) fn trusts(&self, node: NodeId) -> bool {
        self.agent.trusted().iter().any(|row| row.node == node)
    }
}

fn done(node: NodeId, status: &str) -> Value {
    json!({"node_id": node, "status": status})
}
