//! What a node's data path may take in memory, summed before it starts.
//!
//! The arenas are taken at start. A tunnel takes its keys and sessions when they are exchanged. Slots
//! are taken when their engagement opens, and each grows to the longest answer it has kept. Long
//! payloads are memory only while they are there.

use ramjet_proto::engagement::serving::{KEPT_BYTES_MAX, RECEIVING_BYTES_MAX};
use ramjet_proto::stream::table::READ_BYTES_MAX;
use ramjet_proto::tunnel::TUNNEL_LEN_MAX;
use ramjet_proto::wire::limits::{FRAME_PAYLOAD_MAX, TASK_LEN_MAX};

use super::arena::{RECEIVE_BUFFERS_MAX, RECEIVE_STRIDE, SEND_TRAINS_MAX, TRAIN_STRIDE};
use super::boxes::{KEPT_LEN_MAX, TaskBox};

/// A slot's own fields, rounded up.
const SLOT_BYTES: usize = 128;
/// A tunnel's places in the tables of a worker: index, timers, channels, outbox; rounded up.
const TUNNEL_PLACES_LEN: usize = 256;

/// One kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLine {
    /// What it is for.
    pub what: &'static str,
    /// How many there may be.
    pub count: usize,
    /// Bytes of each.
    pub bytes_each: usize,
}

impl PlanLine {
    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.count.saturating_mul(self.bytes_each)
    }
}

/// The limits of a node that decide on its memory.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Worker threads.
    pub workers: usize,
    /// Tunnels of one worker thread.
    pub tunnels: usize,
    /// Engagements it serves at a time.
    pub engagements: usize,
    /// Slots of one engagement.
    pub credits: usize,
    /// Tasks of one worker thread that wait for agents or run there.
    pub agent_tasks: usize,
    /// Bytes shared with agents.
    pub agent_memory: usize,
}

/// Every line; their sum is what the data path may take at the most.
pub fn plan(limits: &PlanLimits) -> [PlanLine; 8] {
    [
        PlanLine {
            what: "receive buffers",
            count: limits.workers * usize::from(RECEIVE_BUFFERS_MAX),
            bytes_each: RECEIVE_STRIDE,
        },
        PlanLine {
            what: "send trains",
            count: limits.workers * usize::from(SEND_TRAINS_MAX),
            bytes_each: TRAIN_STRIDE,
        },
        PlanLine {
            what: "tunnels with every key and window",
            count: limits.workers * limits.tunnels,
            bytes_each: TUNNEL_LEN_MAX + TUNNEL_PLACES_LEN,
        },
        PlanLine {
            what: "slots with a kept answer",
            count: limits.engagements * limits.credits,
            bytes_each: SLOT_BYTES + FRAME_PAYLOAD_MAX,
        },
        PlanLine {
            what: "engagements with long payloads and results",
            count: limits.engagements,
            // One answer beyond the limit, and the memory of one that is no longer kept.
            bytes_each: RECEIVING_BYTES_MAX + KEPT_BYTES_MAX + 2 * TASK_LEN_MAX,
        },
        PlanLine {
            what: "workers' streams, with what waits to be read or sent back",
            count: limits.workers,
            bytes_each: 2 * READ_BYTES_MAX,
        },
        PlanLine {
            what: "tasks for agents, each with payload and result at rest",
            count: limits.workers * limits.agent_tasks,
            bytes_each: size_of::<TaskBox>() + 2 * KEPT_LEN_MAX,
        },
        PlanLine {
            what: "bytes shared with agents",
            count: limits.agent_memory,
            bytes_each: 1,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_follows_each_limit() {
        let sum = |limits: &PlanLimits| plan(limits).iter().map(PlanLine::bytes).sum::<usize>();
        let one = PlanLimits {
            workers: 1,
            tunnels: 1,
            engagements: 1,
            credits: 1,
            agent_tasks: 1,
            agent_memory: 1,
        };
        let arenas = super::super::arena::ARENA_BYTES;
        let task = size_of::<TaskBox>() + 2 * KEPT_LEN_MAX;
        let tunnel = TUNNEL_LEN_MAX + TUNNEL_PLACES_LEN;
        assert_eq!(
            sum(&PlanLimits { workers: 2, ..one }) - sum(&one),
            arenas + tunnel + 2 * READ_BYTES_MAX + task
        );
        assert_eq!(
            sum(&PlanLimits { tunnels: 9, ..one }) - sum(&one),
            8 * tunnel
        );
        assert_eq!(
            sum(&PlanLimits { credits: 3, ..one }) - sum(&one),
            2 * (SLOT_BYTES + FRAME_PAYLOAD_MAX)
        );
        let two_tasks = PlanLimits {
            agent_tasks: 2,
            agent_memory: 5,
            ..one
        };
        assert_eq!(sum(&two_tasks) - sum(&one), task + 4);
        assert!(
            sum(&PlanLimits {
                engagements: 2,
                ..one
            }) > sum(&one)
        );
    }
}
