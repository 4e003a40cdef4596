//! Nodes that are alive, all on one thread: each registers, then sends its heartbeats and looks up
//! others when it is told to.
//!
//! As with real daemons, a connection carries one request at a time. A lookup is timed from the
//! moment it was due, so that what waits behind a heartbeat or for this thread counts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::message::MESSAGE_LEN_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::super::identity_file::throw_away;
use crate::control::pilot::{self, Asker, PilotAsk, PilotReply};
use crate::control::transport::append_frame;

/// Nodes that join at a time.
const JOINING_MAX: usize = 64;
/// How long any answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Latencies up to a minute, three digits.
const HIGHEST_NS: u64 = 60_000_000_000;

/// What nodes, and where.
pub(super) struct Joining {
    pub(super) registry: SocketAddr,
    /// The address of the first node; the others follow.
    pub(super) first: Ipv4Addr,
    pub(super) nodes: usize,
    pub(super) heartbeat: Duration,
}

/// A lookup to make.
pub(super) struct Order {
    pub(super) due: Instant,
    /// Place in the crowd of the node that is looked up.
    pub(super) wanted: usize,
}

/// What was measured since the last look.
pub(super) struct Tally {
    /// From due to answered, in nanoseconds.
    pub(super) lookups: Histogram<u64>,
    /// From sent to answered.
    pub(super) heartbeats: Histogram<u64>,
    failed: Option<String>,
}

impl Tally {
    fn new() -> Self {
        let empty = || Histogram::new_with_max(HIGHEST_NS, 3).expect("three digits, a minute");
        Tally {
            lookups: empty(),
            heartbeats: empty(),
            failed: None,
        }
    }
}

/// The nodes of one registry.
pub(super) struct Crowd {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<JoinHandle<()>>,
}

/// A node as it registered.
#[derive(Clone, Copy)]
struct Entry {
    node: NodeId,
    key: PublicKey,
}

impl Crowd {
    /// Lets all nodes join; how long that took.
    pub(super) fn join(joining: &Joining) -> Result<(Crowd, Duration), String> {
        let tally = Arc::new(Mutex::new(Tally::new()));
        let (ready, joined) = std::sync::mpsc::sync_channel(1);
        let plan = Joining { ..*joining };
        let shared = Arc::clone(&tally);
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("the nodes' runtime: {error}"))?;
        let live = move || {
            LocalSet::new().block_on(&runtime, async move {
                match enlist(&plan).await {
                    Ok(members) => {
                        let (orders, tasks) = settle(members, plan.heartbeat, &shared);
                        // Whoever waits has the orders, or is gone and drops them.
                        let _ = ready.send(Ok(orders));
                        for task in tasks {
                            let _ = task.await;
                        }
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
        };
        let thread = thread::Builder::new()
            .name("bench-nodes".to_owned())
            .spawn(live)
            .map_err(|error| format!("the nodes' thread: {error}"))?;
        let orders = joined
            .recv()
            .map_err(|_| "the nodes' thread stopped by a bug".to_owned())??;
        let crowd = Crowd {
            orders,
            tally,
            thread: Some(thread),
        };
        Ok((crowd, began.elapsed()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }

    /// Lets the node at `asker` look another one up.
    pub(super) fn order(&self, asker: usize, order: Order) -> Result<(), String> {
        self.orders[asker].send(order).map_err(|_| {
            self.failure()
                .unwrap_or_else(|| "a node has left".to_owned())
        })
    }

    /// How many lookups were answered since the last [`Self::take`], unless something went wrong.
    pub(super) fn answered(&self) -> Result<u64, String> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match &tally.failed {
            None => Ok(tally.lookups.len()),
            Some(failed) => Err(failed.clone()),
        }
    }

    /// What was measured since the last look.
    pub(super) fn take(&self) -> Tally {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = tally.failed.clone();
        std::mem::replace(
            &mut tally,
            Tally {
                failed,
                ..Tally::new()
            },
        )
    }

    fn failure(&self) -> Option<String> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.failed.clone()
    }

    /// Lets all nodes go; what went wrong until then.
    pub(super) fn leave(mut self) -> Result<(), String> {
        self.end();
        self.failure().map_or(Ok(()), Err)
    }

    fn end(&mut self) {
        self.orders.clear();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.failed = Some("the nodes' thread stopped by a bug".to_owned());
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

/// A node with its connection.
struct Member {
    entry: Entry,
    stream: TcpStream,
    heartbeat: Vec<u8>,
    buffer: Vec<u8>,
}

/// Registers all nodes, some at a time, in order of their addresses.
async fn enlist(plan: &Joining) -> Result<Vec<Member>, String> {
    let places = Rc::new(Semaphore::new(JOINING_MAX));
    let mut tasks = Vec::with_capacity(plan.nodes);
    for index in 0..plan.nodes {
        let places = Rc::clone(&places);
        let (registry, first) = (plan.registry, plan.first);
        tasks.push(tokio::task::spawn_local(async move {
            let _place = places.acquire().await.map_err(|error| error.to_string())?;
            Member::join(registry, first, index).await
        }));
    }
    let mut members = Vec::with_capacity(plan.nodes);
    for task in tasks {
        members.push(task.await.map_err(|error| error.to_string())??);
    }
    Ok(members)
}

/// Lets the nodes live until their orders end.
fn settle(
    members: Vec<Member>,
    heartbeat: Duration,
    tally: &Arc<Mutex<Tally>>,
) -> (
    Vec<mpsc::UnboundedSender<Order>>,
    Vec<tokio::task::JoinHandle<()>>,
) {
    let roster: Rc<[Entry]> = members.iter().map(|member| member.entry).collect();
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
    let mut orders = Vec::with_capacity(members.len());
    let mut tasks = Vec::with_capacity(members.len());
    for (index, mut member) in (0..).zip(members) {
        let (sender, receiver) = mpsc::unbounded_channel();
        orders.push(sender);
        let (roster, tally) = (Rc::clone(&roster), Arc::clone(tally));
        // Spread evenly: nodes that start at different times beat at different times.
        let first = Instant::now() + heartbeat.mul_f64(f64::from(index) / f64::from(count));
        tasks.push(tokio::task::spawn_local(async move {
            let lived = member
                .live(receiver, &roster, first, heartbeat, &tally)
                .await;
            if let Err(error) = lived {
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.failed.get_or_insert(error);
            }
        }));
    }
    (orders, tasks)
}

impl Member {
    async fn join(registry: SocketAddr, first: Ipv4Addr, index: usize) -> Result<Self, String> {
        let offset = u32::try_from(index).map_err(|error| error.to_string())?;
        let address = IpAddr::V4(Ipv4Addr::from(u32::from(first).wrapping_add(offset)));
        let named = |error: std::io::Error| format!("registry {registry}, from {address}: {error}");
        let socket = TcpSocket::new_v4().map_err(named)?;
        socket.bind(SocketAddr::new(address, 0)).map_err(named)?;
        let stream = timeout(ANSWER_MAX, socket.connect(registry))
            .await
            .map_err(|_| format!("registry {registry}, from {address}: no connection"))?
            .map_err(named)?;
        stream.set_nodelay(true).map_err(named)?;
        let identity = throw_away().map_err(|failure| failure.message)?;
        let mut member = Member {
            entry: Entry {
                node: NodeId(0),
                key: identity.public(),
            },
            stream,
            heartbeat: Vec::new(),
            buffer: Vec::new(),
        };
        let listen = SocketAddr::new(address, 4_000);
        let register = message(&identity, NodeId(0), listen, PilotAsk::Register);
        match pilot::read(PilotAsk::Register, member.ask(&register).await?) {
            PilotReply::Registered { node, .. } => member.entry.node = node,
            other => return Err(format!("register: {other:?}")),
        }
        // The text that a heartbeat signs never changes, and so neither does its signature.
        member.heartbeat = message(&identity, member.entry.node, listen, PilotAsk::Heartbeat);
        Ok(member)
    }

    async fn live(
        &mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        roster: &[Entry],
        first: Instant,
        every: Duration,
        tally: &Mutex<Tally>,
    ) -> Result<(), String> {
        let mut beat_at = first;
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = tokio::time::sleep_until(beat_at.into()) => {
                    let sent = Instant::now();
                    self.beat().await?;
                    note(tally, sent, |tally| &mut tally.heartbeats);
                    beat_at += every;
                    continue;
                }
            };
            let Some(order) = order else { return Ok(()) };
            self.look_up(roster[order.wanted]).await?;
            note(tally, order.due, |tally| &mut tally.lookups);
        }
    }

    async fn beat(&mut self) -> Result<(), String> {
        let beat = std::mem::take(&mut self.heartbeat);
        let reply = pilot::read(PilotAsk::Heartbeat, self.ask(&beat).await?);
        self.heartbeat = beat;
        match reply {
            PilotReply::Done => Ok(()),
            other => Err(format!("heartbeat of node {}: {other:?}", self.entry.node)),
        }
    }

    async fn look_up(&mut self, wanted: Entry) -> Result<(), String> {
        let ask = PilotAsk::Lookup(wanted.node);
        let request = format!(r#"{{"type":"lookup","node_id":{}}}"#, wanted.node);
        match pilot::read(ask, self.ask(request.as_bytes()).await?) {
            PilotReply::Found { key, .. } if key == wanted.key => Ok(()),
            other => Err(format!("lookup of node {}: {other:?}", wanted.node)),
        }
    }

    /// One request and its answer.
    async fn ask(&mut self, message: &[u8]) -> Result<&[u8], String> {
        let mut frame = Vec::with_capacity(4 + message.len());
        append_frame(&mut frame, message);
        let (stream, buffer) = (&mut self.stream, &mut self.buffer);
        let exchange = async {
            stream.write_all(&frame).await?;
            let length = stream.read_u32().await? as usize;
            if length > MESSAGE_LEN_MAX {
                return Err(std::io::Error::other(format!(
                    "an answer of {length} bytes"
                )));
            }
            buffer.resize(length, 0);
            stream.read_exact(buffer).await.map(drop)
        };
        match timeout(ANSWER_MAX, exchange).await {
            Ok(Ok(())) => Ok(&self.buffer),
            Ok(Err(error)) => Err(format!("the registry: {error}")),
            Err(_) => Err(format!("the registry: no answer within {ANSWER_MAX:?}")),
        }
    }
}

fn message(identity: &Identity, node: NodeId, listen: SocketAddr, ask: PilotAsk) -> Vec<u8> {
    Asker {
        identity,
        node,
        listen,
        owner: "bench",
        hostname: None,
        public: false,
    }
    .message(ask)
}

fn note(
    tally: &Mutex<Tally>,
    since: Instant,
    which: impl FnOnce(&mut Tally) -> &mut Histogram<u64>,
) {
    let elapsed_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(HIGHEST_NS);
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    which(&mut tally).saturating_record(elapsed_ns);
}
