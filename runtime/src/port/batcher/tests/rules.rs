//! Each rule of the policy in a case of its own.

use std::time::Duration;

use super::super::{BatchPolicy, Batcher, Closed, ClosedBy, Lane, Next, Turned, Wanted};
use super::{MS, SECOND, US, at, due, policy, wanted};

struct One {
    batcher: Batcher<u64>,
    lane: Lane,
    batch: Vec<(Wanted, u64)>,
    late: Vec<u64>,
}

fn one(policy: BatchPolicy) -> One {
    let mut batcher = Batcher::new(policy);
    let lane = batcher.add_lane();
    One {
        batcher,
        lane,
        batch: Vec::new(),
        late: Vec::new(),
    }
}

impl One {
    fn offer(&mut self, now: u64, wanted: Wanted, task: u64) -> Result<(), Turned> {
        let offered = self.batcher.offer(at(now), wanted, task);
        offered.map_err(|(turned, _)| turned)
    }

    fn next(&mut self, now: u64) -> Next {
        self.batcher.next(at(now), self.lane)
    }

    fn take(&mut self, now: u64) -> Option<Closed> {
        self.batch.clear();
        let (batch, late) = (&mut self.batch, &mut self.late);
        self.batcher.take(at(now), self.lane, batch, late)
    }

    fn tasks(&self) -> Vec<u64> {
        self.batch.iter().map(|(_, task)| *task).collect()
    }

    /// Makes it believe that any batch takes `ns`.
    fn teach(&mut self, ns: u64) {
        for _ in 0..20 {
            for items in [1, 8] {
                self.batcher.costs.learn(items, items as u64, ns);
            }
        }
    }
}

#[test]
fn the_wait_is_counted_from_the_oldest_arrival() {
    let mut one = one(policy());
    assert_eq!(one.next(0), Next::Empty);
    one.offer(500 * US, wanted(1, 500 * US), 2).expect("room");
    one.offer(600 * US, wanted(2, 100 * US), 1).expect("room");
    one.offer(900 * US, wanted(1, 900 * US), 3).expect("room");
    assert_eq!(one.next(MS), Next::Wait(at(1_100 * US)));
    assert_eq!(one.take(MS), None);
    assert_eq!(one.next(1_100 * US), Next::Close);
    let closed = one.take(1_100 * US).expect("closed");
    assert_eq!(
        (closed.by, closed.oldest_arrival),
        (ClosedBy::Wait, at(100 * US))
    );
    assert_eq!(one.batch.len(), 3);
}

#[test]
fn a_full_batch_names_its_bound() {
    type Bound = fn(&mut BatchPolicy);
    let cases: [(ClosedBy, Bound, Wanted, usize); 3] = [
        (
            ClosedBy::Items,
            |policy| policy.items_max = 4,
            wanted(1, 0),
            4,
        ),
        (
            ClosedBy::Work,
            |policy| policy.work_max = 70,
            Wanted {
                work: 30,
                ..wanted(1, 0)
            },
            2,
        ),
        (
            // 128, then 48 + 104 + 64 for each task.
            ClosedBy::Bytes,
            |policy| policy.bytes_max = 128 + 3 * 216 + 215,
            wanted(1, 0),
            3,
        ),
    ];
    for (by, set, wanted, items) in cases {
        let mut policy = policy();
        set(&mut policy);
        let mut one = one(policy);
        for task in 0..5 {
            one.offer(0, wanted, task).expect("room");
        }
        assert_eq!(one.next(0), Next::Close, "{by:?}: nothing to wait for");
        let closed = one.take(0).expect("closed");
        assert_eq!((closed.by, one.batch.len()), (by, items));
    }
}

#[test]
fn a_batch_closes_before_its_earliest_deadline_needs_it() {
    let mut policy = policy();
    policy.wait = Duration::from_millis(50);
    let mut one = one(policy);
    one.teach(4 * MS);
    one.offer(0, wanted(1, 0), 1).expect("room");
    assert_eq!(one.next(0), Next::Wait(at(50 * MS)));
    one.offer(0, due(2, 0, 20 * MS), 2).expect("room");
    let Next::Wait(close) = one.next(0) else {
        panic!("there is time");
    };
    let predicted = one.batcher.predicted_ns(2, 2);
    assert!(
        close.as_nanos() + predicted < 20 * MS,
        "closes at {close:?}"
    );
    assert!(
        close.as_nanos() + 2 * predicted > 20 * MS,
        "uses the time it has"
    );
    let closed = one.take(close.as_nanos()).expect("closed");
    assert_eq!(
        (closed.by, closed.earliest_deadline),
        (ClosedBy::Deadline, at(20 * MS))
    );
    assert_eq!(one.batch.len(), 2);
}

#[test]
fn a_batch_is_not_staged_long_before_the_running_one_ends() {
    let mut one = one(policy());
    one.teach(10 * MS);
    one.offer(0, wanted(1, 0), 1).expect("room");
    let running = one.take(MS).expect("waited");
    one.offer(2 * MS, wanted(1, 2 * MS), 2).expect("room");
    let Next::Wait(stage) = one.next(4 * MS) else {
        panic!("it would only wait on the lane");
    };
    assert!(
        stage > at(9 * MS) && stage < at(11 * MS),
        "staged at {stage:?}"
    );
    assert_eq!(one.next(stage.as_nanos()), Next::Close);
    // It ends early: what has waited for its time goes at once.
    one.batcher.ended(at(6 * MS), running.ticket);
    assert_eq!(one.next(6 * MS), Next::Close);
    // A full batch is staged at once.
    for task in 3..20 {
        one.offer(6 * MS, wanted(1, 6 * MS), task).expect("room");
    }
    one.take(6 * MS).expect("the lane is idle");
    assert_eq!(one.take(6 * MS).expect("staged").by, ClosedBy::Items);
}

#[test]
fn an_idle_lane_goes_before_a_busy_one() {
    let mut one = one(policy());
    let other = one.batcher.add_lane();
    one.teach(10 * MS);
    for task in 0..8 {
        one.offer(0, wanted(1, 0), task).expect("room");
    }
    one.take(0).expect("full");
    for task in 8..16 {
        one.offer(0, wanted(1, 0), task).expect("room");
    }
    assert!(
        matches!(one.next(0), Next::Wait(_)),
        "the other lane has nothing to do"
    );
    assert_eq!(one.batcher.next(at(0), other), Next::Close);
}

#[test]
fn the_earliest_deadline_goes_first_and_equal_ones_in_order() {
    let mut one = one(policy());
    for (task, deadline) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 30), (6, 10)] {
        one.offer(0, due(1, 0, deadline * SECOND), task)
            .expect("room");
    }
    one.take(MS).expect("waited");
    assert_eq!(one.tasks(), [2, 4, 6, 3, 1, 5]);
}

#[test]
fn what_will_be_late_is_refused_at_the_door() {
    let mut one = one(policy());
    one.teach(10 * MS);
    one.batcher.probes.ended(at(0), None);
    assert_eq!(
        one.offer(0, due(1, 0, 0), 0),
        Err(Turned::Late),
        "it is past"
    );
    assert_eq!(
        one.offer(0, due(1, 0, 9 * MS), 0),
        Err(Turned::Late),
        "by itself"
    );
    one.offer(0, due(1, 0, 15 * MS), 1).expect("in time");
    for task in 2..40 {
        one.offer(0, wanted(1, 0), task).expect("no deadline");
    }
    assert_eq!(
        one.offer(0, due(1, 0, 50 * MS), 40),
        Err(Turned::Late),
        "behind 39 others"
    );
    one.offer(0, due(1, 0, 70 * MS), 41)
        .expect("six batches in 70 ms");
    // Another requester does not wait behind all of them.
    one.offer(0, due(2, 0, 25 * MS), 42)
        .expect("two batches in 25 ms");
}

#[test]
fn a_running_batch_that_overruns_closes_the_door() {
    let mut one = one(policy());
    one.teach(10 * MS);
    one.offer(0, wanted(1, 0), 1).expect("room");
    one.take(MS).expect("waited");
    one.offer(12 * MS, due(1, 12 * MS, 42 * MS), 2)
        .expect("it will soon end");
    assert_eq!(
        one.offer(60 * MS, due(1, 60 * MS, 90 * MS), 3),
        Err(Turned::Late)
    );
}

#[test]
fn what_became_late_is_dropped_and_not_handed_over() {
    let mut one = one(policy());
    one.teach(10 * MS);
    one.offer(0, due(1, 0, 30 * MS), 1).expect("in time");
    one.offer(0, due(1, 0, 90 * MS), 2).expect("in time");
    let closed = one.take(25 * MS).expect("closed");
    assert_eq!((one.tasks(), &one.late), (vec![2], &vec![1]));
    assert_eq!(closed.earliest_deadline, at(90 * MS));
    one.batcher.ended(at(35 * MS), closed.ticket);
    one.offer(40 * MS, due(1, 40 * MS, 60 * MS), 3)
        .expect("in time");
    assert_eq!(
        one.take(61 * MS),
        None,
        "all that would have ridden were late"
    );
    assert_eq!(
        (one.late.as_slice(), one.batcher.waiting()),
        (&[1, 3][..], 0)
    );
}

#[test]
fn what_passed_its_deadline_can_be_taken_out_while_no_lane_asks() {
    let mut one = one(policy());
    for peer in 1..5 {
        for task in 0..10 {
            let deadline = (1 + task) * u64::from(peer) * MS;
            one.offer(0, due(peer, 0, deadline), deadline)
                .expect("room");
        }
    }
    let mut late = Vec::new();
    one.batcher.expire(at(10 * MS), &mut late);
    late.sort_unstable();
    let expected: Vec<u64> = [1, 2, 2, 3, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9, 9, 10, 10]
        .map(|ms| ms * MS)
        .to_vec();
    assert_eq!((late, one.batcher.waiting()), (expected, 20));
    one.batcher.expire(at(SECOND), &mut Vec::new());
    assert_eq!(one.batcher.waiting(), 0);
}

#[test]
fn what_fits_no_batch_is_too_big() {
    let mut one = one(BatchPolicy {
        work_max: 100,
        bytes_max: 1_000,
        ..policy()
    });
    let large = |work, payload_len| Wanted {
        work,
        payload_len,
        ..wanted(1, 0)
    };
    assert_eq!(one.offer(0, large(101, 0), 0), Err(Turned::TooBig));
    assert_eq!(one.offer(0, large(1, 761), 0), Err(Turned::TooBig));
    one.offer(0, large(100, 760), 1)
        .expect("128 + 48 + 760 + 64 bytes");
    let mut unbounded = self::one(policy());
    assert_eq!(
        unbounded.offer(0, large(1 << 32, 0), 0),
        Err(Turned::TooBig)
    );
}

#[test]
fn one_who_takes_every_place_leaves_some_to_others() {
    let mut one = one(BatchPolicy {
        waiting_max: 90,
        ..policy()
    });
    one.teach(10 * MS);
    let places = |one: &mut One, peer| {
        (0..200)
            .take_while(|task| one.offer(0, wanted(peer, 0), *task).is_ok())
            .count()
    };
    assert_eq!(places(&mut one, 1), 80, "eight of nine");
    assert!(places(&mut one, 2) >= 8);
    let Err(Turned::Busy { retry_after_us }) = one.offer(0, wanted(1, 0), 0) else {
        panic!("it has its share");
    };
    // About half of 90 tasks in batches of 8 that take 10 ms.
    assert!(
        (40_000..80_000).contains(&retry_after_us),
        "{retry_after_us}"
    );
    let mut now = 0;
    while now < u64::from(retry_after_us) * US {
        let closed = one.take(now).expect("full");
        now += 10 * MS;
        one.batcher.ended(at(now), closed.ticket);
    }
    one.offer(now, wanted(1, now), 0)
        .expect("room, as was said");
}

#[test]
fn without_an_agent_and_while_draining_nothing_comes_in() {
    let mut one = one(policy());
    one.offer(0, wanted(1, 0), 1).expect("room");
    let lane = one.lane;
    one.batcher.remove_lane(lane);
    assert!(matches!(
        one.offer(0, wanted(1, 0), 2),
        Err(Turned::Busy { .. })
    ));
    assert_eq!(one.next(MS), Next::Empty, "the lane has gone");
    one.lane = one.batcher.add_lane();
    one.batcher.drain();
    assert!(matches!(
        one.offer(0, wanted(1, 0), 3),
        Err(Turned::Busy { .. })
    ));
    assert_eq!(
        one.take(0).expect("nothing more will come").by,
        ClosedBy::Drain
    );
    assert_eq!(one.tasks(), [1]);
}

#[test]
fn the_tasks_of_a_dead_agent_run_again_in_halves_until_one_is_to_blame() {
    let mut one = one(policy());
    for task in 0..8 {
        one.offer(0, wanted(1, 0), task).expect("room");
    }
    one.take(0).expect("full");
    let (killer, mut poison, mut answered, mut deaths) = (5, Vec::new(), Vec::new(), 0);
    loop {
        if one.tasks().contains(&killer) {
            deaths += 1;
            let lane = one.lane;
            one.batcher.remove_lane(lane);
            one.lane = one.batcher.add_lane();
            let mut batch = std::mem::take(&mut one.batch);
            one.batcher.retry(&mut batch, &mut poison);
        } else {
            answered.extend(one.tasks());
        }
        let Some(closed) = one.take(0) else {
            break;
        };
        assert_eq!(closed.by, ClosedBy::Retry);
        one.batcher.ended(at(0), closed.ticket);
    }
    answered.sort_unstable();
    assert_eq!(
        (poison, answered),
        (vec![killer], vec![0, 1, 2, 3, 4, 6, 7])
    );
    assert_eq!(deaths, 4, "8, 4, 2, 1");
}

#[test]
fn a_table_that_refuses_everything_is_put_to_the_test() {
    let mut one = one(policy());
    one.offer(0, wanted(1, 0), 0).expect("room");
    let slow = one.take(MS).expect("waited");
    one.batcher.ended(at(5 * SECOND), slow.ticket);
    // The first batch loaded something and took 5 s; every task wants its answer in 20 ms.
    let (mut now, mut refused) = (5 * SECOND, 0);
    while one.offer(now, due(1, now, now + 20 * MS), 1).is_err() {
        (now, refused) = (now + MS, refused + 1);
    }
    assert!(
        (900..1_100).contains(&refused),
        "probed after a second, not {refused} ms"
    );
    assert_eq!(
        one.offer(now, due(1, now, now + 20 * MS), 2),
        Err(Turned::Late),
        "one at a time"
    );
    let probe = one.take(now).expect("a probe does not wait");
    assert_eq!(one.tasks(), [1]);
    one.batcher.ended(at(now + 5 * MS), probe.ticket);
    now += 6 * MS;
    one.offer(now, due(1, now, now + 20 * MS), 3)
        .expect("believed at once");
}

#[test]
fn tests_that_only_confirm_the_table_become_rare() {
    let mut one = one(policy());
    one.teach(50 * MS);
    let (mut now, mut probes) = (SECOND, 0);
    while now < 120 * SECOND {
        if one.offer(now, due(1, now, now + 20 * MS), 0).is_ok() {
            probes += 1;
            let closed = one.take(now).expect("a probe does not wait");
            now += 50 * MS;
            one.batcher.ended(at(now), closed.ticket);
        }
        now += MS;
    }
    assert!((4..=8).contains(&probes), "{probes} of 120,000 tasks");
    assert_eq!(one.batcher.predicted_ns(1, 1) / MS, 52);
}

#[test]
fn a_greedy_requester_does_not_delay_a_small_one() {
    let mut one = one(policy());
    for task in 0..1_000 {
        one.offer(0, wanted(1, 0), task).expect("room");
    }
    for round in 0..50 {
        one.offer(round, wanted(2, round), 10_000 + round)
            .expect("room");
        let closed = one.take(round).expect("full");
        assert!(
            one.tasks().contains(&(10_000 + round)),
            "round {round}: in the next batch"
        );
        assert_eq!(one.batch.len(), 8);
        one.batcher.ended(at(round), closed.ticket);
    }
    assert_eq!(one.batcher.waiting(), 1_000 - 50 * 7);
}

#[test]
fn once_warm_no_collection_grows() {
    let mut one = one(BatchPolicy {
        waiting_max: 500,
        ..policy()
    });
    let round = |one: &mut One, now: u64, first_peer: u32| {
        for task in 0..500u32 {
            let wanted = wanted(first_peer + task % 90, now);
            one.offer(now, wanted, u64::from(task)).expect("room");
        }
        while let Some(closed) = one.take(now + MS) {
            one.batcher.ended(at(now + MS), closed.ticket);
        }
        assert_eq!(one.batcher.waiting(), 0);
    };
    round(&mut one, 0, 1);
    let (queue, lanes) = (
        one.batcher.queue.capacities(),
        one.batcher.lanes.capacities(),
    );
    for turn in 1..200u32 {
        round(&mut one, u64::from(turn) * SECOND, 1 + turn * 90);
        let now = one.batcher.queue.capacities();
        // A hash table's capacity shrinks by its dead entries until it tidies itself in place.
        assert!(
            now.iter().zip(&queue).all(|(now, before)| now <= before),
            "{now:?} of {queue:?}"
        );
        assert_eq!(one.batcher.lanes.capacities(), lanes);
    }
}
