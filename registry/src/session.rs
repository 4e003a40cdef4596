//! One TCP connection: frames in, jobs to the log thread, frames out.
//!
//! Pilot messages, hello and prove are taken one at a time, in order, as Pilot's clients expect.
//! Market requests run side by side up to a cap; at the cap the connection is not read, which the
//! peer feels as back-pressure. The writer is its own task, so that news reaches a peer that asks
//! nothing; a peer that does not read is closed when its queue is full or a write takes too long.
//!
//! Signatures of market requests are verified here, with the key the connection has proven, and so
//! beside the log thread rather than in it.

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::message::{Base64Bytes, Request, RequestBody, prove_bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::byte_log::ByteLog;
use crate::command::{Refused, Why};
use crate::config::Limits;
use crate::desk::Outbox;
use crate::fault::{Count, Counters};
use crate::frame::Decoder;
use crate::ledger::{Job, ReplyTo, count_reply, market_refusal, pilot_error};
use crate::message::{self, Message};
use crate::trade::{expect_speaker, not_proven};

/// Faulty messages after which a connection is closed.
const FAULTS_MAX: u32 = 100;
/// A frame that announces more than this takes part in the budget of long messages: what daemons
/// and nodes say in the normal course is shorter.
const LONG_FRAME: usize = 4 << 10;
/// How long, and how much, is read from a peer that was told off before the connection is closed:
/// closing on unread bytes would destroy the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_LEN_MAX: usize = 1 << 20;

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// Counters of the registry.
    pub counters: Arc<Counters>,
    /// Bounds.
    pub limits: Limits,
    /// The way to the log thread.
    pub jobs: mpsc::Sender<Job>,
    /// The byte log, if one is kept.
    pub byte_log: Option<ByteLog>,
    /// Kibibytes that long messages may hold together.
    pub incoming: Arc<Semaphore>,
}

impl Shared {
    /// Appends to the byte log, if one is kept.
    pub fn record(&self, bytes: &[u8]) {
        if let Some(byte_log) = &self.byte_log {
            byte_log.append(bytes, &self.counters);
        }
    }
}

/// Why a session reads no further.
enum End {
    /// The peer has closed, cleanly or inside a frame.
    Eof,
    /// The peer was told why.
    ToldOff,
    /// Nothing can be said any more.
    Broken,
}

/// Serves one connection until it ends.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, id: u64) {
    // A small answer must not wait for a larger one.
    let _ = stream.set_nodelay(true);
    let (read_half, write_half) = stream.into_split();
    let queued_max = shared.limits.outgoing_bytes_per_connection;
    let source = peer.ip().to_canonical();
    let (outbox, queue) = Outbox::new(id, source, queued_max, Arc::clone(&shared.counters));
    let writer = tokio::spawn(write_out(
        Arc::clone(&shared),
        write_half,
        queue,
        Arc::clone(&outbox),
    ));
    let in_flight = u32::try_from(shared.limits.in_flight_per_connection).unwrap_or(u32::MAX);
    let mut session = Session {
        shared: Arc::clone(&shared),
        outbox: Arc::clone(&outbox),
        read_half,
        decoder: Decoder::default(),
        in_flight: Arc::new(Semaphore::new(in_flight as usize)),
        in_flight_max: in_flight,
        claim: None,
        faults: 0,
        long_frame: None,
        pace: Pace::new(&shared.limits),
    };
    let end = tokio::select! {
        end = session.read_in() => end,
        () = outbox.closed() => End::Broken,
    };
    // The desk forgets the connection before its last answer is written.
    let _ = shared.jobs.send(Job::Gone(Arc::clone(&outbox))).await;
    if !matches!(end, End::Broken) {
        // A peer that has only closed its own direction still gets what it asked for.
        session.drain().await;
        outbox.finish();
        let _ = writer.await;
        if matches!(end, End::ToldOff) {
            session.linger().await;
        }
    } else {
        outbox.close();
        let _ = writer.await;
    }
}

struct Session {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    read_half: OwnedReadHalf,
    decoder: Decoder,
    in_flight: Arc<Semaphore>,
    in_flight_max: u32,
    /// The node that hello named, and the nonce it was given.
    claim: Option<(NodeId, [u8; 32])>,
    faults: u32,
    /// The share of the budget of long messages, and when the message must be whole.
    long_frame: Option<(OwnedSemaphorePermit, Instant)>,
    pace: Pace,
}

/// How fast one connection may speak: a bucket of messages.
struct Pace {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        let burst = f64::from(limits.messages_burst.max(1));
        Pace {
            per_second: f64::from(limits.messages_per_second.max(1)),
            burst,
            tokens: burst,
            at: Instant::now(),
        }
    }

    /// Takes a message, and says how long it must wait for its turn.
    fn take(&mut self, now: Instant) -> Duration {
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.per_second)
    }
}

impl Session {
    async fn read_in(&mut self) -> End {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    self.long_frame = None;
                    if let Err(end) = self.take(&frame).await {
                        return end;
                    }
                }
                Ok(None) => {
                    if let Err(end) = self.read_more().await {
                        return end;
                    }
                }
                Err(fault) => {
                    self.shared.counters.add(fault.count());
                    self.outbox.send(pilot_error(&fault.to_string()));
                    return End::ToldOff;
                }
            }
        }
    }

    async fn read_more(&mut self) -> Result<(), End> {
        let limits = &self.shared.limits;
        let mut deadline = Instant::now() + limits.read_timeout;
        if let Some(expected) = self
            .decoder
            .expected()
            .filter(|&expected| expected > LONG_FRAME)
        {
            if self.long_frame.is_none() {
                let kibibytes = u32::try_from(expected.div_ceil(1 << 10)).unwrap_or(u32::MAX);
                let share = Arc::clone(&self.shared.incoming).acquire_many_owned(kibibytes);
                let Ok(Ok(share)) = timeout_at(deadline, share).await else {
                    self.shared.counters.add(Count::ReadTimeout);
                    return Err(End::Broken);
                };
                self.long_frame = Some((share, Instant::now() + limits.write_timeout));
            }
            if let Some((_, whole_by)) = &self.long_frame {
                deadline = deadline.min(*whole_by);
            }
        }
        let held = self.decoder.held();
        self.decoder.rest();
        match timeout_at(deadline, self.read_some()).await {
            Ok(Ok(0)) => {
                if held > 0 {
                    self.shared.counters.add(Count::FrameTruncated);
                }
                Err(End::Eof)
            }
            Ok(Ok(_)) => {
                self.shared.record(self.decoder.tail(held));
                Ok(())
            }
            Ok(Err(_)) => Err(End::Broken),
            Err(_) => {
                self.shared.counters.add(Count::ReadTimeout);
                Err(End::Broken)
            }
        }
    }

    /// Reads what there is; memory for it is taken only once there is something.
    async fn read_some(&mut self) -> io::Result<usize> {
        loop {
            self.read_half.readable().await?;
            match self.read_half.try_read_buf(self.decoder.room()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.decoder.rest(),
                read => return read,
            }
        }
    }

    async fn take(&mut self, frame: &Bytes) -> Result<(), End> {
        let turn = self.pace.take(Instant::now());
        if !turn.is_zero() {
            self.shared.counters.add(Count::MessagesPaced);
            sleep(turn).await;
        }
        self.shared.counters.add(Count::MessagesReceived);
        match message::read(frame) {
            Ok(Message::Pilot(ask)) => {
                let reply_to = self.reply_to().await?;
                self.ask_and_wait(Job::Pilot(ask, reply_to)).await
            }
            Ok(Message::PilotRefused(refused)) => {
                // In order: nothing of this connection may still be under way.
                self.drain().await;
                count_reply(&self.shared.counters, Some(refused.why.count()));
                self.outbox.send(pilot_error(&refused.reason));
                Ok(())
            }
            Ok(Message::Market(request)) => self.take_market(*request).await,
            Err(fault) => {
                self.drain().await;
                self.shared.counters.add(fault.count);
                self.outbox.send(fault.answer());
                self.faults += 1;
                if self.faults < FAULTS_MAX {
                    return Ok(());
                }
                self.shared.counters.add(Count::TooManyFaults);
                Err(End::ToldOff)
            }
        }
    }

    async fn take_market(&mut self, request: Request) -> Result<(), End> {
        let Request { id, body } = request;
        match body {
            RequestBody::Hello { node } => {
                let mut nonce = [0; 32];
                if aws_lc_rs::rand::fill(&mut nonce).is_err() {
                    let refused = Refused::new(Why::Unavailable, "no entropy for a nonce");
                    self.refuse(id, refused);
                    return Ok(());
                }
                self.claim = Some((node, nonce));
                let reply_to = self.reply_to().await?;
                self.ask_and_wait(Job::Hello {
                    id,
                    node,
                    nonce,
                    reply_to,
                })
                .await
            }
            RequestBody::Prove { signature } => {
                // A nonce serves once.
                let Some((node, nonce)) = self.claim.take() else {
                    self.refuse(id, not_proven());
                    return Ok(());
                };
                let reply_to = self.reply_to().await?;
                let bytes = prove_bytes(node, &nonce);
                let signature = signature.0;
                self.ask_and_wait(Job::Prove {
                    id,
                    node,
                    bytes,
                    signature,
                    reply_to,
                })
                .await
            }
            body => {
                if let Err(refused) = self.verify(&body) {
                    self.refuse(id, refused);
                    return Ok(());
                }
                let reply_to = self.reply_to().await?;
                let job = Job::Market {
                    id,
                    body: Box::new(body),
                    reply_to,
                };
                self.shared.jobs.send(job).await.map_err(|_| End::Broken)
            }
        }
    }

    /// Checks that the connection may say this, and its own signature where it has one.
    fn verify(&self, body: &RequestBody) -> Result<(), Refused> {
        let (named, signed, signature): (NodeId, Vec<u8>, &Base64Bytes) = match body {
            RequestBody::Advertise {
                advertisement,
                signature,
            } => (advertisement.node, advertisement.signed_bytes(), signature),
            RequestBody::Offer { offer, signature } => {
                (offer.requester, offer.signed_bytes(), signature)
            }
            RequestBody::Accept { terms, signature } => {
                (terms.worker, terms.signed_bytes(), signature)
            }
            RequestBody::Settle { .. }
            | RequestBody::Release { .. }
            | RequestBody::Renew { .. } => {
                return self.outbox.proven().map(drop).ok_or_else(not_proven);
            }
            RequestBody::Hello { .. }
            | RequestBody::Prove { .. }
            | RequestBody::Resolve(_)
            | RequestBody::Standing { .. }
            | RequestBody::Engagements { .. } => return Ok(()),
        };
        let (node, key) = self.outbox.proven().ok_or_else(not_proven)?;
        expect_speaker(node, named)?;
        if key.verifies(&signed, &signature.0) {
            return Ok(());
        }
        Err(Refused::new(
            Why::Signature,
            format!("the signature does not verify with the key that node {node} has proven"),
        ))
    }

    fn refuse(&self, id: u64, refused: Refused) {
        count_reply(&self.shared.counters, Some(refused.why.count()));
        self.outbox.send(market_refusal(id, refused));
    }

    /// A place among the requests in flight; waits for one to be free.
    async fn reply_to(&self) -> Result<ReplyTo, End> {
        let permit = Arc::clone(&self.in_flight).acquire_owned().await;
        let permit = permit.map_err(|_| End::Broken)?;
        Ok(ReplyTo {
            outbox: Arc::clone(&self.outbox),
            permit: Some(permit),
        })
    }

    async fn ask_and_wait(&self, job: Job) -> Result<(), End> {
        self.shared.jobs.send(job).await.map_err(|_| End::Broken)?;
        self.drain().await;
        Ok(())
    }

    /// Waits until nothing of this connection is under way.
    async fn drain(&self) {
        // It fails only once the semaphore is closed, which nobody does.
        let _ = self.in_flight.acquire_many(self.in_flight_max).await;
    }

    async fn linger(&mut self) {
        let mut left = LINGER_LEN_MAX;
        let mut discard = BytesMut::with_capacity(16 << 10);
        let discarded = async {
            while left > 0 {
                discard.clear();
                match self.read_half.read_buf(&mut discard).await {
                    Ok(read) if read > 0 => left = left.saturating_sub(read),
                    _ => return,
                }
            }
        };
        let _ = timeout(LINGER, discarded).await;
    }
}

/// Writes what is queued until told to finish.
async fn write_out(
    shared: Arc<Shared>,
    mut write_half: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Option<Bytes>>,
    outbox: Arc<Outbox>,
) {
    let mut queued = Vec::new();
    let mut is_last = false;
    while !is_last {
        if queue.recv_many(&mut queued, 64).await == 0 || outbox.is_closed() {
            break;
        }
        // Taken anew each time: most connections are silent for a minute.
        let mut buffer = BytesMut::new();
        is_last = queued.iter().any(Option::is_none);
        for frame in queued.iter().map_while(Option::as_ref) {
            buffer.extend_from_slice(frame);
        }
        shared.record(&buffer);
        let written = tokio::select! {
            written = timeout(shared.limits.write_timeout, write_half.write_all(&buffer)) => written,
            () = outbox.closed() => break,
        };
        match written {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                shared.counters.add(Count::WriteTimeout);
                break;
            }
        }
        for frame in queued.drain(..).flatten() {
            outbox.written(&frame);
        }
    }
    if is_last {
        let _ = write_half.shutdown().await;
    } else {
        // The reader learns that nobody can be answered any more.
        outbox.close();
    }
}
