//! An engine and its agents on a virtual clock, under more load than they can do.
//!
//! Tasks arrive at random (exponential gaps) from several requesters; a batch takes a fixed time and
//! a time for each task, one tenth up or down; timers are late by up to 100 µs, and an agent needs
//! 30 µs between two batches. What the market would see is counted: of the tasks let in, how many
//! were answered in time; and of what the agents could do, how much was answered in time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use ramjet_proto::time::Time;

use super::super::{BatchPolicy, Batcher, Lane, Next, Ticket, Wanted};
use super::{MS, SECOND, US, at, due};

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Exponentially distributed.
    fn gap_ns(&mut self, mean_ns: f64) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "nanoseconds between two arrivals"
        )]
        let gap = (-(1.0 - uniform).ln() * mean_ns) as u64;
        gap
    }
}

/// What happens at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Ends(usize),
    Wake,
}

/// The load, and what a batch really costs.
#[derive(Clone, Copy)]
struct Load {
    items_max: usize,
    lanes: usize,
    base_ns: u64,
    each_ns: u64,
    deadline_ns: u64,
    /// Offered, of capacity, in percent.
    percent: u64,
    requesters: u64,
    /// Every second task is from requester 1.
    greedy: bool,
}

impl Load {
    fn run_ns(&self, items: usize, times: u64) -> u64 {
        times * (self.base_ns + self.each_ns * items as u64)
    }

    /// Tasks a second with full batches.
    fn capacity(&self, times: u64) -> f64 {
        let full = self.run_ns(self.items_max, times);
        (self.lanes * self.items_max) as f64 * SECOND as f64 / full as f64
    }
}

/// What was seen in a stretch of time.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    offered: u64,
    accepted: u64,
    in_time: u64,
    /// Let in, but dropped, or answered too late.
    missed: u64,
}

impl Seen {
    fn met(&self) -> f64 {
        self.in_time as f64 / (self.in_time + self.missed) as f64
    }

    fn goodput(&self, load: &Load, times: u64, ns: u64) -> f64 {
        self.in_time as f64 / (load.capacity(times) * ns as f64 / SECOND as f64)
    }
}

struct Agent {
    lane: Lane,
    taken: Vec<(Ticket, Vec<(Wanted, u64)>)>,
}

struct World {
    load: Load,
    /// How much more than `load` says a batch costs.
    times: u64,
    random: Random,
    now: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    wake: u64,
    batcher: Batcher<u64>,
    agents: Vec<Agent>,
    seen: Seen,
    late: Vec<u64>,
}

impl World {
    fn new(load: Load, seed: u64) -> Self {
        let mut batcher = Batcher::new(BatchPolicy {
            items_max: load.items_max,
            work_max: u64::MAX,
            wait: Duration::from_millis(1),
            bytes_max: 1 << 24,
            result_len_max: 64,
            waiting_max: 4_096,
            margin: Duration::from_micros(100),
        });
        let agents = (0..load.lanes)
            .map(|_| Agent {
                lane: batcher.add_lane(),
                taken: Vec::new(),
            })
            .collect();
        World {
            load,
            times: 1,
            random: Random(seed),
            now: 0,
            events: BinaryHeap::from([Reverse((0, Event::Arrival))]),
            wake: u64::MAX,
            batcher,
            agents,
            seen: Seen::default(),
            late: Vec::new(),
        }
    }

    /// Runs until `end`, and says what was seen meanwhile.
    fn run(&mut self, end: u64) -> Seen {
        self.seen = Seen::default();
        while let Some(Reverse((time, event))) = self.events.peek().copied() {
            if time > end {
                break;
            }
            self.events.pop();
            self.now = time;
            match event {
                Event::Arrival => self.arrive(),
                Event::Ends(agent) => self.end_batch(agent),
                Event::Wake => self.wake = u64::MAX,
            }
            self.fill();
        }
        self.now = end;
        self.seen
    }

    fn arrive(&mut self) {
        let rate = self.load.capacity(self.times) * self.load.percent as f64 / 100.0;
        let gap = self.random.gap_ns(SECOND as f64 / rate);
        self.events.push(Reverse((self.now + gap, Event::Arrival)));
        let peer = match self.load.greedy && self.random.below(2) == 0 {
            true => 1,
            false => 1 + self.random.below(self.load.requesters),
        };
        let peer = u32::try_from(peer).expect("few");
        let wanted = due(peer, self.now, self.now + self.load.deadline_ns);
        self.seen.offered += 1;
        if self.batcher.offer(at(self.now), wanted, 0).is_ok() {
            self.seen.accepted += 1;
        }
    }

    fn end_batch(&mut self, index: usize) {
        let (ticket, tasks) = self.agents[index].taken.remove(0);
        self.batcher.ended(at(self.now), ticket);
        for (wanted, _) in tasks {
            if wanted.deadline >= at(self.now) {
                self.seen.in_time += 1;
            } else {
                self.seen.missed += 1;
            }
        }
        self.begin(index, 30 * US);
    }

    /// The first batch of an agent begins to run.
    fn begin(&mut self, index: usize, after_ns: u64) {
        if let Some((_, tasks)) = self.agents[index].taken.first() {
            let run_ns = self.load.run_ns(tasks.len(), self.times);
            let run_ns = run_ns * (900 + self.random.below(200)) / 1_000;
            let end = self.now + after_ns + run_ns;
            self.events.push(Reverse((end, Event::Ends(index))));
        }
    }

    /// What the port's engine does after anything happened.
    fn fill(&mut self) {
        let mut order: Vec<usize> = (0..self.agents.len()).collect();
        order.sort_by_key(|index| self.agents[*index].taken.len());
        for index in order {
            while self.agents[index].taken.len() < 2 {
                let lane = self.agents[index].lane;
                match self.batcher.next(at(self.now), lane) {
                    Next::Empty => break,
                    Next::Wait(time) => {
                        self.sleep_until(time);
                        break;
                    }
                    Next::Close => self.take(index),
                }
            }
        }
    }

    fn take(&mut self, index: usize) {
        let lane = self.agents[index].lane;
        let mut batch = Vec::new();
        let now = at(self.now);
        let closed = self.batcher.take(now, lane, &mut batch, &mut self.late);
        self.seen.missed += self.late.drain(..).count() as u64;
        if let Some(closed) = closed {
            assert!(batch.len() <= self.load.items_max);
            self.agents[index].taken.push((closed.ticket, batch));
            if self.agents[index].taken.len() == 1 {
                self.begin(index, 30 * US);
            }
        }
    }

    fn sleep_until(&mut self, time: Time) {
        assert!(time > at(self.now), "a timer in the past would spin");
        let late = self.random.below(100 * US);
        let wake = time.as_nanos().saturating_add(late);
        if wake < self.wake {
            self.wake = wake;
            self.events.push(Reverse((wake, Event::Wake)));
        }
    }
}

/// A GPU that likes batches: 64 in 2.28 ms, about 28,000 tasks a second.
const GPU: Load = Load {
    items_max: 64,
    lanes: 1,
    base_ns: MS,
    each_ns: 20 * US,
    deadline_ns: 20 * MS,
    percent: 150,
    requesters: 8,
    greedy: false,
};

#[test]
fn at_half_as_much_again_as_capacity_what_is_accepted_is_in_time() {
    let loads = [
        GPU,
        Load {
            greedy: true,
            ..GPU
        },
        Load { lanes: 3, ..GPU },
        Load {
            deadline_ns: 8 * MS,
            ..GPU
        },
        // One at a time, 10 ms each.
        Load {
            items_max: 1,
            base_ns: 10 * MS,
            each_ns: 0,
            deadline_ns: 100 * MS,
            ..GPU
        },
        // Large and slow.
        Load {
            items_max: 256,
            base_ns: 20 * MS,
            deadline_ns: 400 * MS,
            each_ns: 300 * US,
            ..GPU
        },
    ];
    for (case, load) in loads.into_iter().enumerate() {
        let mut world = World::new(load, case as u64);
        world.run(SECOND);
        let seen = world.run(6 * SECOND);
        let (met, goodput) = (seen.met(), seen.goodput(&load, 1, 5 * SECOND));
        println!("case {case}: met {met:.4}, goodput {goodput:.3} of capacity; {seen:?}");
        assert!(
            met >= 0.99,
            "case {case}: of those accepted {met:.4} were in time"
        );
        assert!(goodput >= 0.90, "case {case}: {goodput:.3} of capacity");
    }
}

#[test]
fn below_capacity_nearly_all_are_accepted() {
    for percent in [10, 50, 80] {
        let load = Load { percent, ..GPU };
        let mut world = World::new(load, percent);
        world.run(SECOND);
        let seen = world.run(3 * SECOND);
        let accepted = seen.accepted as f64 / seen.offered as f64;
        println!("{percent} %: accepted {accepted:.4}, met {:.4}", seen.met());
        assert!(
            accepted >= 0.99 && seen.met() >= 0.99,
            "{percent} %: {seen:?}"
        );
    }
}

#[test]
fn when_batches_cost_three_times_as_much_and_again_less_it_recovers() {
    let mut world = World::new(GPU, 3);
    world.run(2 * SECOND);
    for times in [3, 1] {
        world.times = times;
        let from = world.now;
        let change = world.run(from + 100 * MS);
        let after = world.run(from + 2_100 * MS);
        let goodput = after.goodput(&GPU, times, 2 * SECOND);
        println!(
            "× {times}: {change:?} in the first 100 ms; then met {:.4}, goodput {goodput:.3}",
            after.met()
        );
        assert!(after.met() >= 0.99, "× {times}: {after:?}");
        assert!(goodput >= 0.90, "× {times}: {goodput:.3} of capacity");
    }
}

#[test]
fn an_agent_that_hangs_closes_the_door_and_opens_it_again() {
    let mut world = World::new(GPU, 4);
    world.run(SECOND);
    // The batch that begins next takes a second and a half.
    world.times = 700;
    world.run(SECOND + 5 * MS);
    world.times = 1;
    let hung = world.run(SECOND + 500 * MS);
    assert!(hung.accepted * 20 < hung.offered, "{hung:?}");
    world.run(4 * SECOND);
    let after = world.run(6 * SECOND);
    let goodput = after.goodput(&GPU, 1, 2 * SECOND);
    println!(
        "after it hung: met {:.4}, goodput {goodput:.3}",
        after.met()
    );
    assert!(
        after.met() >= 0.99 && goodput >= 0.90,
        "{after:?}, {goodput:.3}"
    );
}
