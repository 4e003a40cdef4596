//! Questions to a registry without a node: blocking, unproven, one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ramjet_proto::market::message::{
    EngagementRow, FromRegistry, MESSAGE_LEN_MAX, Query, Reply, ReplyBody, Request, RequestBody,
    Standing, WorkerRow,
};

use super::link::kind;
use super::transport::{Deframer, append_frame};
use crate::node::NodeError;

/// How long the connection, and then each answer, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a registry for questions that need no identity.
pub struct RegistryClient {
    address: SocketAddr,
    stream: TcpStream,
    deframer: Deframer,
    next_id: u64,
    patience: Duration,
}

impl RegistryClient {
    /// Connects within 5 s.
    ///
    /// # Errors
    /// The address and why nobody answers there.
    pub fn connect(address: SocketAddr) -> Result<RegistryClient, NodeError> {
        let named = |error: std::io::Error| NodeError(format!("registry {address}: {error}"));
        let stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(named)?;
        Self::over(address, stream)
    }

    /// Takes over a connection to `address`.
    pub(super) fn over(address: SocketAddr, stream: TcpStream) -> Result<Self, NodeError> {
        let named = |error: std::io::Error| NodeError(format!("registry {address}: {error}"));
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(named)?;
        let deframer = Deframer::new(MESSAGE_LEN_MAX);
        Ok(RegistryClient {
            address,
            stream,
            deframer,
            next_id: 1,
            patience: TIMEOUT,
        })
    }

    /// Waits this long for each answer from now on.
    ///
    /// # Errors
    /// A time of zero.
    pub fn patience(&mut self, limit: Duration) -> Result<(), NodeError> {
        self.patience = limit;
        self.stream
            .set_write_timeout(Some(limit))
            .map_err(|error| NodeError(format!("registry {}: {error}", self.address)))
    }

    /// Lists workers, by polo from the highest.
    ///
    /// # Errors
    /// The registry refuses, is gone, or does not answer within 5 s.
    pub fn resolve(&mut self, query: Query) -> Result<Vec<WorkerRow>, NodeError> {
        match self.ask(RequestBody::Resolve(query))? {
            ReplyBody::Workers { workers } => Ok(workers),
            other => Err(self.odd(&other)),
        }
    }

    /// The standing of a node, by number, address or hostname.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn standing(&mut self, who: &str) -> Result<Standing, NodeError> {
        match self.ask(RequestBody::Standing {
            who: who.to_owned(),
        })? {
            ReplyBody::Standing(standing) => Ok(standing),
            other => Err(self.odd(&other)),
        }
    }

    /// The newest engagements of a node, or of all, 1 to 1,000 rows.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn engagements(
        &mut self,
        who: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EngagementRow>, NodeError> {
        let who = who.map(str::to_owned);
        match self.ask(RequestBody::Engagements { who, limit })? {
            ReplyBody::Engagements { engagements } => Ok(engagements),
            other => Err(self.odd(&other)),
        }
    }

    fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, NodeError> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&serde_json::to_vec(&Request { id, body }).expect("requests serialize"))?;
        let until = Instant::now() + self.patience;
        loop {
            let message = self.read_message(until)?;
            match FromRegistry::parse(&message) {
                Ok(FromRegistry::Reply(Reply { id: replied, body })) if replied == id => {
                    return match body {
                        ReplyBody::Refused(refusal) => Err(self.fault(&refusal.reason)),
                        body => Ok(body),
                    };
                }
                // An answer that an earlier question no longer waits for, or news for a node.
                Ok(_) => {}
                Err(error) => return Err(self.fault(&format!("an unreadable reply: {error}"))),
            }
        }
    }

    /// Sends one message as it is.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), NodeError> {
        let mut out = Vec::with_capacity(4 + message.len());
        append_frame(&mut out, message);
        self.stream
            .write_all(&out)
            .map_err(|error| self.fault(&error))
    }

    /// The next message, whatever it is.
    pub(super) fn read_message(&mut self, until: Instant) -> Result<Vec<u8>, NodeError> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.deframer.next() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(fault) => return Err(self.fault(&fault)),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.fault(&"no answer in time"));
            }
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(0) => return Err(self.fault(&"it closed the connection")),
                Ok(len) => self.deframer.push(&chunk[..len]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(self.fault(&error)),
            }
        }
    }

    pub(super) fn fault(&self, what: &dyn std::fmt::Display) -> NodeError {
        NodeError(format!("registry {}: {what}", self.address))
    }

    pub(super) fn odd(&self, reply: &ReplyBody) -> NodeError {
        self.fault(&format!("an unfitting answer: {}", kind(reply)))
    }
}
