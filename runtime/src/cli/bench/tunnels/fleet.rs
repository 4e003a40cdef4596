//! All requesters of one worker, driven from one thread: establish, open, load.
//!
//! The load is closed: a *turn* is one burst of tasks on one tunnel; the next turn of the same kind
//! is given when the burst has its answers, to the tunnel that has waited longest. So the load goes
//! round robin over all tunnels, and what is in flight together is one window whatever their number.
//!
//! Invariants: never more tasks in flight than the window; a requester has at most one valid entry
//! in the timers; every result is compared.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use crossbeam::channel::Receiver;
use ramjet_proto::time::Time;

use super::echo::Tally;
use super::recruits::{Granted, Recruit};
use super::requester::{Peer, Requester, Shared, Step};
use super::wire::{Arrived, Wire};
use crate::worker::clock;

/// Key exchanges under way at a time: fewer than the nodes that a worker lets wait for the
/// registry's word.
const CONNECTING_MAX: usize = 128;
/// Nobody that answers takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks while nothing is expected.
const LOOK: Duration = Duration::from_millis(1);
/// Requesters whose timers run in one step, so that arrivals do not wait for all of them.
const TIMERS_PER_STEP: usize = 256;

/// How tasks are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Tasks of one turn.
    pub(super) burst: u32,
    /// Tasks in flight on all tunnels together.
    pub(super) window: u32,
    /// Bytes of a payload.
    pub(super) payload: usize,
}

impl Load {
    /// Tasks that one of `tunnels` may have in flight, so that all of them fill the window: the
    /// slots of its channel.
    pub(super) fn credits(&self, tunnels: usize) -> u32 {
        self.burst * self.turns(tunnels)
    }

    /// Turns of each of `tunnels`.
    fn turns(&self, tunnels: usize) -> u32 {
        let tunnels = u32::try_from(tunnels).unwrap_or(u32::MAX);
        (self.window / self.burst).div_ceil(tunnels)
    }
}

/// What a run of the load measured.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Results that arrived in the time.
    pub(super) results: u64,
    /// That time.
    pub(super) elapsed: Duration,
    /// Round trips of that time: p50 and p99, in nanoseconds.
    pub(super) quantiles_ns: [u64; 2],
    /// Share of the time in which the generator had something to do.
    pub(super) busy_share: f64,
}

/// The requesters.
pub(super) struct Fleet {
    pub(super) requesters: Vec<Requester>,
    peer: Peer,
    first_address: u32,
    load: Load,
    pub(super) shared: Shared,
    arrived: Vec<Arrived>,
    touched: Vec<usize>,
    timers: BinaryHeap<Reverse<(Time, usize)>>,
    /// Requesters whose turn it is, one entry a turn.
    turns: VecDeque<usize>,
    in_flight: u32,
    established: usize,
    opened: usize,
}

impl Fleet {
    /// No requesters yet; `wire` is their socket and `first_address` the address of the first.
    pub(super) fn new(
        peer: Peer,
        wire: Wire,
        first_address: Ipv4Addr,
        load: Load,
    ) -> Result<Self, String> {
        Ok(Fleet {
            requesters: Vec::new(),
            peer,
            first_address: first_address.into(),
            load,
            shared: Shared::new(wire, Tally::new(load.payload))?,
            arrived: Vec::new(),
            touched: Vec::new(),
            timers: BinaryHeap::new(),
            turns: VecDeque::new(),
            in_flight: 0,
            established: 0,
            opened: 0,
        })
    }

    /// Adds registered nodes, in the order of their addresses, and exchanges keys with the worker.
    /// Answers how long that took.
    pub(super) fn connect(&mut self, nodes: Vec<Recruit>) -> Result<Duration, String> {
        let mut next = self.requesters.len();
        for (node, identity, address) in nodes {
            self.requesters
                .push(Requester::new(node, identity, address));
        }
        let all = self.requesters.len();
        let began = clock::now();
        let mut progress_at = began;
        let mut established = self.established;
        while self.established < all {
            let now = clock::now();
            while next < all && next - self.established < CONNECTING_MAX {
                self.requesters[next].connect(now, &self.peer, &mut self.shared)?;
                self.reschedule(next);
                next += 1;
            }
            self.step()?;
            if established < self.established {
                (established, progress_at) = (self.established, now);
            } else if now.since(progress_at) > PATIENCE {
                return Err(format!(
                    "only {established} of {all} tunnels came up, and no more for {PATIENCE:?}"
                ));
            }
        }
        Ok(clock::now().since(began))
    }

    /// Presents the grants that `grants` brings until it has brought `count`, each for the
    /// requester of its place, and waits until all channels are open. Answers how long that took.
    pub(super) fn open(
        &mut self,
        grants: &Receiver<Granted>,
        count: usize,
    ) -> Result<Duration, String> {
        let began = clock::now();
        let (all, mut progress_at) = (self.opened + count, began);
        let mut opened = self.opened;
        while self.opened < all {
            let now = clock::now();
            while let Ok(grant) = grants.try_recv() {
                let (place, grant, credits) = grant?;
                self.requesters[place].open(now, grant, credits, &self.peer, &mut self.shared)?;
                self.reschedule(place);
            }
            self.step()?;
            if opened < self.opened {
                (opened, progress_at) = (self.opened, now);
            } else if now.since(progress_at) > PATIENCE {
                return Err(format!(
                    "only {opened} of {all} channels were opened, and no more for {PATIENCE:?}"
                ));
            }
        }
        Ok(clock::now().since(began))
    }

    /// Gives every requester its turns.
    pub(super) fn deal(&mut self) {
        assert_eq!(self.in_flight, 0, "turns are dealt while nothing is out");
        self.turns.clear();
        for requester in &mut self.requesters {
            (requester.answers, requester.turns_out) = (0, 0);
        }
        for _ in 0..self.load.turns(self.requesters.len()) {
            self.turns.extend(0..self.requesters.len());
        }
    }

    /// Loads all tunnels for `warm_up`, then for `time`; then waits for what is out.
    pub(super) fn run(&mut self, warm_up: Duration, time: Duration) -> Result<Measured, String> {
        self.load_until(clock::now() + warm_up)?;
        self.shared.tally.round_trips.reset();
        self.shared.tally.counting = true;
        let (began, right) = (clock::now(), self.shared.tally.right);
        let idle = self.load_until(began + time)?;
        let (ended, results) = (clock::now(), self.shared.tally.right - right);
        self.shared.tally.counting = false;
        self.settle(PATIENCE)?;
        let elapsed = ended.since(began);
        let quantile = |at| self.shared.tally.round_trips.value_at_quantile(at);
        Ok(Measured {
            results,
            elapsed,
            quantiles_ns: [quantile(0.5), quantile(0.99)],
            busy_share: 1.0 - idle.as_secs_f64() / elapsed.as_secs_f64(),
        })
    }

    /// One burst on every tunnel.
    pub(super) fn visit_all(&mut self) -> Result<(), String> {
        let wanted =
            self.shared.tally.right + u64::from(self.load.burst) * self.requesters.len() as u64;
        let until = clock::now() + PATIENCE;
        while self.shared.tally.right < wanted {
            let now = clock::now();
            if now > until {
                return Err(format!("not every tunnel was served within {PATIENCE:?}"));
            }
            self.start_turns();
            self.step()?;
        }
        self.settle(PATIENCE)
    }

    /// Goes on without new tasks for `time`: timers run, pings go out, verdicts are told.
    pub(super) fn rest(&mut self, time: Duration) -> Result<(), String> {
        let until = clock::now() + time;
        self.rest_while(|| clock::now() < until)
    }

    /// As [`Self::rest`], until `more` says no; leaves the core to others in between.
    pub(super) fn rest_while(&mut self, more: impl Fn() -> bool) -> Result<(), String> {
        while more() {
            if !self.step()? {
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Tasks that were sent more than once, since the start.
    pub(super) fn repeated(&self) -> u64 {
        self.requesters.iter().map(Requester::repeated).sum()
    }

    fn load_until(&mut self, until: Time) -> Result<Duration, String> {
        let mut idle_ns = 0;
        let mut now = clock::now();
        while now < until {
            let mut worked = self.start_turns();
            worked |= self.step()?;
            let then = std::mem::replace(&mut now, clock::now());
            if !worked {
                idle_ns += now.nanos_since(then);
            }
        }
        Ok(Duration::from_nanos(idle_ns))
    }

    /// Waits for the answers to everything that is out.
    fn settle(&mut self, limit: Duration) -> Result<(), String> {
        let until = clock::now() + limit;
        while self.in_flight > 0 {
            let now = clock::now();
            if now > until {
                return Err(format!(
                    "{} tasks had no answer within {limit:?}",
                    self.in_flight
                ));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Begins turns while the window has room for one.
    fn start_turns(&mut self) -> bool {
        let mut started = false;
        // A requester whose own window is cut gets its turn later; nobody is asked twice in a step.
        for _ in 0..self.turns.len() {
            if self.in_flight + self.load.burst > self.load.window {
                break;
            }
            let Some(place) = self.turns.pop_front() else {
                break;
            };
            let requester = &mut self.requesters[place];
            // A round trip begins with its own burst, not with the first of the step.
            let now = clock::now();
            let sent = requester.burst(now, self.load.burst as usize, &mut self.shared);
            if sent == 0 {
                self.turns.push_back(place);
                continue;
            }
            started = true;
            requester.turns_out += 1;
            self.in_flight += u32::try_from(sent).unwrap_or(u32::MAX);
            self.reschedule(place);
        }
        started
    }

    /// Takes what has arrived and does what is due.
    fn step(&mut self) -> Result<bool, String> {
        let mut worked = self.receive()?;
        let now = clock::now();
        for _ in 0..TIMERS_PER_STEP {
            match self.timers.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((at, place))) = self.timers.pop() else {
                break;
            };
            if self.requesters[place].scheduled != at {
                continue;
            }
            worked = true;
            let requester = &mut self.requesters[place];
            requester.scheduled = Time::NEVER;
            let step = requester.run_timers(now, &self.peer, &mut self.shared)?;
            self.count(place, step);
            self.reschedule(place);
        }
        match self.shared.tally.wrong.take() {
            Some(wrong) => Err(wrong),
            None => Ok(worked),
        }
    }

    fn receive(&mut self) -> Result<bool, String> {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.shared.receive(&mut arrived)?;
        // Read after the socket: what was sent in this step may be answered already.
        let now = clock::now();
        for train in &arrived {
            let place = u32::from(train.to).wrapping_sub(self.first_address) as usize;
            let Some(requester) = self.requesters.get_mut(place) else {
                continue;
            };
            let mut step = Step::default();
            let mut start = 0;
            while start < train.len {
                requester.receive(now, train, start, &mut self.shared, &mut step)?;
                start += train.segment;
            }
            requester.settle(now, &self.peer, &mut self.shared, &mut step)?;
            self.count(place, step);
            self.touched.push(place);
        }
        let worked = !arrived.is_empty();
        arrived.clear();
        self.arrived = arrived;
        while let Some(place) = self.touched.pop() {
            self.reschedule(place);
        }
        Ok(worked)
    }

    /// Counts what became of a requester, and gives back the turns whose answers are in.
    fn count(&mut self, place: usize, step: Step) {
        self.established += usize::from(step.established);
        self.opened += usize::from(step.opened);
        if step.answered == 0 {
            return;
        }
        self.in_flight -= step.answered;
        let requester = &mut self.requesters[place];
        requester.answers += step.answered;
        let back = if requester.outstanding() == 0 {
            requester.answers = 0;
            requester.turns_out
        } else {
            let back = (requester.answers / self.load.burst).min(requester.turns_out);
            requester.answers -= back * self.load.burst;
            back
        };
        requester.turns_out -= back;
        for _ in 0..back {
            self.turns.push_back(place);
        }
    }

    fn reschedule(&mut self, place: usize) {
        let requester = &mut self.requesters[place];
        let at = requester.deadline();
        if at < requester.scheduled {
            requester.scheduled = at;
            self.timers.push(Reverse((at, place)));
        }
    }
}
