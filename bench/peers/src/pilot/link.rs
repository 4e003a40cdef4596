//! A program's connection to its Pilot daemon, and the load over a stream of it.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::frames::{Frame, Frames, command, write_frame};
use crate::failure::Failure;
use crate::helper::START_LIMIT;
use crate::load::{Load, Measured, Phase};
use crate::window::Window;

/// Port of the daemon's own echo service.
const ECHO_PORT: u16 = 7;
/// The backbone, on which every node is.
const NETWORK: u16 = 0;
/// Bytes of one read; a full segment has 1,152.
const READ_LEN: usize = 64 * 1024;
/// Most bytes of requests in one packed write: what the daemon's own benchmark writes at a time.
const PACKED_LEN_MAX: usize = 4_096;

/// What the daemon tells of itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    /// Its number at the registry.
    pub(crate) node_id: u32,
    /// The tunnels it has.
    #[serde(default)]
    pub(crate) peer_list: Option<Vec<TunnelInfo>>,
}

/// A tunnel of a daemon.
#[derive(Debug, Deserialize)]
pub(crate) struct TunnelInfo {
    /// The other side.
    pub(crate) node_id: u32,
    /// Whether what it carries is sealed.
    #[serde(default)]
    pub(crate) encrypted: bool,
}

/// A connection to a daemon.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    pub(super) frames: Frames,
    buffer: Vec<u8>,
}

/// What went wrong at a node's socket.
pub(crate) fn at(error: impl std::fmt::Display) -> Failure {
    Failure::at("the Pilot daemon's socket", error)
}

impl Link {
    /// Connects to the daemon that listens at `path`.
    pub(crate) async fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Link {
            socket: UnixStream::connect(path).await.map_err(at)?,
            frames: Frames::default(),
            buffer: vec![0; READ_LEN],
        })
    }

    /// Asks the daemon what it is.
    pub(crate) async fn info(&mut self) -> Result<Info, Failure> {
        let json = self.ask(command::INFO, command::INFO_OK, |_| {}).await?;
        serde_json::from_slice(&json).map_err(|error| Failure::at("the Pilot daemon's info", error))
    }

    /// Opens a stream to the echo service of `node` and returns its id.
    pub(crate) async fn dial_echo(&mut self, node: u32) -> Result<[u8; 4], Failure> {
        self.dial(node, ECHO_PORT).await
    }

    /// Opens a stream to a port of `node` and returns its id.
    pub(crate) async fn dial(&mut self, node: u32, port: u16) -> Result<[u8; 4], Failure> {
        let reply = self
            .ask(command::DIAL, command::DIAL_OK, |out| {
                out.extend_from_slice(&NETWORK.to_be_bytes());
                out.extend_from_slice(&node.to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
            })
            .await?;
        reply
            .first_chunk()
            .copied()
            .ok_or_else(|| at("a dial was answered without a stream id"))
    }

    /// One question, and the payload of its answer.
    async fn ask(
        &mut self,
        question: u8,
        answer: u8,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        write_frame(&mut out, question, fill)?;
        let exchange = async {
            while !out.is_empty() {
                self.exchange(&mut out).await?;
            }
            loop {
                while let Some(frame) = self.frames.next()? {
                    if let Some(payload) = answered(frame, answer)? {
                        return Ok(payload);
                    }
                }
                self.exchange(&mut out).await?;
            }
        };
        timeout(START_LIMIT, exchange).await.unwrap_or_else(|_| {
            Err(at(format!(
                "command {question:#04x} was not answered within {} s",
                START_LIMIT.as_secs()
            )))
        })
    }

    /// Waits until the socket can take or give something, and lets it. What was written leaves
    /// `out`.
    pub(super) async fn exchange(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        let interest = if out.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.socket.ready(interest).await.map_err(at)?;
        if ready.is_readable() {
            match self.socket.try_read(&mut self.buffer) {
                Ok(0) => return Err(at("the daemon closed it")),
                Ok(read) => self.frames.push(&self.buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(at(error)),
            }
        }
        if ready.is_writable() && !out.is_empty() {
            self.write_some(out)?;
        }
        Ok(())
    }

    fn write_some(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        match self.socket.try_write(out) {
            Ok(written) => {
                out.drain(..written);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(at(error)),
        }
    }
}

/// The payload, if `frame` is the `answer`; nothing if it is about something else.
fn answered(frame: Frame<'_>, answer: u8) -> Result<Option<Vec<u8>>, Failure> {
    match frame.command {
        command::ERROR => {
            let words = frame.payload.get(2..).unwrap_or_default();
            Err(at(String::from_utf8_lossy(words)))
        }
        found if found == answer => Ok(Some(frame.payload.to_vec())),
        _ => Ok(None),
    }
}

/// How requests are put into writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// A write for each request.
    Single,
    /// Requests that are ready together share a write.
    Packed,
}

/// A stream to the echo service and the requests outstanding on it.
struct Lane {
    id: [u8; 4],
    window: Window,
}

/// Keeps a window outstanding, shared evenly by `streams` to the echo service of `node`.
pub(crate) async fn drive(
    link: &mut Link,
    node: u32,
    streams: usize,
    writes: Writes,
    load: &Load,
) -> Result<Measured, Failure> {
    let streams = streams.min(load.window);
    let mut lanes = Vec::with_capacity(streams);
    for stream in 0..streams {
        let limit = load.window / streams + usize::from(stream < load.window % streams);
        lanes.push(Lane {
            id: link.dial_echo(node).await?,
            window: Window::new(load, limit),
        });
    }
    let phase = Phase::begin(load);
    let mut measured = Measured::new(phase)?;
    let mut out = Vec::new();
    phase
        .bound(async {
            loop {
                let now = Instant::now();
                if phase.is_over(now) {
                    if lanes.iter().all(|lane| lane.window.is_empty()) {
                        return Ok(());
                    }
                } else {
                    for lane in &mut lanes {
                        fill(lane, writes, load.payload_len, now, &mut out)?;
                    }
                    if !out.is_empty() {
                        link.write_some(&mut out)?;
                    }
                }
                link.exchange(&mut out).await?;
                let now = Instant::now();
                while let Some(frame) = link.frames.next()? {
                    receive(frame, &mut lanes, now, &mut measured)?;
                }
            }
        })
        .await?;
    Ok(measured)
}

/// Writes requests until the window is full.
fn fill(
    lane: &mut Lane,
    writes: Writes,
    payload_len: usize,
    now: Instant,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let at_once = match writes {
        Writes::Single => 1,
        Writes::Packed => (PACKED_LEN_MAX / payload_len).max(1),
    };
    while lane.window.room() > 0 {
        let Lane { id, window } = lane;
        write_frame(out, command::SEND, |out| {
            out.extend_from_slice(id);
            for _ in 0..at_once.min(window.room()) {
                window.write_next(now, out);
            }
        })?;
    }
    Ok(())
}

/// Takes what came for one of the streams.
fn receive(
    frame: Frame<'_>,
    lanes: &mut [Lane],
    now: Instant,
    measured: &mut Measured,
) -> Result<(), Failure> {
    let lane = frame
        .payload
        .split_first_chunk()
        .and_then(|(id, bytes)| Some((lanes.iter_mut().find(|lane| lane.id == *id)?, bytes)));
    match (frame.command, lane) {
        (command::RECEIVED, Some((lane, bytes))) => lane.window.receive(bytes, now, measured),
        (command::CLOSED, Some(_)) => Err(at("the echo stream was closed")),
        (command::ERROR, _) => answered(frame, command::ERROR).map(|_| ()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    const LOAD: Load = Load {
        payload_len: 64,
        window: 5,
        warm_up: Duration::ZERO,
        run: Duration::from_millis(50),
    };

    /// A daemon that knows Info, Dial and Send, and echoes what a stream sends it.
    async fn fake_daemon(listener: UnixListener, spoil: bool) {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let (mut frames, mut streams) = (Frames::default(), 0_u32);
        let mut buffer = [0; 4_096];
        while let Ok(read @ 1..) = socket.read(&mut buffer).await {
            frames.push(&buffer[..read]);
            let mut out = Vec::new();
            while let Some(frame) = frames.next().expect("good frames") {
                let (reply, mut payload) = match frame.command {
                    command::INFO => (command::INFO_OK, br#"{"node_id":9,"more":1}"#.to_vec()),
                    command::DIAL if frame.payload == [0, 0, 0, 0, 0, 2, 0, 7] => {
                        streams += 1;
                        (command::DIAL_OK, streams.to_be_bytes().to_vec())
                    }
                    command::DIAL => (command::ERROR, b"\x00\x01no such node".to_vec()),
                    command::SEND => (command::RECEIVED, frame.payload.to_vec()),
                    other => panic!("{other:#04x}"),
                };
                if spoil
                    && reply == command::RECEIVED
                    && let Some(last) = payload.last_mut()
                {
                    *last ^= 1;
                }
                write_frame(&mut out, reply, |out| out.extend_from_slice(&payload))
                    .expect("a short frame");
            }
            if socket.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    async fn linked(spoil: bool) -> (tempfile::TempDir, Link) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ipc");
        let listener = UnixListener::bind(&path).expect("a socket");
        tokio::spawn(fake_daemon(listener, spoil));
        (folder, Link::open(&path).await.expect("it listens"))
    }

    #[tokio::test]
    async fn an_echo_is_measured_over_one_stream_and_over_several() {
        let (_folder, mut link) = linked(false).await;
        assert_eq!(link.info().await.expect("info").node_id, 9);
        for (streams, writes) in [
            (1, Writes::Single),
            (1, Writes::Packed),
            (3, Writes::Packed),
        ] {
            let measured = drive(&mut link, 2, streams, writes, &LOAD)
                .await
                .expect("a true echo");
            assert!(measured.tasks() > 0);
        }
        let refused = link.dial_echo(3).await.expect_err("no node").to_string();
        assert!(refused.contains("no such node"), "{refused}");
    }

    #[tokio::test]
    async fn a_spoiled_echo_gives_no_figure() {
        let (_folder, mut link) = linked(true).await;
        let wrong = drive(&mut link, 2, 1, Writes::Single, &LOAD)
            .await
            .expect_err("a changed byte");
        assert!(matches!(&wrong, Failure::Wrong(_)), "{wrong}");
    }
}
