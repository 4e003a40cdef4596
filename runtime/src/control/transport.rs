//! Framed TCP to the registry: connect, read, write, and come back after a failure.
//!
//! A frame is a 4-byte big-endian length and that many bytes of JSON. One task per connection
//! connects, tells the loop what arrives, writes what the loop sends, and begins again with a
//! growing pause when the connection ends. It knows nothing of what the messages say.
//!
//! The bytes move through tokio-uring, or through tokio's own TCP on a host that blocks io_uring;
//! [`Backend::probe`] decides once. Each connection has a generation; what was queued for an
//! earlier one is dropped, because a reply to it could not come back.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ControlTimings;
use super::backoff::Backoff;

/// Messages that wait for one connection at a time, either way.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// Bytes read at once, and the bytes that one write gathers.
const CHUNK_LEN: usize = 64 << 10;
/// A connection that held for this long begins again with the shortest pause.
const STEADY: std::time::Duration = std::time::Duration::from_secs(1);

/// Which interface moves the control thread's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Uring,
    Plain,
}

impl Backend {
    /// io_uring if this process may set up a ring of the size that the runtime will ask for.
    pub(crate) fn probe() -> Backend {
        match io_uring::IoUring::new(256) {
            Ok(_) => Backend::Uring,
            Err(error) => {
                tracing::info!(%error, "io_uring is not available: control uses plain sockets");
                Backend::Plain
            }
        }
    }
}

/// Why a byte stream holds no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameFault {
    TooLong { len: usize, limit: usize },
    Empty,
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameFault::TooLong { len, limit } => {
                write!(f, "a message of {len} bytes, at most {limit}")
            }
            FrameFault::Empty => f.write_str("a message of 0 bytes"),
        }
    }
}

/// Cuts a byte stream into frames of 1 to `limit` bytes.
pub(crate) struct Deframer {
    bytes: Vec<u8>,
    consumed: usize,
    limit: usize,
}

impl Deframer {
    pub(crate) fn new(limit: usize) -> Self {
        Deframer {
            bytes: Vec::new(),
            consumed: 0,
            limit,
        }
    }

    /// Appends what arrived. Call [`Self::next`] until it answers `None`, then append again: so
    /// no more than one frame and one chunk are ever held.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.consumed);
        self.consumed = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, FrameFault> {
        let rest = &self.bytes[self.consumed..];
        let Some((length, body)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*length) as usize;
        if len == 0 {
            return Err(FrameFault::Empty);
        }
        if len > self.limit {
            return Err(FrameFault::TooLong {
                len,
                limit: self.limit,
            });
        }
        let Some(frame) = body.get(..len) else {
            return Ok(None);
        };
        let frame = frame.to_vec();
        self.consumed += 4 + len;
        Ok(Some(frame))
    }
}

/// Appends one frame to `out`. The caller keeps messages far below 4 GiB.
pub(crate) fn append_frame(out: &mut Vec<u8>, message: &[u8]) {
    let len = u32::try_from(message.len()).expect("messages are bounded by MESSAGE_LEN_MAX");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(message);
}

enum Reader {
    Uring(Rc<tokio_uring::net::TcpStream>),
    Plain(OwnedReadHalf),
}

enum Writer {
    Uring(Rc<tokio_uring::net::TcpStream>),
    Plain(OwnedWriteHalf),
}

impl Reader {
    /// Reads into an empty buffer that the kernel owns meanwhile; the buffer comes back.
    async fn read(&mut self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        buffer.clear();
        match self {
            Reader::Uring(stream) => stream.read(buffer).await,
            Reader::Plain(half) => (half.read_buf(&mut buffer).await, buffer),
        }
    }
}

impl Writer {
    async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Writer::Uring(stream) => stream.write_all(bytes).await.0,
            Writer::Plain(half) => half.write_all(&bytes).await,
        }
    }

    /// Ends both directions, so that a read under way returns.
    fn shut_down(&mut self) {
        // A plain half shuts its direction when it is dropped, and its reader is aborted.
        if let Writer::Uring(stream) = self {
            // A connection that the peer has reset is not connected any more: nothing to end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

async fn connect(backend: Backend, address: SocketAddr) -> io::Result<(Reader, Writer)> {
    match backend {
        Backend::Uring => {
            let stream = Rc::new(tokio_uring::net::TcpStream::connect(address).await?);
            // Small messages, each waited for: they must not wait for each other.
            stream.set_nodelay(true)?;
            Ok((Reader::Uring(Rc::clone(&stream)), Writer::Uring(stream)))
        }
        Backend::Plain => {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Reader::Plain(reader), Writer::Plain(writer)))
        }
    }
}

/// Which of the two connections to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wire {
    /// Pilot's messages: strict request and reply.
    Pilot,
    /// The market's messages: numbered requests, and pushes.
    Market,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Pilot => "pilot",
            Wire::Market => "market",
        })
    }
}

/// What a connection tells the loop.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It stands; messages for it carry this generation.
    Up { generation: u64 },
    /// One message.
    Message { generation: u64, bytes: Vec<u8> },
    /// It ended, or an attempt failed: why. Another follows.
    Down { reason: String },
}

/// What the loop tells a connection.
pub(crate) enum Order {
    /// Send this, unless the connection of that generation is gone.
    Send { generation: u64, message: Vec<u8> },
    /// End the connection of that generation: why.
    Drop { generation: u64, reason: String },
}

/// Everything one connection task needs.
pub(crate) struct Dial {
    pub(crate) wire: Wire,
    pub(crate) address: SocketAddr,
    pub(crate) backend: Backend,
    pub(crate) timings: ControlTimings,
    pub(crate) limit: usize,
    /// Lends entropy for the spread of the pauses.
    pub(crate) entropy: fn() -> u64,
    pub(crate) arrivals: mpsc::Sender<(Wire, Arrival)>,
}

/// Starts the task of one connection on this thread's local set. It ends when the returned sender
/// or the receiver of arrivals is dropped.
pub(crate) fn dial(dial: Dial) -> mpsc::Sender<Order> {
    let (orders, inbox) = mpsc::channel(QUEUE_MAX);
    tokio::task::spawn_local(keep_connected(dial, inbox));
    orders
}

async fn keep_connected(dial: Dial, mut orders: mpsc::Receiver<Order>) {
    let mut backoff = Backoff::new(dial.timings.backoff_min, dial.timings.backoff_max);
    let mut generation = 0_u64;
    loop {
        let attempt = timeout(dial.timings.connect, connect(dial.backend, dial.address)).await;
        let reason = match attempt {
            Err(_) => Some(format!("no connection within {:?}", dial.timings.connect)),
            Ok(Err(error)) => Some(format!("cannot connect: {error}")),
            Ok(Ok((reader, writer))) => {
                generation += 1;
                let since = Instant::now();
                let reason = serve(&dial, generation, reader, writer, &mut orders).await;
                if since.elapsed() >= STEADY {
                    backoff.reset();
                }
                reason
            }
        };
        // None: the loop is gone.
        let Some(reason) = reason else { return };
        if dial
            .arrivals
            .send((dial.wire, Arrival::Down { reason }))
            .await
            .is_err()
        {
            return;
        }
        let pause = tokio::time::sleep(backoff.pause((dial.entropy)()));
        tokio::pin!(pause);
        // Orders for the dead generation are taken off the queue meanwhile.
        loop {
            tokio::select! {
                () = &mut pause => break,
                order = orders.recv() => if order.is_none() { return },
            }
        }
    }
}

/// Runs one connection to its end; the answer is why it ended, `None` if the loop is gone.
async fn serve(
    dial: &Dial,
    generation: u64,
    reader: Reader,
    mut writer: Writer,
    orders: &mut mpsc::Receiver<Order>,
) -> Option<String> {
    dial.arrivals
        .send((dial.wire, Arrival::Up { generation }))
        .await
        .ok()?;
    let mut reading = tokio::task::spawn_local(read_frames(
        dial.wire,
        generation,
        dial.limit,
        reader,
        dial.arrivals.clone(),
    ));
    let reason = loop {
        let order = tokio::select! {
            ended = &mut reading => {
                break Some(ended.unwrap_or_else(|error| format!("reader failed: {error}")));
            }
            order = orders.recv() => order,
        };
        let Some(order) = order else { break None };
        let mut bytes = Vec::new();
        match gather(order, generation, orders, &mut bytes) {
            Some(reason) => break Some(reason),
            None if bytes.is_empty() => {}
            None => {
                // A peer that reads nothing for this long is gone, whatever its kernel says.
                match timeout(dial.timings.request, writer.write_all(bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Some(format!("cannot write: {error}")),
                    Err(_) => {
                        break Some(format!("took nothing for {:?}", dial.timings.request));
                    }
                }
            }
        }
    };
    writer.shut_down();
    reading.abort();
    reason
}

/// Joins `order` and what waits behind it into one write; a reason if one of them ends the
/// connection.
fn gather(
    order: Order,
    current: u64,
    orders: &mut mpsc::Receiver<Order>,
    bytes: &mut Vec<u8>,
) -> Option<String> {
    let mut next = Some(order);
    while let Some(order) = next {
        match order {
            Order::Send {
                generation,
                message,
            } if generation == current => {
                append_frame(bytes, &message);
            }
            Order::Drop { generation, reason } if generation == current => return Some(reason),
            Order::Send { .. } | Order::Drop { .. } => {}
        }
        next = if bytes.len() < CHUNK_LEN {
            orders.try_recv().ok()
        } else {
            None
        };
    }
    None
}

/// Hands every frame to the loop until the connection ends; the answer is why it did.
async fn read_frames(
    wire: Wire,
    generation: u64,
    limit: usize,
    mut reader: Reader,
    arrivals: mpsc::Sender<(Wire, Arrival)>,
) -> String {
    let mut deframer = Deframer::new(limit);
    let mut buffer = Vec::with_capacity(CHUNK_LEN);
    loop {
        let (outcome, filled) = reader.read(buffer).await;
        buffer = filled;
        match outcome {
            Ok(0) => return "closed by the registry".to_owned(),
            Ok(_) => deframer.push(&buffer),
            Err(error) => return format!("cannot read: {error}"),
        }
        loop {
            match deframer.next() {
                Ok(Some(bytes)) => {
                    let message = Arrival::Message { generation, bytes };
                    if arrivals.send((wire, message)).await.is_err() {
                        return "the control loop ended".to_owned();
                    }
                }
                Ok(None) => break,
                Err(fault) => return format!("sent {fault}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            cut in 1_usize..97,
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                append_frame(&mut stream, message);
            }
            let mut deframer = Deframer::new(300);
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                deframer.push(piece);
                while let Some(frame) = deframer.next().expect("frames within the limit") {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, messages);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut deframer = Deframer::new(1_000);
        deframer.push(&1_001_u32.to_be_bytes());
        assert_eq!(
            deframer.next(),
            Err(FrameFault::TooLong {
                len: 1_001,
                limit: 1_000
            })
        );
        let mut deframer = Deframer::new(1_000);
        deframer.push(&[0; 4]);
        assert_eq!(deframer.next(), Err(FrameFault::Empty));
    }
}
