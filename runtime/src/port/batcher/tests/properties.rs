//! The invariants of the module, under whatever happens in whatever order.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use ramjet_proto::time::Time;

use super::super::{BatchPolicy, Batcher, Closed, Lane, Next, Ticket, Wanted};
use super::{MS, US, at, due, wanted};

#[derive(Clone, Debug)]
enum Step {
    Offer {
        peer: u32,
        deadline_us: Option<u64>,
        work: u64,
        payload_len: usize,
    },
    Pass {
        us: u64,
    },
    Ask {
        lane: usize,
    },
    End {
        lane: usize,
    },
    Fail {
        lane: usize,
    },
    Die {
        lane: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1u32..6, prop::option::weighted(0.7, 50u64..30_000), 0u64..60, 0usize..700).prop_map(
            |(peer, deadline_us, work, payload_len)| Step::Offer { peer, deadline_us, work, payload_len }
        ),
        3 => (0u64..4_000).prop_map(|us| Step::Pass { us }),
        4 => (0usize..2).prop_map(|lane| Step::Ask { lane }),
        3 => (0usize..2).prop_map(|lane| Step::End { lane }),
        1 => (0usize..2).prop_map(|lane| Step::Fail { lane }),
        1 => (0usize..2).prop_map(|lane| Step::Die { lane }),
    ]
}

fn policies() -> impl Strategy<Value = BatchPolicy> {
    (
        1usize..20,
        40u64..200,
        0u64..3_000,
        3_000usize..9_000,
        5usize..60,
    )
        .prop_map(
            |(items_max, work_max, wait_us, bytes_max, waiting_max)| BatchPolicy {
                items_max,
                work_max,
                wait: Duration::from_micros(wait_us),
                bytes_max,
                result_len_max: 100,
                waiting_max,
                margin: Duration::from_micros(50),
            },
        )
}

/// A batch on a lane: its ticket and its tasks.
type Taken = (Ticket, Vec<(Wanted, u64)>);

/// An engine with two agents, which knows of each task where it is.
struct Engine {
    batcher: Batcher<u64>,
    policy: BatchPolicy,
    now: Time,
    lanes: Vec<(Lane, Vec<Taken>)>,
    /// Tasks let in that have not come back.
    inside: BTreeMap<u64, Wanted>,
    offered: u64,
}

impl Engine {
    fn new(policy: BatchPolicy) -> Self {
        let mut batcher = Batcher::new(policy);
        let lanes = (0..2).map(|_| (batcher.add_lane(), Vec::new())).collect();
        Engine {
            batcher,
            policy,
            now: at(MS),
            lanes,
            inside: BTreeMap::new(),
            offered: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer {
                peer,
                deadline_us,
                work,
                payload_len,
            } => {
                let now = self.now.as_nanos();
                let wanted = match deadline_us {
                    Some(us) => due(peer, now, now + us * US),
                    None => wanted(peer, now),
                };
                self.offer(Wanted {
                    work,
                    payload_len,
                    ..wanted
                });
            }
            Step::Pass { us } => self.now = self.now + Duration::from_micros(us),
            Step::Ask { lane } => self.ask(lane),
            Step::End { lane } => {
                if !self.lanes[lane].1.is_empty() {
                    let (ticket, tasks) = self.lanes[lane].1.remove(0);
                    self.batcher.ended(self.now, ticket);
                    self.batcher.ended(self.now, ticket);
                    self.answered(tasks.into_iter().map(|(_, task)| task));
                }
            }
            Step::Fail { lane } => {
                if !self.lanes[lane].1.is_empty() {
                    let (ticket, tasks) = self.lanes[lane].1.remove(0);
                    self.batcher.failed(self.now, ticket);
                    self.answered(tasks.into_iter().map(|(_, task)| task));
                }
            }
            Step::Die { lane } => {
                let (dead, taken) = std::mem::take(&mut self.lanes[lane].1).into_iter().fold(
                    (self.lanes[lane].0, Vec::new()),
                    |(dead, mut all), (_, tasks)| {
                        all.push(tasks);
                        (dead, all)
                    },
                );
                self.batcher.remove_lane(dead);
                let mut poison = Vec::new();
                for mut tasks in taken {
                    let alone = tasks.len() == 1;
                    self.batcher.retry(&mut tasks, &mut poison);
                    assert!(tasks.is_empty());
                    assert_eq!(!poison.is_empty(), alone, "only who was alone is blamed");
                    self.answered(poison.drain(..));
                }
                self.lanes[lane].0 = self.batcher.add_lane();
            }
        }
        let known: usize = self
            .lanes
            .iter()
            .flat_map(|lane| &lane.1)
            .map(|taken| taken.1.len())
            .sum();
        assert_eq!(
            self.batcher.waiting() + known,
            self.inside.len(),
            "each task is in one place"
        );
    }

    fn offer(&mut self, wanted: Wanted) {
        self.offered += 1;
        match self.batcher.offer(self.now, wanted, self.offered) {
            Ok(()) => {
                self.inside.insert(self.offered, wanted);
            }
            Err((_, task)) => assert_eq!(task, self.offered, "the task itself comes back"),
        }
    }

    fn answered(&mut self, tasks: impl IntoIterator<Item = u64>) {
        for task in tasks {
            assert!(
                self.inside.remove(&task).is_some(),
                "task {task} came back twice"
            );
        }
    }

    fn ask(&mut self, index: usize) {
        let (lane, taken) = (self.lanes[index].0, self.lanes[index].1.len());
        if taken == 2 || self.batcher.next(self.now, lane) != Next::Close {
            return;
        }
        let Some(place) = self.batcher.lanes.place(self.now, lane) else {
            unreachable!("the lane is there");
        };
        let (mut batch, mut late) = (Vec::new(), Vec::new());
        let closed = self.batcher.take(self.now, lane, &mut batch, &mut late);
        for task in &late {
            assert_ne!(
                self.inside[task].deadline,
                Time::NEVER,
                "no deadline, never late"
            );
        }
        let any_late = !late.is_empty();
        self.answered(late);
        match closed {
            Some(closed) => {
                self.check(place.start, &closed, &batch);
                self.lanes[index].1.push((closed.ticket, batch));
            }
            None => assert!(
                any_late && batch.is_empty(),
                "a batch that closes moves something"
            ),
        }
    }

    fn check(&self, start: Time, closed: &Closed, batch: &[(Wanted, u64)]) {
        let policy = &self.policy;
        assert!((1..=policy.items_max).contains(&batch.len()));
        let work: u64 = batch.iter().map(|(wanted, _)| wanted.work).sum();
        assert!(work <= policy.work_max && work == closed.work);
        // The region as docs/WIRE.md lays it out.
        let mut bytes = 64 + batch.len() * (32 + 16);
        for (wanted, _) in batch {
            bytes = bytes.next_multiple_of(8) + wanted.payload_len;
        }
        bytes = bytes.next_multiple_of(64) + batch.len() * policy.result_len_max;
        assert!(bytes <= closed.bytes && closed.bytes <= policy.bytes_max);
        let earliest = batch.iter().map(|(wanted, _)| wanted.deadline).min();
        assert_eq!(earliest, Some(closed.earliest_deadline));
        let oldest = batch.iter().map(|(wanted, _)| wanted.arrived).min();
        assert_eq!(oldest, Some(closed.oldest_arrival));
        let predicted = self.batcher.predicted_ns(batch.len(), work);
        let end = start + Duration::from_nanos(predicted) + policy.margin;
        let probe = batch.len() == 1 && closed.earliest_deadline > self.now && predicted > 0;
        assert!(
            closed.earliest_deadline == Time::NEVER || end <= closed.earliest_deadline || probe,
            "{batch:?} would end at {end:?}"
        );
    }

    /// Runs what is there to its end; nothing may be stuck.
    fn finish(&mut self) {
        self.batcher.drain();
        for _ in 0..10_000 {
            for lane in 0..2 {
                self.step(&Step::End { lane });
                self.step(&Step::Ask { lane });
            }
            self.now = self.now + Duration::from_micros(100);
            if self.inside.is_empty() {
                return;
            }
        }
        panic!("{} tasks never came back", self.inside.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn batches_keep_their_bounds_and_no_task_is_lost_or_doubled(
        policy in policies(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut engine = Engine::new(policy);
        for step in &steps {
            engine.step(step);
        }
        engine.finish();
    }

    #[test]
    fn what_is_abandoned_comes_back_once(
        policy in policies(),
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let mut engine = Engine::new(policy);
        for step in &steps {
            engine.step(step);
        }
        let mut all = Vec::new();
        engine.batcher.abandon(&mut all);
        engine.answered(all);
        prop_assert_eq!(engine.batcher.waiting(), 0);
        let lane = engine.lanes[0].0;
        prop_assert_eq!(engine.batcher.next(engine.now, lane), Next::Empty);
    }

    #[test]
    fn requesters_that_wait_share_the_work_equally(
        works in prop::collection::vec(1u64..40, 3..8),
        items_max in 1usize..40,
    ) {
        // Requester 1 has 1,000 tasks waiting; every other one of another size has 100.
        let mut policy = super::policy();
        policy.items_max = items_max;
        let mut batcher = Batcher::new(policy);
        let lane = batcher.add_lane();
        for (peer, work) in works.iter().enumerate() {
            let peer = u32::try_from(peer).expect("few") + 1;
            for task in 0..if peer == 1 { 1_000u64 } else { 100 } {
                let wanted = Wanted { work: *work, ..wanted(peer, 0) };
                batcher.offer(at(0), wanted, task).expect("room");
            }
        }
        let mut served = vec![0u64; works.len()];
        let (mut batch, mut late) = (Vec::new(), Vec::new());
        let most = works.iter().copied().max().unwrap_or(1);
        loop {
            let closed = batcher.take(at(MS), lane, &mut batch, &mut late).expect("a full batch");
            batcher.ended(at(MS), closed.ticket);
            for (wanted, _) in batch.drain(..) {
                served[wanted.peer.0 as usize - 1] += wanted.work;
            }
            let has_gone = |(index, work)| served[index] == work * if index == 0 { 1_000 } else { 100 };
            if works.iter().enumerate().any(has_gone) {
                break;
            }
            let (least, greatest) = (served.iter().min(), served.iter().max());
            let apart = greatest.copied().unwrap_or(0) - least.copied().unwrap_or(0);
            prop_assert!(apart <= 4 * most, "{served:?} with tasks of {works:?}");
        }
    }
}
