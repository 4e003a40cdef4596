//! Controllers over a simulated path: a link of one rate with a queue before it, a delay and loss,
//! on a virtual clock. The seed is in the failure message of every property.

use core::time::Duration;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::{Congestion, Counted, Held, WINDOW_INITIAL, WINDOW_MAX, WINDOW_MIN, duration_ns};
use crate::time::Time;

const PART: usize = 1_338;

/// A path that several flows share.
struct Path {
    bytes_per_s: u64,
    one_way: Duration,
    queue_max: usize,
    /// Of 1,000.
    loss: u64,
    free_at: Time,
    state: u64,
    dropped: u64,
    longest_queue: Duration,
    /// Every so often nothing passes for so long: a core that does something else.
    stalls: Option<(Duration, Duration)>,
}

impl Path {
    fn new(bytes_per_s: u64, one_way: Duration, queue_max: usize, loss: u64) -> Self {
        Path {
            bytes_per_s,
            one_way,
            queue_max,
            loss,
            free_at: Time::ZERO,
            state: 0x9E37_79B9_7F4A_7C15,
            dropped: 0,
            longest_queue: Duration::ZERO,
            stalls: None,
        }
    }

    /// The end of the stall that a moment lies in.
    fn stalled_until(&self, at: Time) -> Time {
        let Some((every, lasts)) = self.stalls else {
            return at;
        };
        let into = Duration::from_nanos(at.as_nanos() % duration_ns(every));
        at.before(into) + into.max(lasts)
    }

    fn chance(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % 1_000
    }

    /// When the acknowledgment of something that leaves now is back, unless it is lost.
    fn send(&mut self, now: Time, len: usize) -> Option<Time> {
        let queue = self.free_at.since(now);
        let queued = queue.as_nanos() * u128::from(self.bytes_per_s) / 1_000_000_000;
        if queued > self.queue_max as u128 || self.chance() < self.loss {
            self.dropped += 1;
            return None;
        }
        self.longest_queue = self.longest_queue.max(queue);
        let takes = Duration::from_nanos(len as u64 * 1_000_000_000 / self.bytes_per_s);
        self.free_at = self.stalled_until(self.free_at.max(now)) + takes;
        Some(self.stalled_until(self.free_at + 2 * self.one_way))
    }
}

/// A sender with as many parts as the path takes.
struct Flow {
    control: Congestion,
    counted: Counted,
    /// In the order of sending: when, and when it is acknowledged.
    out: VecDeque<(Time, Option<Time>)>,
    heard: Time,
    arrived: u64,
    lost: u64,
}

impl Flow {
    fn new(now: Time) -> Self {
        Flow {
            control: Congestion::new(now),
            counted: Counted::default(),
            out: VecDeque::new(),
            heard: now,
            arrived: 0,
            lost: 0,
        }
    }

    fn send(&mut self, now: Time, path: &mut Path) {
        loop {
            match self.control.may_send_part(now) {
                Ok(()) => self.send_one(now, path),
                Err(Held::Full) => {
                    assert!(self.counted.bytes() > 0, "held with nothing in flight");
                    break;
                }
                Err(Held::Until(due)) => {
                    assert!(due > now, "held until the past");
                    assert!(due.since(now) < Duration::from_secs(5), "a long pace");
                    break;
                }
            }
        }
        if now.since(self.heard) > self.control.probe_after() && !self.out.is_empty() {
            self.heard = now;
            self.send_one(now, path);
        }
    }

    fn send_one(&mut self, now: Time, path: &mut Path) {
        self.control.part_sent(PART, &mut self.counted);
        self.out.push_back((now, path.send(now, PART)));
    }

    fn hear(&mut self, now: Time) {
        let mut newest = None;
        let control = &mut self.control;
        let counted = &mut self.counted;
        let before = self.out.len();
        self.out.retain(|(sent, back)| {
            let here = back.is_some_and(|back| back <= now);
            if here {
                control.part_arrived(PART, counted);
                newest = newest.max(Some(*sent));
            }
            !here
        });
        self.arrived += (before - self.out.len()) as u64;
        let Some(newest) = newest else { return };
        self.heard = now;
        control.parts_acknowledged(now, Some(now.since(newest)));
        let reordering = control.reordering().unwrap_or_default();
        let before = self.out.len();
        self.out.retain(|(sent, _)| {
            let lost = *sent + reordering < newest;
            if lost {
                control.part_lost(now, now.since(*sent), PART, counted);
            }
            !lost
        });
        self.lost += (before - self.out.len()) as u64;
        assert!(control.window() >= WINDOW_MIN && control.window() <= WINDOW_MAX);
    }
}

/// Lets flows run for a time; bytes that each brought over.
fn run(path: &mut Path, flows: &mut [Flow], from: Time, lasts: Duration) -> Vec<u64> {
    let before: Vec<u64> = flows.iter().map(|flow| flow.arrived).collect();
    let step = (path.one_way / 16).clamp(Duration::from_micros(5), Duration::from_micros(500));
    let mut now = from;
    let mut first = 0;
    while now < from + lasts {
        now = now + step;
        for turn in 0..flows.len() {
            let place = (turn + first) % flows.len();
            flows[place].hear(now);
            flows[place].send(now, path);
        }
        // Nobody is always first at the queue.
        first += 1;
    }
    let after = flows.iter().map(|flow| flow.arrived);
    after
        .zip(before)
        .map(|(after, before)| (after - before) * PART as u64)
        .collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// One row a path: what is to come over it in a second, and how long its queue may get on the way.
#[test]
fn a_flow_takes_what_the_path_has_and_builds_no_queue() {
    let (kilo, mega) = (1_000, 1_000_000);
    let rows = [
        // rate, one way, queue, loss of 1,000, least share of the rate
        (600 * mega, Duration::from_micros(12), 4 << 20, 0, 0.80),
        (100 * mega, Duration::from_micros(100), 1 << 20, 0, 0.80),
        (100 * mega, Duration::from_millis(10), 4 << 20, 0, 0.80),
        (10 * mega, Duration::from_millis(20), 1 << 20, 0, 0.80),
        (mega, Duration::from_millis(40), 256 << 10, 0, 0.80),
        (125 * kilo, Duration::from_millis(25), 64 << 10, 0, 0.70),
        // A queue of an eighth of what is under way: losses, and still most of the rate.
        (10 * mega, Duration::from_millis(20), 50_000, 0, 0.60),
    ];
    for (rate, one_way, queue, loss, least) in rows {
        let mut path = Path::new(rate, one_way, queue, loss);
        let mut flows = [Flow::new(Time::ZERO)];
        run(&mut path, &mut flows, Time::ZERO, seconds(4));
        path.longest_queue = Duration::ZERO;
        let lasts = if rate > 50 * mega { 1 } else { 10 };
        let got = run(
            &mut path,
            &mut flows,
            Time::ZERO + seconds(4),
            seconds(lasts),
        );
        let share = got[0] as f64 / (rate * lasts) as f64;
        let row = format!("{rate} B/s, {one_way:?} one way, queue {queue}");
        assert!(
            share >= least,
            "{row}: {share:.2} of the rate, {:?}",
            flows[0].control
        );
        assert!(share <= 1.02, "{row}: {share:.2} of the rate");
        let bound = 4 * (2 * one_way).clamp(Duration::from_millis(1), Duration::from_millis(15));
        assert!(
            path.longest_queue < bound,
            "{row}: a queue of {:?}",
            path.longest_queue
        );
    }
}

/// Two cores that others use as well: a fourth of the time nothing passes, for milliseconds where the
/// path takes microseconds.
#[test]
fn a_core_that_is_taken_away_now_and_then_costs_little_more_than_its_time() {
    for (every, lasts) in [(20, 5), (8, 2), (100, 25)] {
        let mut path = Path::new(300_000_000, Duration::from_micros(12), 4 << 20, 0);
        path.stalls = Some((Duration::from_millis(every), Duration::from_millis(lasts)));
        let mut flows = [Flow::new(Time::ZERO)];
        let got = run(&mut path, &mut flows, Time::ZERO, seconds(2))[0];
        assert!(
            got * 10 > 600_000_000 * 5,
            "{lasts} of {every} ms: {got} bytes in two seconds, {:?}",
            flows[0].control
        );
    }
}

#[test]
fn random_loss_slows_a_flow_and_its_end_lets_it_recover() {
    let mut path = Path::new(10_000_000, Duration::from_millis(5), 1 << 20, 0);
    let mut flows = [Flow::new(Time::ZERO)];
    run(&mut path, &mut flows, Time::ZERO, seconds(4));
    let free = run(&mut path, &mut flows, Time::ZERO + seconds(4), seconds(2))[0];
    path.loss = 50;
    run(&mut path, &mut flows, Time::ZERO + seconds(6), seconds(4));
    let lossy = run(&mut path, &mut flows, Time::ZERO + seconds(10), seconds(2))[0];
    assert!(flows[0].lost > 20, "losses are found: {}", flows[0].lost);
    assert!(lossy * 2 < free, "{lossy} with loss, {free} without");
    // RFC 5348's rough bound: 1.2 segments a round trip over the root of the loss, some of it.
    assert!(lossy > 2 * 300_000, "{lossy} in two seconds");
    path.loss = 0;
    run(&mut path, &mut flows, Time::ZERO + seconds(12), seconds(8));
    let again = run(&mut path, &mut flows, Time::ZERO + seconds(20), seconds(2))[0];
    assert!(again * 10 > free * 8, "{again} after loss, {free} before");
}

#[test]
fn two_flows_share_and_the_second_leaves_the_first_its_path_back() {
    for (rate, one_way) in [
        (10_000_000, Duration::from_millis(10)),
        (100_000_000, Duration::from_micros(100)),
    ] {
        let mut path = Path::new(rate, one_way, 1 << 20, 0);
        let mut flows = vec![Flow::new(Time::ZERO)];
        run(&mut path, &mut flows, Time::ZERO, seconds(3));
        flows.push(Flow::new(Time::ZERO + seconds(3)));
        run(&mut path, &mut flows, Time::ZERO + seconds(3), seconds(12));
        let got = run(&mut path, &mut flows, Time::ZERO + seconds(15), seconds(4));
        let total = got[0] + got[1];
        assert!(total * 10 >= rate * 4 * 8, "{got:?} of {rate}");
        let least = got.iter().min().expect("two");
        assert!(least * 5 >= total, "{got:?}: one has less than a fifth");
        flows.pop();
        run(&mut path, &mut flows, Time::ZERO + seconds(19), seconds(3));
        let alone = run(&mut path, &mut flows, Time::ZERO + seconds(22), seconds(2))[0];
        assert!(
            alone * 10 >= rate * 2 * 8,
            "{alone} of {rate} in two seconds"
        );
    }
}

#[test]
fn a_path_that_went_away_is_begun_anew_from_the_least() {
    let mut path = Path::new(10_000_000, Duration::from_millis(5), 1 << 20, 0);
    let mut flows = [Flow::new(Time::ZERO)];
    run(&mut path, &mut flows, Time::ZERO, seconds(3));
    path.loss = 1_000;
    run(&mut path, &mut flows, Time::ZERO + seconds(3), seconds(5));
    path.loss = 0;
    run(&mut path, &mut flows, Time::ZERO + seconds(8), seconds(10));
    let got = run(&mut path, &mut flows, Time::ZERO + seconds(18), seconds(2))[0];
    assert!(got * 10 > 20_000_000 * 7, "{got} in two seconds");
}

#[test]
fn tasks_go_before_parts_and_are_counted_once() {
    let now = Time::from_nanos(1);
    let mut control = Congestion::new(now);
    let mut counted = Counted::default();
    while control.may_send_part(now).is_ok() {
        control.part_sent(PART, &mut counted);
    }
    assert!(counted.bytes() >= WINDOW_INITIAL);
    let mut tasks = 0;
    while control.may_send_task() {
        control.task_sent(80);
        tasks += 1;
    }
    assert_eq!(
        tasks,
        WINDOW_INITIAL.div_ceil(80),
        "as if no parts were there"
    );
    for _ in 0..tasks {
        control.task_settled(now + Duration::from_micros(10), 80, Some(10_000));
    }
    control.parts_forgotten(&mut counted);
    assert_eq!((control.in_flight(), counted.bytes()), ((0, 0), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Whatever the path, data arrive, nothing is held with nothing in flight (checked at every
    /// step), and at the end of the flow nothing is counted.
    #[test]
    fn any_path_is_used_and_never_blocked(
        rate in 50_000..200_000_000_u64,
        one_way_us in 10..100_000_u64,
        queue in 3_000..2_000_000_usize,
        loss in 0..300_u64,
    ) {
        let mut path = Path::new(rate, Duration::from_micros(one_way_us), queue, loss);
        let mut flows = [Flow::new(Time::ZERO)];
        // Short paths take more steps a second.
        let lasts = Duration::from_micros(one_way_us * 400).clamp(
            Duration::from_millis(200),
            seconds(20),
        );
        let got = run(&mut path, &mut flows, Time::ZERO, lasts);
        prop_assert!(got[0] >= 10 * PART as u64, "{got:?}");
        let flow = &mut flows[0];
        prop_assert_eq!(flow.control.in_flight().1, flow.counted.bytes());
        flow.control.parts_forgotten(&mut flow.counted);
        prop_assert_eq!(flow.control.in_flight(), (0, 0));
    }
}
