//! The client's end of the local socket: a node in another process of the same user.
//!
//! It blocks, as its callers do: the command line and programs that feed tasks. An engagement's job
//! runs here, in a thread of its own, and its verdicts travel back over the socket.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use ramjet_proto::market::message::{EngagementRow, Query, Standing, WorkerRow};

use super::agent::AgentRequest;
use super::engagements::Events;
use super::handle::{EVENTS_MAX, EventSink};
use super::local_wire::{
    AnswerStatus, KIND_ANSWER, KIND_JSON, KIND_PIECE, LocalReply, LocalRequest, LocalSubmit,
    append_json, append_task, append_verdict, read_answer, read_frame, read_token,
    refused_of_label, write_out,
};
use super::vocabulary::{CloseReason, Totals};
use crate::job::{Answer, Job, Next, Refused};
use crate::node::{
    EngageEnd, EngageEvent, EngageOutcome, EngageRequest, Engagement, NodeError, Status,
};
use crate::worker::clock;

/// How long a reply to a question may take: more than the node itself waits for its registry.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How soon a job that said `Later` is asked again.
const LATER: Duration = Duration::from_micros(500);
/// How long the pump waits when only the node can bring news; it then looks around and waits on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Space lent to a job; what does not fit travels as a large task.
const SPACE_LEN: usize = 64 << 10;
/// Frames that wait between the socket and the job.
const INBOX_MAX: usize = 1_024;
/// Bytes gathered before they are written.
const WRITE_LEN: usize = 256 << 10;

/// A node reached over its local socket. Each call opens a connection of its own.
#[derive(Clone, Debug)]
pub struct LocalClient {
    path: PathBuf,
}

impl LocalClient {
    /// Finds out whether a node listens at `path`.
    ///
    /// # Errors
    /// The path and why nobody can be spoken to there.
    pub fn connect(path: &Path) -> Result<LocalClient, NodeError> {
        let client = LocalClient {
            path: path.to_path_buf(),
        };
        client.open().map(|_| client)
    }

    /// What the node is and does now.
    ///
    /// # Errors
    /// The node is gone, refuses, or does not answer within 15 s.
    pub fn status(&self) -> Result<Status, NodeError> {
        match self.ask(&LocalRequest::Status {})? {
            LocalReply::Status { status } => Ok(*status),
            other => Err(self.odd(&other)),
        }
    }

    /// As [`crate::node::Node::resolve`].
    ///
    /// # Errors
    /// As [`Self::status`], and the registry's.
    pub fn resolve(&self, query: Query) -> Result<Vec<WorkerRow>, NodeError> {
        match self.ask(&LocalRequest::Resolve { query })? {
            LocalReply::Workers { workers } => Ok(workers),
            other => Err(self.odd(&other)),
        }
    }

    /// As [`crate::node::Node::standing`].
    ///
    /// # Errors
    /// As [`Self::status`], and the registry's.
    pub fn standing(&self, who: &str) -> Result<Standing, NodeError> {
        match self.ask(&LocalRequest::Standing {
            who: who.to_owned(),
        })? {
            LocalReply::Standing { standing } => Ok(standing),
            other => Err(self.odd(&other)),
        }
    }

    /// As [`crate::node::Node::engagements`].
    ///
    /// # Errors
    /// As [`Self::status`], and the registry's.
    pub fn engagements(
        &self,
        who: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EngagementRow>, NodeError> {
        let who = who.map(str::to_owned);
        match self.ask(&LocalRequest::Engagements { who, limit })? {
            LocalReply::Engagements { engagements } => Ok(engagements),
            other => Err(self.odd(&other)),
        }
    }

    /// As [`crate::node::Node::agent`].
    ///
    /// # Errors
    /// As [`Self::status`], and what the services say.
    pub fn agent(&self, request: AgentRequest) -> Result<serde_json::Value, NodeError> {
        let mut stream = self.open()?;
        let patience = request.patience() + REPLY_TIMEOUT;
        stream
            .set_read_timeout(Some(patience))
            .map_err(|error| self.lost(&error))?;
        let mut out = Vec::new();
        append_json(&mut out, &LocalRequest::Agent { request });
        write_out(&mut stream, &mut out).map_err(|error| self.lost(&error))?;
        match self.reply(&mut stream)? {
            LocalReply::Agent { answer } => Ok(answer),
            other => Err(self.odd(&other)),
        }
    }

    /// As [`crate::node::Node::engage`]: the job runs in this process, its tasks go through the
    /// node. If this process ends first, the node cancels the engagement.
    ///
    /// # Errors
    /// The node is gone, or refuses the engagement by name.
    pub fn engage(&self, request: EngageRequest) -> Result<Engagement, NodeError> {
        let EngageRequest {
            skill,
            filters,
            min_polo,
            tasks,
            concurrency,
            duration_s,
            accept_deadline_ms,
            job,
        } = request;
        let submit = LocalSubmit {
            skill,
            filters,
            min_polo,
            tasks,
            concurrency,
            duration_s,
            accept_deadline_ms,
            deadline_us: job.deadline_us(),
        };
        let mut stream = self.open()?;
        let mut out = Vec::new();
        append_json(&mut out, &LocalRequest::Submit(submit));
        write_out(&mut stream, &mut out).map_err(|error| self.lost(&error))?;
        let window = match self.reply(&mut stream)? {
            LocalReply::Submitted { window, .. } => window,
            other => return Err(self.odd(&other)),
        };
        let reader = stream.try_clone().map_err(|error| self.lost(&error))?;
        // From here on a silent node is a working one.
        reader
            .set_read_timeout(None)
            .map_err(|error| self.lost(&error))?;
        let (frames, inbox) = crossbeam::channel::bounded(INBOX_MAX);
        let (channel, events) = crossbeam::channel::bounded(EVENTS_MAX);
        let pump = Pump {
            stream,
            out,
            job: Some(job),
            window,
            outstanding: BTreeSet::new(),
            ended: false,
            inbox,
            events: Events::new(EventSink {
                channel,
                wake: None,
            }),
        };
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        spawn("ramjet-local-read")
            .spawn(move || read_frames(reader, &frames))
            .and_then(|_| spawn("ramjet-local-job").spawn(move || pump.run()))
            .map_err(|error| self.lost(&error))?;
        Ok(events)
    }

    fn open(&self) -> Result<UnixStream, NodeError> {
        let stream = UnixStream::connect(&self.path).map_err(|error| {
            NodeError(format!(
                "socket {}: {error}; is the node running, and its socket there?",
                self.path.display()
            ))
        })?;
        stream
            .set_read_timeout(Some(REPLY_TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(REPLY_TIMEOUT)))
            .map_err(|error| self.lost(&error))?;
        Ok(stream)
    }

    fn ask(&self, request: &LocalRequest) -> Result<LocalReply, NodeError> {
        let mut stream = self.open()?;
        let mut out = Vec::new();
        append_json(&mut out, request);
        write_out(&mut stream, &mut out).map_err(|error| self.lost(&error))?;
        self.reply(&mut stream)
    }

    fn reply(&self, stream: &mut UnixStream) -> Result<LocalReply, NodeError> {
        let (kind, body) = read_frame(stream).map_err(|error| self.lost(&error))?;
        if kind != KIND_JSON {
            return Err(NodeError(format!(
                "socket {}: a frame of kind {kind} where a reply was due",
                self.path.display()
            )));
        }
        match serde_json::from_slice(&body) {
            Ok(LocalReply::Error { error }) => Err(NodeError(error)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(NodeError(format!(
                "socket {}: an unreadable reply: {error}; is the node of this version?",
                self.path.display()
            ))),
        }
    }

    fn lost(&self, error: &io::Error) -> NodeError {
        NodeError(format!("socket {}: {error}", self.path.display()))
    }

    fn odd(&self, reply: &LocalReply) -> NodeError {
        NodeError(format!(
            "socket {}: an unfitting reply: {reply:?}",
            self.path.display()
        ))
    }
}

/// Moves frames to the pump until either side is gone; the pump sees the channel close.
fn read_frames(stream: UnixStream, frames: &Sender<(u8, Vec<u8>)>) {
    let mut stream = io::BufReader::with_capacity(WRITE_LEN, stream);
    while let Ok(frame) = read_frame(&mut stream) {
        if frames.send(frame).is_err() {
            return;
        }
    }
}

/// The thread between a job and the node.
struct Pump {
    stream: UnixStream,
    out: Vec<u8>,
    job: Option<Box<dyn Job>>,
    window: usize,
    /// Tokens without a final word.
    outstanding: BTreeSet<u64>,
    /// The job has no more tasks.
    ended: bool,
    inbox: Receiver<(u8, Vec<u8>)>,
    events: Events,
}

impl Pump {
    fn run(mut self) {
        let mut space = vec![0; SPACE_LEN];
        loop {
            let fed = self.feed(&mut space);
            if write_out(&mut self.stream, &mut self.out).is_err() {
                return self.hear_out();
            }
            let waiting = self.ended || self.outstanding.len() >= self.window;
            let wait = match (fed, waiting) {
                (true, false) => Duration::ZERO,
                (false, false) => LATER,
                (_, true) => PATIENCE,
            };
            let mut next = match self.inbox.recv_timeout(wait) {
                Ok(frame) => Some(frame),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.end_lost(),
            };
            while let Some((kind, body)) = next {
                match self.take(kind, &body) {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(()) => return self.end_lost(),
                }
                next = if self.out.len() < WRITE_LEN {
                    self.inbox.try_recv().ok()
                } else {
                    None
                };
            }
        }
    }

    /// Takes tasks from the job while the window has room; false if it has none just now.
    fn feed(&mut self, space: &mut [u8]) -> bool {
        let Some(job) = &mut self.job else {
            return false;
        };
        while !self.ended && self.outstanding.len() < self.window && self.out.len() < WRITE_LEN {
            match job.next(space, clock::now()) {
                Next::Task { len, token } => {
                    append_task(&mut self.out, token, &space[..len]);
                    self.outstanding.insert(token);
                }
                Next::Large { payload, token } => {
                    append_task(&mut self.out, token, &payload);
                    self.outstanding.insert(token);
                }
                Next::Later | Next::Waiting { .. } => return false,
                Next::End => {
                    append_json(&mut self.out, &LocalRequest::End {});
                    self.ended = true;
                }
            }
        }
        true
    }

    /// Acts on one frame; true after the last event. An error is a node that breaks the protocol.
    fn take(&mut self, kind: u8, body: &[u8]) -> Result<bool, ()> {
        let Some(job) = &mut self.job else {
            return Err(());
        };
        match kind {
            KIND_ANSWER => {
                let (token, status, timing, bytes) = read_answer(body).ok_or(())?;
                if !self.outstanding.remove(&token) {
                    return Err(());
                }
                let answer = match status {
                    AnswerStatus::Done => Answer::Done(bytes),
                    AnswerStatus::Failed => Answer::Failed(bytes),
                    AnswerStatus::Refused => Answer::Refused(refused_of_label(bytes)),
                };
                let verdict = job.answer(token, answer, timing);
                if status == AnswerStatus::Done {
                    append_verdict(&mut self.out, token, verdict);
                }
            }
            KIND_PIECE => {
                let (token, piece) = read_token(body).ok_or(())?;
                job.progress(token, piece);
            }
            KIND_JSON => match serde_json::from_slice(body) {
                Ok(LocalReply::Event { event }) => return Ok(self.tell(event.into())),
                Ok(LocalReply::Error { error }) => {
                    tracing::error!(%error, "the node ended the conversation");
                    return Err(());
                }
                _ => return Err(()),
            },
            _ => return Err(()),
        }
        Ok(false)
    }

    fn tell(&mut self, event: EngageEvent) -> bool {
        let EngageEvent::Ended(mut end) = event else {
            self.events.tell(event);
            return false;
        };
        let refused = match end.outcome {
            EngageOutcome::Closed(CloseReason::Lost) => Refused::Lost,
            _ => Refused::Cancelled,
        };
        end.job = self.settle_tokens(refused);
        self.events.tell(EngageEvent::Ended(end));
        true
    }

    /// Tasks that never left the node, or whose answers never came, get their answer here.
    fn settle_tokens(&mut self, refused: Refused) -> Option<Box<dyn Job>> {
        let mut job = self.job.take()?;
        for token in std::mem::take(&mut self.outstanding) {
            job.answer(
                token,
                Answer::Refused(refused),
                crate::job::Timing::default(),
            );
        }
        Some(job)
    }

    /// The node takes nothing more, as when it refused the offer while tasks were on their way to it:
    /// its last word lies before the end of the connection.
    fn hear_out(mut self) {
        while let Ok((kind, body)) = self.inbox.recv_timeout(PATIENCE) {
            match self.take(kind, &body) {
                Ok(true) => return,
                Ok(false) => self.out.clear(),
                Err(()) => break,
            }
        }
        self.end_lost();
    }

    fn end_lost(mut self) {
        let job = self.settle_tokens(Refused::Lost);
        self.events.tell(EngageEvent::Ended(EngageEnd {
            outcome: EngageOutcome::Closed(CloseReason::Lost),
            totals: Totals::default(),
            settlement: None,
            job,
        }));
    }
}
