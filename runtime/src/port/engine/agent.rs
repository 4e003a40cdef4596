//! One agent as its engine holds it: the connection, the arena, and the batches on their way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ramjet_proto::time::Time;

use crate::port::arena::Arena;
use crate::port::batcher::{Closed, Lane, Wanted};
use crate::port::hello::{Hello, REGIONS};
use crate::port::layout::{
    FLAGS_OFFSET, HEADER_LEN, Layout, RegionHeader, TASK_ENTRY_LEN, TaskEntry, UNWANTED,
};
use crate::port::socket;
use crate::port::wire::{BatchNote, Message};
use crate::worker::boxes::TaskBox;

/// The tasks of a batch.
pub(super) type Batch = Vec<(Wanted, Box<TaskBox>)>;

/// An agent that has been welcomed.
#[derive(Debug)]
pub(in crate::port) struct Attached {
    /// Names it between the port's thread and the engine.
    pub(in crate::port) connection: u64,
    pub(in crate::port) socket: OwnedFd,
    pub(in crate::port) arena: Arena,
    pub(in crate::port) epoch: u32,
    pub(in crate::port) hello: Hello,
}

/// A batch that is with an agent.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) region: u32,
    pub(super) closed: Closed,
    pub(super) layout: Layout,
    pub(super) tasks: Batch,
    /// Whether the agent was told of it.
    pub(super) told: bool,
    /// Since when it can run: told, and the one before it done.
    pub(super) runs_since: Time,
    /// The earliest deadline that has not passed yet.
    pub(super) next_deadline: Time,
}

/// An agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) connection: u64,
    pub(super) hello: Hello,
    pub(super) epoch: u32,
    pub(super) arena: Arena,
    socket: OwnedFd,
    region_len: usize,
    /// Its lane, while it takes batches.
    pub(super) lane: Option<Lane>,
    /// It has said BYE, or was told to drain.
    pub(super) leaving: bool,
    /// Batches with it, the running one first.
    pub(super) flights: VecDeque<Flight>,
    regions_free: Vec<u32>,
    batches: u64,
    keys: u64,
    /// When the running batch began, or the agent last said that it works on it.
    pub(super) alive: Time,
    /// What is being encoded.
    scratch: Vec<u8>,
}

/// Deadlines as the arena has them: 0 for none.
fn deadline_ns(deadline: Time) -> u64 {
    match deadline {
        Time::NEVER => 0,
        deadline => deadline.as_nanos(),
    }
}

/// An offset or a length within a region, which is shorter than 4 GiB.
fn short(value: usize) -> u32 {
    u32::try_from(value).expect("regions are shorter than 4 GiB")
}

impl Agent {
    pub(super) fn new(attached: Attached) -> Self {
        let region_len = attached.hello.region_len();
        Agent {
            connection: attached.connection,
            epoch: attached.epoch,
            arena: attached.arena,
            socket: attached.socket,
            hello: attached.hello,
            region_len,
            lane: None,
            leaving: false,
            flights: VecDeque::with_capacity(REGIONS),
            regions_free: (0..REGIONS).rev().map(short).collect(),
            batches: 0,
            keys: 0,
            alive: Time::ZERO,
            scratch: Vec::new(),
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a batch may be handed to it.
    pub(super) fn has_room(&self) -> bool {
        self.lane.is_some() && !self.regions_free.is_empty()
    }

    /// Sends a packet that has no place in the arena.
    pub(super) fn tell(&mut self, message: &Message<'_>) -> std::io::Result<()> {
        message.encode(self.epoch, &mut self.scratch);
        socket::send(self.socket.as_fd(), &self.scratch)
    }

    /// Where a region begins.
    pub(super) fn base(&self, region: u32) -> usize {
        region as usize * self.region_len
    }

    /// Puts a batch into a free region and keeps it as the last of the flights, untold.
    pub(super) fn gather(&mut self, closed: Closed, tasks: Batch) {
        let region = self.regions_free.pop().expect("asked for before");
        let base = self.base(region);
        let lens = tasks.iter().map(|(_, task)| task.payload.len());
        let layout = Layout::of(lens, self.hello.result_len_max);
        assert!(
            layout.end() <= self.region_len,
            "a batch of {} bytes for a region of {}",
            layout.end(),
            self.region_len
        );
        self.batches += 1;
        let header = RegionHeader {
            epoch: self.epoch,
            tasks: short(tasks.len()),
            batch: self.batches,
            earliest_deadline_ns: deadline_ns(closed.earliest_deadline),
            work: closed.work,
            result_offset: short(layout.results()),
            result_len: short(layout.result_len),
        };
        self.scratch.clear();
        header.append(&mut self.scratch);
        let mut offset = layout.payloads();
        for (wanted, task) in &tasks {
            self.keys += 1;
            let entry = TaskEntry {
                key: self.keys,
                deadline_ns: deadline_ns(wanted.deadline),
                offset: short(offset),
                len: short(task.payload.len()),
                work: u32::try_from(wanted.work).unwrap_or(u32::MAX),
                flags: 0,
            };
            entry.append(&mut self.scratch);
            self.arena.write(base + offset, &task.payload);
            offset = Layout::next_payload(offset, task.payload.len());
        }
        // The answers, zeroed.
        self.scratch.resize(layout.payloads(), 0);
        self.arena.write(base, &self.scratch);
        self.flights.push_back(Flight {
            number: self.batches,
            region,
            layout,
            tasks,
            told: false,
            runs_since: Time::NEVER,
            next_deadline: closed.earliest_deadline,
            closed,
        });
    }

    /// Tells the agent of the last batch gathered.
    ///
    /// # Errors
    /// What the kernel says; then the batch is still untold.
    pub(super) fn tell_batch(&mut self) -> std::io::Result<()> {
        let flight = self.flights.back().expect("gathered before");
        let note = BatchNote {
            batch: flight.number,
            region: flight.region,
            tasks: short(flight.tasks.len()),
            earliest_deadline_ns: deadline_ns(flight.closed.earliest_deadline),
            work: flight.closed.work,
            result_offset: short(flight.layout.results()),
            result_len: short(flight.layout.result_len),
        };
        self.arena.publish();
        self.tell(&Message::Batch(note))?;
        self.flights.back_mut().expect("gathered before").told = true;
        Ok(())
    }

    /// The running batch is over: takes it out and frees its region. Whoever calls has read what lies
    /// there. The next one runs from `now` on.
    pub(super) fn land(&mut self, now: Time) -> Option<Flight> {
        let flight = self.flights.pop_front()?;
        self.regions_free.push(flight.region);
        if let Some(next) = self.flights.front_mut() {
            next.runs_since = now;
            self.alive = now;
        }
        Some(flight)
    }

    /// Marks tasks whose deadline has passed: the agent may skip them. When the next one passes.
    pub(super) fn mark_late(&mut self, now: Time) -> Time {
        let mut next_of_all = Time::NEVER;
        let bases = self.flights.iter().map(|flight| self.base(flight.region));
        let bases: [usize; REGIONS] = {
            let mut all = [0; REGIONS];
            all.iter_mut()
                .zip(bases)
                .for_each(|(space, base)| *space = base);
            all
        };
        for (flight, base) in self.flights.iter_mut().zip(bases) {
            if now > flight.next_deadline {
                let mut next = Time::NEVER;
                for (index, (wanted, _)) in flight.tasks.iter().enumerate() {
                    if now > wanted.deadline {
                        let entry = base + HEADER_LEN + index * TASK_ENTRY_LEN;
                        self.arena.store(entry + FLAGS_OFFSET, UNWANTED);
                    } else {
                        next = next.min(wanted.deadline);
                    }
                }
                flight.next_deadline = next;
            }
            next_of_all = next_of_all.min(flight.next_deadline);
        }
        next_of_all
    }
}
