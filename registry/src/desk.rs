//! Who is connected, who was told of what, and the queue towards each connection.
//!
//! All of it is soft: it is lost with the process, decides only who is told, and never what a
//! command comes to. [`Outbox`] is shared between a connection's tasks and the log thread; the
//! [`Desk`] belongs to the log thread.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{NodeId, OfferId};
use ramjet_proto::market::message::MESSAGE_LEN_MAX;
use tokio::sync::{Notify, mpsc};

use crate::fault::{Count, Counters};
use crate::frame;

/// Proven connections of one node that are pushed to; a further one replaces the oldest.
const CONNECTIONS_PER_NODE: usize = 8;
/// What a queued message costs beside its bytes.
const MESSAGE_OVERHEAD: usize = 64;
/// Source addresses whose rate of registrations is remembered.
const BUCKETS_MAX: usize = 65_536;

/// The way out to one connection.
#[derive(Debug)]
pub struct Outbox {
    id: u64,
    source: IpAddr,
    /// A frame, or `None` to write what is queued and close.
    queue: mpsc::UnboundedSender<Option<Bytes>>,
    queued: AtomicUsize,
    queued_max: usize,
    closed: AtomicBool,
    closing: Notify,
    proven: Mutex<Option<(NodeId, PublicKey)>>,
    counters: Arc<Counters>,
}

impl Outbox {
    /// The way out to connection `id`, and what its writer reads.
    pub fn new(
        id: u64,
        source: IpAddr,
        queued_max: usize,
        counters: Arc<Counters>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Option<Bytes>>) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let outbox = Outbox {
            id,
            source,
            queue,
            queued: AtomicUsize::new(0),
            queued_max,
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            proven: Mutex::new(None),
            counters,
        };
        (Arc::new(outbox), receiver)
    }

    /// Where the connection comes from.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The node this connection has proven, and the key it proved it with.
    pub fn proven(&self) -> Option<(NodeId, PublicKey)> {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prove(&self, node: NodeId, key: PublicKey) {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = Some((node, key));
    }

    /// Queues a frame. A connection with too much queued is closed: its peer does not read.
    pub fn send(&self, frame: Bytes) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let cost = frame.len() + MESSAGE_OVERHEAD;
        let queued = self.queued.fetch_add(cost, Ordering::AcqRel) + cost;
        if queued > self.queued_max {
            self.counters.add(Count::OutgoingFull);
            self.close();
        } else {
            // The receiver is gone only once the connection is.
            let _ = self.queue.send(Some(frame));
        }
    }

    /// The writer has written `frame`.
    pub fn written(&self, frame: &Bytes) {
        self.queued
            .fetch_sub(frame.len() + MESSAGE_OVERHEAD, Ordering::AcqRel);
    }

    /// Writes what is queued, then closes.
    pub fn finish(&self) {
        let _ = self.queue.send(None);
    }

    /// Closes at once.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        let _ = self.queue.send(None);
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for [`Self::close`].
    pub async fn closed(&self) {
        let mut closing = core::pin::pin!(self.closing.notified());
        // Enrolled before the flag is read, so that no call can fall between the two.
        closing.as_mut().enable();
        if !self.is_closed() {
            closing.await;
        }
    }
}

/// The framed form of a message; of an error, if it is longer than a frame may be.
pub fn framed(message: &impl serde::Serialize) -> Bytes {
    let json = serde_json::to_vec(message).expect("messages have text keys and no floats");
    if json.len() <= MESSAGE_LEN_MAX {
        return frame::encode(&json);
    }
    let error = format!(
        "the answer has {} bytes, at most {MESSAGE_LEN_MAX}: ask less",
        json.len()
    );
    frame::encode(
        serde_json::json!({"type": "error", "error": error})
            .to_string()
            .as_bytes(),
    )
}

/// Tokens of one source address.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of a registration.
    milli_tokens: u64,
    at_ms: u64,
}

/// What the log thread remembers of the living.
#[derive(Debug, Default)]
pub struct Desk {
    connected: BTreeMap<NodeId, Vec<Arc<Outbox>>>,
    notified: BTreeMap<OfferId, BTreeSet<NodeId>>,
    buckets: BTreeMap<IpAddr, Bucket>,
}

impl Desk {
    /// Whether `node` has a proven connection.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.connected.contains_key(&node)
    }

    /// A connection has proven its node.
    pub fn connect(&mut self, node: NodeId, key: PublicKey, outbox: &Arc<Outbox>) {
        outbox.prove(node, key);
        let outboxes = self.connected.entry(node).or_default();
        outboxes.retain(|held| held.id != outbox.id && !held.is_closed());
        if outboxes.len() >= CONNECTIONS_PER_NODE {
            outboxes.remove(0);
        }
        outboxes.push(Arc::clone(outbox));
    }

    /// A connection has ended.
    pub fn disconnect(&mut self, outbox: &Outbox) {
        let Some((node, _)) = outbox.proven() else {
            return;
        };
        if let Some(outboxes) = self.connected.get_mut(&node) {
            outboxes.retain(|held| held.id != outbox.id);
            if outboxes.is_empty() {
                self.connected.remove(&node);
            }
        }
    }

    /// Pushes to every proven connection of `node`; true if there is one.
    pub fn push(&self, node: NodeId, frame: &Bytes) -> bool {
        let Some(outboxes) = self.connected.get(&node) else {
            return false;
        };
        for outbox in outboxes {
            outbox.send(frame.clone());
        }
        true
    }

    /// Remembers that `node` is told of `offer`; false if it was told before.
    pub fn notify(&mut self, offer: OfferId, node: NodeId) -> bool {
        self.notified.entry(offer).or_default().insert(node)
    }

    /// Forgets that `node` was told of anything: a new connection has seen nothing.
    pub fn forget(&mut self, node: NodeId) {
        for nodes in self.notified.values_mut() {
            nodes.remove(&node);
        }
    }

    /// How many were told of `offer`.
    pub fn notified(&self, offer: OfferId) -> u32 {
        self.notified
            .get(&offer)
            .map_or(0, |nodes| u32::try_from(nodes.len()).unwrap_or(u32::MAX))
    }

    /// Who was told of an offer that has ended.
    pub fn take_notified(&mut self, offer: OfferId) -> BTreeSet<NodeId> {
        self.notified.remove(&offer).unwrap_or_default()
    }

    /// Drops what was remembered of offers that are not open.
    pub fn retain_offers(&mut self, is_open: impl Fn(OfferId) -> bool) {
        self.notified.retain(|&offer, _| is_open(offer));
    }

    /// Takes one token for a registration from `source`, which gains `per_second` up to `burst`.
    pub fn admit_registration(
        &mut self,
        source: IpAddr,
        at_ms: u64,
        per_second: u32,
        burst: u32,
    ) -> bool {
        let full = u64::from(burst) * 1_000;
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(&source) {
            // Full buckets are as good as none.
            self.buckets.retain(|_, bucket| {
                bucket.milli_tokens + (at_ms - bucket.at_ms) * u64::from(per_second) < full
            });
            if self.buckets.len() >= BUCKETS_MAX {
                return false;
            }
        }
        let fresh = Bucket {
            milli_tokens: full,
            at_ms,
        };
        let bucket = self.buckets.entry(source).or_insert(fresh);
        let gained = at_ms.saturating_sub(bucket.at_ms) * u64::from(per_second);
        bucket.milli_tokens = (bucket.milli_tokens + gained).min(full);
        bucket.at_ms = bucket.at_ms.max(at_ms);
        if bucket.milli_tokens < 1_000 {
            return false;
        }
        bucket.milli_tokens -= 1_000;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(id: u64, queued_max: usize) -> (Arc<Outbox>, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let source = IpAddr::from([127, 0, 0, 1]);
        let (outbox, receiver) = Outbox::new(id, source, queued_max, Arc::clone(&counters));
        drop(receiver);
        (outbox, counters)
    }

    #[test]
    fn a_peer_that_does_not_read_is_closed_at_the_bound() {
        let (outbox, counters) = outbox(1, 1_000);
        let frame = Bytes::from_static(&[0; 100]);
        for _ in 0..6 {
            outbox.send(frame.clone());
        }
        assert!(!outbox.is_closed(), "6 × 164 bytes fit");
        outbox.send(frame);
        assert!(outbox.is_closed());
        assert_eq!(counters.value(Count::OutgoingFull), 1);
    }

    #[test]
    fn registrations_from_one_source_are_paced() {
        let mut desk = Desk::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let taken = (0..10)
            .filter(|_| desk.admit_registration(one, 5, 2, 4))
            .count();
        assert_eq!(taken, 4, "the burst");
        assert!(
            desk.admit_registration(other, 5, 2, 4),
            "another source has its own"
        );
        assert!(desk.admit_registration(one, 505, 2, 4), "two a second");
        assert!(!desk.admit_registration(one, 505, 2, 4));
    }

    #[test]
    fn a_node_is_connected_as_long_as_one_of_its_connections_is() {
        let mut desk = Desk::default();
        let (first, _) = outbox(1, 1_000);
        let (second, _) = outbox(2, 1_000);
        let key = PublicKey([1; 32]);
        desk.connect(NodeId(1), key, &first);
        desk.connect(NodeId(1), key, &second);
        assert_eq!(first.proven(), Some((NodeId(1), key)));
        desk.disconnect(&first);
        assert!(desk.is_connected(NodeId(1)));
        desk.disconnect(&second);
        assert!(!desk.is_connected(NodeId(1)));
    }

    #[test]
    fn an_answer_that_fits_no_frame_becomes_an_error() {
        let frame = framed(&"x".repeat(MESSAGE_LEN_MAX));
        assert!(
            frame.len() < 1_000 && frame.ends_with(b"\"}"),
            "{} bytes",
            frame.len()
        );
    }
}
