//! Reading the payload of a command, and why one cannot be read.

use core::fmt;

use super::Reader;
use crate::addr::SocketAddress;
use crate::ids::{ConnectionId, NodeId};

/// Why a command cannot be read, for the client; a command without a reply is dropped instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// No command has this code.
    Unknown {
        /// As it came.
        code: u8,
    },
    /// The command has no such sub-command.
    UnknownSub {
        /// The command.
        command: &'static str,
        /// As it came.
        sub: u8,
    },
    /// The payload ends too early.
    Short {
        /// The command.
        command: &'static str,
        /// What it must hold.
        wants: &'static str,
        /// How long it is.
        len: usize,
    },
    /// A text is not UTF-8.
    NotText {
        /// The command.
        command: &'static str,
    },
    /// A member is not what it must be.
    Invalid {
        /// The command.
        command: &'static str,
        /// What, its value, the bound.
        why: String,
    },
}

impl fmt::Display for CommandFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandFault::Unknown { code } => write!(f, "unknown command: 0x{code:02X}"),
            CommandFault::UnknownSub { command, sub } => {
                write!(f, "{command}: unknown sub-command 0x{sub:02X}")
            }
            CommandFault::Short {
                command,
                wants,
                len,
            } => write!(f, "{command}: a payload of {len} bytes, must hold {wants}"),
            CommandFault::NotText { command } => write!(f, "{command}: a text that is not UTF-8"),
            CommandFault::Invalid { command, why } => write!(f, "{command}: {why}"),
        }
    }
}

impl std::error::Error for CommandFault {}

/// What reads one payload, and names its command in a fault.
pub(super) struct Payload<'a> {
    pub(super) command: &'static str,
    pub(super) reader: Reader<'a>,
    len: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn new(command: &'static str, bytes: &'a [u8]) -> Self {
        Payload {
            command,
            reader: Reader(bytes),
            len: bytes.len(),
        }
    }

    /// What `take` reads, or that the payload does not hold `wants`.
    pub(super) fn take<T>(
        &mut self,
        wants: &'static str,
        take: impl FnOnce(&mut Reader<'a>) -> Option<T>,
    ) -> Result<T, CommandFault> {
        take(&mut self.reader).ok_or(CommandFault::Short {
            command: self.command,
            wants,
            len: self.len,
        })
    }

    pub(super) fn text(&self) -> Result<&'a str, CommandFault> {
        str::from_utf8(self.reader.rest()).map_err(|_| CommandFault::NotText {
            command: self.command,
        })
    }

    pub(super) fn invalid(&self, why: impl fmt::Display) -> CommandFault {
        CommandFault::Invalid {
            command: self.command,
            why: why.to_string(),
        }
    }

    pub(super) fn node(&mut self) -> Result<NodeId, CommandFault> {
        self.take("a node of 4 bytes", Reader::u32).map(NodeId)
    }

    pub(super) fn network(&mut self) -> Result<u16, CommandFault> {
        self.take("a network of 2 bytes", Reader::u16)
    }

    pub(super) fn port(&mut self) -> Result<u16, CommandFault> {
        self.take("a port of 2 bytes", Reader::u16)
    }

    pub(super) fn connection(&mut self) -> Result<ConnectionId, CommandFault> {
        self.take("a connection of 4 bytes", Reader::u32)
            .map(ConnectionId)
    }

    pub(super) fn destination(&mut self) -> Result<SocketAddress, CommandFault> {
        self.take("an address of 6 and a port of 2 bytes", |reader| {
            reader.socket_address()
        })
    }

    pub(super) fn flag(&mut self) -> Result<bool, CommandFault> {
        self.take("a value of 1 byte", Reader::u8)
            .map(|value| value == 1)
    }
}
