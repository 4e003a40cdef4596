//! What a worker counts: one writer, read by anybody at any time.
//!
//! Two laws hold whenever the worker rests, and `docs/ARCHITECTURE.md` names them:
//!
//! - datagrams received = delivered + handled + dropped;
//! - the sum over `dropped_<reason>` = datagrams dropped + frames dropped + sends given up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ramjet_proto::fault::DropReason;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $variant:ident => $label:literal,)*) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $help])+ $variant,)* }

        /// Each with its label and what it means.
        const COUNTERS: &[(Counter, &str, &str)] =
            &[$((Counter::$variant, $label, concat!($($help),+).trim_ascii()),)*];
    };
}

counters! {
    /// Datagrams that arrived.
    DatagramsReceived => "datagrams_received",
    /// Bytes of the datagrams that arrived.
    BytesReceived => "bytes_received",
    /// Datagrams whose frames went on to the rooms.
    DatagramsDelivered => "datagrams_delivered",
    /// Datagrams that the tunnel dealt with: key exchange, keepalive, beacon.
    DatagramsHandled => "datagrams_handled",
    /// Datagrams dropped, by all reasons.
    DatagramsDropped => "datagrams_dropped",
    /// Datagrams handed to another worker, whose they are.
    DatagramsForwarded => "datagrams_forwarded",
    /// Datagrams sent.
    DatagramsSent => "datagrams_sent",
    /// Trains that datagrams left in.
    TrainsSent => "trains_sent",
    /// Bytes of the datagrams sent.
    BytesSent => "bytes_sent",
    /// Trains that could not be sent.
    SendsDropped => "sends_dropped",
    /// Frames read.
    FramesReceived => "frames_received",
    /// Frames dropped, by all reasons.
    FramesDropped => "frames_dropped",
    /// Tasks that ran here.
    TasksRun => "tasks_run",
    /// Answers that arrived for tasks of ours.
    AnswersReceived => "answers_received",
    /// Tasks given to the pool.
    PoolTasks => "pool_tasks",
    /// Tasks refused because the pool was full.
    PoolFull => "pool_full",
    /// Tasks handed to agents.
    AgentTasks => "agent_tasks",
    /// Tasks refused because no box for agents was free, or no agent was there.
    AgentsBusy => "agents_busy",
    /// System calls made to move datagrams.
    SystemCalls => "system_calls",
    /// Turns of the loop that found work.
    Turns => "turns",
    /// Datagrams that asked how long a datagram a path carries.
    PathProbes => "path_probes",
    /// Nanoseconds in turns that did something: spinning and sleeping are not in it.
    BusyNs => "busy_ns",
    /// Streams that peers opened.
    StreamsAccepted => "streams_accepted",
    /// Streams that were dialed.
    StreamsDialed => "streams_dialed",
    /// Bytes of streams that arrived in order.
    StreamBytesReceived => "stream_bytes_received",
    /// Bytes of streams that left for the first time.
    StreamBytesSent => "stream_bytes_sent",
    /// Times that the worker was lent the socket of a local client that speaks on one stream.
    LinesLent => "lines_lent",
    /// Frames that it exchanged with such clients; counted when the socket goes back.
    LineFrames => "line_frames",
    /// Times the worker slept.
    Parks => "parks",
    /// Times the kernel found no receive buffer.
    OutOfBuffers => "out_of_buffers",
    /// Receive buffers in play: they grow when the kernel found none.
    ReceiveBuffers => "receive_buffers",
    /// Send trains in play: they grow when none is free.
    SendTrains => "send_trains",
    /// Bytes of receive buffers and send trains in large pages that the operator set aside.
    HugePageBytes => "huge_page_bytes",
    /// Reports that had to wait because control was busy.
    ReportsDeferred => "reports_deferred",
}

/// The counters of one worker.
#[derive(Debug)]
pub struct Counters {
    values: Box<[AtomicU64]>,
    drops: Box<[AtomicU64]>,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn bump(cell: &AtomicU64, by: u64) {
    // One thread writes, so no read-modify-write is needed.
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

impl Counters {
    /// All at zero.
    pub fn new() -> Self {
        Counters {
            values: zeros(COUNTERS.len()),
            drops: zeros(DropReason::COUNT),
        }
    }

    /// Adds to one. Only the worker that owns them may.
    pub fn add(&self, counter: Counter, by: u64) {
        bump(&self.values[counter as usize], by);
    }

    /// Sets one that tells what is and not what was. Only the worker that owns them may.
    pub fn set(&self, counter: Counter, value: u64) {
        self.values[counter as usize].store(value, Ordering::Relaxed);
    }

    /// A datagram is dropped.
    pub fn drop_datagram(&self, reason: DropReason) {
        self.add(Counter::DatagramsDropped, 1);
        bump(&self.drops[reason.index()], 1);
    }

    /// A frame is dropped.
    pub fn drop_frame(&self, reason: DropReason) {
        self.add(Counter::FramesDropped, 1);
        bump(&self.drops[reason.index()], 1);
    }

    /// Something is not sent.
    pub fn drop_send(&self, reason: DropReason, count: u64) {
        self.add(Counter::SendsDropped, count);
        bump(&self.drops[reason.index()], count);
    }

    /// The value of one.
    pub fn read(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// How often this reason occurred.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()].load(Ordering::Relaxed)
    }

    /// Label and meaning of each counter, without the drop reasons.
    pub fn named() -> impl Iterator<Item = (Counter, &'static str, &'static str)> {
        COUNTERS.iter().copied()
    }

    /// All of them by name; drop reasons as `dropped_<label>`.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let values = COUNTERS
            .iter()
            .map(|(counter, label, _)| ((*label).to_owned(), self.read(*counter)));
        let drops = DropReason::ALL
            .iter()
            .map(|reason| (format!("dropped_{}", reason.label()), self.dropped(*reason)));
        values.chain(drops).collect()
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}
