//! Data exchange on port 1001: keeps what arrives, acknowledges it, and runs tasks that came as JSON.
//!
//! Each stream is a task of its own that answers its frames in order. Messages and files go to the
//! [`super::inbox`]; a JSON message that is a task request goes to its skill instead
//! (`requests`), and one that answers a request of ours goes to whoever waits for it. Invariants:
//! what is acknowledged is kept or taken; a repeat of a tagged message is acknowledged and neither
//! kept nor run again; the bytes of all streams together are bounded by [`KEPT_MAX`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::BytesMut;
use ramjet_proto::agent::exchange::{
    Ack, AckName, Incoming, Malformed, Message, MessageKind, PAYLOAD_LEN_MAX, Tags, TraceReport,
};
use ramjet_proto::agent::framing::FrameReader;
use ramjet_proto::agent::request::{TaskRequest, TaskResult};
use ramjet_proto::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Agent;
use super::host::{AgentListener, AgentStream, Host};
use super::inbox::Letter;
use super::receive::Receiving;

/// Streams at a time; a further one is reset.
const STREAMS_MAX: usize = 256;
/// A stream that says nothing for so long is closed.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(120);
/// Bytes of unfinished frames, over all streams.
const KEPT_MAX: usize = 256 << 20;
/// The unit in which they are counted.
const KEPT_UNIT: usize = 64 << 10;
/// Bytes of one stream from which on no more is read before what is there is kept.
const BATCH_LEN_MAX: usize = 256 << 10;
/// How long a message is known again, in milliseconds.
const REPEAT_MS: u64 = 600_000;
/// Messages that are known again.
const REPEATS_MAX: usize = 8_192;

/// Messages of one stream that are kept together.
#[derive(Default)]
struct Batch {
    letters: Vec<Letter>,
    /// What is said of each, if it can be kept.
    acks: Vec<Ack>,
}

/// Messages that were taken lately, by sender, id and content.
#[derive(Default)]
pub(super) struct Repeats {
    known: HashMap<Repeat, u64>,
    order: VecDeque<(Repeat, u64)>,
}

type Repeat = (NodeId, String, [u8; 32]);

impl Repeats {
    fn knows(&mut self, repeat: &Repeat, now_ms: u64) -> bool {
        while let Some((_, until)) = self.order.front()
            && (*until <= now_ms || self.order.len() > REPEATS_MAX)
        {
            if let Some((oldest, until)) = self.order.pop_front()
                && self.known.get(&oldest) == Some(&until)
            {
                self.known.remove(&oldest);
            }
        }
        self.known.contains_key(repeat)
    }

    fn remember(&mut self, repeat: Repeat, now_ms: u64) {
        let until = now_ms.saturating_add(REPEAT_MS);
        self.known.insert(repeat.clone(), until);
        self.order.push_back((repeat, until));
    }
}

/// What all streams share.
pub(super) struct Exchange {
    kept: Arc<Semaphore>,
    pub(super) repeats: RefCell<Repeats>,
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange {
            kept: Arc::new(Semaphore::new(KEPT_MAX / KEPT_UNIT)),
            repeats: RefCell::default(),
        }
    }
}

impl<H: Host> Agent<H> {
    /// Serves port 1001 until the node ends.
    pub(super) async fn serve_exchange(self: Rc<Self>, mut listener: H::Listener) {
        let open = Rc::new(());
        while let Some(stream) = listener.accept().await {
            if Rc::strong_count(&open) > STREAMS_MAX {
                continue;
            }
            let (agent, place) = (Rc::clone(&self), Rc::clone(&open));
            tokio::task::spawn_local(async move {
                let peer = stream.peer();
                if let Err(why) = agent.exchange(stream).await {
                    tracing::debug!(%peer, %why, "data exchange ended");
                }
                drop(place);
            });
        }
    }

    async fn exchange(self: &Rc<Self>, mut stream: H::Stream) -> Result<(), String> {
        let peer = stream.peer();
        let mut reader = FrameReader::new(PAYLOAD_LEN_MAX);
        let mut receiving = Receiving::default();
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut batch = Batch::default();
        loop {
            let read = tokio::time::timeout(IDLE_MAX, stream.read()).await;
            let Some(chunk) = read.map_err(|_| format!("silent for {IDLE_MAX:?}"))?? else {
                break;
            };
            reader.push(&chunk);
            // What has arrived meanwhile is kept and acknowledged together.
            while reader.kept_len() < BATCH_LEN_MAX
                && let Some(more) = stream.read_ready()
            {
                reader.push(&more);
            }
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => {
                        room = None;
                        let incoming = Incoming::read(frame);
                        let took = self.gather(peer, incoming, &mut batch);
                        if let Err(incoming) = took {
                            self.keep_batch(&mut stream, &mut batch).await?;
                            self.answer(&mut stream, peer, incoming, &mut receiving)
                                .await?;
                        }
                    }
                    Ok(None) => break,
                    Err(fault) => {
                        self.keep_batch(&mut stream, &mut batch).await?;
                        return Err(fault.to_string());
                    }
                }
            }
            self.keep_batch(&mut stream, &mut batch).await?;
            for frame in self.settle_chunks(&mut receiving).await {
                stream.write(frame).await?;
            }
            if room.is_none() && reader.awaited_len() > KEPT_UNIT {
                room = Some(self.room(reader.awaited_len()).await?);
            }
        }
        stream.close().await
    }

    /// Puts a message that is to be kept to those that are kept together; what is anything else, or a
    /// repeat of one of them, comes back.
    fn gather(
        &self,
        peer: NodeId,
        incoming: Result<Incoming, Malformed>,
        batch: &mut Batch,
    ) -> Result<(), Result<Incoming, Malformed>> {
        let plain = |message: &Message| message.kind != MessageKind::Json;
        let (tags, message) = match incoming {
            Ok(Incoming::Message(message)) if plain(&message) => (Tags::default(), message),
            Ok(Incoming::Tagged(tags, message)) if plain(&message) && tags.message_id.is_none() => {
                (tags, message)
            }
            other => return Err(other),
        };
        batch.acks.push(Ack::Taken {
            name: AckName::Message(message.kind),
            len: message.content.len() as u64,
            duplicate: false,
        });
        batch.letters.push(Letter {
            from: peer,
            message,
            tags,
            received_at_ms: self.host.unix_ms(),
        });
        Ok(())
    }

    /// Keeps what was gathered, on one trip to the blocking threads, and acknowledges it in one write.
    async fn keep_batch(&self, stream: &mut H::Stream, batch: &mut Batch) -> Result<(), String> {
        if batch.letters.is_empty() {
            return Ok(());
        }
        let letters = std::mem::take(&mut batch.letters);
        let inbox = Arc::clone(&self.inbox);
        let kept = tokio::task::spawn_blocking(move || inbox.keep_all(&letters))
            .await
            .map_err(|_| "the node is shutting down".to_owned())?;
        let mut answer = BytesMut::new();
        for (ack, kept) in batch.acks.drain(..).zip(kept) {
            let ack = match (ack, kept) {
                (Ack::Taken { name, .. }, Err(reason)) => {
                    tracing::info!(peer = %stream.peer(), %name, %reason, "message not kept");
                    Ack::Refused { name, reason }
                }
                (ack, _) => ack,
            };
            answer.extend_from_slice(&ack.frame());
        }
        stream.write(answer.freeze()).await
    }

    /// Room for an unfinished frame: waits until others have finished theirs.
    async fn room(&self, len: usize) -> Result<OwnedSemaphorePermit, String> {
        let units = u32::try_from(len.div_ceil(KEPT_UNIT)).unwrap_or(u32::MAX);
        let kept = Arc::clone(&self.exchange.kept);
        let room = tokio::time::timeout(IDLE_MAX, kept.acquire_many_owned(units)).await;
        match room {
            Ok(Ok(room)) => Ok(room),
            _ => Err(format!(
                "no room for {len} bytes beside other streams within {IDLE_MAX:?}"
            )),
        }
    }

    async fn answer(
        self: &Rc<Self>,
        stream: &mut H::Stream,
        peer: NodeId,
        incoming: Result<Incoming, Malformed>,
        receiving: &mut Receiving,
    ) -> Result<(), String> {
        let ack = match incoming {
            Ok(Incoming::Message(message)) => self.take(peer, message, Tags::default()).await,
            Ok(Incoming::Tagged(tags, message)) => self.take(peer, message, tags).await,
            Ok(Incoming::Trace {
                sent_at_ns,
                message,
            }) => {
                let received_at_ns = self.host.unix_ns();
                let inner_ack = self.take(peer, message, Tags::default()).await;
                let now = self.host.unix_ns();
                let kept = matches!(inner_ack, Ack::Taken { .. });
                let report = TraceReport {
                    sent_at_ns,
                    received_at_ns,
                    inbox_written_at_ns: if kept { now } else { 0 },
                    ack_sent_at_ns: now,
                    inner_ack,
                };
                return stream.write(report.frame()).await;
            }
            Ok(Incoming::Transfer(transfer)) => {
                for frame in self.receive(peer, transfer, receiving).await {
                    stream.write(frame).await?;
                }
                return Ok(());
            }
            Ok(Incoming::Unknown { kind, len }) => Ack::Taken {
                name: AckName::Unknown(kind),
                len: len as u64,
                duplicate: false,
            },
            Err(Malformed { name, reason }) => Ack::Refused { name, reason },
        };
        stream.write(ack.frame()).await
    }

    /// Takes a message: runs it, hands it to whoever waits for it, or keeps it.
    async fn take(self: &Rc<Self>, peer: NodeId, message: Message, tags: Tags) -> Ack {
        let name = AckName::Message(message.kind);
        let len = message.content.len() as u64;
        let repeat = tags.message_id.as_ref().map(|id| {
            let mut sha256 = [0; 32];
            sha256.copy_from_slice(digest::digest(&digest::SHA256, &message.content).as_ref());
            (peer, id.clone(), sha256)
        });
        let now_ms = self.host.unix_ms();
        let taken = |duplicate| Ack::Taken {
            name,
            len,
            duplicate,
        };
        if let Some(repeat) = &repeat
            && self.exchange.repeats.borrow_mut().knows(repeat, now_ms)
        {
            return taken(true);
        }
        let outcome = if message.kind == MessageKind::Json {
            self.take_json(peer, message, &tags, now_ms).await
        } else {
            self.keep(peer, message, tags.clone(), now_ms).await
        };
        if let Err(reason) = outcome {
            tracing::info!(%peer, %name, %reason, "message not kept");
            return Ack::Refused { name, reason };
        }
        if let Some(repeat) = repeat {
            self.exchange.repeats.borrow_mut().remember(repeat, now_ms);
        }
        taken(false)
    }

    async fn take_json(
        self: &Rc<Self>,
        peer: NodeId,
        message: Message,
        tags: &Tags,
        now_ms: u64,
    ) -> Result<(), String> {
        if let Some(result) = TaskResult::read(&message.content)
            && self.hand_over(peer, tags, result)
        {
            return Ok(());
        }
        match TaskRequest::read(&message.content) {
            Some(request) => {
                let agent = Rc::clone(self);
                let reply_to = tags.message_id.clone();
                tokio::task::spawn_local(async move {
                    agent.run_request(peer, request, reply_to).await;
                });
                Ok(())
            }
            None => self.keep(peer, message, tags.clone(), now_ms).await,
        }
    }

    pub(super) async fn keep(
        &self,
        from: NodeId,
        message: Message,
        tags: Tags,
        received_at_ms: u64,
    ) -> Result<(), String> {
        let inbox = Arc::clone(&self.inbox);
        let letter = Letter {
            from,
            message,
            tags,
            received_at_ms,
        };
        let kept = tokio::task::spawn_blocking(move || inbox.keep(&letter)).await;
        kept.unwrap_or_else(|_| Err("the node is shutting down".to_owned()))
            .map(drop)
    }
}
