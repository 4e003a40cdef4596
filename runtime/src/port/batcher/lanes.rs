//! The agents that run batches, and when each is expected to be done with those it has.
//!
//! A lane runs its batches one after the other in the order they were taken: the first runs, the
//! others are staged. From that alone follows when a batch began: when it was taken or when the one
//! before it ended, whichever was later.
//!
//! Absent: what is in a batch; the caller keeps that.

use std::time::Duration;

use ramjet_proto::time::Time;

use super::{Lane, Ticket};

/// Batches on a lane for which room is made at the start: one runs, one is staged.
const FLIGHTS: usize = 2;

/// A batch on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) ticket: Ticket,
    pub(super) items: usize,
    pub(super) work: u64,
    pub(super) taken: Time,
    pub(super) expected_ns: u64,
    pub(super) predicted_ns: u64,
    /// The deadline of the probe that it is.
    pub(super) probe: Option<Time>,
}

#[derive(Debug)]
struct Batches {
    lane: Lane,
    flights: Vec<Flight>,
    /// When the last one ended.
    ended: Time,
}

impl Batches {
    /// When its batches are expected to be done. One that has overrun is expected to take as long
    /// again as it has overrun.
    fn free_at(&self, now: Time) -> Time {
        let Some(first) = self.flights.first() else {
            return now;
        };
        let end = first.taken.max(self.ended) + Duration::from_nanos(first.expected_ns);
        let end = if end >= now { end } else { now + (now - end) };
        let staged = self.flights[1..].iter().map(|flight| flight.expected_ns);
        end + Duration::from_nanos(staged.fold(0, u64::saturating_add))
    }

    /// How much later than expected its running batch may end.
    fn uncertain_ns(&self) -> u64 {
        let first = self.flights.first();
        first.map_or(0, |first| first.predicted_ns - first.expected_ns)
    }
}

/// Where a batch would go, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// When it is expected to start.
    pub(super) start: Time,
    /// How much later the batch before it may end than expected.
    pub(super) uncertain_ns: u64,
    /// The lane has nothing to do.
    pub(super) idle: bool,
}

/// A batch that ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) flight: Flight,
    /// How long it had the lane, in nanoseconds.
    pub(super) ran_ns: u64,
}

/// All lanes of one skill.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Batches>,
    lanes_made: u32,
    tickets: u64,
}

impl Lanes {
    pub(super) fn add(&mut self) -> Lane {
        let lane = Lane(self.lanes_made);
        self.lanes_made = self.lanes_made.wrapping_add(1);
        self.lanes.push(Batches {
            lane,
            flights: Vec::with_capacity(FLIGHTS),
            ended: Time::ZERO,
        });
        lane
    }

    pub(super) fn remove(&mut self, lane: Lane) {
        self.lanes.retain(|batches| batches.lane != lane);
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Nothing is on its way anywhere.
    pub(super) fn all_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.flights.is_empty())
    }

    pub(super) fn any_idle(&self) -> bool {
        self.lanes.iter().any(|lane| lane.flights.is_empty())
    }

    pub(super) fn place(&self, now: Time, lane: Lane) -> Option<Place> {
        let lane = self.lanes.iter().find(|batches| batches.lane == lane)?;
        Some(Place {
            start: lane.free_at(now),
            uncertain_ns: lane.uncertain_ns(),
            idle: lane.flights.is_empty(),
        })
    }

    /// How long from now until the first lane is free, and the mean over all, in nanoseconds.
    pub(super) fn free_in_ns(&self, now: Time) -> (u64, u64) {
        let mut first = u64::MAX;
        let mut sum = 0u64;
        for lane in &self.lanes {
            let free = lane.free_at(now).nanos_since(now);
            first = first.min(free);
            sum = sum.saturating_add(free);
        }
        (first, sum / (self.lanes.len().max(1) as u64))
    }

    /// A batch goes to `lane`, which exists.
    pub(super) fn fly(&mut self, lane: Lane, flight: impl FnOnce(Ticket) -> Flight) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket {
            lane,
            number: self.tickets,
        };
        if let Some(lane) = self.lanes.iter_mut().find(|known| known.lane == lane) {
            lane.flights.push(flight(ticket));
        }
        ticket
    }

    /// How much each collection holds before it allocates.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> usize {
        self.lanes.capacity()
            + self
                .lanes
                .iter()
                .map(|lane| lane.flights.capacity())
                .sum::<usize>()
    }

    /// The batch is done; `None` if its lane has gone, or it was told before.
    pub(super) fn end(&mut self, now: Time, ticket: Ticket) -> Option<Ended> {
        let mut lanes = self.lanes.iter_mut();
        let lane = lanes.find(|batches| batches.lane == ticket.lane)?;
        let flights = &mut lane.flights;
        let at = flights.iter().position(|known| known.ticket == ticket)?;
        let flight = flights.remove(at);
        let ran_ns = now.nanos_since(flight.taken.max(lane.ended));
        if at == 0 {
            lane.ended = now;
        }
        Some(Ended { flight, ran_ns })
    }
}
