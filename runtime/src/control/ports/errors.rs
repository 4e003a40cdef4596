//! What can go wrong at a port, in words that name the thing, the value and the next step.

use std::fmt;
use std::time::Duration;

use ramjet_proto::ids::NodeId;

use crate::control::vocabulary::{DatagramFault, DialFault, StreamEnd};

/// A stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DialError {
    /// To whom.
    pub(crate) peer: NodeId,
    /// To which port.
    pub(crate) port: u16,
    /// How long it was tried at the most.
    pub(crate) limit: Duration,
    /// Why.
    pub(crate) fault: DialFault,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DialError {
            peer, port, limit, ..
        } = self;
        write!(f, "node {peer} port {port}: ")?;
        match self.fault {
            DialFault::Refused => f.write_str(
                "connection refused: nothing listens there, or it has no room for another stream",
            ),
            DialFault::Unreachable => f.write_str(
                "unreachable: the registry does not know the node, or the node does not answer; \
                 ask it for trust if it is private",
            ),
            DialFault::TimedOut => write!(f, "no answer within {limit:?}; try again"),
            DialFault::Full => {
                f.write_str("this node has no room for another stream or tunnel; close some")
            }
            DialFault::Own => f.write_str("that is this node itself; dial another"),
            DialFault::Down => f.write_str("the node is shutting down"),
        }
    }
}

impl std::error::Error for DialError {}

/// A port could not be taken: it is 0, or has been taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BindError {
    /// The port.
    pub(crate) port: u16,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => f.write_str("port 0 cannot be bound: choose 1 to 65535"),
            port => write!(f, "port {port} is taken: close its user or choose another"),
        }
    }
}

impl std::error::Error for BindError {}

/// A datagram was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SendError {
    /// To whom.
    pub(crate) peer: NodeId,
    /// Bytes of its payload.
    pub(crate) len: usize,
    /// Why.
    pub(crate) fault: DatagramFault,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SendError { peer, len, fault } = self;
        write!(f, "datagram of {len} bytes to node {peer}: ")?;
        match fault {
            DatagramFault::NoRoute => {
                f.write_str("the registry does not know the node, or the node does not answer")
            }
            DatagramFault::QueueFull => {
                f.write_str("too many wait for the tunnel to it; send slower")
            }
            DatagramFault::TooLong { len_max } => {
                write!(f, "at most {len_max} bytes fit; send less, or use a stream")
            }
            DatagramFault::Down => f.write_str("the node is shutting down"),
        }
    }
}

impl std::error::Error for SendError {}

/// A stream ended before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamError {
    /// The other end.
    pub(crate) peer: NodeId,
    /// The port there.
    pub(crate) remote_port: u16,
    /// How it ended.
    pub(crate) end: StreamEnd,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stream to node {} port {}: ",
            self.peer, self.remote_port
        )?;
        f.write_str(match self.end {
            StreamEnd::Finished => "the peer has closed it",
            StreamEnd::Closed => "it is closed",
            StreamEnd::Cut => "closed before the peer had acknowledged everything",
            StreamEnd::Reset => "the peer has reset it",
            StreamEnd::TimedOut => "the peer has not answered for too long",
            StreamEnd::Lost => "the tunnel to the peer is lost",
            StreamEnd::Down => "the node is shutting down",
        })
    }
}

impl std::error::Error for StreamError {}
