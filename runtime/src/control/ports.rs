//! The node's virtual ports: Pilot streams and datagrams, for whoever runs on the control thread.
//!
//! The protocol is the workers' ([`crate::worker`]); this is its asynchronous face. Commands go
//! straight into the queue of the worker that owns the tunnel to the peer; what finds it full, or
//! finds no worker yet, waits here in order and goes with the control thread's next turn. The thread
//! hands every report about them to `Ports::report`.
//!
//! Everything is single-threaded and `!Send`. Invariants: a stream has one reader and one writer;
//! bytes that wait unread are bounded by the stream's receive window, bytes that wait unsent by
//! [`UNSENT_MAX`] and one write; a listener holds [`ACCEPTS_MAX`] streams and a bound port
//! [`DATAGRAMS_MAX`] datagrams that nobody has taken yet. Absent: names; a peer is its node id.

mod errors;
mod reports;
mod stream;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::ids::NodeId;
use tokio::sync::{Notify, oneshot};

pub(crate) use self::errors::{BindError, DialError, SendError, StreamError};
use self::stream::StreamState;
pub(crate) use self::stream::{Lender, ReadHalf, Stream, WriteHalf};
use super::vocabulary::{Command, DatagramFault, DialFault, StreamCommand, StreamId};
pub(crate) use super::vocabulary::{ConnectionRow, PeerRow, Reach};
use crate::worker::mailbox::Mailbox;
use crate::worker::owner_of;

/// Streams that wait for [`Listener::accept`]; the next is reset.
pub(crate) const ACCEPTS_MAX: usize = 64;
/// Datagrams that wait for [`Datagrams::receive`]; the next is dropped and counted.
pub(crate) const DATAGRAMS_MAX: usize = 256;
/// Bytes of a stream that may be unsent before [`Stream::write`] waits.
pub(crate) const UNSENT_MAX: usize = 1 << 20;
/// What stands for every port that is not bound by itself, to the workers too.
const REST: u16 = 0;
/// The longest that the workers are waited for with a question about what they carry.
const ROWS_PATIENCE: Duration = Duration::from_secs(2);

/// The node's virtual ports. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ports {
    inner: Rc<Inner>,
}

struct Inner {
    /// By worker: its queue, once it runs, and what waits for room in it.
    workers: RefCell<Vec<Way>>,
    tables: RefCell<Tables>,
    /// Datagrams that nobody took in time.
    datagrams_dropped: Cell<u64>,
    /// Streams that were reset because too many waited before them.
    accepts_dropped: Cell<u64>,
    /// Something waits for a worker's queue.
    waiting: Notify,
    next: Cell<u64>,
}

#[derive(Default)]
struct Way {
    mailbox: Option<Mailbox>,
    backlog: VecDeque<StreamCommand>,
    ended: bool,
}

#[derive(Default)]
struct Tables {
    streams: HashMap<StreamId, Rc<StreamState>>,
    dials: HashMap<u64, Dialing>,
    listeners: HashMap<u16, Rc<Waiting<Stream>>>,
    bound: HashMap<u16, Rc<Waiting<Datagram>>>,
    sends: HashMap<u64, (usize, oneshot::Sender<Option<DatagramFault>>)>,
    questions: HashMap<u64, Question>,
}

impl Tables {
    /// Who takes the datagrams for a port.
    fn bound_for(&self, port: u16) -> Option<&Rc<Waiting<Datagram>>> {
        self.bound.get(&port).or_else(|| self.bound.get(&REST))
    }
}

struct Dialing {
    worker: usize,
    peer: NodeId,
    port: u16,
    answer: oneshot::Sender<Result<Stream, DialFault>>,
}

struct Question {
    missing: usize,
    connections: Vec<ConnectionRow>,
    peers: Vec<PeerRow>,
    answer: oneshot::Sender<(Vec<ConnectionRow>, Vec<PeerRow>)>,
}

/// What arrived for a port and waits to be taken.
struct Waiting<T> {
    queue: RefCell<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Waiting<T> {
    fn new() -> Rc<Self> {
        Rc::new(Waiting {
            queue: RefCell::default(),
            arrived: Notify::new(),
        })
    }

    /// Adds one, unless `max` wait.
    fn push(&self, one: T, max: usize) -> Result<(), T> {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= max {
            return Err(one);
        }
        queue.push_back(one);
        self.arrived.notify_one();
        Ok(())
    }

    async fn take(&self) -> T {
        loop {
            let first = self.queue.borrow_mut().pop_front();
            match first {
                Some(one) => return one,
                None => self.arrived.notified().await,
            }
        }
    }
}

/// One Pilot datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    /// Who sent it.
    pub(crate) peer: NodeId,
    /// From which port.
    pub(crate) source_port: u16,
    /// To which port.
    pub(crate) port: u16,
    /// Its payload.
    pub(crate) bytes: Bytes,
}

/// Streams that peers open to one port. Dropping it unbinds the port and resets those that wait.
pub(crate) struct Listener {
    ports: Ports,
    port: u16,
    waiting: Rc<Waiting<Stream>>,
}

impl Listener {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next stream. `None` never comes while the node runs.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        Some(self.waiting.take().await)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let port = self.port;
        let waiting = self.ports.inner.tables.borrow_mut().listeners.remove(&port);
        self.ports.tell_all(|| StreamCommand::Unlisten { port });
        // Streams reset themselves as they are dropped, for which the tables must be free.
        drop(waiting);
    }
}

/// Datagrams that arrive for one port. Dropping it unbinds the port.
pub(crate) struct Datagrams {
    ports: Ports,
    port: u16,
    waiting: Rc<Waiting<Datagram>>,
}

impl Datagrams {
    /// The next datagram. `None` never comes while the node runs.
    pub(crate) async fn receive(&mut self) -> Option<Datagram> {
        Some(self.waiting.take().await)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        let port = self.port;
        self.ports.inner.tables.borrow_mut().bound.remove(&port);
        self.ports.tell_all(|| StreamCommand::Unbind { port });
    }
}

/// Gives up a dial that nobody waits for any more.
struct DialGuard<'a> {
    ports: &'a Ports,
    dial: u64,
}

impl Drop for DialGuard<'_> {
    fn drop(&mut self) {
        let dialing = self
            .ports
            .inner
            .tables
            .borrow_mut()
            .dials
            .remove(&self.dial);
        if let Some(Dialing { worker, peer, .. }) = dialing {
            let dial = self.dial;
            self.ports
                .tell(worker, StreamCommand::CancelDial { dial, peer });
        }
    }
}

impl Ports {
    /// Opens a Pilot stream to a node: asks the registry who it is, brings up the tunnel if there is
    /// none, and asks the peer; `limit` bounds all of it. Dropping the future gives it up.
    ///
    /// # Errors
    /// [`DialError`]: which node and port, and what was in the way.
    pub(crate) async fn dial(
        &self,
        peer: NodeId,
        port: u16,
        limit: Duration,
    ) -> Result<Stream, DialError> {
        let dial = self.number();
        let worker = self.owner(peer);
        let (answer, answered) = oneshot::channel();
        let dialing = Dialing {
            worker,
            peer,
            port,
            answer,
        };
        self.inner.tables.borrow_mut().dials.insert(dial, dialing);
        let guard = DialGuard { ports: self, dial };
        let command = StreamCommand::Dial {
            dial,
            peer,
            port,
            limit,
        };
        self.tell(worker, command);
        let outcome = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(DialFault::Down),
            Err(_) => Err(DialFault::TimedOut),
        };
        drop(guard);
        outcome.map_err(|fault| DialError {
            peer,
            port,
            limit,
            fault,
        })
    }

    /// Streams that peers open to this port; [`ACCEPTS_MAX`] may wait. Dropping it unbinds the port.
    ///
    /// # Errors
    /// [`BindError`]: the port is 0 or has a listener.
    pub(crate) fn listen(&self, port: u16) -> Result<Listener, BindError> {
        let waiting = Waiting::new();
        let listeners = &mut self.inner.tables.borrow_mut().listeners;
        if port == 0 || listeners.contains_key(&port) {
            return Err(BindError { port });
        }
        listeners.insert(port, Rc::clone(&waiting));
        self.tell_all(|| StreamCommand::Listen { port });
        Ok(Listener {
            ports: self.clone(),
            port,
            waiting,
        })
    }

    /// Sends one Pilot datagram, which is not acknowledged and may be lost. Brings up the tunnel if
    /// there is none.
    ///
    /// # Errors
    /// [`SendError`]: too long for the path, no way to the peer, or too many wait.
    pub(crate) async fn send_datagram(
        &self,
        peer: NodeId,
        source_port: u16,
        port: u16,
        bytes: Bytes,
    ) -> Result<(), SendError> {
        let (token, len) = (self.number(), bytes.len());
        let worker = self.owner(peer);
        let (answer, answered) = oneshot::channel();
        self.inner
            .tables
            .borrow_mut()
            .sends
            .insert(token, (worker, answer));
        let command = StreamCommand::SendDatagram {
            token,
            peer,
            source_port,
            port,
            bytes,
        };
        self.tell(worker, command);
        match answered.await.unwrap_or(Some(DatagramFault::Down)) {
            None => Ok(()),
            Some(fault) => Err(SendError { peer, len, fault }),
        }
    }

    #[cfg(test)]
    /// Datagrams that arrive for a port; [`DATAGRAMS_MAX`] may wait, more are dropped and counted.
    ///
    /// # Errors
    /// [`BindError`]: the port is 0 or bound.
    pub(crate) fn bind(&self, port: u16) -> Result<Datagrams, BindError> {
        if port == REST {
            return Err(BindError { port });
        }
        self.bind_any(port)
    }

    fn bind_any(&self, port: u16) -> Result<Datagrams, BindError> {
        let waiting = Waiting::new();
        let bound = &mut self.inner.tables.borrow_mut().bound;
        if bound.contains_key(&port) {
            return Err(BindError { port });
        }
        bound.insert(port, Rc::clone(&waiting));
        self.tell_all(|| StreamCommand::Bind { port });
        Ok(Datagrams {
            ports: self.clone(),
            port,
            waiting,
        })
    }

    /// Datagrams that arrive for ports that nobody has bound.
    ///
    /// # Errors
    /// [`BindError`], of port 0: somebody takes them already.
    pub(crate) fn bind_rest(&self) -> Result<Datagrams, BindError> {
        self.bind_any(REST)
    }

    /// Ports that have a listener.
    pub(crate) fn listening(&self) -> usize {
        self.inner.tables.borrow().listeners.len()
    }

    /// Streams that were reset because too many waited before them, since the start.
    pub(crate) fn accepts_dropped(&self) -> u64 {
        self.inner.accepts_dropped.get()
    }

    /// Who may reach this node's ports: replaced whole whenever trust or visibility changes.
    pub(crate) fn admit(&self, reach: Reach) {
        let reach = Arc::new(reach);
        self.tell_all(|| StreamCommand::Admit(Arc::clone(&reach)));
    }

    /// Datagrams for bound ports that nobody took in time, since the start.
    pub(crate) fn datagrams_dropped(&self) -> u64 {
        self.inner.datagrams_dropped.get()
    }

    /// Live streams and tunnels, as `pilotctl connections` and `peers` show them.
    pub(crate) async fn rows(&self) -> (Vec<ConnectionRow>, Vec<PeerRow>) {
        let running = {
            let workers = self.inner.workers.borrow();
            let runs = |way: &Way| way.mailbox.is_some() && !way.ended;
            (0..workers.len())
                .filter(|worker| runs(&workers[*worker]))
                .collect::<Vec<_>>()
        };
        if running.is_empty() {
            return Default::default();
        }
        let token = self.number();
        let (answer, answered) = oneshot::channel();
        let question = Question {
            missing: running.len(),
            connections: Vec::new(),
            peers: Vec::new(),
            answer,
        };
        let tables = &self.inner.tables;
        tables.borrow_mut().questions.insert(token, question);
        for worker in running {
            self.tell(worker, StreamCommand::Rows { token });
        }
        let rows = tokio::time::timeout(ROWS_PATIENCE, answered).await;
        tables.borrow_mut().questions.remove(&token);
        // A worker that does not answer has ended, and so have its streams.
        rows.ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl Ports {
    fn number(&self) -> u64 {
        let number = self.inner.next.get();
        self.inner.next.set(number + 1);
        number
    }

    fn owner(&self, peer: NodeId) -> usize {
        owner_of(peer, self.inner.workers.borrow().len())
    }

    fn tell_all(&self, command: impl Fn() -> StreamCommand) {
        let workers = self.inner.workers.borrow().len();
        for worker in 0..workers {
            self.tell(worker, command());
        }
    }

    /// A command to a worker: at once if its queue has room and nothing waits before it.
    fn tell(&self, worker: usize, command: StreamCommand) {
        let mut workers = self.inner.workers.borrow_mut();
        let Some(way) = workers.get_mut(worker).filter(|way| !way.ended) else {
            return;
        };
        let refused = match &way.mailbox {
            Some(mailbox) if way.backlog.is_empty() => mailbox.send(Command::Stream(command)).err(),
            _ => Some(Command::Stream(command)),
        };
        if let Some(Command::Stream(command)) = refused {
            way.backlog.push_back(command);
            self.inner.waiting.notify_one();
        }
    }
}
