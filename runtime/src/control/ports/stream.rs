//! One stream as its user holds it: both halves, and what they share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ramjet_proto::ids::{ConnectionId, NodeId};
use tokio::sync::Notify;

use super::{Ports, StreamError, UNSENT_MAX};
use crate::control::vocabulary::{Line, LineRest, StreamCommand, StreamEnd, StreamId};

/// Bytes that were read before the worker is told: far less than any receive window.
const CONSUMED_STEP: usize = 64 << 10;

/// What both halves and the reports share.
pub(super) struct StreamState {
    pub(super) id: StreamId,
    peer: NodeId,
    pub(super) local_port: u16,
    remote_port: u16,
    inbound: RefCell<VecDeque<Bytes>>,
    /// Reports of what arrived, since the start.
    heard: Cell<u64>,
    /// A line that came back, until whoever lent it takes note.
    returned: RefCell<Option<LineRest>>,
    /// Bytes that were read and not told.
    consumed: Cell<usize>,
    unsent: Cell<usize>,
    end: Cell<Option<StreamEnd>>,
    closing: Cell<bool>,
    /// Nobody will read any more.
    deaf: Cell<bool>,
    readable: Notify,
    writable: Notify,
    line_back: Notify,
}

impl StreamState {
    pub(super) fn new(id: StreamId, peer: NodeId, local_port: u16, remote_port: u16) -> Self {
        StreamState {
            id,
            peer,
            local_port,
            remote_port,
            inbound: RefCell::default(),
            heard: Cell::new(0),
            returned: RefCell::default(),
            consumed: Cell::new(0),
            unsent: Cell::new(0),
            end: Cell::new(None),
            closing: Cell::new(false),
            deaf: Cell::new(false),
            readable: Notify::new(),
            writable: Notify::new(),
            line_back: Notify::new(),
        }
    }

    pub(super) fn arrived(&self, ports: &Ports, bytes: Bytes) {
        self.heard.set(self.heard.get() + 1);
        if self.deaf.get() {
            self.consume(ports, bytes.len());
            return;
        }
        self.inbound.borrow_mut().push_back(bytes);
        self.readable.notify_one();
    }

    pub(super) fn sent(&self, len: usize) {
        self.unsent.set(self.unsent.get().saturating_sub(len));
        self.writable.notify_one();
    }

    pub(super) fn returned(&self, rest: LineRest) {
        self.returned.replace(Some(rest));
        self.line_back.notify_one();
    }

    pub(super) fn ended(&self, end: StreamEnd) {
        self.end.set(Some(end));
        self.readable.notify_one();
        self.writable.notify_one();
        self.line_back.notify_one();
    }

    fn consume(&self, ports: &Ports, len: usize) {
        let consumed = self.consumed.get() + len;
        if consumed < CONSUMED_STEP {
            self.consumed.set(consumed);
            return;
        }
        self.consumed.set(0);
        let command = StreamCommand::Consumed {
            stream: self.id,
            len: consumed,
        };
        ports.tell(usize::from(self.id.worker), command);
    }

    fn error(&self, end: StreamEnd) -> StreamError {
        StreamError {
            peer: self.peer,
            remote_port: self.remote_port,
            end,
        }
    }
}

/// The one that resets a stream when nobody holds it any more.
struct Owner {
    ports: Ports,
    state: Rc<StreamState>,
}

impl Owner {
    fn tell(&self, command: StreamCommand) {
        self.ports.tell(usize::from(self.state.id.worker), command);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.state.end.get().is_some() || self.state.closing.get() {
            return;
        }
        let stream = self.state.id;
        let mut tables = self.ports.inner.tables.borrow_mut();
        tables.streams.remove(&stream);
        drop(tables);
        self.tell(StreamCommand::Reset { stream });
    }
}

/// Lends a client's socket to the worker of its stream. Holding it keeps no stream open.
pub(crate) struct Lender {
    ports: Ports,
    state: Rc<StreamState>,
}

impl Lender {
    /// Whether everything that the worker told has been read.
    pub(crate) fn is_read(&self) -> bool {
        self.state.inbound.borrow().is_empty() && self.state.end.get().is_none()
    }

    /// Lends `socket`, on which the stream is called `connection`, until `wanted` comes true or the
    /// worker has had enough of it; what was under way then. There must be nothing else under way, on
    /// the socket or to the stream.
    pub(crate) async fn lend(
        &self,
        socket: Arc<UnixStream>,
        connection: ConnectionId,
        wanted: impl Future<Output = ()>,
    ) -> LineRest {
        let stream = self.state.id;
        let line = Line {
            socket,
            connection,
            heard: self.state.heard.get(),
        };
        self.tell(StreamCommand::Lend { stream, line });
        tokio::select! {
            rest = self.returned() => return rest,
            () = wanted => self.tell(StreamCommand::Recall { stream }),
        }
        self.returned().await
    }

    fn tell(&self, command: StreamCommand) {
        self.ports.tell(usize::from(self.state.id.worker), command);
    }

    async fn returned(&self) -> LineRest {
        loop {
            if let Some(rest) = self.state.returned.take() {
                return rest;
            }
            if self.state.end.get().is_some() {
                // It came back before, or its worker took it along.
                return LineRest::default();
            }
            self.state.line_back.notified().await;
        }
    }
}

/// A reliable byte stream. Dropping it resets it unless it was closed.
pub(crate) struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

impl Stream {
    pub(super) fn new(ports: Ports, state: Rc<StreamState>) -> Self {
        let owner = Rc::new(Owner { ports, state });
        Stream {
            read: ReadHalf {
                owner: Rc::clone(&owner),
            },
            write: WriteHalf { owner },
        }
    }

    /// The other end.
    pub(crate) fn peer(&self) -> NodeId {
        self.read.owner.state.peer
    }

    /// The port here.
    pub(crate) fn local_port(&self) -> u16 {
        self.read.owner.state.local_port
    }

    /// The port there.
    pub(crate) fn remote_port(&self) -> u16 {
        self.read.owner.state.remote_port
    }

    /// Bytes in order, as they came: a chunk is a segment or several joined. `None` at the end of
    /// the stream.
    ///
    /// # Errors
    /// [`StreamError`]: the stream ended before its end.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        self.read.read().await
    }

    /// The next bytes if they are here already; `None` if there are none, for whatever reason.
    pub(crate) fn read_ready(&mut self) -> Option<Bytes> {
        self.read.read_ready()
    }

    /// Queues bytes; waits while more than [`UNSENT_MAX`] are unsent.
    ///
    /// # Errors
    /// [`StreamError`]: the stream has ended. A peer that closes it ends both directions.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.write.write(bytes).await
    }

    /// Ends the stream once everything written is acknowledged, or after 5 s, and waits for it.
    ///
    /// # Errors
    /// [`StreamError`]: not everything was acknowledged.
    pub(crate) async fn close(self) -> Result<(), StreamError> {
        self.write.close().await
    }

    /// Who lends lines to it.
    pub(crate) fn lender(&self) -> Lender {
        Lender {
            ports: self.read.owner.ports.clone(),
            state: Rc::clone(&self.read.owner.state),
        }
    }

    /// Two halves, for tasks that read and write at once. When both are dropped the stream is reset
    /// unless it was closed.
    pub(crate) fn split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

/// The half that reads. Dropping it discards whatever still comes.
pub(crate) struct ReadHalf {
    owner: Rc<Owner>,
}

impl ReadHalf {
    /// As [`Stream::read`].
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        let state = &self.owner.state;
        loop {
            if let Some(bytes) = self.read_ready() {
                return Ok(Some(bytes));
            }
            match state.end.get() {
                Some(StreamEnd::Finished | StreamEnd::Closed) => return Ok(None),
                Some(end) => return Err(state.error(end)),
                None => state.readable.notified().await,
            }
        }
    }
}

impl ReadHalf {
    /// As [`Stream::read_ready`].
    pub(crate) fn read_ready(&self) -> Option<Bytes> {
        let state = &self.owner.state;
        let bytes = state.inbound.borrow_mut().pop_front()?;
        state.consume(&self.owner.ports, bytes.len());
        Some(bytes)
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        let state = &self.owner.state;
        state.deaf.set(true);
        let unread = state.inbound.take().iter().map(Bytes::len).sum::<usize>();
        state.consume(&self.owner.ports, unread);
    }
}

/// The half that writes. Dropping it alone leaves the stream open.
pub(crate) struct WriteHalf {
    owner: Rc<Owner>,
}

impl WriteHalf {
    /// As [`Stream::write`].
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let state = &self.owner.state;
        loop {
            if let Some(end) = state.end.get() {
                return Err(state.error(end));
            }
            if state.unsent.get() <= UNSENT_MAX {
                break;
            }
            state.writable.notified().await;
        }
        if !bytes.is_empty() {
            state.unsent.set(state.unsent.get() + bytes.len());
            let stream = state.id;
            self.owner.tell(StreamCommand::Write { stream, bytes });
        }
        Ok(())
    }

    /// As [`Stream::close`].
    ///
    /// # Errors
    /// As [`Stream::close`].
    pub(crate) async fn close(self) -> Result<(), StreamError> {
        let state = &self.owner.state;
        if state.end.get().is_none() {
            state.closing.set(true);
            let stream = state.id;
            self.owner.tell(StreamCommand::Close { stream });
        }
        loop {
            match state.end.get() {
                Some(StreamEnd::Finished | StreamEnd::Closed) => return Ok(()),
                Some(end) => return Err(state.error(end)),
                None => state.writable.notified().await,
            }
        }
    }
}
