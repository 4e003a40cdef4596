//! The handshake service: trust asked for, given, refused and taken back, on port 444 and over the
//! registry's inbox.
//!
//! A decision is made by [`super::trust::TrustBook`]; here it is carried out: kept on disk, told to
//! the workers (who may reach the ports), told to the registry (`report_trust`), told to the peer.
//! A peer is told directly, or, where it cannot be dialed, over the registry. The registry's inbox is
//! emptied every minute, and every two seconds while a request of our own is young.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::agent::PORT_HANDSHAKE;
use ramjet_proto::agent::handshake::{Handshake, HandshakeKind, HandshakeReader, Received};
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;

use super::Agent;
use super::calls;
use super::files::{Durable, write_whole};
use super::host::{AgentListener, AgentStream, Host, deliver};
use super::trust::{Decision, PendingNode, TrustRequest, TrustedNode};

/// How long a stream may take to bring its message.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer is dialed to be told something, before the registry is used.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a peer may take to end the stream of a message that it has read.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Streams that are read at a time; further ones are reset.
const STREAMS_MAX: usize = 64;
/// How long a request of our own is young, in seconds.
const ASKING_S: u64 = 120;

/// How a request for trust went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeSent {
    /// They trust each other already.
    Trusted,
    /// Straight to the peer.
    Direct,
    /// To the peer's inbox at the registry.
    Relayed,
}

impl HandshakeSent {
    /// Its word in answers to people.
    pub(crate) fn label(self) -> &'static str {
        match self {
            HandshakeSent::Trusted => "trusted",
            HandshakeSent::Direct => "sent",
            HandshakeSent::Relayed => "relayed",
        }
    }
}

// ---- what local programs ask ---------------------------------------------------------------------

impl<H: Host> Agent<H> {
    /// Asks a node for mutual trust.
    ///
    /// # Errors
    /// The registry does not know the node, or neither it nor its inbox can be reached.
    pub(crate) async fn handshake(
        self: &Rc<Self>,
        peer: NodeId,
        justification: &str,
    ) -> Result<HandshakeSent, String> {
        if peer == self.host.node() {
            return Err(format!("node {peer} is this node itself"));
        }
        if self.book.borrow().trusts(peer) {
            return Ok(HandshakeSent::Trusted);
        }
        let known = calls::lookup(&self.host, peer).await?;
        self.book.borrow_mut().asking(peer, self.host.unix_s())?;
        self.keep_trust().await;
        // A private node that does not trust us yet would not even hear us.
        let direct = if known.public {
            self.tell(peer, HandshakeKind::Request, justification).await
        } else {
            Err("it is private".to_owned())
        };
        let sent = match direct {
            Ok(()) => HandshakeSent::Direct,
            Err(why) => {
                let relayed = calls::request_handshake(&self.host, peer, justification).await;
                if let Err(error) = relayed {
                    // One that waits there already says the same.
                    if !error.contains("already") {
                        self.book.borrow_mut().rejected(peer);
                        self.keep_trust().await;
                        return Err(format!("node {peer}: {why}; registry: {error}"));
                    }
                }
                HandshakeSent::Relayed
            }
        };
        self.poll_wanted.notify_one();
        Ok(sent)
    }

    /// Approves a request that waits.
    ///
    /// # Errors
    /// Nobody of that number asks, or the registry does not know it.
    pub(crate) async fn approve(self: &Rc<Self>, peer: NodeId) -> Result<(), String> {
        let row = self.book.borrow_mut().take_pending(peer)?;
        let outcome = self.approve_row(&row).await;
        if outcome.is_err() {
            // It can be approved again once the registry is back.
            let request = TrustRequest {
                node: peer,
                key: row.key.unwrap_or(PublicKey([0; 32])),
                justification: row.justification,
                relayed: row.relayed,
            };
            let _ = self
                .book
                .borrow_mut()
                .request(request, false, row.received_at_s);
        }
        outcome
    }

    async fn approve_row(self: &Rc<Self>, row: &PendingNode) -> Result<(), String> {
        let peer = row.node;
        let key = match row.key {
            Some(key) => key,
            None => calls::lookup(&self.host, peer).await?.key,
        };
        let unix_s = self.host.unix_s();
        self.book.borrow_mut().trust(peer, key, true, unix_s)?;
        self.trust_changed().await;
        self.report_trust(peer).await;
        self.answer_request(peer, true, row.relayed, "").await;
        Ok(())
    }

    /// Refuses a request that waits.
    ///
    /// # Errors
    /// Nobody of that number asks.
    pub(crate) async fn reject(self: &Rc<Self>, peer: NodeId, reason: &str) -> Result<(), String> {
        let row = self.book.borrow_mut().take_pending(peer)?;
        self.keep_trust().await;
        self.answer_request(peer, false, row.relayed, reason).await;
        Ok(())
    }

    /// Trusts a node no more and tells it, the registry and the workers.
    ///
    /// # Errors
    /// There is no trust in that node, and no request to it.
    pub(crate) async fn revoke(self: &Rc<Self>, peer: NodeId) -> Result<(), String> {
        let unix_s = self.host.unix_s();
        if !self.book.borrow_mut().revoke(peer, unix_s) {
            return Err(format!("node {peer} is not trusted"));
        }
        self.trust_changed().await;
        // Told before the registry hides it from us.
        if let Err(error) = self.tell(peer, HandshakeKind::Revoke, "").await {
            tracing::info!(%peer, %error, "the peer is not told that trust is revoked");
        }
        if let Err(error) = calls::trust(&self.host, peer, false).await {
            // A report that is not there needs no taking back.
            tracing::info!(%peer, %error, "the registry keeps its report of trust");
        }
        Ok(())
    }

    /// Who waits for a decision.
    pub(crate) fn pending(&self) -> Vec<PendingNode> {
        self.book.borrow().pending().cloned().collect()
    }

    /// Who is trusted.
    pub(crate) fn trusted(&self) -> Vec<TrustedNode> {
        self.book.borrow().trusted().cloned().collect()
    }

    /// Waits until a node is trusted; whether it is.
    pub(crate) async fn wait_trusted(&self, peer: NodeId, limit: Duration) -> bool {
        let trusted = async {
            loop {
                let changed = self.trust_news.notified();
                if self.book.borrow().trusts(peer) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(limit, trusted).await;
        waited.is_ok() || self.book.borrow().trusts(peer)
    }

    /// Whether everyone may reach the node's ports.
    pub(crate) fn set_public(&self, public: bool) {
        self.public.set(public);
        self.admit();
    }

    /// Trusts a node that the operator names, from when the registry says who it is.
    pub(crate) fn trust_named(self: &Rc<Self>, peer: NodeId) {
        let agent = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let trusted = match calls::lookup(&agent.host, peer).await {
                Ok(known) => {
                    let unix_s = agent.host.unix_s();
                    let mut book = agent.book.borrow_mut();
                    book.trust(peer, known.key, false, unix_s)
                }
                Err(why) => Err(why),
            };
            match trusted {
                Ok(()) => agent.trust_changed().await,
                Err(why) => tracing::warn!(%peer, %why, "the node is not trusted"),
            }
        });
    }
}

// ---- what arrives --------------------------------------------------------------------------------

impl<H: Host> Agent<H> {
    /// Serves port 444 until the node ends.
    pub(super) async fn serve_handshakes(self: Rc<Self>, mut listener: H::Listener) {
        let open = Rc::new(());
        while let Some(stream) = listener.accept().await {
            if Rc::strong_count(&open) > STREAMS_MAX {
                continue;
            }
            let (agent, place) = (Rc::clone(&self), Rc::clone(&open));
            tokio::task::spawn_local(async move {
                let peer = stream.peer();
                if let Err(why) = agent.take_handshake(stream).await {
                    tracing::info!(%peer, %why, "handshake not taken");
                }
                drop(place);
            });
        }
    }

    async fn take_handshake(self: Rc<Self>, mut stream: H::Stream) -> Result<(), String> {
        let peer = stream.peer();
        let read = tokio::time::timeout(MESSAGE_PATIENCE, read_message(&mut stream)).await;
        let (message, digest) =
            read.map_err(|_| format!("no message within {MESSAGE_PATIENCE:?}"))??;
        // The message was all of it; how the stream ends adds nothing.
        let closing = tokio::task::spawn_local(stream.close());
        let known = calls::lookup(&self.host, peer).await?;
        message
            .check(peer, &known.key, self.host.node(), self.host.unix_s())
            .map_err(|fault| fault.to_string())?;
        if !self.book.borrow_mut().is_new(digest) {
            return Err("it is a repeat".to_owned());
        }
        self.act(message, known.key).await;
        drop(closing);
        Ok(())
    }

    async fn act(self: &Rc<Self>, message: Handshake, key: PublicKey) {
        let peer = message.node_id;
        match message.kind {
            HandshakeKind::Request => {
                let request = TrustRequest {
                    node: peer,
                    key,
                    justification: message.justification,
                    relayed: false,
                };
                self.requested(request).await;
            }
            HandshakeKind::Accept => self.accepted(peer, key).await,
            HandshakeKind::Reject => self.rejected(peer, &message.reason).await,
            HandshakeKind::Revoke => {
                let unix_s = self.host.unix_s();
                if self.book.borrow_mut().revoke(peer, unix_s) {
                    tracing::info!(%peer, "trust revoked by the peer");
                    self.trust_changed().await;
                    // Its own report may be gone with ours; a second one is refused harmlessly.
                    let _ = calls::trust(&self.host, peer, false).await;
                }
            }
        }
    }

    async fn requested(self: &Rc<Self>, request: TrustRequest) {
        let (peer, relayed) = (request.node, request.relayed);
        let unix_s = self.host.unix_s();
        let approve = self.config.auto_approve;
        let decision = self.book.borrow_mut().request(request, approve, unix_s);
        match decision {
            Decision::Accept => {
                tracing::info!(%peer, "trust accepted");
                self.trust_changed().await;
                self.report_trust(peer).await;
                self.answer_request(peer, true, relayed, "").await;
            }
            Decision::Wait => {
                tracing::info!(%peer, "trust asked for; approve or reject it");
                self.trust_changed().await;
            }
            Decision::Refuse(why) => tracing::warn!(%peer, %why, "request for trust not taken"),
        }
    }

    async fn accepted(self: &Rc<Self>, peer: NodeId, key: PublicKey) {
        let unix_s = self.host.unix_s();
        if !self.book.borrow_mut().accepted(peer, key, unix_s) {
            tracing::warn!(%peer, "an acceptance that nobody asked for");
            return;
        }
        tracing::info!(%peer, "trust accepted by the peer");
        self.trust_changed().await;
        self.report_trust(peer).await;
    }

    async fn rejected(self: &Rc<Self>, peer: NodeId, reason: &str) {
        if self.book.borrow_mut().rejected(peer) {
            tracing::info!(%peer, %reason, "trust rejected by the peer");
            self.trust_changed().await;
        }
    }

    /// Empties the registry's inbox now and then, until the node ends.
    pub(super) async fn poll_inbox(self: Rc<Self>) {
        let mut reached = false;
        loop {
            if self.host.node() != NodeId(0) {
                let polled = self.poll_once().await;
                if polled.is_ok() && !reached {
                    // A registry that was away may have lost what it was told.
                    self.report_all().await;
                }
                reached = polled.is_ok();
            }
            let pace = &self.config.pace;
            let asked = self.book.borrow().asked_last_s();
            let young = asked.is_some_and(|at| self.host.unix_s().saturating_sub(at) < ASKING_S);
            let pause = if young || !reached {
                pace.poll_asking
            } else {
                pace.poll
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poll_wanted.notified() => tokio::time::sleep(pace.poll_min).await,
            }
        }
    }

    async fn poll_once(self: &Rc<Self>) -> Result<(), String> {
        let relayed = calls::poll_handshakes(&self.host).await?;
        for (peer, justification) in relayed.requests {
            match calls::lookup(&self.host, peer).await {
                Ok(known) => {
                    let request = TrustRequest {
                        node: peer,
                        key: known.key,
                        justification,
                        relayed: true,
                    };
                    self.requested(request).await;
                }
                Err(error) => tracing::info!(%peer, %error, "who asks for trust is not known"),
            }
        }
        for (peer, accept) in relayed.responses {
            if !accept {
                self.rejected(peer, "").await;
                continue;
            }
            match calls::lookup(&self.host, peer).await {
                Ok(known) => self.accepted(peer, known.key).await,
                Err(error) => tracing::info!(%peer, %error, "who accepts is not known"),
            }
        }
        Ok(())
    }
}

// ---- how it is carried out -----------------------------------------------------------------------

impl<H: Host> Agent<H> {
    /// Who may reach the ports, as the book says.
    pub(super) fn admit(&self) {
        self.host.admit(self.book.borrow().reach(self.public.get()));
    }

    async fn trust_changed(&self) {
        self.admit();
        self.trust_news.notify_waiters();
        self.keep_trust().await;
    }

    /// Writes the book to its file. Writers take turns, and each writes the newest state.
    async fn keep_trust(&self) {
        let Some(path) = self
            .config
            .state
            .as_ref()
            .map(|state| state.join("trust.json"))
        else {
            return;
        };
        let turn = self.trust_writing.lock().await;
        let text = format!("{:#}\n", self.book.borrow().to_json());
        let write = move || write_whole(&path, text.as_bytes(), Durable::Synced);
        let written = tokio::task::spawn_blocking(write).await;
        drop(turn);
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "trust is kept in memory only");
        }
    }

    async fn report_trust(&self, peer: NodeId) {
        if let Err(error) = calls::trust(&self.host, peer, true).await {
            tracing::warn!(%peer, %error, "the registry was not told of trust; it will be");
        }
    }

    async fn report_all(&self) {
        let trusted: Vec<NodeId> = self.book.borrow().trusted().map(|row| row.node).collect();
        for peer in trusted {
            self.report_trust(peer).await;
        }
    }

    /// Tells a peer what became of its request, the way it came.
    async fn answer_request(&self, peer: NodeId, accept: bool, relayed: bool, reason: &str) {
        let kind = if accept {
            HandshakeKind::Accept
        } else {
            HandshakeKind::Reject
        };
        let direct = if relayed {
            Err("it asked over the registry".to_owned())
        } else {
            self.tell(peer, kind, reason).await
        };
        let Err(why) = direct else { return };
        if let Err(error) = calls::respond_handshake(&self.host, peer, accept).await {
            tracing::info!(%peer, %why, %error, "the peer is not told of the decision");
        }
    }

    /// Sends one message straight to a peer.
    async fn tell(&self, peer: NodeId, kind: HandshakeKind, text: &str) -> Result<(), String> {
        let pair = (self.host.node(), peer);
        let drawn = (self.host.unix_s(), self.new_id());
        let message = Handshake::new(kind, self.host.identity(), pair, text, drawn);
        let sending = async {
            let stream = self.host.dial(peer, PORT_HANDSHAKE, DIAL_PATIENCE).await?;
            deliver(stream, Bytes::from(message.to_bytes()), END_PATIENCE).await
        };
        let sent = tokio::time::timeout(DIAL_PATIENCE * 2, sending).await;
        sent.unwrap_or_else(|_| Err(format!("no answer within {:?}", DIAL_PATIENCE * 2)))
    }
}

async fn read_message(stream: &mut impl AgentStream) -> Result<Received, String> {
    let mut reader = HandshakeReader::default();
    while let Some(chunk) = stream.read().await? {
        if let Some(received) = reader.push(&chunk)? {
            return Ok(received);
        }
    }
    Err("the stream ended before its message".to_owned())
}
