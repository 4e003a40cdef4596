//! The words of Pilot streams and datagrams between control and a worker.
//!
//! A stream lives on the worker that owns the tunnel to its peer. Control names it by the
//! [`StreamId`] that the worker gave it; what is said about a stream that is gone is not heard.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::ids::{ConnectionId, NodeId};

/// A stream of one worker, as that worker numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// Which worker.
    pub worker: u16,
    /// Its place in the worker's table.
    pub place: u32,
    /// How often the place had another tenant before.
    pub generation: u32,
}

/// Who may reach this node's ports. Whoever serves an engagement of ours, or is served by us, may
/// in any case, and so may everybody on port 444, where trust is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Everyone may.
    pub public: bool,
    /// These may.
    pub trusted: HashSet<NodeId>,
}

/// The socket of a driver client that speaks on one stream only, lent to the worker of that stream.
/// Until it comes back nobody else reads or writes it.
#[derive(Debug)]
pub struct Line {
    /// The socket, which does not block.
    pub socket: Arc<UnixStream>,
    /// What the client calls the stream.
    pub connection: ConnectionId,
    /// [`StreamReport::Data`] of the stream that control has heard. The worker refuses the line if it
    /// has told more: what it wrote would arrive before them.
    pub heard: u64,
}

/// What was under way when a line came back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LineRest {
    /// What the client said that nobody has acted on.
    pub input: Vec<u8>,
    /// What it is still to be told; it may begin within a frame.
    pub output: Vec<u8>,
    /// Frames that passed.
    pub frames: u64,
}

/// Control to worker, about streams and datagrams.
#[derive(Debug)]
pub enum StreamCommand {
    /// Peers may open streams to this port; each is told by [`StreamReport::Accepted`].
    Listen {
        /// The port.
        port: u16,
    },
    /// They may no longer. Streams that are open stay open.
    Unlisten {
        /// The port.
        port: u16,
    },
    /// Datagrams to this port are told by [`StreamReport::Datagram`].
    Bind {
        /// The port; 0 for every port that is not bound by itself.
        port: u16,
    },
    /// They are dropped again.
    Unbind {
        /// The port.
        port: u16,
    },
    /// Who may reach the ports from now on.
    Admit(Arc<Reach>),
    /// Opens a stream. Answered by [`StreamReport::Dialed`] or [`StreamReport::DialFailed`].
    Dial {
        /// Names the dial in its answer.
        dial: u64,
        /// To whom.
        peer: NodeId,
        /// To which port.
        port: u16,
        /// For how long to try, the tunnel included.
        limit: Duration,
    },
    /// Nobody waits for this dial any more.
    CancelDial {
        /// The dial.
        dial: u64,
        /// To whom it was.
        peer: NodeId,
    },
    /// More bytes for a stream. [`StreamReport::Sent`] says what has left.
    Write {
        /// The stream.
        stream: StreamId,
        /// What to send, not empty.
        bytes: Bytes,
    },
    /// The reader took so many bytes: the peer may send as many more.
    Consumed {
        /// The stream.
        stream: StreamId,
        /// Bytes.
        len: usize,
    },
    /// A client's socket. Answered by [`StreamReport::Returned`] whenever the worker is done with it:
    /// at once if it cannot be had, and before [`StreamReport::Ended`].
    Lend {
        /// The stream.
        stream: StreamId,
        /// The socket.
        line: Line,
    },
    /// The line is to come back, unless it has.
    Recall {
        /// The stream.
        stream: StreamId,
    },
    /// Ends a stream once everything written has been acknowledged. Answered by
    /// [`StreamReport::Ended`].
    Close {
        /// The stream.
        stream: StreamId,
    },
    /// Ends a stream at once. Not answered.
    Reset {
        /// The stream.
        stream: StreamId,
    },
    /// One datagram. Answered by [`StreamReport::DatagramSent`].
    SendDatagram {
        /// Names it in its answer.
        token: u64,
        /// To whom.
        peer: NodeId,
        /// From which port.
        source_port: u16,
        /// To which port.
        port: u16,
        /// The payload.
        bytes: Bytes,
    },
    /// Asks for the rows of streams and tunnels. Answered by [`StreamReport::Rows`].
    Rows {
        /// Names the question in its answer.
        token: u64,
    },
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFault {
    /// The peer answered with a reset: nobody listens there, or it has no room.
    Refused,
    /// The registry does not know the peer, or it did not answer the key exchange.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// A limit of this node is reached: streams, tunnels, or ports.
    Full,
    /// The peer is this node.
    Own,
    /// The worker has ended.
    Down,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer said that it is done, and everything before that has been told.
    Finished,
    /// We closed it, and everything written was acknowledged.
    Closed,
    /// We closed it, and not everything written was acknowledged in time.
    Cut,
    /// The peer reset it.
    Reset,
    /// The peer has not been heard for too long.
    TimedOut,
    /// The tunnel to the peer was lost.
    Lost,
    /// The worker has ended.
    Down,
}

/// Worker to control, about streams and datagrams.
#[derive(Debug)]
pub enum StreamReport {
    /// A dial succeeded.
    Dialed {
        /// The dial.
        dial: u64,
        /// The stream.
        stream: StreamId,
        /// The port that it was given here.
        local_port: u16,
    },
    /// A dial failed.
    DialFailed {
        /// The dial.
        dial: u64,
        /// Why.
        fault: DialFault,
    },
    /// A peer opened a stream.
    Accepted {
        /// The stream.
        stream: StreamId,
        /// The peer.
        peer: NodeId,
        /// The port here.
        local_port: u16,
        /// The port there.
        remote_port: u16,
    },
    /// Bytes arrived, in order. Control answers with [`StreamCommand::Consumed`] as they are read.
    Data {
        /// The stream.
        stream: StreamId,
        /// Not empty.
        bytes: Bytes,
    },
    /// So many bytes of what was written have left for the first time.
    Sent {
        /// The stream.
        stream: StreamId,
        /// Bytes since the last such report.
        len: usize,
    },
    /// A line comes back.
    Returned {
        /// The stream.
        stream: StreamId,
        /// What was under way on it.
        rest: LineRest,
    },
    /// A stream has ended; its last report.
    Ended {
        /// The stream.
        stream: StreamId,
        /// How.
        end: StreamEnd,
    },
    /// What became of a datagram to send.
    DatagramSent {
        /// Its name.
        token: u64,
        /// What refused it, if something did.
        fault: Option<DatagramFault>,
    },
    /// A datagram arrived for a port that is bound.
    Datagram {
        /// Who sent it.
        peer: NodeId,
        /// From which port.
        source_port: u16,
        /// To which port.
        port: u16,
        /// Its payload.
        bytes: Bytes,
    },
    /// What one worker carries.
    Rows {
        /// The question.
        token: u64,
        /// Its streams.
        connections: Vec<ConnectionRow>,
        /// Its tunnels.
        peers: Vec<PeerRow>,
    },
}

/// Why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramFault {
    /// The registry does not know the peer, or it did not answer the key exchange.
    NoRoute,
    /// Too many wait for the tunnel to this peer, or there is no room for a tunnel.
    QueueFull,
    /// Longer than the path to this peer carries.
    TooLong {
        /// What it carries, in bytes of payload.
        len_max: usize,
    },
    /// The worker has ended.
    Down,
}

/// One stream, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRow {
    /// Unique in this node while it lives.
    pub id: u64,
    /// The other end.
    pub peer: NodeId,
    /// The port here.
    pub local_port: u16,
    /// The port there.
    pub remote_port: u16,
    /// Pilot's name of its state: `SYN_SENT`, `ESTABLISHED`, `FIN_WAIT`, `TIME_WAIT`.
    pub state: &'static str,
    /// Bytes that may be in flight.
    pub window: usize,
    /// Bytes that are.
    pub in_flight: usize,
    /// Segments that are not acknowledged.
    pub unacknowledged: usize,
    /// Segments that arrived ahead of a gap.
    pub out_of_order: usize,
    /// The peer's window, in segments.
    pub peer_window: u16,
    /// Ours.
    pub own_window: u16,
    /// Smoothed round trip, and its variation.
    pub round_trip: (Duration, Duration),
    /// Bytes sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Segments sent, repeats included.
    pub segments_sent: u64,
    /// Packets received.
    pub segments_received: u64,
    /// Segments that were repeated.
    pub retransmits: u64,
}

/// One tunnel, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    /// The node at its other end.
    pub node: NodeId,
    /// Where it is, as far as is known.
    pub endpoint: Option<SocketAddr>,
    /// Whether packets flow sealed: a session is up.
    pub encrypted: bool,
    /// Whether the session's key is vouched for by the registry's key of the node: always, once up.
    pub authenticated: bool,
    /// Whether it is reached through the beacon.
    pub relay: bool,
}
