//! A node's own business at the registry without a running node: it registers, proves itself,
//! offers work and waits for the grant. Blocking, one connection, one request at a time.
//!
//! For programs that drive many identities at once, as benchmarks do; a node that works uses the
//! control thread. Absent: accepting, settling, reconnecting.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::message::{
    Base64Bytes, FromRegistry, Push, Reply, ReplyBody, Request, RequestBody, prove_bytes,
};
use ramjet_proto::market::{Offer, SignedGrant};
use socket2::{Domain, Socket, Type};

use super::pilot::{self, Asker, PilotAsk, PilotReply};
use super::query::RegistryClient;
use crate::node::NodeError;

/// How long the connection, and then each answer, may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Grants that may wait to be fetched.
const GRANTS_MAX: usize = 16;

/// A connection of one identity to its registry.
pub struct Member {
    client: RegistryClient,
    identity: Arc<Identity>,
    listen: SocketAddr,
    node: NodeId,
    next_id: u64,
    grants: VecDeque<SignedGrant>,
}

impl Member {
    /// Connects from the address `source` and registers the identity as a node whose tunnel
    /// listens at `listen`; an identity that is registered already gets its number again.
    ///
    /// # Errors
    /// The registry's address, and why it cannot be reached or what it refused.
    pub fn register(
        registry: SocketAddr,
        source: IpAddr,
        listen: SocketAddr,
        identity: Arc<Identity>,
    ) -> Result<Member, NodeError> {
        let named = |error: std::io::Error| {
            NodeError(format!("registry {registry}, from {source}: {error}"))
        };
        let socket =
            Socket::new(Domain::for_address(registry), Type::STREAM, None).map_err(named)?;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .and_then(|()| socket.connect_timeout(&registry.into(), TIMEOUT))
            .map_err(named)?;
        let mut member = Member {
            client: RegistryClient::over(registry, socket.into())?,
            identity,
            listen,
            node: NodeId(0),
            next_id: 1,
            grants: VecDeque::new(),
        };
        match member.pilot(PilotAsk::Register)? {
            PilotReply::Registered { node, .. } => member.node = node,
            other => return Err(member.client.fault(&format!("register: {other:?}"))),
        }
        Ok(member)
    }

    /// Its number.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The key of a node and, if it shows it, its endpoint.
    ///
    /// # Errors
    /// The registry is gone or does not know the node.
    pub fn lookup(&mut self, node: NodeId) -> Result<(PublicKey, Option<SocketAddr>), NodeError> {
        match self.pilot(PilotAsk::Lookup(node))? {
            PilotReply::Found { key, endpoint } => Ok((key, endpoint)),
            other => Err(self.client.fault(&format!("lookup of {node}: {other:?}"))),
        }
    }

    /// Proves that this connection speaks for the node: needed before it may offer.
    ///
    /// # Errors
    /// The registry is gone, refuses, or does not answer within 10 s.
    pub fn prove(&mut self) -> Result<(), NodeError> {
        let node = self.node;
        let nonce = match self.ask(RequestBody::Hello { node })? {
            ReplyBody::Hello { nonce, .. } => nonce,
            other => return Err(self.client.odd(&other)),
        };
        let signature = self.identity.sign(&prove_bytes(node, &nonce.0));
        let signature = Base64Bytes(signature.to_vec());
        match self.ask(RequestBody::Prove { signature })? {
            ReplyBody::Proved { .. } => Ok(()),
            other => Err(self.client.odd(&other)),
        }
    }

    /// Offers work as this node and waits until a worker has taken it.
    ///
    /// # Errors
    /// As [`Self::prove`]; or nobody was notified, or nobody took it before its deadline.
    pub fn engage(&mut self, mut offer: Offer) -> Result<SignedGrant, NodeError> {
        offer.requester = self.node;
        let id = offer.offer;
        let signature = Base64Bytes(self.identity.sign(&offer.signed_bytes()).to_vec());
        let until =
            Instant::now() + Duration::from_millis(u64::from(offer.accept_deadline_ms)) + TIMEOUT;
        match self.ask(RequestBody::Offer { offer, signature })? {
            ReplyBody::Offered {
                notified: 0,
                diagnosis,
            } => {
                let why = format!("offer {id}: no worker was notified: {diagnosis:?}");
                return Err(self.client.fault(&why));
            }
            ReplyBody::Offered { .. } => {}
            other => return Err(self.client.odd(&other)),
        }
        loop {
            if let Some(at) = self.grants.iter().position(|grant| grant.grant.offer == id) {
                let grant = self.grants.remove(at).expect("found above");
                return Ok(grant);
            }
            match self.receive(until)? {
                FromRegistry::Push(Push::Expired { offer, .. }) if offer == id => {
                    let why = format!("offer {id}: no worker took it before its deadline");
                    return Err(self.client.fault(&why));
                }
                FromRegistry::Push(push) => self.take(push)?,
                FromRegistry::Reply(_) => {}
            }
        }
    }

    fn pilot(&mut self, ask: PilotAsk) -> Result<PilotReply, NodeError> {
        let head = self.identity.public().to_base64();
        let owner = format!("ramjet-{}", &head[..8]);
        let message = Asker {
            identity: &self.identity,
            node: self.node,
            listen: self.listen,
            owner: &owner,
            hostname: None,
            public: false,
        }
        .message(ask);
        self.client.send(&message)?;
        // Nothing is pushed to a connection that has proven no node.
        let bytes = self.client.read_message(Instant::now() + TIMEOUT)?;
        Ok(pilot::read(ask, &bytes))
    }

    fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, NodeError> {
        let id = self.next_id;
        self.next_id += 1;
        let message = serde_json::to_vec(&Request { id, body }).expect("requests serialize");
        self.client.send(&message)?;
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.receive(until)? {
                FromRegistry::Reply(Reply { id: replied, body }) if replied == id => {
                    return match body {
                        ReplyBody::Refused(refusal) => Err(self.client.fault(&refusal.reason)),
                        body => Ok(body),
                    };
                }
                FromRegistry::Reply(_) => {}
                FromRegistry::Push(push) => self.take(push)?,
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<FromRegistry, NodeError> {
        let bytes = self.client.read_message(until)?;
        FromRegistry::parse(&bytes).map_err(|error| {
            self.client
                .fault(&format!("an unreadable message: {error}"))
        })
    }

    /// Keeps the grants among what is pushed.
    fn take(&mut self, push: Push) -> Result<(), NodeError> {
        if let Push::Grant { grant } = push {
            let grant =
                SignedGrant::decode(&grant.grant.0).map_err(|fault| self.client.fault(&fault))?;
            if self.grants.len() == GRANTS_MAX {
                self.grants.pop_front();
            }
            self.grants.push_back(grant);
        }
        Ok(())
    }
}
