//! The node's end of the local socket: who may speak, and what is done for them.
//!
//! The socket file has mode 0600 and only its owner and root are heard, by the uid that the kernel
//! names. A file that nobody listens on is replaced; one that somebody listens on is left alone.
//! Each connection is a task of the control thread; `local_wire` has the protocol of ramjet's own
//! clients, and `driver` serves those that begin with a frame of Pilot's. It runs on tokio's own
//! sockets: io_uring's accept is not offered for this family by tokio-uring.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::Receiver;
use ramjet_proto::driver::Reply;
use ramjet_proto::ids::OfferId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::agent::AgentAsk;
use super::driver::{Driver, Entrance};
use super::handle::{Ask, ControlHandle, EVENTS_MAX, EngageAsk, EventSink, Respond};
use super::local_job::{
    LocalAnswer, LocalEnds, LocalOutcome, LocalTask, Verdicts, WINDOW_MAX, channel_job,
};
pub(crate) use super::local_listener::{LocalListener, bind};
use super::local_stream::{self, Reader, Writer};
use super::local_wire::{
    AnswerStatus, KIND_JSON, KIND_PIECE, KIND_TASK, KIND_TASK_DEADLINE, KIND_VERDICT, LocalReply,
    LocalRequest, LocalSubmit, append_answer, append_frame, append_json, frame_len, read_task,
    read_verdict,
};
use crate::job::Verdict;
use crate::node::{EngageEvent, EngageRequest, NodeError};

/// Connections at a time; a further one is told so and closed.
const CONNECTIONS_MAX: usize = 64;
/// Longest JSON from a client.
const REQUEST_LEN_MAX: usize = 1 << 20;
/// How long a client that broke the protocol is given to read why.
const NAMING: std::time::Duration = std::time::Duration::from_millis(200);
/// Bytes gathered before they are written.
const WRITE_LEN: usize = 256 << 10;

/// The serving of the socket; dropping it ends it and removes the file.
pub(crate) struct LocalServer {
    accepting: JoinHandle<()>,
    path: PathBuf,
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.accepting.abort();
        // Somebody may have removed it already; there is nothing else to do about it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves the socket on this thread's local set.
///
/// # Errors
/// The runtime cannot watch the socket.
pub(crate) fn serve(
    listener: LocalListener,
    handle: ControlHandle,
    driver: Driver,
) -> Result<LocalServer, String> {
    let LocalListener {
        listener,
        path,
        uid,
    } = listener;
    let listener = UnixListener::from_std(listener)
        .map_err(|error| format!("socket {}: {error}", path.display()))?;
    driver.open();
    let accepting = tokio::task::spawn_local(accept(listener, uid, handle, driver));
    Ok(LocalServer { accepting, path })
}

async fn accept(listener: UnixListener, uid: u32, handle: ControlHandle, driver: Driver) {
    let open = Rc::new(());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the local socket cannot accept");
                // Out of descriptors, most likely: others have to close first.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = stream.peer_cred().map(|credentials| credentials.uid());
        let refusal = match peer {
            Ok(peer) if peer != uid && peer != 0 => Some(format!(
                "uid {peer} may not speak to this node of uid {uid}"
            )),
            Err(error) => Some(format!(
                "the kernel does not name the client's uid: {error}"
            )),
            Ok(_) if Rc::strong_count(&open) > CONNECTIONS_MAX => Some(format!(
                "{CONNECTIONS_MAX} local connections are open, the limit"
            )),
            Ok(_) => None,
        };
        let place = Rc::clone(&open);
        let (handle, driver) = (handle.clone(), driver.clone());
        tokio::task::spawn_local(async move {
            let outcome = match refusal {
                Some(error) => refuse(stream, error).await,
                None => welcome(stream, handle, &driver).await,
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "local connection ended");
            }
            drop(place);
        });
    }
}

async fn refuse(mut stream: UnixStream, error: String) -> io::Result<()> {
    tracing::warn!(%error, "local connection refused");
    let mut out = Vec::new();
    let text = error.clone();
    append_json(&mut out, &LocalReply::Error { error });
    // Which protocol it speaks is not known: a client reads the one it knows and skips the other.
    Reply::Error { text: &text }.append(&mut out);
    stream.write_all(&out).await
}

/// Tells by the first frame which of the two protocols a client speaks: ours begins with JSON, and
/// no driver command has its kind.
async fn welcome(stream: UnixStream, handle: ControlHandle, driver: &Driver) -> io::Result<()> {
    let (reader, writer) = local_stream::split(stream)?;
    let reader = BufReader::with_capacity(64 << 10, reader);
    let mut entrance = Entrance { reader, writer };
    let Some(first) = entrance.first(driver).await? else {
        return Ok(());
    };
    let [prefix @ .., kind] = first;
    if kind != KIND_JSON {
        return driver.converse(entrance, first).await;
    }
    let Entrance { mut reader, writer } = entrance;
    let body = read_body(&mut reader, prefix).await?;
    converse(reader, writer, handle, body).await
}

async fn converse(
    mut reader: BufReader<Reader>,
    mut writer: Writer,
    handle: ControlHandle,
    first: Vec<u8>,
) -> io::Result<()> {
    let (mut kind, mut body) = (KIND_JSON, first);
    loop {
        let reply = match parse(kind, &body) {
            Ok(LocalRequest::Submit(submit)) => {
                return engage(reader, writer, handle, submit).await;
            }
            Ok(LocalRequest::End {} | LocalRequest::Cancel {}) => LocalReply::Error {
                error: "nothing was submitted here to end".to_owned(),
            },
            Ok(request) => answer(&handle, request).await,
            Err(error) => LocalReply::Error { error },
        };
        let mut out = Vec::new();
        append_json(&mut out, &reply);
        writer.write_all(&out).await?;
        match read_frame(&mut reader).await? {
            Some(frame) => (kind, body) = frame,
            None => return Ok(()),
        }
    }
}

fn parse(kind: u8, body: &[u8]) -> Result<LocalRequest, String> {
    if kind != KIND_JSON {
        return Err(format!("a frame of kind {kind} before a submit"));
    }
    if body.len() > REQUEST_LEN_MAX {
        return Err(format!(
            "a request of {} bytes, at most {REQUEST_LEN_MAX}",
            body.len()
        ));
    }
    serde_json::from_slice(body).map_err(|error| format!("no request: {error}"))
}

/// Puts a question to the control loop and waits for its answer, which always comes.
pub(crate) async fn put<T: Send + 'static>(
    handle: &ControlHandle,
    question: impl FnOnce(Respond<T>) -> Ask,
) -> Result<T, NodeError> {
    let (sender, receiver) = oneshot::channel();
    handle.put(question(Box::new(move |answer| {
        // A client that left does not hear its answer.
        let _ = sender.send(answer);
    })))?;
    receiver
        .await
        .unwrap_or_else(|_| Err(NodeError("the node is shutting down".to_owned())))
}

async fn answer(handle: &ControlHandle, request: LocalRequest) -> LocalReply {
    let reply = match request {
        LocalRequest::Status {} => {
            put(handle, Ask::Status)
                .await
                .map(|status| LocalReply::Status {
                    status: Box::new(status),
                })
        }
        LocalRequest::Resolve { query } => put(handle, |respond| Ask::Resolve(query, respond))
            .await
            .map(|workers| LocalReply::Workers { workers }),
        LocalRequest::Standing { who } => put(handle, |respond| Ask::Standing(who, respond))
            .await
            .map(|standing| LocalReply::Standing { standing }),
        LocalRequest::Engagements { who, limit } => {
            put(handle, |respond| Ask::Engagements(who, limit, respond))
                .await
                .map(|engagements| LocalReply::Engagements { engagements })
        }
        LocalRequest::Agent { request } => put(handle, |respond| {
            Ask::Agent(Box::new(AgentAsk { request, respond }))
        })
        .await
        .map(|answer| LocalReply::Agent { answer }),
        LocalRequest::Submit(_) | LocalRequest::End {} | LocalRequest::Cancel {} => {
            Err(NodeError("not a question".to_owned()))
        }
    };
    reply.unwrap_or_else(|NodeError(error)| LocalReply::Error { error })
}

/// What both directions of a submit share: the fate of each token in the window.
type Tokens = Rc<RefCell<BTreeMap<u64, TokenState>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenState {
    Running,
    /// Its result is with the client; the handler's time counts if it is accepted.
    AwaitingVerdict {
        busy_ns: u64,
    },
}

async fn engage(
    reader: BufReader<Reader>,
    mut writer: Writer,
    handle: ControlHandle,
    submit: LocalSubmit,
) -> io::Result<()> {
    let (job, ends) = channel_job(submit.deadline_us);
    let LocalEnds {
        tasks,
        answers,
        verdicts,
    } = ends;
    let (channel, events) = crossbeam::channel::bounded(EVENTS_MAX);
    let wake = Arc::new(Notify::new());
    let sink = EventSink {
        channel,
        wake: Some(Arc::clone(&wake)),
    };
    let request = EngageRequest {
        skill: submit.skill,
        filters: submit.filters,
        min_polo: submit.min_polo,
        tasks: submit.tasks,
        concurrency: submit.concurrency,
        duration_s: submit.duration_s,
        accept_deadline_ms: submit.accept_deadline_ms,
        job: Box::new(job),
    };
    let asked = put(&handle, |respond| {
        let verdicts = Some(Arc::clone(&verdicts));
        Ask::Engage(Box::new(EngageAsk {
            request,
            events: sink,
            verdicts,
            respond,
        }))
    })
    .await;
    let mut out = Vec::new();
    let offer = match asked {
        Ok(offer) => offer,
        Err(NodeError(error)) => {
            append_json(&mut out, &LocalReply::Error { error });
            return writer.write_all(&out).await;
        }
    };
    append_json(
        &mut out,
        &LocalReply::Submitted {
            offer,
            window: WINDOW_MAX,
        },
    );
    let tokens = Tokens::default();
    let left = Rc::clone(&tokens);
    let inward = Inward {
        tokens: Rc::clone(&tokens),
        verdicts: Arc::clone(&verdicts),
        tasks,
    };
    let mut reading = tokio::task::spawn_local(inward.run(reader));
    let mut outward = Outward {
        writer,
        out,
        tokens,
        verdicts: Arc::clone(&verdicts),
        answers,
        events,
    };
    let outcome = tokio::select! {
        outcome = outward.run(&wake) => outcome,
        fault = &mut reading => {
            let fault = fault.unwrap_or_else(io::Error::other);
            outward.name(&fault).await;
            Err(fault)
        }
    };
    reading.abort();
    if outcome.is_err() {
        // What was handed over and not rejected is accepted: a worker is not made to pay for a
        // client that leaves.
        for (_, state) in std::mem::take(&mut *left.borrow_mut()) {
            if let TokenState::AwaitingVerdict { busy_ns } = state {
                verdicts.judge(Verdict::Accept, busy_ns);
            }
        }
        leave(&handle, &verdicts, offer);
    }
    outcome
}

/// The client is gone before its engagement ended: nobody wants the answers.
fn leave(handle: &ControlHandle, verdicts: &Verdicts, offer: OfferId) {
    verdicts.leave();
    if let Err(error) = handle.put(Ask::Cancel(offer)) {
        tracing::warn!(%offer, %error, "an abandoned engagement runs to its end");
    }
}

/// From the client: tasks, verdicts, the end.
struct Inward {
    tokens: Tokens,
    verdicts: Arc<Verdicts>,
    tasks: mpsc::Sender<LocalTask>,
}

impl Inward {
    /// Runs until the client breaks the protocol, cancels or leaves: why, as an error.
    async fn run(self, mut reader: BufReader<Reader>) -> io::Error {
        let fault = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut tasks = Some(self.tasks);
        loop {
            let (kind, body) = match read_frame(&mut reader).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return fault("the client left".to_owned()),
                Err(error) => return error,
            };
            match kind {
                KIND_TASK | KIND_TASK_DEADLINE => {
                    let Some(sender) = &tasks else {
                        return fault("a task after the end".to_owned());
                    };
                    let body = Bytes::from(body);
                    let Some((token, deadline_us, payload)) = read_task(kind, &body) else {
                        let least = if kind == KIND_TASK { 8 } else { 12 };
                        return fault(format!("a task of {} bytes, at least {least}", body.len()));
                    };
                    let task = LocalTask {
                        token,
                        deadline_us,
                        payload: body.slice_ref(payload),
                    };
                    if self.tokens.borrow().len() >= WINDOW_MAX {
                        return fault(format!("more than {WINDOW_MAX} tasks in the window"));
                    }
                    if self
                        .tokens
                        .borrow_mut()
                        .insert(token, TokenState::Running)
                        .is_some()
                    {
                        return fault(format!("token {token} is in the window already"));
                    }
                    if sender.send(task).await.is_err() {
                        // The engagement has ended; its last event is on its way out.
                        tasks = None;
                    }
                    self.verdicts.ring();
                }
                KIND_VERDICT => {
                    let Some((token, verdict)) = read_verdict(&body) else {
                        return fault("a malformed verdict".to_owned());
                    };
                    match self.tokens.borrow_mut().remove(&token) {
                        Some(TokenState::AwaitingVerdict { busy_ns }) => {
                            self.verdicts.judge(verdict, busy_ns);
                        }
                        _ => return fault(format!("a verdict on {token}, which has no result")),
                    }
                }
                KIND_JSON => match parse(kind, &body) {
                    Ok(LocalRequest::End {}) => {
                        tasks = None;
                        self.verdicts.ring();
                    }
                    Ok(LocalRequest::Cancel {}) => return fault("cancelled".to_owned()),
                    Ok(_) => return fault("a question during an engagement".to_owned()),
                    Err(error) => return fault(error),
                },
                other => return fault(format!("a frame of kind {other}")),
            }
        }
    }
}

/// To the client: answers and events.
struct Outward {
    writer: Writer,
    out: Vec<u8>,
    tokens: Tokens,
    verdicts: Arc<Verdicts>,
    answers: mpsc::Receiver<LocalAnswer>,
    events: Receiver<EngageEvent>,
}

impl Outward {
    /// Runs until the last event is written, or the client cannot be written to.
    async fn run(&mut self, wake: &Notify) -> io::Result<()> {
        let mut open = true;
        loop {
            while let Ok(event) = self.events.try_recv() {
                let ended = matches!(event, EngageEvent::Ended(_));
                if ended {
                    // Every answer was queued before the engagement could end.
                    while let Ok(answer) = self.answers.try_recv() {
                        self.append(answer);
                    }
                }
                append_json(
                    &mut self.out,
                    &LocalReply::Event {
                        event: event.into(),
                    },
                );
                if ended {
                    let lost = self.verdicts.pieces_lost();
                    if lost > 0 {
                        tracing::info!(lost, "the client read too slowly for all progress");
                    }
                    self.writer.write_all(&self.out).await?;
                    return self.writer.shutdown().await;
                }
            }
            while self.out.len() < WRITE_LEN {
                let Ok(answer) = self.answers.try_recv() else {
                    break;
                };
                self.append(answer);
            }
            if !self.out.is_empty() {
                self.writer.write_all(&self.out).await?;
                self.out.clear();
                continue;
            }
            tokio::select! {
                () = wake.notified() => {}
                answer = self.answers.recv(), if open => match answer {
                    Some(answer) => self.append(answer),
                    None => open = false,
                },
            }
        }
    }

    /// Says what the client did wrong, if it still listens. What was being written when it did may
    /// be cut: then the length of that frame is the last thing it can read.
    async fn name(&mut self, fault: &io::Error) {
        if fault.kind() == io::ErrorKind::InvalidData && self.out.is_empty() {
            append_json(
                &mut self.out,
                &LocalReply::Error {
                    error: fault.to_string(),
                },
            );
            // A client that does not read is not waited for.
            let _ = tokio::time::timeout(NAMING, self.writer.write_all(&self.out)).await;
        }
    }

    fn append(&mut self, answer: LocalAnswer) {
        let LocalAnswer {
            token,
            outcome,
            timing,
        } = answer;
        self.verdicts.taken(&outcome);
        let mut tokens = self.tokens.borrow_mut();
        match &outcome {
            LocalOutcome::Done(bytes) => {
                tokens.insert(
                    token,
                    TokenState::AwaitingVerdict {
                        busy_ns: timing.busy_ns,
                    },
                );
                append_answer(&mut self.out, token, AnswerStatus::Done, timing, bytes);
            }
            LocalOutcome::Failed(bytes) => {
                tokens.remove(&token);
                append_answer(&mut self.out, token, AnswerStatus::Failed, timing, bytes);
            }
            LocalOutcome::Refused(refused) => {
                tokens.remove(&token);
                let label = refused.label().as_bytes();
                append_answer(&mut self.out, token, AnswerStatus::Refused, timing, label);
            }
            LocalOutcome::Piece(bytes) => {
                append_frame(&mut self.out, KIND_PIECE, &[&token.to_be_bytes(), bytes]);
            }
        }
    }
}

/// Reads one frame; `None` if the client closed between frames.
async fn read_frame(reader: &mut BufReader<Reader>) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut prefix = [0; 4];
    match reader.read_exact(&mut prefix).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let kind = reader.read_u8().await?;
    let body = read_body(reader, prefix).await?;
    Ok(Some((kind, body)))
}

/// Reads what follows a frame's length and kind.
async fn read_body(reader: &mut BufReader<Reader>, prefix: [u8; 4]) -> io::Result<Vec<u8>> {
    let mut body = vec![0; frame_len(prefix)? - 1];
    reader.read_exact(&mut body).await?;
    Ok(body)
}
