//! Pilot streams and datagrams of one worker: between the tunnel, the table of sessions, and control.
//!
//! The protocol is [`ramjet_proto::stream`]; here its packets find their session, its bytes find
//! control or the echo, and what it wants to send finds a place in the outbox. A stream with
//! something to do is on one list and gets its turn with every pump, [`QUOTA`] bytes of new data at a
//! time; one that waits for time has a deadline.
//!
//! | part | does |
//! |---|---|
//! | `arrive` | packets: who may, to whom, which session; datagrams |
//! | `speak` | what sessions send, what control is told |
//! | `obey` | what control asks |
//! | `lines` | local clients that speak with their stream's worker themselves |
//!
//! The echo of port 7 is answered here, inside the worker. Absent: what streams are for; other ports
//! are served on the control thread.

mod arrive;
mod lines;
mod obey;
mod replies;
mod speak;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use core::time::Duration;
use ramjet_proto::ids::NodeId;
use ramjet_proto::stream::{Streams, Ticket};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;

use self::lines::Lent;
use self::replies::Replies;
use super::deadlines::Deadlines;
use crate::control::vocabulary::{Reach, StreamId};

/// The port that sends back what it is sent.
pub const ECHO_PORT: u16 = 7;
/// The port where trust is asked for: open to everybody.
pub const TRUST_PORT: u16 = 444;
/// Bytes of new data that one stream may send before the next has its turn.
const QUOTA: usize = 128 << 10;
/// Bytes that left before control is told: a quarter of what it lets a writer have unsent.
const SENT_STEP: usize = 256 << 10;
/// Streams whose timers run in one turn, so that a turn stays bounded.
const STREAMS_PER_TURN: usize = 256;
/// Datagrams that wait for the tunnel to one peer, and peers that they wait for.
const WAITING_MAX: usize = 64;
const WAITING_PEERS_MAX: usize = 256;
/// Looks at what waits for others to act, where nothing tells.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// To whom a stream belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// The echo.
    Echo,
    /// Control, which has been told of it.
    Control,
    /// Control, whose dial it is.
    Dial(u64),
    /// Nobody any more.
    Nobody,
}

/// What stands beside each session.
#[derive(Debug)]
struct Own {
    tunnel: TunnelHandle,
    service: Service,
    /// It is on the list of those with something to do.
    active: bool,
    /// It is on the list of those that only remember.
    remembered: bool,
    /// Repeats of its segments as of the last look.
    repeats: u64,
    /// What arrived, in so many reports to control.
    told: u64,
    /// The socket of the client whose stream it is, while it is lent.
    line: Option<Box<Lent>>,
    /// Bytes that came by a line and have not left.
    unbilled: usize,
}

impl Own {
    fn new(tunnel: TunnelHandle, service: Service) -> Self {
        Own {
            tunnel,
            service,
            active: false,
            remembered: false,
            repeats: 0,
            told: 0,
            line: None,
            unbilled: 0,
        }
    }
}

/// A datagram that waits for its tunnel.
struct WaitingDatagram {
    token: u64,
    source_port: u16,
    port: u16,
    bytes: Bytes,
}

/// The streams of one worker, and what its ports are.
pub struct StreamRoom {
    worker: u16,
    table: Streams<Own>,
    deadlines: Deadlines,
    active: VecDeque<Ticket>,
    /// Those that wait for room on a path that others have filled.
    held: Vec<Ticket>,
    listening: HashSet<u16>,
    bound: HashSet<u16>,
    dials: HashMap<u64, Ticket>,
    waiting: HashMap<NodeId, Vec<WaitingDatagram>>,
    reach: Arc<Reach>,
    replies: Replies,
    /// Places of the streams whose lines went back and may still be watched.
    returned: Vec<u32>,
    echo: bool,
}

impl StreamRoom {
    /// No streams; whether the echo is on, and whether everyone may reach the ports until control
    /// says who may.
    pub fn new(worker: usize, echo: bool, public: bool) -> Self {
        StreamRoom {
            worker: u16::try_from(worker).expect("at most 256 workers"),
            table: Streams::default(),
            deadlines: Deadlines::default(),
            active: VecDeque::new(),
            held: Vec::new(),
            listening: HashSet::new(),
            bound: HashSet::new(),
            dials: HashMap::new(),
            waiting: HashMap::new(),
            reach: Arc::new(Reach {
                public,
                trusted: HashSet::new(),
            }),
            replies: Replies::default(),
            returned: Vec::new(),
            echo,
        }
    }

    /// Whether somebody takes datagrams of this port: by itself, or with all that nobody has bound.
    pub fn is_bound(&self, port: u16) -> bool {
        self.bound.contains(&port) || self.bound.contains(&0)
    }

    /// When any stream wants to be looked at next.
    pub fn next_due(&self, now: Time) -> Time {
        if self.held.is_empty() && self.active.is_empty() {
            self.deadlines.next()
        } else {
            self.deadlines.next().min(now + LOOK_AGAIN)
        }
    }

    fn id(&self, ticket: Ticket) -> StreamId {
        StreamId {
            worker: self.worker,
            place: ticket.place,
            generation: ticket.generation,
        }
    }

    /// Puts a stream on the list of those with something to do.
    fn activate(&mut self, ticket: Ticket) {
        if let Some(tenant) = self.table.tenant_mut(ticket)
            && !std::mem::replace(&mut tenant.own.active, true)
        {
            self.active.push_back(ticket);
        }
    }

    /// Takes a stream out of everything.
    fn remove(&mut self, ticket: Ticket) {
        if let Some(tenant) = self.table.remove(ticket) {
            self.deadlines.remove(ticket.place);
            if let Service::Dial(dial) = tenant.own.service {
                self.dials.remove(&dial);
            }
        }
    }
}

fn ticket(stream: StreamId) -> Ticket {
    Ticket {
        place: stream.place,
        generation: stream.generation,
    }
}
