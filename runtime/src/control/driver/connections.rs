//! The streams of driver clients.
//!
//! A stream has two tasks: one reads it into its client's outbox, as long as that has room; one
//! writes what the client sends, in order, and closes. The second outlives its client by at most
//! `client_linger`: a program that writes and ends loses nothing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::addr::{Address, SocketAddress};
use ramjet_proto::driver::{Reply, STREAM_BYTES_MAX};
use ramjet_proto::ids::{ConnectionId, NodeId};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;

use super::client::{Answer, Client};
use super::{CONNECTIONS_MAX, Hub};
use crate::control::ports::{Lender, Listener, ReadHalf, Stream, WriteHalf};

/// How long a dial may take: as long as a daemon's, from the first SYN to the last repeat.
const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// Rounds on a stream after which its client's line is lent; twice as many each time that this did not
/// pay, up to the most.
const ROUNDS_MIN: u64 = 4;
const ROUNDS_MAX: u64 = 1_024;
/// Frames after which lending a line has paid.
const LOAN_FRAMES_MIN: u64 = 64;
/// The ephemeral ports, from which a bind to port 0 is served.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// One stream of a client.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Whose.
    client: u32,
    pub(super) peer: NodeId,
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
    /// To the writing task; `None` once it is closed.
    outward: RefCell<Option<mpsc::UnboundedSender<Outward>>>,
    /// Told when nothing more is taken.
    shutting: Rc<Notify>,
    pub(super) lender: Lender,
    pub(super) rounds: Rounds,
    /// Something of what arrived is on its way into the outbox.
    bringing: Cell<bool>,
    halves: RefCell<Option<(ReadHalf, WriteHalf)>>,
    reading: RefCell<Option<AbortHandle>>,
    /// Who is told when it ends.
    owner: std::rc::Weak<Client>,
}

/// Whether a client and its peer speak on a stream by turns. Lending a line for such a dialogue costs about
/// what two rounds through control do, so it must go on for a while to be worth that.
#[derive(Debug)]
pub(super) struct Rounds {
    /// Something arrived since the client last spoke.
    answered: Cell<bool>,
    /// Rounds in a row.
    count: Cell<u64>,
    /// So many are a dialogue.
    wanted: Cell<u64>,
}

impl Default for Rounds {
    fn default() -> Self {
        Rounds {
            answered: Cell::new(false),
            count: Cell::new(0),
            wanted: Cell::new(ROUNDS_MIN),
        }
    }
}

impl Rounds {
    /// Something arrived.
    fn answered(&self) {
        self.answered.set(true);
    }

    /// The client spoke; whether this is a dialogue.
    pub(super) fn asked(&self) -> bool {
        let count = match self.answered.take() {
            true => self.count.get() + 1,
            false => 0,
        };
        self.count.set(count);
        count >= self.wanted.get()
    }

    /// A line came back after so many frames.
    pub(super) fn lent(&self, frames: u64) {
        let wanted = match frames < LOAN_FRAMES_MIN {
            true => (self.wanted.get() * 2).min(ROUNDS_MAX),
            false => ROUNDS_MIN,
        };
        self.wanted.set(wanted);
        self.count.set(0);
    }
}

/// What a client sends on a stream. Its place is counted against its client until it is written.
struct Outward(Bytes, OwnedSemaphorePermit);

/// What is said of a stream beyond the limit.
pub(super) fn full() -> String {
    format!("{CONNECTIONS_MAX} streams of local programs are open, the limit; close some")
}

impl Hub {
    pub(super) async fn dial(&self, to: SocketAddress) -> Result<Answer, String> {
        let dialed = self.ports.dial(to.address.node, to.port, DIAL_LIMIT).await;
        dialed
            .map(|stream| Answer::Dialed(Box::new(stream)))
            .map_err(|error| error.to_string())
    }

    pub(super) async fn send_to(
        &self,
        source_port: u16,
        to: SocketAddress,
        bytes: Bytes,
    ) -> Result<(), String> {
        let node = to.address.node;
        let sent = self
            .ports
            .send_datagram(node, source_port, to.port, bytes)
            .await;
        // The word by which pilotctl tells this error from those of other commands.
        sent.map_err(|error| format!("sendto: {error}"))
    }
}

impl Client {
    /// Gives a stream its number and its place; `None` if there is none, and the stream is reset.
    pub(super) fn adopt(self: &Rc<Self>, stream: Stream) -> Option<Rc<Connection>> {
        let hub = &self.hub;
        if hub.connections.borrow().len() >= CONNECTIONS_MAX {
            hub.count("driver_streams_refused");
            return None;
        }
        let id = hub.number_connection();
        let (peer, local_port, remote_port) =
            (stream.peer(), stream.local_port(), stream.remote_port());
        let connection = Rc::new(Connection {
            id,
            client: self.number,
            peer,
            local_port,
            remote_port,
            outward: RefCell::default(),
            shutting: Rc::default(),
            lender: stream.lender(),
            rounds: Rounds::default(),
            bringing: Cell::new(false),
            halves: RefCell::new(Some(stream.split())),
            reading: RefCell::default(),
            owner: Rc::downgrade(self),
        });
        hub.connections
            .borrow_mut()
            .insert(id, Rc::clone(&connection));
        Some(connection)
    }

    /// Reads and writes a stream from now on: after its client was told its number.
    pub(super) fn attend(self: &Rc<Self>, connection: Rc<Connection>) {
        let Some((read, write)) = connection.halves.take() else {
            return;
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        connection.outward.replace(Some(sender));
        let hub = Rc::downgrade(&self.hub);
        let (id, shutting) = (connection.id, Rc::clone(&connection.shutting));
        let linger = self.hub.timings().client_linger;
        tokio::task::spawn_local(async move {
            write_out(write, receiver, &shutting, linger).await;
            if let Some(hub) = hub.upgrade() {
                hub.connections.borrow_mut().remove(&id);
            }
        });
        let client = Rc::clone(self);
        let inward = Rc::clone(&connection);
        let reading = self.spawn(async move { client.read_in(&inward, read).await });
        connection.reading.replace(Some(reading));
    }

    /// Brings what arrives to the client, until the stream ends.
    async fn read_in(&self, connection: &Connection, mut read: ReadHalf) {
        // A reset looks like an end to a driver client: there is no other word for it.
        while let Ok(Some(bytes)) = read.read().await {
            connection.bringing.set(true);
            for bytes in bytes.chunks(STREAM_BYTES_MAX) {
                self.outbox.room().await;
                let connection = connection.id;
                self.outbox.push(Reply::Received { connection, bytes });
            }
            connection.bringing.set(false);
            connection.rounds.answered();
        }
        connection.shut();
        let connection = connection.id;
        self.outbox.push(Reply::Closed { connection });
    }

    /// Bytes for a stream of this client. There is no reply, so what cannot be sent is counted.
    pub(super) fn send(&self, id: ConnectionId, bytes: Bytes, permit: OwnedSemaphorePermit) {
        let connection = self.hub.connections.borrow().get(&id).cloned();
        let sent = connection
            .filter(|connection| connection.client == self.number)
            .and_then(|connection| {
                let outward = connection.outward.borrow();
                outward.as_ref()?.send(Outward(bytes, permit)).ok()
            });
        if sent.is_none() {
            self.hub.count("driver_sends_dropped");
        }
    }

    /// Closes a stream, of this client or of another; one that is gone is closed.
    pub(super) fn close(&self, id: ConnectionId) {
        let connection = self.hub.connections.borrow().get(&id).cloned();
        if let Some(connection) = connection {
            connection.close();
            if let Some(owner) = connection.owner.upgrade()
                && owner.number != self.number
            {
                owner.outbox.push(Reply::Closed { connection: id });
            }
        } else if self.hub.others.borrow().values().any(|other| *other == id) {
            let error = format!("close: connection {id} is a service's of this node, not closed");
            return self.error(&error);
        }
        self.outbox.push(Reply::Closed { connection: id });
    }

    /// Binds a port and accepts what comes to it.
    pub(super) fn bind(self: &Rc<Self>, port: u16) {
        let listener = match port {
            0 => EPHEMERAL
                .into_iter()
                .find_map(|port| self.hub.ports.listen(port).ok())
                .ok_or_else(|| "bind: every ephemeral port is bound".to_owned()),
            port => self.hub.ports.listen(port).map_err(|_| {
                format!("port {port} already bound; close its user or choose another")
            }),
        };
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return self.error(&error),
        };
        let port = listener.port();
        self.outbox.push(Reply::Bound { port });
        let client = Rc::clone(self);
        let accepting = self.spawn(async move { client.accept(listener).await });
        let mut bound = self.hub.bound.borrow_mut();
        bound.insert(port, (self.number, accepting));
    }

    async fn accept(self: Rc<Self>, mut listener: Listener) {
        let local_port = listener.port();
        while let Some(stream) = listener.accept().await {
            let remote = SocketAddress {
                address: Address::backbone(stream.peer()),
                port: stream.remote_port(),
            };
            let Some(connection) = self.adopt(stream) else {
                continue;
            };
            self.outbox.push(Reply::Accepted {
                local_port,
                connection: connection.id,
                remote,
            });
            self.attend(connection);
            self.outbox.room().await;
        }
    }

    /// Gives a port of this client back. Its streams stay.
    pub(super) fn unbind(&self, port: u16) {
        let mut bound = self.hub.bound.borrow_mut();
        match bound.get(&port) {
            Some((client, accepting)) if *client == self.number => {
                accepting.abort();
                bound.remove(&port);
                drop(bound);
                self.outbox.push(Reply::Unbound { port });
            }
            Some(_) => self.error(&format!("unbind: port {port} is not owned by this client")),
            None => self.error(&format!("unbind: port {port} is not bound")),
        }
    }

    /// Closes every stream of this client and forgets its ports; their tasks have ended.
    pub(super) fn release_all(&self) {
        let mut bound = self.hub.bound.borrow_mut();
        bound.retain(|_, (client, _)| *client != self.number);
        drop(bound);
        let own: Vec<_> = {
            let connections = self.hub.connections.borrow();
            let own = connections.values().filter(|c| c.client == self.number);
            own.cloned().collect()
        };
        for connection in own {
            if connection.halves.take().is_some() {
                // Never attended: dropping the halves resets it.
                self.hub.connections.borrow_mut().remove(&connection.id);
            }
            connection.close();
        }
    }
}

impl Connection {
    /// Whether it is of this client.
    pub(super) fn is_of(&self, client: &Client) -> bool {
        self.client == client.number
    }

    /// Whether everything that arrived is in the outbox.
    pub(super) fn is_read(&self) -> bool {
        !self.bringing.get() && self.lender.is_read()
    }

    /// Nothing more is read or taken; what was taken is sent, then the stream is closed.
    fn close(&self) {
        if let Some(reading) = self.reading.take() {
            reading.abort();
        }
        self.shut();
    }

    /// Nothing more is taken.
    fn shut(&self) {
        self.outward.take();
        self.shutting.notify_one();
    }
}

/// Writes what the client sends, in order, then closes the stream. Once nothing more is taken, what
/// is left has `linger`; then the stream is reset.
async fn write_out(
    mut write: WriteHalf,
    mut outward: mpsc::UnboundedReceiver<Outward>,
    shutting: &Notify,
    linger: Duration,
) {
    let writing = async {
        while let Some(Outward(bytes, permit)) = outward.recv().await {
            if write.write(bytes).await.is_err() {
                return;
            }
            drop(permit);
        }
    };
    let patience = async {
        shutting.notified().await;
        tokio::time::sleep(linger).await;
    };
    tokio::select! {
        () = writing => {}
        () = patience => return,
    }
    // What was not acknowledged in time is lost, as it is when a daemon closes.
    let _ = write.close().await;
}
