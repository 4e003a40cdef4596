//! A blocking client, written against the wire and not against the registry's code.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::{NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, FromRegistry, GrantMessage, Push, Refusal, RefusalCode, ReplyBody, Request,
    RequestBody, prove_bytes,
};
use ramjet_proto::market::{
    AcceptFrom, AcceptTerms, Advertisement, Offer, Receipt, SignedGrant, SignedReceipt,
};
use ramjet_registry::{Config, Registry, RegistryHandle};
use serde_json::{Value, json};

/// Longest wait for anything: a test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config() -> Config {
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        beacon: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..Config::default()
    }
}

pub(crate) fn start(config: Config) -> RegistryHandle {
    Registry::start(config).expect("a registry on ports that the kernel chose")
}

/// A registry whose unsigned polo messages set up scores.
pub(crate) fn start_open() -> RegistryHandle {
    start(Config {
        allow_unsigned_polo: true,
        ..config()
    })
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    next_id: u64,
    replies: BTreeMap<u64, ReplyBody>,
    pushes: VecDeque<Push>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the registry listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Connection {
            stream,
            next_id: 1,
            replies: BTreeMap::new(),
            pushes: VecDeque::new(),
        }
    }

    pub(crate) fn send_bytes(&mut self, json: &[u8]) {
        let length = u32::try_from(json.len()).expect("a test message");
        let frame = [&length.to_be_bytes()[..], json].concat();
        self.stream.write_all(&frame).expect("the registry reads");
    }

    pub(crate) fn receive_bytes(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let length = usize::try_from(u32::from_be_bytes(length)).expect("64 bits");
        assert!(length <= 1 << 20, "the registry announced {length} bytes");
        let mut json = vec![0; length];
        self.stream.read_exact(&mut json).expect("a whole frame");
        Some(json)
    }

    /// One Pilot request and its reply.
    pub(crate) fn pilot(&mut self, request: &Value) -> Value {
        self.send_bytes(request.to_string().as_bytes());
        let reply = self.receive_bytes().expect("a reply");
        serde_json::from_slice(&reply).expect("a JSON object")
    }

    pub(crate) fn send(&mut self, body: RequestBody) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { id, body };
        self.send_bytes(&serde_json::to_vec(&request).expect("serializes"));
        id
    }

    fn receive(&mut self) {
        let json = self.receive_bytes().expect("the registry says something");
        match FromRegistry::parse(&json) {
            Ok(FromRegistry::Reply(reply)) => {
                assert!(
                    self.replies.insert(reply.id, reply.body).is_none(),
                    "answered twice"
                );
            }
            Ok(FromRegistry::Push(push)) => self.pushes.push_back(push),
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&json)),
        }
    }

    pub(crate) fn wait_for(&mut self, id: u64) -> ReplyBody {
        loop {
            if let Some(reply) = self.replies.remove(&id) {
                return reply;
            }
            self.receive();
        }
    }

    pub(crate) fn ask(&mut self, body: RequestBody) -> ReplyBody {
        let id = self.send(body);
        self.wait_for(id)
    }

    /// The next push.
    pub(crate) fn push(&mut self) -> Push {
        loop {
            if let Some(push) = self.pushes.pop_front() {
                return push;
            }
            self.receive();
        }
    }

    /// What has been pushed so far: everything the registry said before it answered this.
    pub(crate) fn pushes_so_far(&mut self) -> Vec<Push> {
        self.ask(RequestBody::Engagements {
            who: None,
            limit: 1,
        });
        self.pushes.drain(..).collect()
    }
}

/// A registered node with a proven connection.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) identity: Arc<Identity>,
    pub(crate) connection: Connection,
    sequence: u64,
}

pub(crate) fn signature(identity: &Identity, bytes: &[u8]) -> Base64Bytes {
    Base64Bytes(identity.sign(bytes).to_vec())
}

/// A signature as Pilot's messages carry it.
pub(crate) fn sign_text(identity: &Identity, challenge: &str) -> String {
    BASE64.encode(identity.sign(challenge.as_bytes()))
}

pub(crate) fn register(connection: &mut Connection, identity: &Identity, listen: &str) -> NodeId {
    let key = identity.public().to_base64();
    let reply = connection.pilot(&json!({
        "type": "register",
        "listen_addr": listen,
        "public_key": key,
        "signature": sign_text(identity, &format!("register:{listen}:{key}")),
    }));
    assert_eq!(reply["type"], "register_ok", "{reply}");
    NodeId(
        reply["node_id"]
            .as_u64()
            .and_then(|id| id.try_into().ok())
            .expect("a node id"),
    )
}

impl Node {
    pub(crate) fn join(address: SocketAddr, seed: u8) -> Self {
        let identity = Arc::new(Identity::from_seed([seed; 32]));
        let mut connection = Connection::open(address);
        let listen = format!("127.0.0.1:{}", 40_000 + u16::from(seed));
        let id = register(&mut connection, &identity, &listen);
        let mut node = Node {
            id,
            identity,
            connection,
            sequence: 0,
        };
        node.prove();
        node
    }

    pub(crate) fn prove(&mut self) {
        match self.connection.ask(RequestBody::Hello { node: self.id }) {
            ReplyBody::Hello { nonce, .. } => {
                let signature = signature(&self.identity, &prove_bytes(self.id, &nonce.0));
                let reply = self.connection.ask(RequestBody::Prove { signature });
                assert!(matches!(reply, ReplyBody::Proved { .. }), "{reply:?}");
            }
            reply => panic!("{reply:?}"),
        }
    }

    pub(crate) fn reconnect(&mut self, address: SocketAddr) {
        self.connection = Connection::open(address);
        self.prove();
    }

    pub(crate) fn advertise(&mut self, skills: &str, ready: bool, accept_from: AcceptFrom) {
        self.sequence += 1;
        let advertisement = Advertisement {
            node: self.id,
            sequence: self.sequence,
            task_ready: ready,
            capabilities: BTreeMap::from([
                ("skills".to_owned(), skills.to_owned()),
                ("languages".to_owned(), "en, de".to_owned()),
            ]),
            accept_from: skills
                .split(',')
                .map(|s| (s.trim().to_owned(), accept_from))
                .collect(),
            lease_s: 60,
        };
        let signature = signature(&self.identity, &advertisement.signed_bytes());
        let reply = self.connection.ask(RequestBody::Advertise {
            advertisement,
            signature,
        });
        assert_eq!(reply, ReplyBody::Advertised { lease_s: 60 });
    }

    pub(crate) fn offer(&self, skill: &str, deadline_ms: u32) -> Offer {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Offer {
            offer: OfferId(NEXT.fetch_add(1, Ordering::Relaxed)),
            requester: self.id,
            skill: skill.to_owned(),
            filters: Vec::new(),
            min_polo: i64::MIN,
            tasks: 1_000,
            concurrency: 16,
            duration_s: 600,
            accept_deadline_ms: deadline_ms,
        }
    }

    pub(crate) fn offer_request(&self, offer: &Offer) -> RequestBody {
        let signature = signature(&self.identity, &offer.signed_bytes());
        RequestBody::Offer {
            offer: offer.clone(),
            signature,
        }
    }

    pub(crate) fn submit(&mut self, offer: &Offer) -> ReplyBody {
        let request = self.offer_request(offer);
        self.connection.ask(request)
    }

    pub(crate) fn accept_request(&self, offer: OfferId) -> RequestBody {
        let terms = AcceptTerms {
            offer,
            worker: self.id,
            credits: 8,
        };
        RequestBody::Accept {
            terms,
            signature: signature(&self.identity, &terms.signed_bytes()),
        }
    }

    pub(crate) fn accept(&mut self, offer: OfferId) -> ReplyBody {
        let request = self.accept_request(offer);
        self.connection.ask(request)
    }

    pub(crate) fn settle(&mut self, receipt: &SignedReceipt) -> ReplyBody {
        self.connection.ask(RequestBody::Settle {
            receipt: Base64Bytes(receipt.encode().to_vec()),
        })
    }

    pub(crate) fn polo(&mut self) -> i64 {
        match self.connection.ask(RequestBody::Standing {
            who: self.id.to_string(),
        }) {
            ReplyBody::Standing(standing) => standing.polo,
            reply => panic!("{reply:?}"),
        }
    }

    /// Sets the score by the unsigned message that a closed test network allows.
    pub(crate) fn set_polo(&self, address: SocketAddr, polo: i64) {
        let mut connection = Connection::open(address);
        let reply = connection
            .pilot(&json!({"type": "set_polo_score", "node_id": self.id, "polo_score": polo}));
        assert_eq!(reply["polo_score"], polo, "{reply}");
    }
}

pub(crate) fn refusal(reply: ReplyBody) -> Refusal {
    match reply {
        ReplyBody::Refused(refusal) => refusal,
        reply => panic!("not refused: {reply:?}"),
    }
}

pub(crate) fn refused_as(reply: ReplyBody, code: RefusalCode) -> Refusal {
    let refusal = refusal(reply);
    assert_eq!(refusal.code, code, "{}", refusal.reason);
    refusal
}

pub(crate) fn granted(reply: ReplyBody) -> SignedGrant {
    match reply {
        ReplyBody::Granted { grant } => decoded(&grant),
        reply => panic!("not granted: {reply:?}"),
    }
}

pub(crate) fn decoded(grant: &GrantMessage) -> SignedGrant {
    SignedGrant::decode(&grant.grant.0).expect("a grant")
}

/// Offers, accepts, and gives the grant.
pub(crate) fn engage(requester: &mut Node, worker: &mut Node, skill: &str) -> SignedGrant {
    let offer = requester.offer(skill, 60_000);
    let reply = requester.submit(&offer);
    assert!(matches!(reply, ReplyBody::Offered { .. }), "{reply:?}");
    granted(worker.accept(offer.offer))
}

pub(crate) fn receipt(
    grant: &SignedGrant,
    k: u32,
    accepted: u64,
    previous: Option<&Receipt>,
) -> Receipt {
    Receipt {
        engagement: grant.grant.engagement,
        k,
        accepted,
        busy_ns: accepted * 1_000,
        previous: previous.map_or([0; 32], Receipt::hash),
        ..Receipt::default()
    }
}

pub(crate) fn signed(receipt: Receipt, requester: &Node, worker: &Node) -> SignedReceipt {
    receipt
        .sign(&requester.identity)
        .countersign(&worker.identity)
}
