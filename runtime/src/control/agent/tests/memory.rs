//! A network in memory: nodes with streams between them, and the registry's side of trust.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::host::{AgentListener, AgentStream, Host};
use crate::control::pilot::Call;
use crate::control::ports::Reach;

/// Writes are cut into pieces of this length, as segments would cut them.
const PIECE_LEN: usize = 4_000;
/// Pieces under way in one direction.
const PIECES_MAX: usize = 64;

/// The network and its registry.
#[derive(Clone, Default)]
pub(super) struct Network {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    listeners: RefCell<HashMap<(NodeId, u16), mpsc::UnboundedSender<MemoryStream>>>,
    nodes: RefCell<BTreeMap<NodeId, Member>>,
    /// Who reported trust in whom.
    reports: RefCell<HashSet<(NodeId, NodeId)>>,
    requests: RefCell<Vec<(NodeId, NodeId, String)>>,
    responses: RefCell<Vec<(NodeId, NodeId, bool)>>,
    clock_ms: Cell<u64>,
    /// Every call by its type, in order.
    calls: RefCell<Vec<String>>,
    /// Nobody reaches the registry.
    away: Cell<bool>,
    /// Dials of these ports fail.
    closed: RefCell<HashSet<u16>>,
}

struct Member {
    identity: Arc<Identity>,
    hostname: String,
    public: bool,
    polo: i64,
    reach: Reach,
}

impl Network {
    /// A network whose clock stands at some time of 2026.
    pub(super) fn new() -> Self {
        let network = Network::default();
        network.inner.clock_ms.set(1_777_000_000_000);
        network
    }

    /// A node of its own identity, at the registry.
    pub(super) fn host(&self, node: u32, public: bool) -> MemoryHost {
        let seed = u8::try_from(node).expect("small");
        let identity = Arc::new(Identity::from_seed([seed; 32]));
        let member = Member {
            identity: Arc::clone(&identity),
            hostname: format!("node-{node}"),
            public,
            polo: 0,
            reach: Reach::default(),
        };
        let node = NodeId(node);
        self.inner.nodes.borrow_mut().insert(node, member);
        MemoryHost {
            network: self.clone(),
            node,
            identity,
        }
    }

    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("short");
        self.inner.clock_ms.set(self.inner.clock_ms.get() + by);
    }

    pub(super) fn set_polo(&self, node: NodeId, polo: i64) {
        let mut nodes = self.inner.nodes.borrow_mut();
        nodes.get_mut(&node).expect("a node").polo = polo;
    }

    pub(super) fn polo(&self, node: NodeId) -> i64 {
        self.inner.nodes.borrow()[&node].polo
    }

    pub(super) fn reported(&self, node: NodeId, peer: NodeId) -> bool {
        self.inner.reports.borrow().contains(&(node, peer))
    }

    pub(super) fn reach(&self, node: NodeId) -> Reach {
        self.inner.nodes.borrow()[&node].reach.clone()
    }

    pub(super) fn set_away(&self, away: bool) {
        self.inner.away.set(away);
    }

    /// Lets dials of a port fail, or not.
    pub(super) fn close_port(&self, port: u16, closed: bool) {
        let mut ports = self.inner.closed.borrow_mut();
        if closed {
            ports.insert(port);
        } else {
            ports.remove(&port);
        }
    }

    pub(super) fn calls(&self, kind: &str) -> usize {
        let calls = self.inner.calls.borrow();
        calls.iter().filter(|call| *call == kind).count()
    }

    fn answer(&self, own: NodeId, message: &Value) -> Result<Value, String> {
        let inner = &self.inner;
        let id = |member: &str| {
            let number = message[member].as_u64().unwrap_or(0);
            NodeId(u32::try_from(number).expect("an id"))
        };
        let kind = message["type"].as_str().expect("a type");
        inner.calls.borrow_mut().push(kind.to_owned());
        let (node, peer) = (id("node_id"), id("peer_id"));
        let nodes = &inner.nodes;
        let polo_of = |node: NodeId| {
            let nodes = nodes.borrow();
            let member = nodes.get(&node).ok_or("node not found")?;
            Ok::<_, String>(member.polo)
        };
        match kind {
            "lookup" => {
                let nodes = nodes.borrow();
                let member = nodes.get(&node).ok_or(format!("node {node} not found"))?;
                let key = member.identity.public().to_base64();
                Ok(json!({"public_key": key, "public": member.public}))
            }
            "resolve_hostname" => {
                let nodes = nodes.borrow();
                let hostname = message["hostname"].as_str().unwrap_or_default();
                let found = nodes.iter().find(|(_, member)| member.hostname == hostname);
                let (node, _) = found.ok_or(format!("hostname {hostname:?} not found"))?;
                Ok(json!({"node_id": node}))
            }
            "report_trust" => {
                inner.reports.borrow_mut().insert((own, peer));
                Ok(json!({}))
            }
            "revoke_trust" => {
                let mut reports = inner.reports.borrow_mut();
                let was = reports.remove(&(own, peer)) | reports.remove(&(peer, own));
                was.then(|| json!({})).ok_or_else(|| "not found".to_owned())
            }
            "request_handshake" => {
                let justification = message["justification"].as_str().unwrap_or_default();
                let request = (own, id("to_node_id"), justification.to_owned());
                inner.requests.borrow_mut().push(request);
                Ok(json!({"status": "delivered"}))
            }
            "respond_handshake" => {
                let accept = message["accept"].as_bool().unwrap_or(false);
                inner.responses.borrow_mut().push((own, peer, accept));
                Ok(json!({}))
            }
            "poll_handshakes" => Ok(self.collect(own)),
            "authorize_task_submit" => {
                let needed = match message["min_polo"].as_i64() {
                    Some(min_polo) => min_polo,
                    None => polo_of(id("receiver_node_id"))?,
                };
                let authorized = polo_of(id("submitter_node_id"))? >= needed;
                Ok(json!({"authorized": authorized, "reason": "the score is too low"}))
            }
            "update_polo_score" => {
                let mut nodes = nodes.borrow_mut();
                let member = nodes.get_mut(&node).ok_or("node not found")?;
                member.polo += message["delta"].as_i64().unwrap_or(0);
                Ok(json!({}))
            }
            other => Err(format!("unknown message {other}")),
        }
    }

    fn collect(&self, own: NodeId) -> Value {
        let mut requests = Vec::new();
        self.inner.requests.borrow_mut().retain(|(from, to, why)| {
            if *to == own {
                requests.push(json!({"from_node_id": from, "justification": why}));
            }
            *to != own
        });
        let mut responses = Vec::new();
        self.inner.responses.borrow_mut().retain(|(from, to, yes)| {
            if *to == own {
                responses.push(json!({"from_node_id": from, "accept": yes}));
            }
            *to != own
        });
        json!({"requests": requests, "responses": responses})
    }
}

/// One node of the network.
#[derive(Clone)]
pub(super) struct MemoryHost {
    pub(super) network: Network,
    pub(super) node: NodeId,
    identity: Arc<Identity>,
}

impl Host for MemoryHost {
    type Stream = MemoryStream;
    type Listener = MemoryListener;

    fn node(&self) -> NodeId {
        self.node
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn unix_ns(&self) -> u64 {
        self.network.inner.clock_ms.get() * 1_000_000
    }

    async fn dial(&self, peer: NodeId, port: u16, _: Duration) -> Result<MemoryStream, String> {
        if self.network.inner.closed.borrow().contains(&port) {
            return Err(format!("node {peer} port {port}: closed by the test"));
        }
        let (ours, theirs) = pair(self.node, peer);
        let listeners = self.network.inner.listeners.borrow();
        let listener = listeners.get(&(peer, port));
        let refused = || format!("node {peer} port {port}: refused");
        let listener = listener.ok_or_else(refused)?;
        listener.send(theirs).map_err(|_| refused())?;
        Ok(ours)
    }

    fn listen(&self, port: u16) -> Result<MemoryListener, String> {
        let (sender, streams) = mpsc::unbounded_channel();
        let mut listeners = self.network.inner.listeners.borrow_mut();
        listeners.insert((self.node, port), sender);
        Ok(MemoryListener { streams })
    }

    async fn call(&self, call: Call) -> Result<Value, String> {
        // A registry is never asked and answers in one turn.
        tokio::task::yield_now().await;
        if self.network.inner.away.get() {
            return Err("registry: not reached".to_owned());
        }
        if let Some(challenge) = &call.challenge {
            let own = self.node.to_string();
            assert!(challenge.split(':').any(|part| part == own), "{challenge}");
        }
        self.network.answer(self.node, &call.message)
    }

    fn admit(&self, reach: Reach) {
        let mut nodes = self.network.inner.nodes.borrow_mut();
        nodes.get_mut(&self.node).expect("a node").reach = reach;
    }
}

pub(super) struct MemoryListener {
    streams: mpsc::UnboundedReceiver<MemoryStream>,
}

impl AgentListener for MemoryListener {
    type Stream = MemoryStream;

    async fn accept(&mut self) -> Option<MemoryStream> {
        self.streams.recv().await
    }
}

/// One end of a stream. As Pilot's, it ends for both when one end closes it.
pub(super) struct MemoryStream {
    peer: NodeId,
    /// `None` is the end; a channel that closes without it is a reset.
    out: mpsc::Sender<Option<Bytes>>,
    inbound: mpsc::Receiver<Option<Bytes>>,
    /// What was looked at and not taken.
    peeked: Option<Option<Bytes>>,
}

fn pair(one: NodeId, other: NodeId) -> (MemoryStream, MemoryStream) {
    let (to_other, from_one) = mpsc::channel(PIECES_MAX);
    let (to_one, from_other) = mpsc::channel(PIECES_MAX);
    let end = |peer, out, inbound| MemoryStream {
        peer,
        out,
        inbound,
        peeked: None,
    };
    (end(other, to_other, from_other), end(one, to_one, from_one))
}

impl AgentStream for MemoryStream {
    fn peer(&self) -> NodeId {
        self.peer
    }

    async fn read(&mut self) -> Result<Option<Bytes>, String> {
        let piece = match self.peeked.take() {
            Some(piece) => Some(piece),
            None => self.inbound.recv().await,
        };
        piece.ok_or_else(|| "reset".to_owned())
    }

    fn read_ready(&mut self) -> Option<Bytes> {
        if self.peeked.is_none() {
            self.peeked = self.inbound.try_recv().ok();
        }
        // The end is left for whoever waits for it.
        match &self.peeked {
            Some(Some(_)) => self.peeked.take()?,
            _ => None,
        }
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), String> {
        for piece in bytes.chunks(PIECE_LEN) {
            let piece = bytes.slice_ref(piece);
            self.out
                .send(Some(piece))
                .await
                .map_err(|_| "the peer has ended the stream".to_owned())?;
        }
        Ok(())
    }

    async fn close(self) -> Result<(), String> {
        // The peer may have closed first.
        let _ = self.out.send(None).await;
        Ok(())
    }
}
