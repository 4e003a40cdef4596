//! What waits to be written to a client.
//!
//! Replies are always taken: their number is bounded by the commands in flight. Bytes of streams
//! wait for [`Outbox::room`], and so does the reading of further commands; datagrams that find no
//! room are dropped by whoever brings them. A client that takes nothing for a while although
//! something waits is dropped: it would hold its streams' windows closed for ever.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use ramjet_proto::driver::Reply;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use crate::control::local_stream::Writer;

/// Bytes for a client above which nothing more is brought but replies.
pub(super) const OUTBOX_MAX: usize = 2 << 20;
/// Bytes written at once.
const WRITE_LEN: usize = 256 << 10;

/// The bytes on their way to one client.
pub(super) struct Outbox {
    /// How long the client may take nothing while something waits.
    stall: Duration,
    frames: RefCell<Vec<u8>>,
    /// Bytes that the writer has taken and not written.
    writing: Cell<usize>,
    /// Somebody else writes to the client.
    lent: Cell<bool>,
    filled: Notify,
    emptied: Notify,
    wanted: Notify,
}

/// Why a client is written to no longer.
#[derive(Debug)]
pub(super) enum WriteEnd {
    /// It took nothing for so long, with so many bytes waiting.
    Slow(Duration, usize),
    /// It is gone.
    Gone(std::io::Error),
}

impl Outbox {
    pub(super) fn new(stall: Duration) -> Self {
        Outbox {
            stall,
            frames: RefCell::default(),
            writing: Cell::new(0),
            lent: Cell::new(false),
            filled: Notify::new(),
            emptied: Notify::new(),
            wanted: Notify::new(),
        }
    }

    /// Takes a frame.
    pub(super) fn push(&self, reply: Reply<'_>) {
        reply.append(&mut self.frames.borrow_mut());
        self.filled.notify_one();
    }

    /// Leaves the writing to somebody else, from now, when nothing waits, until [`Self::take_back`].
    pub(super) fn lend(&self) {
        debug_assert_eq!(self.len(), 0, "lent with frames unwritten");
        self.lent.set(true);
    }

    /// Waits until something is to be written that whoever writes does not know of.
    pub(super) async fn wanted(&self) {
        while self.frames.borrow().is_empty() {
            self.wanted.notified().await;
        }
    }

    /// Writes again, first of all what was left.
    pub(super) fn take_back(&self, left: Vec<u8>) {
        self.frames.borrow_mut().splice(..0, left);
        self.lent.set(false);
        self.filled.notify_one();
    }

    /// Bytes on their way.
    pub(super) fn len(&self) -> usize {
        self.frames.borrow().len() + self.writing.get()
    }

    /// Whether more may be brought.
    pub(super) fn has_room(&self) -> bool {
        self.len() < OUTBOX_MAX
    }

    /// Waits until more may be brought.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            self.emptied.notified().await;
        }
    }

    /// Waits until everything is written.
    pub(super) async fn empty(&self) {
        while self.len() > 0 {
            self.emptied.notified().await;
        }
    }

    /// Writes what comes, until the client cannot be written to.
    pub(super) async fn run(&self, writer: &mut Writer) -> WriteEnd {
        let mut batch = Vec::new();
        loop {
            if self.lent.get() {
                if !self.frames.borrow().is_empty() {
                    self.wanted.notify_one();
                }
                self.filled.notified().await;
                continue;
            }
            batch.clear();
            std::mem::swap(&mut batch, &mut self.frames.borrow_mut());
            if batch.is_empty() {
                self.filled.notified().await;
                continue;
            }
            self.writing.set(batch.len());
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let chunk = &rest[..rest.len().min(WRITE_LEN)];
                match tokio::time::timeout(self.stall, writer.write(chunk)).await {
                    Ok(Ok(0)) => return WriteEnd::Gone(std::io::ErrorKind::WriteZero.into()),
                    Ok(Ok(written)) => rest = &rest[written..],
                    Ok(Err(error)) => return WriteEnd::Gone(error),
                    Err(_) => return WriteEnd::Slow(self.stall, self.len()),
                }
                self.writing.set(rest.len());
                self.emptied.notify_waiters();
            }
        }
    }
}
