//! The commands that have commands of their own: trust, and networks.

use super::Reader;
use super::payload::{CommandFault, Payload};
use crate::ids::NodeId;

/// The sub-commands of 0F.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeCommand<'a> {
    /// 01: asks a node for trust.
    Request {
        /// The node.
        node: NodeId,
        /// For its operator to read.
        justification: &'a str,
    },
    /// 02: grants a pending request.
    Approve {
        /// Whose.
        node: NodeId,
    },
    /// 03: refuses a pending request.
    Reject {
        /// Whose.
        node: NodeId,
        /// For its operator to read.
        reason: &'a str,
    },
    /// 04: lists pending requests.
    Pending,
    /// 05: lists trusted nodes.
    Trusted,
    /// 06: ends trust.
    Revoke {
        /// With whom.
        node: NodeId,
    },
    /// 07, from 1.18: waits until a node is trusted.
    Wait {
        /// Which.
        node: NodeId,
        /// For how long, in milliseconds.
        timeout_ms: u32,
    },
}

/// The sub-commands of 1F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkCommand<'a> {
    /// 01: lists networks.
    List,
    /// 02: joins one.
    Join {
        /// Which.
        network: u16,
        /// What lets the node in, if it takes a token.
        token: &'a str,
    },
    /// 03: leaves one.
    Leave {
        /// Which.
        network: u16,
    },
    /// 04: lists members.
    Members {
        /// Of which.
        network: u16,
    },
    /// 05: invites a node.
    Invite {
        /// To which.
        network: u16,
        /// Whom.
        node: NodeId,
    },
    /// 06: fetches invitations.
    PollInvites,
    /// 07: answers an invitation.
    RespondInvite {
        /// To which.
        network: u16,
        /// How.
        accept: bool,
    },
}

impl<'a> HandshakeCommand<'a> {
    pub(super) fn parse(payload: &mut Payload<'a>) -> Result<Self, CommandFault> {
        let sub = payload.take("a sub-command of 1 byte", Reader::u8)?;
        Ok(match sub {
            1 => HandshakeCommand::Request {
                node: payload.node()?,
                justification: payload.text()?,
            },
            2 => HandshakeCommand::Approve {
                node: payload.node()?,
            },
            3 => HandshakeCommand::Reject {
                node: payload.node()?,
                reason: payload.text()?,
            },
            4 => HandshakeCommand::Pending,
            5 => HandshakeCommand::Trusted,
            6 => HandshakeCommand::Revoke {
                node: payload.node()?,
            },
            7 => HandshakeCommand::Wait {
                node: payload.node()?,
                timeout_ms: payload.take("a time-out of 4 bytes", Reader::u32)?,
            },
            sub => {
                let command = payload.command;
                return Err(CommandFault::UnknownSub { command, sub });
            }
        })
    }

    pub(super) fn append_payload(&self, out: &mut Vec<u8>) {
        let (sub, node, text) = match self {
            HandshakeCommand::Request {
                node,
                justification,
            } => (1, Some(node), *justification),
            HandshakeCommand::Approve { node } => (2, Some(node), ""),
            HandshakeCommand::Reject { node, reason } => (3, Some(node), *reason),
            HandshakeCommand::Pending => (4, None, ""),
            HandshakeCommand::Trusted => (5, None, ""),
            HandshakeCommand::Revoke { node } => (6, Some(node), ""),
            HandshakeCommand::Wait { node, .. } => (7, Some(node), ""),
        };
        out.push(sub);
        if let Some(node) = node {
            out.extend(node.0.to_be_bytes());
        }
        out.extend_from_slice(text.as_bytes());
        if let HandshakeCommand::Wait { timeout_ms, .. } = self {
            out.extend(timeout_ms.to_be_bytes());
        }
    }
}

impl<'a> NetworkCommand<'a> {
    pub(super) fn parse(payload: &mut Payload<'a>) -> Result<Self, CommandFault> {
        let sub = payload.take("a sub-command of 1 byte", Reader::u8)?;
        Ok(match sub {
            1 => NetworkCommand::List,
            2 => NetworkCommand::Join {
                network: payload.network()?,
                token: payload.text()?,
            },
            3 => NetworkCommand::Leave {
                network: payload.network()?,
            },
            4 => NetworkCommand::Members {
                network: payload.network()?,
            },
            5 => NetworkCommand::Invite {
                network: payload.network()?,
                node: payload.node()?,
            },
            6 => NetworkCommand::PollInvites,
            7 => NetworkCommand::RespondInvite {
                network: payload.network()?,
                accept: payload.flag()?,
            },
            sub => {
                let command = payload.command;
                return Err(CommandFault::UnknownSub { command, sub });
            }
        })
    }

    pub(super) fn append_payload(self, out: &mut Vec<u8>) {
        let (sub, network) = match self {
            NetworkCommand::List => (1, None),
            NetworkCommand::Join { network, .. } => (2, Some(network)),
            NetworkCommand::Leave { network } => (3, Some(network)),
            NetworkCommand::Members { network } => (4, Some(network)),
            NetworkCommand::Invite { network, .. } => (5, Some(network)),
            NetworkCommand::PollInvites => (6, None),
            NetworkCommand::RespondInvite { network, .. } => (7, Some(network)),
        };
        out.push(sub);
        out.extend(network.into_iter().flat_map(u16::to_be_bytes));
        match self {
            NetworkCommand::Join { token, .. } => out.extend_from_slice(token.as_bytes()),
            NetworkCommand::Invite { node, .. } => out.extend(node.0.to_be_bytes()),
            NetworkCommand::RespondInvite { accept, .. } => out.push(u8::from(accept)),
            _ => {}
        }
    }
}
