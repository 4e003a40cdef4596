//! A registry of the size of a test: just enough of both protocols, with a hand on every failure.
//!
//! Its state outlives its connections, so that a kill and a restart on the same port can be played
//! in one process. Whatever is settled is counted, so that a test can say "exactly once".

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, GrantMessage, Push, Refusal, RefusalCode, Reply, ReplyBody, Request, RequestBody,
    Settlement, Standing, prove_bytes,
};
use ramjet_proto::market::{Advertisement, Gate, Grant, Offer, SignedReceipt};
use serde_json::{Value, json};

use crate::control::transport::append_frame;
use crate::worker::clock::unix_ms;

/// How the registry misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mischief {
    /// Answers every standing by bytes that are no JSON.
    pub(super) garbage: bool,
    /// Answers every standing by a length beyond every limit.
    pub(super) endless: bool,
    /// Closes the market connection on the next settle, before answering, after applying it.
    pub(super) drop_settle: bool,
    /// Closes the market connection on the next offer, before answering, after applying it.
    pub(super) drop_offer: bool,
    /// Says nothing to standings.
    pub(super) mute: bool,
}

#[derive(Clone)]
struct Known {
    key: PublicKey,
    endpoint: String,
    polo: i64,
}

/// One engagement as the registry stands.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) grant: Grant,
    pub(super) k: u32,
    pub(super) accepted: u64,
    /// Settlements that changed something: one for each k that arrived in order.
    pub(super) settlements: u32,
    pub(super) released: Option<String>,
}

#[derive(Default)]
pub(super) struct State {
    nodes: Vec<Known>,
    advertised: BTreeMap<NodeId, Advertisement>,
    offers: BTreeMap<OfferId, (Offer, Option<EngagementId>)>,
    pub(super) rows: BTreeMap<EngagementId, Row>,
    pushed: BTreeMap<NodeId, TcpStream>,
    pub(super) mischief: Mischief,
    pub(super) heartbeats: usize,
    pub(super) offers_heard: usize,
}

/// The registry and its threads.
pub(super) struct Toy {
    pub(super) address: SocketAddr,
    pub(super) identity: Arc<Identity>,
    state: Arc<Mutex<State>>,
    running: Option<Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: JoinHandle<()>,
}

impl Toy {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut toy = Toy {
            address: listener.local_addr().expect("bound"),
            identity: Arc::new(Identity::from_seed([200; 32])),
            state: Arc::default(),
            running: None,
        };
        toy.run(listener);
        toy
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }

    /// Ends every connection at once and stops listening: what a kill looks like from outside.
    pub(super) fn kill(&mut self) {
        let Some(Running {
            stop,
            streams,
            accepting,
        }) = self.running.take()
        else {
            return;
        };
        stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        accepting.join().expect("the accepting thread");
        for stream in streams.lock().expect("no handler panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.state().pushed.clear();
    }

    /// Listens on the same port, with the state it had.
    pub(super) fn restart(&mut self) {
        self.run(TcpListener::bind(self.address).expect("the port is still ours"));
    }

    fn run(&mut self, listener: TcpListener) {
        let stop = Arc::new(AtomicBool::new(false));
        let streams: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (state, identity) = (Arc::clone(&self.state), Arc::clone(&self.identity));
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&streams));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.expect("an accepted connection");
                let copy = stream.try_clone().expect("a descriptor");
                kept.lock().expect("no handler panics").push(copy);
                let session = Session {
                    state: Arc::clone(&state),
                    identity: Arc::clone(&identity),
                    stream,
                    node: NodeId(0),
                };
                std::thread::spawn(move || session.run());
            }
        });
        self.running = Some(Running {
            stop,
            streams,
            accepting,
        });
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Session {
    state: Arc<Mutex<State>>,
    identity: Arc<Identity>,
    stream: TcpStream,
    node: NodeId,
}

impl Session {
    fn run(mut self) {
        loop {
            let mut prefix = [0; 4];
            if self.stream.read_exact(&mut prefix).is_err() {
                return;
            }
            let mut message = vec![0; u32::from_be_bytes(prefix) as usize];
            if self.stream.read_exact(&mut message).is_err() {
                return;
            }
            let value: Value = serde_json::from_slice(&message).expect("a node sends JSON");
            let kind = value["type"]
                .as_str()
                .expect("a node names its requests")
                .to_owned();
            let state = Arc::clone(&self.state);
            let mut state = state.lock().expect("no handler panics");
            let goes_on = if kind.starts_with("market_") {
                let request: Request = serde_json::from_slice(&message).expect("a request");
                self.market(&mut state, request)
            } else {
                let reply = self.pilot(&mut state, &kind, &value);
                send(&self.stream, &reply.to_string().into_bytes())
            };
            if !goes_on {
                let _ = self.stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn pilot(&self, state: &mut State, kind: &str, value: &Value) -> Value {
        let node = value["node_id"]
            .as_u64()
            .and_then(|id| usize::try_from(id).ok());
        let known = node.and_then(|id| state.nodes.get(id.checked_sub(1)?).cloned());
        match (kind, known) {
            ("register", _) => {
                let key = value["public_key"]
                    .as_str()
                    .and_then(PublicKey::from_base64);
                let key = key.expect("a key");
                let endpoint = value["listen_addr"]
                    .as_str()
                    .expect("an endpoint")
                    .to_owned();
                let index = state.nodes.iter().position(|node| node.key == key);
                let index = index.unwrap_or_else(|| {
                    state.nodes.push(Known {
                        key,
                        endpoint: endpoint.clone(),
                        polo: 0,
                    });
                    state.nodes.len() - 1
                });
                state.nodes[index].endpoint = endpoint;
                let id = index + 1;
                json!({"type": "register_ok", "node_id": id, "network_id": 0,
                    "address": format!("0:0000.0000.{id:04X}"), "public_key": key.to_base64()})
            }
            ("heartbeat", Some(_)) => {
                state.heartbeats += 1;
                json!({"type": "heartbeat_ok", "time": 0})
            }
            ("lookup", Some(known)) => json!({"type": "lookup_ok", "node_id": node,
                "public_key": known.key.to_base64(), "real_addr": known.endpoint}),
            ("set_visibility" | "set_hostname" | "report_trust", Some(_)) => {
                json!({"type": format!("{kind}_ok")})
            }
            _ => json!({"type": "error", "error": format!("{kind}: node not found")}),
        }
    }

    fn market(&mut self, state: &mut State, Request { id, body }: Request) -> bool {
        let mischief = state.mischief;
        let body = match body {
            RequestBody::Hello { node } => {
                self.node = node;
                ReplyBody::Hello {
                    nonce: Base64Bytes(vec![7; 32]),
                    registry_key: self.identity.public(),
                }
            }
            RequestBody::Prove { signature } => {
                let known = &state.nodes[self.node.0 as usize - 1];
                let proof = prove_bytes(self.node, &[7; 32]);
                assert!(
                    known.key.verifies(&proof, &signature.0),
                    "the proof verifies"
                );
                let polo = known.polo;
                let push = self.stream.try_clone().expect("a descriptor");
                state.pushed.insert(self.node, push);
                ReplyBody::Proved { polo }
            }
            RequestBody::Advertise {
                advertisement,
                signature,
            } => {
                let key = state.nodes[self.node.0 as usize - 1].key;
                assert!(key.verifies(&advertisement.signed_bytes(), &signature.0));
                let lease_s = advertisement.lease_s;
                let open = state
                    .offers
                    .values()
                    .filter(|(_, granted)| granted.is_none());
                for (offer, _) in open.filter(|(offer, _)| suits(&advertisement, offer)) {
                    let offer = offer.clone();
                    push(
                        state,
                        self.node,
                        &Push::Notify {
                            offer,
                            requester_polo: 0,
                        },
                    );
                }
                state.advertised.insert(self.node, advertisement);
                ReplyBody::Advertised { lease_s }
            }
            RequestBody::Offer { offer, signature } => {
                let key = state.nodes[self.node.0 as usize - 1].key;
                assert!(key.verifies(&offer.signed_bytes(), &signature.0));
                let reply = self.offer(state, offer);
                if std::mem::take(&mut state.mischief.drop_offer) {
                    return false;
                }
                reply
            }
            RequestBody::Accept { terms, .. } => self.accept(state, terms.offer, terms.credits),
            RequestBody::Settle { receipt } => {
                let reply = self.settle(state, &receipt.0);
                if std::mem::take(&mut state.mischief.drop_settle) {
                    return false;
                }
                reply
            }
            RequestBody::Release { engagement, reason } => {
                if let Some(row) = state.rows.get_mut(&engagement) {
                    row.released.get_or_insert(reason);
                }
                ReplyBody::Done {}
            }
            RequestBody::Standing { .. } if mischief.garbage => {
                let odd = format!("{{\"id\":{id},\"type\":\"market_nonsense\"}}");
                return send(&self.stream, b"\xFFgarbage")
                    && send(&self.stream, b"{\"id\":1,\"type\":\"market_done\"}")
                    && send(&self.stream, odd.as_bytes());
            }
            RequestBody::Standing { .. } if mischief.endless => {
                return (&self.stream).write_all(&[0xFF; 8]).is_ok();
            }
            RequestBody::Standing { .. } if mischief.mute => return true,
            RequestBody::Standing { who } => standing(state, &who),
            RequestBody::Engagements { .. } => ReplyBody::Engagements {
                engagements: Vec::new(),
            },
            RequestBody::Resolve(_) => ReplyBody::Workers {
                workers: Vec::new(),
            },
            RequestBody::Renew { .. } => refused(RefusalCode::Invalid, "this toy renews nothing"),
        };
        send(
            &self.stream,
            &serde_json::to_vec(&Reply { id, body }).expect("serializes"),
        )
    }

    fn offer(&self, state: &mut State, offer: Offer) -> ReplyBody {
        state.offers_heard += 1;
        let id = offer.offer;
        if let Some((_, Some(engagement))) = state.offers.get(&id) {
            let grant = self.grant(state, *engagement);
            push(state, self.node, &Push::Grant { grant });
            return ReplyBody::Offered {
                notified: 0,
                diagnosis: None,
            };
        }
        state.offers.insert(id, (offer.clone(), None));
        let workers: Vec<NodeId> = state
            .advertised
            .values()
            .filter(|said| suits(said, &offer))
            .map(|said| said.node)
            .collect();
        for worker in &workers {
            push(
                state,
                *worker,
                &Push::Notify {
                    offer: offer.clone(),
                    requester_polo: 0,
                },
            );
        }
        let notified = u32::try_from(workers.len()).expect("a few");
        ReplyBody::Offered {
            notified,
            diagnosis: None,
        }
    }

    fn accept(&self, state: &mut State, id: OfferId, credits: u32) -> ReplyBody {
        let Some((offer, granted @ None)) = state.offers.get_mut(&id) else {
            return refused(RefusalCode::Taken, "taken");
        };
        let engagement = EngagementId(state.rows.len() as u64 + 1);
        *granted = Some(engagement);
        let offer = offer.clone();
        let key = |node: NodeId| state.nodes[node.0 as usize - 1].key;
        let grant = Grant {
            engagement,
            offer: id,
            requester: offer.requester,
            worker: self.node,
            requester_key: key(offer.requester),
            worker_key: key(self.node),
            requester_polo: 0,
            worker_polo: 0,
            gate: Gate::Met,
            tasks: offer.tasks,
            concurrency: offer.concurrency.min(credits),
            offered_at_ms: unix_ms(),
            granted_at_ms: unix_ms(),
            expires_at_ms: unix_ms() + u64::from(offer.duration_s) * 1_000,
            skill: offer.skill,
        };
        let row = Row {
            grant,
            k: 0,
            accepted: 0,
            settlements: 0,
            released: None,
        };
        state.rows.insert(engagement, row);
        let message = self.grant(state, engagement);
        push(
            state,
            offer.requester,
            &Push::Grant {
                grant: message.clone(),
            },
        );
        ReplyBody::Granted { grant: message }
    }

    fn grant(&self, state: &State, engagement: EngagementId) -> GrantMessage {
        let grant = state.rows[&engagement].grant.clone();
        let endpoint = |node: NodeId| state.nodes[node.0 as usize - 1].endpoint.clone();
        GrantMessage {
            requester_endpoint: endpoint(grant.requester),
            worker_endpoint: endpoint(grant.worker),
            grant: Base64Bytes(grant.sign(&self.identity).encode()),
        }
    }

    fn settle(&self, state: &mut State, bytes: &[u8]) -> ReplyBody {
        let signed = SignedReceipt::decode(bytes).expect("a receipt");
        let row = state
            .rows
            .get_mut(&signed.receipt.engagement)
            .expect("of this registry");
        let (requester, worker) = (row.grant.requester, row.grant.worker);
        signed
            .verify(&row.grant.requester_key, &row.grant.worker_key)
            .expect("a node settles what both have signed");
        let repeated = signed.receipt.k <= row.k;
        if !repeated {
            assert!(
                signed.receipt.accepted >= row.accepted,
                "counters never shrink"
            );
            (row.k, row.accepted) = (signed.receipt.k, signed.receipt.accepted);
            row.settlements += 1;
        }
        let (k, accepted, settlements) = (row.k, row.accepted, row.settlements);
        let known = &mut state.nodes[worker.0 as usize - 1];
        let before = known.polo;
        known.polo += i64::from(!repeated);
        let settlement = Settlement {
            engagement: signed.receipt.engagement,
            k,
            accepted,
            earned: i64::from(settlements),
            worker,
            worker_polo: (before, known.polo),
            requester,
            requester_polo: (0, 0),
            position: 0,
        };
        if !repeated {
            for end in [requester, worker] {
                push(
                    state,
                    end,
                    &Push::Settled {
                        settlement: settlement.clone(),
                    },
                );
            }
        }
        ReplyBody::Settled {
            settlement,
            repeated,
        }
    }
}

fn suits(said: &Advertisement, offer: &Offer) -> bool {
    said.task_ready && said.skills().any(|skill| skill == offer.skill)
}

fn standing(state: &State, who: &str) -> ReplyBody {
    let node = who
        .parse::<usize>()
        .ok()
        .and_then(|id| Some((id, state.nodes.get(id - 1)?)));
    let Some((id, known)) = node else {
        return refused(RefusalCode::NotFound, "no such node");
    };
    ReplyBody::Standing(Standing {
        node: NodeId(u32::try_from(id).expect("a few")),
        address: String::new(),
        hostname: None,
        polo: known.polo,
        worked: (0, 0),
        requested: (0, 0),
    })
}

fn refused(code: RefusalCode, reason: &str) -> ReplyBody {
    ReplyBody::Refused(Refusal {
        code,
        reason: reason.to_owned(),
        diagnosis: None,
    })
}

fn push(state: &State, node: NodeId, push: &Push) {
    if let Some(stream) = state.pushed.get(&node) {
        send(stream, &serde_json::to_vec(push).expect("serializes"));
    }
}

fn send(mut stream: &TcpStream, message: &[u8]) -> bool {
    let mut out = Vec::new();
    append_frame(&mut out, message);
    stream.write_all(&out).is_ok()
}
