//! The data path between two processes' worth of workers over real loopback sockets: every backend,
//! placement and idle policy answers every task rightly, and the counters obey their laws.

mod common;

use std::net::UdpSocket;

use common::{Bare, Long, Numbers, Pair};
use ramjet::handler::Placement;
use ramjet::worker::{Idle, IoKind};

fn laws_hold(node: &Bare) {
    let received = node.counter("datagrams_received");
    let delivered = node.counter("datagrams_delivered");
    let handled = node.counter("datagrams_handled");
    let dropped = node.counter("datagrams_dropped");
    assert_eq!(
        received,
        delivered + handled + dropped,
        "datagrams in and accounted for"
    );
    let reasons: u64 = node
        .workers
        .iter()
        .flat_map(|worker| worker.counters())
        .filter(|(name, _)| name.starts_with("dropped_"))
        .map(|(_, count)| count)
        .sum();
    let (frames, sends) = (
        node.counter("frames_dropped"),
        node.counter("sends_dropped"),
    );
    assert_eq!(
        reasons,
        dropped + frames + sends,
        "every drop has its reason"
    );
}

fn echoes(io: IoKind, idle: Idle, placement: Placement, len: usize) {
    let count = 2_000;
    let mut pair = Pair::start(io, idle, placement);
    for _ in 0..2 {
        let (totals, _) = pair.run(count, Numbers::new(len, count));
        assert_eq!(
            (totals.tasks, totals.accepted, totals.rejected),
            (count, count, 0)
        );
    }
    assert_eq!(
        pair.worker.counter("tasks_run"),
        2 * count,
        "each task ran once"
    );
    laws_hold(&pair.worker);
    laws_hold(&pair.requester);
    pair.stop();
}

#[test]
fn io_uring_inline() {
    echoes(IoKind::Uring, Idle::Adaptive, Placement::Inline, 64);
}

#[test]
fn io_uring_parked() {
    echoes(IoKind::Uring, Idle::Park, Placement::Inline, 64);
}

#[test]
fn io_uring_pool() {
    echoes(IoKind::Uring, Idle::Adaptive, Placement::Pool, 64);
}

#[test]
fn io_uring_longest_payload() {
    let longest = ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX;
    echoes(IoKind::Uring, Idle::Adaptive, Placement::Inline, longest);
}

#[test]
fn mmsg_inline() {
    echoes(IoKind::Mmsg, Idle::Adaptive, Placement::Inline, 64);
}

#[test]
fn mmsg_pool_parked() {
    echoes(IoKind::Mmsg, Idle::Park, Placement::Pool, 200);
}

#[test]
fn payloads_and_results_up_to_the_longest_travel_in_parts() {
    let longest = ramjet_proto::wire::limits::TASK_LEN_MAX;
    let lens = [2_001, 1_302, 1_303, 100_000, 1 << 20, longest];
    let mut pair = Pair::start(IoKind::Uring, Idle::Adaptive, Placement::Inline);
    let (totals, _) = pair.run(6, Long::new(&lens, 0));
    assert_eq!((totals.accepted, totals.refused), (6, 0));
    laws_hold(&pair.worker);
    laws_hold(&pair.requester);
    pair.stop();
}

#[test]
fn one_byte_more_than_the_longest_is_refused_by_name() {
    let longest = ramjet_proto::wire::limits::TASK_LEN_MAX;
    struct TooLong(bytes::Bytes);
    impl ramjet::job::Job for TooLong {
        fn next(&mut self, _: &mut [u8], _: ramjet_proto::time::Time) -> ramjet::job::Next {
            let payload = std::mem::take(&mut self.0);
            if payload.is_empty() {
                return ramjet::job::Next::End;
            }
            ramjet::job::Next::Large { payload, token: 0 }
        }

        fn answer(
            &mut self,
            _: u64,
            answer: ramjet::job::Answer<'_>,
            _: ramjet::job::Timing,
        ) -> ramjet::job::Verdict {
            assert_eq!(
                answer,
                ramjet::job::Answer::Refused(ramjet::job::Refused::TooBig)
            );
            ramjet::job::Verdict::Reject
        }
    }
    let mut pair = Pair::start(IoKind::Uring, Idle::Adaptive, Placement::Inline);
    let (totals, _) = pair.run(1, Box::new(TooLong(vec![0; longest + 1].into())));
    assert_eq!(totals.refused, 1);
    pair.stop();
}

#[test]
fn progress_comes_in_order_before_the_answer() {
    let mut pair = Pair::start(IoKind::Uring, Idle::Adaptive, Placement::Pool);
    let (totals, _) = pair.run(3, Long::new(&[2_500, 30_000, 400_000], 8));
    assert_eq!((totals.accepted, totals.failed), (3, 0));
    pair.stop();
}

#[test]
fn the_two_backends_understand_each_other_across_several_workers() {
    let inline = Placement::Inline;
    let worker = Bare::start(5, 3, IoKind::Uring, Idle::Adaptive, inline);
    let requester = Bare::start(7, 2, IoKind::Mmsg, Idle::Adaptive, inline);
    let mut pair = Pair::with(worker, requester);
    let (totals, _) = pair.run(1_000, Numbers::new(100, 1_000));
    assert_eq!(totals.accepted, 1_000);
    assert_eq!(
        pair.worker.counter("datagrams_forwarded"),
        0,
        "the filter steers every frame"
    );
    pair.stop();
}

#[test]
fn garbage_beside_real_work_is_counted_by_reason_and_harms_nothing() {
    let mut pair = Pair::start(IoKind::Uring, Idle::Adaptive, Placement::Inline);
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let target = pair.worker.address;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let count = 500;
    for round in 0..count {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(round);
        let len = usize::try_from(state >> 53).expect("11 bits");
        let mut bytes: Vec<u8> = (0..len)
            .map(|i| (state >> (i % 56)).to_be_bytes()[7])
            .collect();
        match round % 4 {
            0 => bytes.splice(..0, *b"PILS\0\0\0\x02").for_each(drop),
            1 => bytes.splice(..0, *b"PILA\0\0\0\x02").for_each(drop),
            2 => bytes.splice(..0, *b"PILT").for_each(drop),
            _ => {}
        }
        stranger.send_to(&bytes, target).expect("sent");
    }
    let (totals, _) = pair.run(1_000, Numbers::new(64, 1_000));
    assert_eq!(totals.accepted, 1_000);
    let started = std::time::Instant::now();
    while pair.worker.counter("datagrams_dropped") + pair.worker.counter("datagrams_handled")
        < count
    {
        assert!(
            started.elapsed() < common::PATIENCE,
            "{:?}",
            pair.worker.workers[0].counters()
        );
        std::thread::yield_now();
    }
    laws_hold(&pair.worker);
    assert!(pair.worker.counter("dropped_plaintext") >= count / 4 - 1);
    pair.stop();
}

/// A job that has a task only when another thread gives it one.
struct Fed {
    tasks: crossbeam::channel::Receiver<u64>,
    answered: crossbeam::channel::Sender<u64>,
    waker: std::sync::Arc<std::sync::OnceLock<std::task::Waker>>,
}

impl ramjet::job::Job for Fed {
    fn attach(&mut self, waker: std::task::Waker) {
        self.waker.set(waker).expect("attached once");
    }

    fn next(&mut self, space: &mut [u8], _: ramjet_proto::time::Time) -> ramjet::job::Next {
        use crossbeam::channel::TryRecvError;
        match self.tasks.try_recv() {
            Ok(token) => {
                space[..8].copy_from_slice(&token.to_be_bytes());
                ramjet::job::Next::Task { len: 8, token }
            }
            Err(TryRecvError::Empty) => ramjet::job::Next::Waiting {
                until: ramjet_proto::time::Time::NEVER,
            },
            Err(TryRecvError::Disconnected) => ramjet::job::Next::End,
        }
    }

    fn answer(
        &mut self,
        token: u64,
        answer: ramjet::job::Answer<'_>,
        _: ramjet::job::Timing,
    ) -> ramjet::job::Verdict {
        assert_eq!(answer, ramjet::job::Answer::Done(&token.to_be_bytes()));
        self.answered.send(token).expect("somebody feeds it");
        ramjet::job::Verdict::Accept
    }
}

/// Nothing but the waker can end the sleep of this requester before its next ping, so a lost wake-up
/// costs a second each. And while its job waits, it has nothing to say: a task, the verdict on its
/// result and an acknowledgment or two are all that leaves for each.
#[test]
fn a_job_that_waits_is_woken_by_what_it_was_given() {
    let count = 200;
    let mut pair = Pair::start(IoKind::Uring, Idle::Park, Placement::Inline);
    let (feed, tasks) = crossbeam::channel::unbounded();
    let (answered, answers) = crossbeam::channel::unbounded();
    let waker = std::sync::Arc::new(std::sync::OnceLock::<std::task::Waker>::new());
    let job = Box::new(Fed {
        tasks,
        answered,
        waker: std::sync::Arc::clone(&waker),
    });
    let feeder = std::thread::spawn(move || {
        let ring = || waker.get().map(std::task::Waker::wake_by_ref);
        let began = std::time::Instant::now();
        for token in 0..count {
            feed.send(token).expect("the job is there");
            ring();
            assert_eq!(answers.recv(), Ok(token));
        }
        drop(feed);
        ring();
        began.elapsed()
    });
    let (totals, _) = pair.run(count, job);
    assert_eq!(totals.accepted, count);
    let took = feeder.join().expect("fed");
    assert!(took < std::time::Duration::from_secs(60), "{took:?}");
    let sent = pair.requester.counter("datagrams_sent");
    assert!(sent <= 4 * count, "{sent} datagrams for {count} tasks");
    laws_hold(&pair.requester);
    pair.stop();
}
