//! What the node answers and pushes.

use super::{Reader, append, push_counted, push_socket_address};
use crate::addr::SocketAddress;
use crate::ids::ConnectionId;

/// The only code that an error carries.
const ERROR_CODE: u16 = 1;

/// A reply or a push, with what it borrows from its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// 02: a port is bound.
    Bound {
        /// The port.
        port: u16,
    },
    /// 04: a stream is open.
    Dialed {
        /// Its number, of this node.
        connection: ConnectionId,
    },
    /// 05, push: a peer opened a stream to a bound port.
    Accepted {
        /// The bound port.
        local_port: u16,
        /// Its number.
        connection: ConnectionId,
        /// Who opened it.
        remote: SocketAddress,
    },
    /// 07, push: bytes of a stream.
    Received {
        /// The stream.
        connection: ConnectionId,
        /// At most [`super::STREAM_BYTES_MAX`].
        bytes: &'a [u8],
    },
    /// 09, reply and push: a stream is closed. May come twice for one stream.
    Closed {
        /// The stream.
        connection: ConnectionId,
    },
    /// 0A: a command failed.
    Error {
        /// What, its value, the next step.
        text: &'a str,
    },
    /// 0C, push: a datagram for a port that no service of the node holds; every client gets it.
    Datagram {
        /// Who sent it.
        source: SocketAddress,
        /// To which port.
        port: u16,
        /// Its payload.
        bytes: &'a [u8],
    },
    /// The JSON answer to a command.
    Json {
        /// The command's code.
        command: u8,
        /// One object.
        json: &'a [u8],
    },
    /// 38: a port is given back.
    Unbound {
        /// The port.
        port: u16,
    },
    /// 3A: a datagram was taken.
    Sent,
    /// A6 and AE: a task to run, or the result of one.
    Task {
        /// The command's code.
        command: u8,
        /// What it is, one object.
        json: &'a [u8],
        /// Its payload or result.
        bytes: &'a [u8],
    },
    /// AF, push: a piece of progress of a task that this client submitted.
    Progress {
        /// The task.
        task: u64,
        /// The piece.
        bytes: &'a [u8],
    },
}

impl<'a> Reply<'a> {
    /// Reads code and payload of a frame; `None` for what no reply looks like.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (&code, bytes) = frame.split_first()?;
        let mut reader = Reader(bytes);
        Some(match code {
            0x02 => Reply::Bound {
                port: reader.u16()?,
            },
            0x04 => Reply::Dialed {
                connection: connection(&mut reader)?,
            },
            0x05 => Reply::Accepted {
                local_port: reader.u16()?,
                connection: connection(&mut reader)?,
                remote: reader.socket_address()?,
            },
            0x07 => Reply::Received {
                connection: connection(&mut reader)?,
                bytes: reader.rest(),
            },
            0x09 => Reply::Closed {
                connection: connection(&mut reader)?,
            },
            0x0A => {
                reader.u16()?;
                Reply::Error {
                    text: str::from_utf8(reader.rest()).ok()?,
                }
            }
            0x0C => Reply::Datagram {
                source: reader.socket_address()?,
                port: reader.u16()?,
                bytes: reader.rest(),
            },
            0x38 => Reply::Unbound {
                port: reader.u16()?,
            },
            0x3A => Reply::Sent,
            0xA6 | 0xAE => Reply::Task {
                command: code - 1,
                json: reader.counted()?,
                bytes: reader.rest(),
            },
            0xAF => Reply::Progress {
                task: reader.u64()?,
                bytes: reader.rest(),
            },
            0x0E..=0x36 | 0xA2..=0xB2 if code % 2 == 0 => Reply::Json {
                command: code - 1,
                json: bytes,
            },
            _ => return None,
        })
    }

    /// Appends its frame.
    ///
    /// # Panics
    /// A frame beyond [`super::FRAME_LEN_MAX`]: its maker keeps it shorter.
    pub fn append(&self, out: &mut Vec<u8>) {
        append(out, self.code(), |out| self.append_payload(out));
    }

    fn code(&self) -> u8 {
        match self {
            Reply::Bound { .. } => 0x02,
            Reply::Dialed { .. } => 0x04,
            Reply::Accepted { .. } => 0x05,
            Reply::Received { .. } => 0x07,
            Reply::Closed { .. } => 0x09,
            Reply::Error { .. } => 0x0A,
            Reply::Datagram { .. } => 0x0C,
            Reply::Json { command, .. } | Reply::Task { command, .. } => command + 1,
            Reply::Unbound { .. } => 0x38,
            Reply::Sent => 0x3A,
            Reply::Progress { .. } => 0xAF,
        }
    }

    fn append_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Reply::Bound { port } | Reply::Unbound { port } => out.extend(port.to_be_bytes()),
            Reply::Dialed { connection } | Reply::Closed { connection } => {
                out.extend(connection.0.to_be_bytes());
            }
            Reply::Accepted {
                local_port,
                connection,
                remote,
            } => {
                out.extend(local_port.to_be_bytes());
                out.extend(connection.0.to_be_bytes());
                push_socket_address(out, remote);
            }
            Reply::Received { connection, bytes } => {
                out.extend(connection.0.to_be_bytes());
                out.extend_from_slice(bytes);
            }
            Reply::Error { text } => {
                out.extend(ERROR_CODE.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Reply::Datagram {
                source,
                port,
                bytes,
            } => {
                push_socket_address(out, source);
                out.extend(port.to_be_bytes());
                out.extend_from_slice(bytes);
            }
            Reply::Json { json, .. } => out.extend_from_slice(json),
            Reply::Sent => {}
            Reply::Task { json, bytes, .. } => {
                push_counted(out, json);
                out.extend_from_slice(bytes);
            }
            Reply::Progress { task, bytes } => {
                out.extend(task.to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn connection(reader: &mut Reader<'_>) -> Option<ConnectionId> {
    reader.u32().map(ConnectionId)
}
