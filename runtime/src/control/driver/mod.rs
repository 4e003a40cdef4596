//! The driver socket: Pilot's command line and SDK, and programs in other languages, at their node.
//!
//! `local` accepts connections and tells by the first frame which of its two protocols a client
//! speaks; a connection that says nothing is a driver client too, for it gets the datagrams. The
//! words are [`ramjet_proto::driver`]'s; this is what they do.
//!
//! | file | holds |
//! |---|---|
//! | `client` | one connection: reading, order of replies, what happens when it leaves |
//! | `outbox` | what waits to be written to a client, bounded, and who is too slow |
//! | `connections` | streams of clients: dialed, accepted, written, read, closed |
//! | `answers` | info and health as JSON |
//! | `registry` | commands that the registry answers: names, tags, networks, envelopes |
//! | `market`, [`external`] | the task market for programs in other languages; handlers that are such programs |
//! | `trust` | trust between nodes, as the services keep it |
//!
//! Invariants: replies to commands of one code leave in the order of the commands; a client holds at
//! most [`client::IN_FLIGHT_MAX`] commands, [`client::UNSENT_MAX`] bytes on their way to its streams
//! and about [`outbox::OUTBOX_MAX`] bytes on their way to it; what it leaves behind is closed, freed
//! and unbound; what is dropped is counted by name. Everything runs on the control thread, but for a
//! client that speaks by turns on one stream: its socket is lent to that stream's worker, and nobody
//! here reads or writes it until it comes back. Absent: who may connect, which is `local`'s.

mod answers;
mod client;
mod connections;
pub(crate) mod external;
mod market;
mod outbox;
mod registry;
mod trust;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::ConnectionId;
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

use self::connections::Connection;
use self::external::Places;
use super::ControlTimings;
use super::agent::{Agent, NodeHost};
use super::handle::ControlHandle;
use super::ports::{Datagram, Ports};

pub(crate) use self::client::Entrance;

/// Datagrams that wait for a client; the oldest are dropped.
const DATAGRAMS_MAX: usize = 256;
/// Streams of all clients at a time.
const CONNECTIONS_MAX: usize = 4_096;

/// Counters by name, which the node's status shows.
pub(crate) type Counters = Rc<RefCell<BTreeMap<&'static str, u64>>>;

/// What all driver clients of a node share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Driver {
    hub: Rc<Hub>,
}

struct Hub {
    ports: Ports,
    handle: ControlHandle,
    identity: Arc<Identity>,
    /// Whom the node trusts, and who asks for it.
    agent: Rc<Agent<NodeHost>>,
    connections: RefCell<BTreeMap<ConnectionId, Rc<Connection>>>,
    /// Names of streams that are no client's, for `connections`; by the workers' number.
    others: RefCell<HashMap<u64, ConnectionId>>,
    /// Bound ports: whose, and the task that accepts.
    bound: RefCell<BTreeMap<u16, (u32, AbortHandle)>>,
    datagrams: broadcast::Sender<Datagram>,
    counters: Counters,
    /// Places for the skills of programs, which the workers' pool runs.
    places: Places,
    next_client: Cell<u32>,
    next_connection: Cell<u32>,
    next_task: Cell<u64>,
}

impl Driver {
    /// Serves clients with the node's ports and its services' trust; must be called on the control
    /// thread.
    pub(crate) fn new(host: NodeHost, agent: Rc<Agent<NodeHost>>, places: Places) -> Self {
        let NodeHost {
            ports,
            handle,
            identity,
        } = host;
        let (datagrams, _) = broadcast::channel(DATAGRAMS_MAX);
        let hub = Rc::new(Hub {
            ports,
            handle,
            identity,
            agent,
            connections: RefCell::default(),
            others: RefCell::default(),
            bound: RefCell::default(),
            datagrams,
            counters: Counters::default(),
            next_client: Cell::new(1),
            next_connection: Cell::new(1),
            next_task: Cell::new(1),
            places,
        });
        Driver { hub }
    }

    /// Takes the datagrams that are for none of the node's services, for the clients that come.
    pub(crate) fn open(&self) {
        tokio::task::spawn_local(spread_datagrams(Rc::downgrade(&self.hub)));
    }

    /// Events by name since the start.
    pub(crate) fn counters(&self) -> Counters {
        Rc::clone(&self.hub.counters)
    }
}

/// Gives every client the datagrams that are for none of the node's services.
async fn spread_datagrams(hub: std::rc::Weak<Hub>) {
    let Some(mut datagrams) = hub.upgrade().and_then(|hub| hub.ports.bind_rest().ok()) else {
        return;
    };
    while let Some(datagram) = datagrams.receive().await {
        let Some(hub) = hub.upgrade() else { return };
        if hub.datagrams.send(datagram).is_err() {
            hub.count("driver_datagrams_unwanted");
        }
    }
}

impl Hub {
    fn timings(&self) -> &ControlTimings {
        &self.handle.shared.timings
    }

    fn count(&self, name: &'static str) {
        self.count_many(name, 1);
    }

    fn count_many(&self, name: &'static str, count: u64) {
        *self.counters.borrow_mut().entry(name).or_default() += count;
    }

    fn number_task(&self) -> u64 {
        let number = self.next_task.get();
        self.next_task.set(number + 1);
        number
    }

    fn number_client(&self) -> u32 {
        let number = self.next_client.get();
        self.next_client.set(number.wrapping_add(1));
        number
    }

    /// A number that no stream has: never 0, which reads like none.
    fn number_connection(&self) -> ConnectionId {
        let connections = self.connections.borrow();
        let others = self.others.borrow();
        loop {
            let id = ConnectionId(self.next_connection.get());
            self.next_connection.set(id.0.wrapping_add(1));
            let taken = connections.contains_key(&id) || others.values().any(|other| *other == id);
            if id.0 != 0 && !taken {
                return id;
            }
        }
    }
}
