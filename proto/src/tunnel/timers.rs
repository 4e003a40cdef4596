//! One deadline a tunnel, the earliest on top.
//!
//! A deadline that moves later is not moved here: the tunnel is woken early, looks, and is
//! scheduled again. That keeps the path of packets free of the heap.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::TunnelHandle;
use crate::time::Time;

/// The heap of deadlines.
pub(super) struct Timers(BinaryHeap<Reverse<(Time, u32, u32)>>);

impl Timers {
    pub(super) fn with_capacity(tunnels: usize) -> Self {
        Timers(BinaryHeap::with_capacity(tunnels * 8))
    }

    /// Wakes `tunnel` at `at`.
    pub(super) fn push(&mut self, at: Time, tunnel: TunnelHandle) {
        self.0.push(Reverse((at, tunnel.index, tunnel.generation)));
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Time {
        self.0.peek().map_or(Time::NEVER, |Reverse((at, ..))| *at)
    }

    /// Takes a deadline that has come.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<(Time, TunnelHandle)> {
        if self.next() > now {
            return None;
        }
        self.0
            .pop()
            .map(|Reverse((at, index, generation))| (at, TunnelHandle { index, generation }))
    }
}
