//! What a client asks: codes and payloads.

use super::market::MarketCommand;
use super::payload::{CommandFault, Payload};
use super::subcommands::{HandshakeCommand, NetworkCommand};
use super::{Reader, append, push_socket_address};
use crate::addr::SocketAddress;
use crate::ids::{ConnectionId, NodeId};

/// Tags that a client may set; a registry takes more.
pub const TAGS_MAX: usize = 3;

/// A command, with what it borrows from its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// 01: streams that peers open to this port go to this client.
    Bind {
        /// The port; 0 lets the node choose.
        port: u16,
    },
    /// 03: opens a stream.
    Dial {
        /// Where to.
        to: SocketAddress,
    },
    /// 06: bytes for a stream. No reply.
    Send {
        /// The stream.
        connection: ConnectionId,
        /// At most [`super::STREAM_BYTES_MAX`].
        bytes: &'a [u8],
    },
    /// 08: closes a stream, whoever opened it.
    Close {
        /// The stream.
        connection: ConnectionId,
    },
    /// 0B: sends a datagram. No reply.
    SendTo {
        /// Where to.
        to: SocketAddress,
        /// Its payload.
        bytes: &'a [u8],
    },
    /// 0D: what the node is and does.
    Info,
    /// 0F: trust between nodes.
    Handshake(HandshakeCommand<'a>),
    /// 11: a hostname's node.
    ResolveHostname {
        /// The name.
        hostname: &'a str,
    },
    /// 13: names the node; an empty name takes its name away.
    SetHostname {
        /// The name.
        hostname: &'a str,
    },
    /// 15: whether anyone may reach the node.
    SetVisibility {
        /// Whether.
        public: bool,
    },
    /// 17: takes the node out of the registry.
    Deregister,
    /// 19: replaces the node's tags.
    SetTags {
        /// At most [`TAGS_MAX`].
        tags: Vec<String>,
    },
    /// 1B: where events are posted to.
    SetWebhook {
        /// Empty for nowhere.
        url: &'a str,
    },
    /// 1D, up to 1.9.1: whether the node takes tasks.
    SetTaskExec {
        /// Whether.
        enabled: bool,
    },
    /// 1F: networks beside the backbone.
    Network(NetworkCommand<'a>),
    /// 21: the short form of [`Self::Info`].
    Health,
    /// 23: managed networks, of which only their number matters here.
    Managed {
        /// What is asked.
        sub: u8,
        /// The rest.
        arguments: &'a [u8],
    },
    /// 25: gives the node a new key.
    RotateKey,
    /// 27, up to 1.9.1: the node's own polo.
    PoloScore,
    /// 29: a datagram to every member of a network.
    Broadcast {
        /// The network.
        network: u16,
        /// The port.
        port: u16,
        /// The administrator's token.
        token: &'a [u8],
        /// The payload.
        bytes: &'a [u8],
    },
    /// 2B: gives up the client's dials. No reply.
    CancelDials,
    /// 2D: prefers a direct tunnel to the beacon's relay.
    PreferDirect {
        /// To whom.
        node: NodeId,
    },
    /// 2F: hands a badge to the registry.
    SubmitBadge {
        /// JSON.
        json: &'a [u8],
    },
    /// 31: hands a recovery commitment to the registry.
    EnrollRecovery {
        /// JSON.
        json: &'a [u8],
    },
    /// 33: signs a request to somebody else with the node's key.
    SignEnvelope {
        /// JSON.
        json: &'a [u8],
    },
    /// 35: checks such a signature.
    VerifyEnvelope {
        /// JSON.
        json: &'a [u8],
    },
    /// 37: gives a port back.
    Unbind {
        /// The port.
        port: u16,
    },
    /// 39: as [`Self::SendTo`], answered when the node has taken it.
    SendToConfirmed {
        /// Where to.
        to: SocketAddress,
        /// Its payload.
        bytes: &'a [u8],
    },
    /// A1 to B1: the task market.
    Market(MarketCommand<'a>),
}

impl<'a> Command<'a> {
    /// Reads code and payload of a frame.
    ///
    /// # Errors
    /// What cannot be read, named by its command.
    pub fn parse(frame: &'a [u8]) -> Result<Self, CommandFault> {
        let Some((&code, bytes)) = frame.split_first() else {
            return Err(CommandFault::Unknown { code: 0 });
        };
        let Some(name) = name(code) else {
            return Err(CommandFault::Unknown { code });
        };
        let mut payload = Payload::new(name, bytes);
        match code {
            0x01..=0x0C => Self::parse_transport(code, &mut payload),
            0x37 => payload.port().map(|port| Command::Unbind { port }),
            0x39 => Ok(Command::SendToConfirmed {
                to: payload.destination()?,
                bytes: payload.reader.rest(),
            }),
            0x0D..=0x36 => Self::parse_node(code, &mut payload),
            _ => MarketCommand::parse(code, payload).map(Command::Market),
        }
    }

    fn parse_transport(code: u8, payload: &mut Payload<'a>) -> Result<Self, CommandFault> {
        Ok(match code {
            0x01 => Command::Bind {
                port: payload.port()?,
            },
            0x03 => Command::Dial {
                to: payload.destination()?,
            },
            0x06 => Command::Send {
                connection: payload.connection()?,
                bytes: payload.reader.rest(),
            },
            0x08 => Command::Close {
                connection: payload.connection()?,
            },
            _ => Command::SendTo {
                to: payload.destination()?,
                bytes: payload.reader.rest(),
            },
        })
    }

    fn parse_node(code: u8, payload: &mut Payload<'a>) -> Result<Self, CommandFault> {
        let json = payload.reader.rest();
        Ok(match code {
            0x0D => Command::Info,
            0x0F => Command::Handshake(HandshakeCommand::parse(payload)?),
            0x11 => match payload.text()? {
                "" => return Err(payload.invalid("a hostname of 0 bytes, must be at least 1")),
                hostname => Command::ResolveHostname { hostname },
            },
            0x13 => Command::SetHostname {
                hostname: payload.text()?,
            },
            0x15 => Command::SetVisibility {
                public: payload.flag()?,
            },
            0x17 => Command::Deregister,
            0x19 => Command::SetTags {
                tags: parse_tags(payload)?,
            },
            0x1B => Command::SetWebhook {
                url: payload.text()?,
            },
            0x1D => Command::SetTaskExec {
                enabled: payload.flag()?,
            },
            0x1F => Command::Network(NetworkCommand::parse(payload)?),
            0x21 => Command::Health,
            0x23 => Command::Managed {
                sub: payload.take("a sub-command of 1 byte", Reader::u8)?,
                arguments: payload.reader.rest(),
            },
            0x25 => Command::RotateKey,
            0x27 => Command::PoloScore,
            0x29 => Self::parse_broadcast(payload)?,
            0x2B => Command::CancelDials,
            0x2D => Command::PreferDirect {
                node: payload.node()?,
            },
            0x2F => Command::SubmitBadge { json },
            0x31 => Command::EnrollRecovery { json },
            0x33 => Command::SignEnvelope { json },
            _ => Command::VerifyEnvelope { json },
        })
    }

    fn parse_broadcast(payload: &mut Payload<'a>) -> Result<Self, CommandFault> {
        let network = payload.network()?;
        let port = payload.port()?;
        let token = payload.take("a token of 2 bytes length and that many", |reader| {
            let len = usize::from(reader.u16()?);
            let (token, rest) = reader.0.split_at_checked(len)?;
            reader.0 = rest;
            Some(token)
        })?;
        Ok(Command::Broadcast {
            network,
            port,
            token,
            bytes: payload.reader.rest(),
        })
    }

    /// Its code; the reply to it has the next one.
    pub fn code(&self) -> u8 {
        match self {
            Command::Bind { .. } => 0x01,
            Command::Dial { .. } => 0x03,
            Command::Send { .. } => 0x06,
            Command::Close { .. } => 0x08,
            Command::SendTo { .. } => 0x0B,
            Command::Info => 0x0D,
            Command::Handshake(_) => 0x0F,
            Command::ResolveHostname { .. } => 0x11,
            Command::SetHostname { .. } => 0x13,
            Command::SetVisibility { .. } => 0x15,
            Command::Deregister => 0x17,
            Command::SetTags { .. } => 0x19,
            Command::SetWebhook { .. } => 0x1B,
            Command::SetTaskExec { .. } => 0x1D,
            Command::Network(_) => 0x1F,
            Command::Health => 0x21,
            Command::Managed { .. } => 0x23,
            Command::RotateKey => 0x25,
            Command::PoloScore => 0x27,
            Command::Broadcast { .. } => 0x29,
            Command::CancelDials => 0x2B,
            Command::PreferDirect { .. } => 0x2D,
            Command::SubmitBadge { .. } => 0x2F,
            Command::EnrollRecovery { .. } => 0x31,
            Command::SignEnvelope { .. } => 0x33,
            Command::VerifyEnvelope { .. } => 0x35,
            Command::Unbind { .. } => 0x37,
            Command::SendToConfirmed { .. } => 0x39,
            Command::Market(command) => command.code(),
        }
    }

    /// Its name in errors and logs.
    pub fn name(&self) -> &'static str {
        name(self.code()).expect("every command is in the table of names")
    }

    /// Whether commands of this code, known or not, are answered.
    pub fn is_answered(code: u8) -> bool {
        !matches!(code, 0x06 | 0x0B | 0x2B | 0xA9)
    }

    /// Appends its frame.
    ///
    /// # Panics
    /// A frame beyond [`super::FRAME_LEN_MAX`]: its maker keeps it shorter.
    pub fn append(&self, out: &mut Vec<u8>) {
        append(out, self.code(), |out| self.append_payload(out));
    }

    fn append_payload(&self, out: &mut Vec<u8>) {
        match self {
            Command::Bind { port } | Command::Unbind { port } => out.extend(port.to_be_bytes()),
            Command::Dial { to } => push_socket_address(out, *to),
            Command::Send { connection, bytes } => {
                out.extend(connection.0.to_be_bytes());
                out.extend_from_slice(bytes);
            }
            Command::Close { connection } => out.extend(connection.0.to_be_bytes()),
            Command::SendTo { to, bytes } | Command::SendToConfirmed { to, bytes } => {
                push_socket_address(out, *to);
                out.extend_from_slice(bytes);
            }
            Command::Handshake(command) => command.append_payload(out),
            Command::ResolveHostname { hostname: text }
            | Command::SetHostname { hostname: text }
            | Command::SetWebhook { url: text } => out.extend_from_slice(text.as_bytes()),
            Command::SetVisibility { public: flag } | Command::SetTaskExec { enabled: flag } => {
                out.push(u8::from(*flag));
            }
            Command::SetTags { tags } => {
                serde_json::to_writer(out, tags).expect("texts serialize into memory");
            }
            Command::Network(command) => command.append_payload(out),
            Command::Managed { sub, arguments } => {
                out.push(*sub);
                out.extend_from_slice(arguments);
            }
            Command::Broadcast {
                network,
                port,
                token,
                bytes,
            } => {
                out.extend(network.to_be_bytes());
                out.extend(port.to_be_bytes());
                let len = u16::try_from(token.len()).expect("a token of at most 65,535 bytes");
                out.extend(len.to_be_bytes());
                out.extend_from_slice(token);
                out.extend_from_slice(bytes);
            }
            Command::PreferDirect { node } => out.extend(node.0.to_be_bytes()),
            Command::SubmitBadge { json }
            | Command::EnrollRecovery { json }
            | Command::SignEnvelope { json }
            | Command::VerifyEnvelope { json } => out.extend_from_slice(json),
            Command::Market(command) => command.append_payload(out),
            Command::Info
            | Command::Deregister
            | Command::Health
            | Command::RotateKey
            | Command::PoloScore
            | Command::CancelDials => {}
        }
    }
}

fn parse_tags(payload: &Payload<'_>) -> Result<Vec<String>, CommandFault> {
    let tags: Vec<String> = serde_json::from_slice(payload.reader.rest())
        .map_err(|error| payload.invalid(format_args!("no JSON array of texts: {error}")))?;
    if tags.len() > TAGS_MAX {
        return Err(payload.invalid(format_args!("{} tags, at most {TAGS_MAX}", tags.len())));
    }
    Ok(tags)
}

/// The names of the commands, as errors and logs give them.
fn name(code: u8) -> Option<&'static str> {
    Some(match code {
        0x01 => "bind",
        0x03 => "dial",
        0x06 => "send",
        0x08 => "close",
        0x0B | 0x39 => "sendto",
        0x0D => "info",
        0x0F => "handshake",
        0x11 => "resolve_hostname",
        0x13 => "set_hostname",
        0x15 => "set_visibility",
        0x17 => "deregister",
        0x19 => "set_tags",
        0x1B => "set_webhook",
        0x1D => "set_task_exec",
        0x1F => "network",
        0x21 => "health",
        0x23 => "managed",
        0x25 => "rotate_key",
        0x27 => "polo_score",
        0x29 => "broadcast",
        0x2B => "cancel_dials",
        0x2D => "prefer_direct",
        0x2F => "submit_badge",
        0x31 => "enroll_recovery",
        0x33 => "sign_envelope",
        0x35 => "verify_envelope",
        0x37 => "unbind",
        code => return super::market::name(code),
    })
}
