//! A client of the driver socket that does what it is told.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ramjet_proto::addr::SocketAddress;
use ramjet_proto::driver::{Command, Reply, frame_len};
use ramjet_proto::ids::ConnectionId;
use serde_json::Value;

use super::PATIENCE;

/// A reply or a push, out of its frame.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    Bound(u16),
    Unbound(u16),
    Dialed(ConnectionId),
    Accepted(u16, ConnectionId, SocketAddress),
    Received(ConnectionId, Vec<u8>),
    Closed(ConnectionId),
    Error(String),
    Datagram(SocketAddress, u16, Vec<u8>),
    Json(u8, Value),
    Sent,
    Task(u8, Value, Vec<u8>),
    Progress(u64, Vec<u8>),
    /// The node closed the connection.
    Gone,
}

pub(super) struct Script {
    pub(super) stream: UnixStream,
}

impl Script {
    pub(super) fn connect(path: &Path) -> Script {
        let stream = UnixStream::connect(path).expect("a node");
        let limit = Some(PATIENCE);
        stream.set_read_timeout(limit).expect("a time-out");
        stream.set_write_timeout(limit).expect("a time-out");
        Script { stream }
    }

    pub(super) fn tell(&mut self, command: &Command<'_>) {
        let mut out = Vec::new();
        command.append(&mut out);
        self.stream.write_all(&out).expect("a node that reads");
    }

    pub(super) fn hear(&mut self) -> Heard {
        let mut prefix = [0; 4];
        match self.stream.read_exact(&mut prefix) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing heard within {PATIENCE:?}")
            }
            Err(_) => return Heard::Gone,
        }
        let mut frame = vec![0; frame_len(prefix).expect("a length")];
        self.stream.read_exact(&mut frame).expect("a whole frame");
        match Reply::parse(&frame).expect("a reply") {
            Reply::Bound { port } => Heard::Bound(port),
            Reply::Unbound { port } => Heard::Unbound(port),
            Reply::Dialed { connection } => Heard::Dialed(connection),
            Reply::Accepted {
                local_port,
                connection,
                remote,
            } => Heard::Accepted(local_port, connection, remote),
            Reply::Received { connection, bytes } => Heard::Received(connection, bytes.to_vec()),
            Reply::Closed { connection } => Heard::Closed(connection),
            Reply::Error { text } => Heard::Error(text.to_owned()),
            Reply::Datagram {
                source,
                port,
                bytes,
            } => Heard::Datagram(source, port, bytes.to_vec()),
            Reply::Json { command, json } => Heard::Json(command, parse(json)),
            Reply::Sent => Heard::Sent,
            Reply::Task {
                command,
                json,
                bytes,
            } => Heard::Task(command, parse(json), bytes.to_vec()),
            Reply::Progress { task, bytes } => Heard::Progress(task, bytes.to_vec()),
        }
    }

    pub(super) fn hear_after(&mut self, command: &Command<'_>) -> Heard {
        self.tell(command);
        self.hear()
    }

    /// The JSON that answers a command.
    pub(super) fn ask(&mut self, command: &Command<'_>) -> Value {
        match self.hear_after(command) {
            Heard::Json(code, value) if code == command.code() => value,
            other => panic!("{command:?} answered by {other:?}"),
        }
    }

    /// The error that answers a command.
    pub(super) fn fail(&mut self, command: &Command<'_>) -> String {
        match self.hear_after(command) {
            Heard::Error(text) => text,
            other => panic!("{command:?} answered by {other:?}"),
        }
    }
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("JSON")
}
