//! What the services need of the node around them: streams, the registry, a clock.
//!
//! The node gives them its virtual ports ([`NodeHost`]); the tests give them a network in memory.
//! Errors are texts for people: no service decides anything by why a stream broke.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use serde_json::Value;

use crate::control::handle::{Ask, ControlHandle};
use crate::control::local;
use crate::control::pilot::Call;
use crate::control::ports::{Listener, Ports, Reach, Stream};

/// A reliable byte stream with one user. Dropping it resets it unless it was closed.
pub(crate) trait AgentStream: 'static {
    /// The other end.
    fn peer(&self) -> NodeId;
    /// Bytes in order; `None` at the end of the stream.
    async fn read(&mut self) -> Result<Option<Bytes>, String>;
    /// Bytes that are here already; `None` if there are none, for whatever reason.
    fn read_ready(&mut self) -> Option<Bytes>;
    /// Queues bytes; waits while too many are unsent.
    async fn write(&mut self, bytes: Bytes) -> Result<(), String>;
    /// Ends the stream once everything written is acknowledged.
    async fn close(self) -> Result<(), String>;
}

/// Sends one message and waits until the peer ends the stream, by which it says that it has read it;
/// a daemon that ends it does not always acknowledge what it has read. Where the peer leaves the end
/// to us for so long, the acknowledgment must do.
///
/// # Errors
/// The stream broke before either.
pub(super) async fn deliver(
    mut stream: impl AgentStream,
    message: Bytes,
    patience: Duration,
) -> Result<(), String> {
    stream.write(message).await?;
    loop {
        match tokio::time::timeout(patience, stream.read()).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(_))) => {}
            Ok(Err(why)) => return Err(why),
            Err(_) => return stream.close().await,
        }
    }
}

/// Streams that peers open to one port.
pub(crate) trait AgentListener: 'static {
    type Stream: AgentStream;
    async fn accept(&mut self) -> Option<Self::Stream>;
}

/// The node around the services.
pub(crate) trait Host: Clone + 'static {
    type Stream: AgentStream;
    type Listener: AgentListener<Stream = Self::Stream>;

    /// Its number; 0 until it is registered.
    fn node(&self) -> NodeId;
    fn identity(&self) -> &Identity;
    /// Nanoseconds since 1970.
    fn unix_ns(&self) -> u64;
    async fn dial(&self, peer: NodeId, port: u16, limit: Duration) -> Result<Self::Stream, String>;
    fn listen(&self, port: u16) -> Result<Self::Listener, String>;
    /// Puts a request to the registry.
    async fn call(&self, call: Call) -> Result<Value, String>;
    /// Who may reach the node's ports from now on.
    fn admit(&self, reach: Reach);

    /// Milliseconds since 1970.
    fn unix_ms(&self) -> u64 {
        self.unix_ns() / 1_000_000
    }

    /// Seconds since 1970.
    fn unix_s(&self) -> u64 {
        self.unix_ns() / 1_000_000_000
    }
}

/// The running node.
#[derive(Clone)]
pub(crate) struct NodeHost {
    pub(crate) ports: Ports,
    pub(crate) handle: ControlHandle,
    pub(crate) identity: Arc<Identity>,
}

impl Host for NodeHost {
    type Stream = Stream;
    type Listener = Listener;

    fn node(&self) -> NodeId {
        self.handle.node_id()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn unix_ns(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    async fn dial(&self, peer: NodeId, port: u16, limit: Duration) -> Result<Stream, String> {
        let dialed = self.ports.dial(peer, port, limit).await;
        dialed.map_err(|error| error.to_string())
    }

    fn listen(&self, port: u16) -> Result<Listener, String> {
        self.ports.listen(port).map_err(|error| error.to_string())
    }

    async fn call(&self, call: Call) -> Result<Value, String> {
        local::put(&self.handle, |respond| Ask::Call(Box::new(call), respond))
            .await
            .map_err(|error| error.0)
    }

    fn admit(&self, reach: Reach) {
        self.ports.admit(reach);
    }
}

impl AgentListener for Listener {
    type Stream = Stream;

    async fn accept(&mut self) -> Option<Stream> {
        Listener::accept(self).await
    }
}

impl AgentStream for Stream {
    fn peer(&self) -> NodeId {
        Stream::peer(self)
    }

    async fn read(&mut self) -> Result<Option<Bytes>, String> {
        Stream::read(self).await.map_err(|error| error.to_string())
    }

    fn read_ready(&mut self) -> Option<Bytes> {
        Stream::read_ready(self)
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), String> {
        let written = Stream::write(self, bytes).await;
        written.map_err(|error| error.to_string())
    }

    async fn close(self) -> Result<(), String> {
        Stream::close(self).await.map_err(|error| error.to_string())
    }
}
