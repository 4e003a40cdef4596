//! What a worker counts: one writer, read by anybody at any time.
//!
//! Two laws hold whenever the worker rests, and `docs/ARCHITECTURE.md` names them:
//!
//! - datagrams received = delivered + handled + dropped;
//! - the sum over `dropped_<reason>` = datagrams dropped + frames dropped + sends given up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ramjet_proto::fault::DropReason;
use ramjet_proto::labelled_enum;

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

labelled_enum! {
    /// A stretch of a task's way whose times are counted in buckets.
    Stage {
        /// From the arrival of a task until it runs.
        Queue => "queue",
        /// While its handler runs.
        Handler => "handler",
        /// As requester: from the first send of a task until its answer is here.
        RoundTrip => "round_trip",
    }
}

/// The shortest bucket of a stage holds up to 2 to this many nanoseconds: 1.024 µs.
const BUCKET_SHORTEST: u32 = 10;
/// Buckets of a stage: each holds twice as much time as the one before; the last has no bound.
pub const BUCKETS: usize = 28;

/// The bound of each bucket but the last, in nanoseconds: up to 68.7 s.
pub fn bucket_bounds_ns() -> impl Iterator<Item = u64> {
    (0..BUCKETS - 1).map(|bucket| 1 << (bucket + BUCKET_SHORTEST as usize))
}

/// How often a stage took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// How often, for each bucket by itself.
    pub buckets: [u64; BUCKETS],
    /// All times together, in nanoseconds.
    pub sum_ns: u64,
}

impl StageTimes {
    /// It took so long once.
    pub fn count(&mut self, ns: u64) {
        self.buckets[bucket(ns)] += 1;
        self.sum_ns += ns;
    }

    /// Those of another worker are added.
    pub fn add(&mut self, other: &StageTimes) {
        for (bucket, count) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += count;
        }
        self.sum_ns += other.sum_ns;
    }
}

/// The counters of one worker.
#[derive(Debug)]
pub struct Counters {
    values: Box<[AtomicU64]>,
    drops: Box<[AtomicU64]>,
    /// For each stage its buckets, then the sum of its times.
    stages: Box<[AtomicU64]>,
    /// Whether stages are counted: they cost a task a few nanoseconds.
    timed: AtomicBool,
}

const STAGE_CELLS: usize = BUCKETS + 1;

fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(BUCKET_SHORTEST) as usize).min(BUCKETS - 1)
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
            stages: zeros(Stage::COUNT * STAGE_CELLS),
            timed: AtomicBool::new(false),
        }
    }

    /// Counts stages from now on. Anybody may.
    pub fn time_stages(&self) {
        self.timed.store(true, Ordering::Relaxed);
    }

    /// A stage took so long. Only the worker that owns them may.
    pub fn time(&self, stage: Stage, ns: u64) {
        if self.timed.load(Ordering::Relaxed) {
            let cells = &self.stages[stage.index() * STAGE_CELLS..][..STAGE_CELLS];
            bump(&cells[bucket(ns)], 1);
            bump(&cells[BUCKETS], ns);
        }
    }

    /// The times of a stage so far.
    pub fn stage(&self, stage: Stage) -> StageTimes {
        let cells = &self.stages[stage.index() * STAGE_CELLS..][..STAGE_CELLS];
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        StageTimes {
            buckets: std::array::from_fn(|bucket| read(&cells[bucket])),
            sum_ns: read(&cells[BUCKETS]),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_the_first_bucket_that_holds_it() {
        let bounds: Vec<u64> = bucket_bounds_ns().collect();
        assert_eq!((bounds[0], bounds.len()), (1_024, BUCKETS - 1));
        assert_eq!(bounds[BUCKETS - 2], 1 << 36);
        for (index, bound) in bounds.iter().enumerate() {
            assert_eq!((bucket(*bound), bucket(bound + 1)), (index, index + 1));
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn stages_are_counted_once_somebody_wants_them() {
        let counters = Counters::new();
        counters.time(Stage::Handler, 5_000);
        assert_eq!(counters.stage(Stage::Handler), StageTimes::default());
        counters.time_stages();
        counters.time(Stage::Handler, 5_000);
        counters.time(Stage::Handler, 1_000);
        let times = counters.stage(Stage::Handler);
        assert_eq!(
            (times.sum_ns, times.buckets[0], times.buckets[3]),
            (6_000, 1, 1)
        );
        assert_eq!(counters.stage(Stage::Queue), StageTimes::default());
        let mut sum = times;
        sum.add(&times);
        assert_eq!((sum.sum_ns, sum.buckets[3]), (12_000, 2));
    }
}
