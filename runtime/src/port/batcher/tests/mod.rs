//! The batcher on a virtual clock.

mod costs;
mod properties;
mod rules;
mod simulation;

use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;

use super::{BatchPolicy, Wanted};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

fn at(nanos: u64) -> Time {
    Time::from_nanos(nanos)
}

/// Batches of 8 that wait 1 ms, with room for everything else.
fn policy() -> BatchPolicy {
    BatchPolicy {
        items_max: 8,
        work_max: u64::MAX,
        wait: Duration::from_millis(1),
        bytes_max: 1 << 20,
        result_len_max: 64,
        waiting_max: 4_096,
        margin: Duration::ZERO,
    }
}

/// A task of one work unit without a deadline.
fn wanted(peer: u32, arrived: u64) -> Wanted {
    Wanted {
        peer: NodeId(peer),
        arrived: at(arrived),
        deadline: Time::NEVER,
        work: 1,
        payload_len: 100,
    }
}

fn due(peer: u32, arrived: u64, deadline: u64) -> Wanted {
    Wanted {
        deadline: at(deadline),
        ..wanted(peer, arrived)
    }
}
