//! Messages and files to other agents: the sending end of data exchange.
//!
//! A message without tags is understood by every version. One with tags is sent tagged, and once
//! more without them to a peer that says that it does not know them; who said so is remembered. A
//! file longer than a chunk is sent in chunks, which a broken connection does not lose, and as one
//! FILE message to a peer that does not know that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::agent::PORT_EXCHANGE;
use ramjet_proto::agent::exchange::{
    Ack, AckName, Incoming, Message, PAYLOAD_LEN_OLD, Tags, safe_file_name,
};
use ramjet_proto::agent::framing::FrameReader;
use ramjet_proto::agent::transfer::{
    CHUNK_LEN, Init, KIND_FILE_STREAM, Step, Transfer, TransferId, WINDOW_CHUNKS,
};
use ramjet_proto::ids::NodeId;

use super::Agent;
use super::files::named;
use super::host::{AgentStream, Host};
use super::inbox::sha256_of;

/// How long a peer is dialed.
pub(super) const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// How long an answer is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long the answer to an announcement of chunks is waited for.
const INIT_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_LEN_MAX: usize = 64 << 10;
/// Longest file that is sent.
const FILE_LEN_MAX: u64 = 2 << 30;
/// Peers that are remembered as old.
const OLD_MAX: usize = 4_096;

/// How a file was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentFile {
    /// Its name there.
    pub(crate) name: String,
    /// Its length, in bytes.
    pub(crate) bytes: u64,
    /// In chunks, or as one message.
    pub(crate) chunked: bool,
    /// The peer's word.
    pub(crate) ack: String,
}

/// A stream whose answers are frames.
struct Answers<S> {
    stream: S,
    reader: FrameReader,
}

impl<S: AgentStream> Answers<S> {
    fn new(stream: S) -> Self {
        Answers {
            stream,
            reader: FrameReader::new(ANSWER_LEN_MAX),
        }
    }

    /// The next frame, read.
    async fn next(&mut self, limit: Duration) -> Result<Incoming, String> {
        let reading = async {
            loop {
                let frame = self
                    .reader
                    .next_frame()
                    .map_err(|fault| fault.to_string())?;
                if let Some(frame) = frame {
                    return Incoming::read(frame).map_err(|malformed| malformed.reason);
                }
                match self.stream.read().await? {
                    Some(chunk) => self.reader.push(&chunk),
                    None => return Err("the peer ended the stream without an answer".to_owned()),
                }
            }
        };
        tokio::time::timeout(limit, reading)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    async fn ack(&mut self) -> Result<Ack, String> {
        read_ack(self.next(ANSWER_LIMIT).await?)
    }
}

fn read_ack(incoming: Incoming) -> Result<Ack, String> {
    let text = match incoming {
        Incoming::Message(message) => String::from_utf8_lossy(&message.content).into_owned(),
        _ => "a frame of another kind".to_owned(),
    };
    let shown = ramjet_proto::agent::bounded(&text, 120);
    Ack::read(&text).ok_or_else(|| format!("answered by {shown:?}, which acknowledges nothing"))
}

fn is_unknown(ack: &Ack) -> bool {
    let (Ack::Taken { name, .. } | Ack::Refused { name, .. }) = ack;
    matches!(name, AckName::Unknown(_))
}

impl<H: Host> Agent<H> {
    /// Sends a message and waits until the peer has taken it.
    ///
    /// # Errors
    /// The peer cannot be reached, or does not answer.
    pub(crate) async fn send(
        &self,
        peer: NodeId,
        message: Message,
        tags: Tags,
    ) -> Result<Ack, String> {
        let tagged = tags != Tags::default() && !self.old_peers.borrow().contains(&peer);
        if tagged {
            let ack = self.send_frame(peer, message.tagged_frame(&tags)?).await?;
            if !is_unknown(&ack) {
                return Ok(ack);
            }
            let mut old = self.old_peers.borrow_mut();
            if old.len() >= OLD_MAX {
                old.pop_first();
            }
            old.insert(peer);
        }
        self.send_frame(peer, message.frame()).await
    }

    async fn send_frame(&self, peer: NodeId, frame: Bytes) -> Result<Ack, String> {
        let stream = self.host.dial(peer, PORT_EXCHANGE, DIAL_LIMIT).await?;
        let mut answers = Answers::new(stream);
        answers.stream.write(frame).await?;
        let ack = answers.ack().await.map_err(|why| of(peer, &why))?;
        // The answer is here; how the stream ends adds nothing.
        tokio::task::spawn_local(answers.stream.close());
        Ok(ack)
    }

    /// Sends a file and waits until the peer has it.
    ///
    /// # Errors
    /// The file cannot be read, the peer cannot be reached, or does not take it.
    pub(crate) async fn send_file(
        &self,
        peer: NodeId,
        path: PathBuf,
        name: Option<String>,
    ) -> Result<SentFile, String> {
        let source = {
            let opened = tokio::task::spawn_blocking(move || Source::open(&path, name)).await;
            opened.unwrap_or_else(|_| Err("the node is shutting down".to_owned()))?
        };
        let source = Arc::new(source);
        if source.init.size > CHUNK_LEN as u64 && !self.old_peers.borrow().contains(&peer) {
            match self.send_chunks(peer, &source).await {
                Ok(Some(sent)) => return Ok(sent),
                Ok(None) => {}
                Err(why) => return Err(of(peer, &why)),
            }
        }
        self.send_whole(peer, &source).await
    }

    async fn send_whole(&self, peer: NodeId, source: &Arc<Source>) -> Result<SentFile, String> {
        let Init { size, name, .. } = source.init.clone();
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if len > PAYLOAD_LEN_OLD - 2 - name.len() {
            return Err(format!(
                "node {peer} takes files in one message only, of at most {PAYLOAD_LEN_OLD} bytes \
                 with the name; this one has {size}"
            ));
        }
        let content = source.read(0, len).await?;
        let ack = self
            .send_frame(peer, Message::file(&name, content)?.frame())
            .await?;
        match &ack {
            Ack::Taken { .. } => Ok(SentFile {
                name,
                bytes: size,
                chunked: false,
                ack: ack.to_string(),
            }),
            Ack::Refused { reason, .. } => Err(of(peer, reason)),
        }
    }

    /// `None` if the peer does not know files in chunks.
    async fn send_chunks(
        &self,
        peer: NodeId,
        source: &Arc<Source>,
    ) -> Result<Option<SentFile>, String> {
        let id = TransferId::of(&source.init.sha256);
        let frame = |step| Transfer { id, step }.frame();
        let stream = self.host.dial(peer, PORT_EXCHANGE, DIAL_LIMIT).await?;
        let mut answers = Answers::new(stream);
        let init = frame(Step::Init(source.init.clone()));
        answers.stream.write(init).await?;
        let mut sent = match answers.next(INIT_LIMIT).await {
            Ok(incoming) => match step_of(id, incoming)? {
                Some(Step::InitAck(offset)) => offset,
                Some(other) => return Err(odd(&other)),
                None => return Ok(None),
            },
            // Daemons of old may say nothing at all to what they do not know.
            Err(_) => return Ok(None),
        };
        let size = source.init.size;
        let window = (CHUNK_LEN * WINDOW_CHUNKS) as u64;
        let mut kept = sent;
        while kept < size {
            while sent < size && sent - kept < window {
                let len = usize::try_from(size - sent)
                    .unwrap_or(CHUNK_LEN)
                    .min(CHUNK_LEN);
                let data = source.read(sent, len).await?;
                let chunk = frame(Step::Chunk { offset: sent, data });
                answers.stream.write(chunk).await?;
                sent += len as u64;
            }
            match step_of(id, answers.next(ANSWER_LIMIT).await?)? {
                Some(Step::Ack(offset)) if offset <= sent => kept = kept.max(offset),
                Some(other) => return Err(odd(&other)),
                None => return Err("it does not know files in chunks any more".to_owned()),
            }
        }
        answers.stream.write(frame(Step::Done)).await?;
        loop {
            match step_of(id, answers.next(ANSWER_LIMIT).await?)? {
                Some(Step::Ack(_)) => {}
                Some(Step::Complete { ok: true, message }) => {
                    tokio::task::spawn_local(answers.stream.close());
                    let Init { size, name, .. } = source.init.clone();
                    return Ok(Some(SentFile {
                        ack: format!("COMPLETE {size} bytes{}{message}", space(&message)),
                        name,
                        bytes: size,
                        chunked: true,
                    }));
                }
                Some(other) => return Err(odd(&other)),
                None => return Err("it does not know files in chunks any more".to_owned()),
            }
        }
    }
}

fn space(message: &str) -> &'static str {
    if message.is_empty() { "" } else { " " }
}

fn of(peer: NodeId, why: &str) -> String {
    format!("node {peer}: {why}")
}

fn odd(step: &Step) -> String {
    match step {
        Step::Abort(why) => format!("transfer given up: {why}"),
        Step::Complete { message, .. } => format!("file not kept: {message}"),
        other => format!("transfer answered by {other:?}"),
    }
}

/// The step of this transfer; `None` if the peer does not know transfers.
fn step_of(id: TransferId, incoming: Incoming) -> Result<Option<Step>, String> {
    match incoming {
        Incoming::Transfer(transfer) if transfer.id == id => Ok(Some(transfer.step)),
        Incoming::Transfer(_) => Err("it answers another transfer".to_owned()),
        other => match read_ack(other)? {
            Ack::Taken {
                name: AckName::Unknown(KIND_FILE_STREAM),
                ..
            }
            | Ack::Refused {
                name: AckName::Unknown(KIND_FILE_STREAM),
                ..
            } => Ok(None),
            ack => Err(format!("transfer answered by {ack}")),
        },
    }
}

/// A file that is sent.
struct Source {
    file: File,
    path: PathBuf,
    init: Init,
}

impl Source {
    fn open(path: &Path, name: Option<String>) -> Result<Self, String> {
        let error = |error: std::io::Error| named(path, &error);
        let file = File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(format!("{}: is no file", path.display()));
        }
        let size = metadata.len();
        if size > FILE_LEN_MAX {
            return Err(format!(
                "{}: {size} bytes, at most {FILE_LEN_MAX}",
                path.display()
            ));
        }
        let own = path.file_name().map(|name| name.to_string_lossy());
        let name = safe_file_name(name.as_deref().or(own.as_deref()).unwrap_or_default())?;
        // What is read later is what is hashed here, or the receiver refuses it.
        let sha256 = sha256_of(path).map_err(error)?;
        Ok(Source {
            file,
            path: path.to_path_buf(),
            init: Init {
                size,
                sha256,
                chunk_len: u32::try_from(CHUNK_LEN).expect("48 KiB"),
                name,
            },
        })
    }

    async fn read(self: &Arc<Self>, offset: u64, len: usize) -> Result<Bytes, String> {
        let source = Arc::clone(self);
        let reading = move || {
            let mut bytes = vec![0; len];
            let read = source.file.read_exact_at(&mut bytes, offset);
            read.map_err(|error| named(&source.path, &error))?;
            Ok(Bytes::from(bytes))
        };
        let read = tokio::task::spawn_blocking(reading).await;
        read.unwrap_or_else(|_| Err("the node is shutting down".to_owned()))
    }
}
