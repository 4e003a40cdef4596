//! Agents that die, stall, or are killed by a task.

use super::*;

const DIED: &str = "the agent died while it ran this task";

fn idempotent(max_batch: u32) -> Hello {
    Hello {
        idempotent: true,
        ..full(max_batch)
    }
}

#[test]
fn a_poison_task_is_found_by_halves_and_everything_else_is_answered() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&idempotent(40));
    for index in 1..=40 {
        let payload: &[u8] = if index == 23 { b"poison" } else { b"food" };
        rig.hand(index, payload);
    }
    let mut sizes = Vec::new();
    // Dies over every batch with the poison in it, and comes back.
    let mut answers = BTreeMap::new();
    while answers.len() < 40 {
        if !rig.inbox.finished.is_empty() {
            let task = rig.inbox.finished.pop().expect("not empty");
            let before = answers.insert(task.channel.0, Answer::of(&task));
            assert_eq!(before, None, "task {} was answered twice", task.channel.0);
            continue;
        }
        let mut ready = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)];
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        if poll(&mut ready, Some(&soon)) == Ok(0) {
            continue;
        }
        let mut taken = batch(&mut client);
        let poisoned = payloads(&client, &taken)
            .iter()
            .any(|bytes| bytes == b"poison");
        if poisoned {
            sizes.push(taken.tasks.len());
            drop(client);
            client = rig.agent(&idempotent(40));
        } else {
            upper(&mut client, &mut taken);
        }
    }
    assert_eq!(sizes.first(), Some(&40), "all together at first");
    assert_eq!(sizes.last(), Some(&1), "alone at last");
    assert!(
        sizes.windows(2).all(|pair| pair[1] * 2 <= pair[0] + 1),
        "{sizes:?}"
    );
    for (index, answer) in &answers {
        match index {
            23 => assert_eq!(*answer, Answer::Failed(DIED.to_owned())),
            _ => assert_eq!(*answer, Answer::Done(b"FOOD".to_vec())),
        }
    }
    let status = rig.status();
    assert_eq!(status.poison, 1);
    assert!(
        status.deaths == sizes.len() as u64 && status.wasted_tasks >= 40,
        "{status:#?}"
    );
    drop(client);
    rig.end();
}

#[test]
fn without_leave_to_run_again_the_running_batch_fails_and_the_staged_one_does_not() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(1));
    rig.hand(0, b"running");
    rig.hand(1, b"staged");
    let running = batch(&mut client);
    let staged = batch(&mut client);
    assert_eq!(payloads(&client, &running), [b"running"]);
    assert_eq!(payloads(&client, &staged), [b"staged"]);
    let second = rig.agent(&hello(1));
    rig.until("another is ready", |status| status.ready == 2);
    let agent = serve(second);
    drop(client);
    let answers = rig.answers(2);
    assert_eq!(answers[&0], Answer::Failed(DIED.to_owned()));
    assert_eq!(answers[&1], Answer::Done(b"STAGED".to_vec()));
    rig.end();
    agent.join().expect("it does not panic");
}

#[test]
fn what_waits_for_agents_that_are_gone_is_refused_and_comes_again() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(1));
    for index in 0..5 {
        rig.hand(index, b"x");
    }
    let _running = batch(&mut client);
    rig.until("three wait", |status| status.waiting == 3);
    drop(client);
    let answers = rig.answers(5);
    let failed = Answer::Failed(DIED.to_owned());
    let refused = Answer::Refused("busy");
    let count = |wanted: &Answer| answers.values().filter(|answer| *answer == wanted).count();
    assert_eq!((count(&failed), count(&refused)), (1, 4), "{answers:?}");
    rig.wait_offer(false);
    rig.end();
}

#[test]
fn an_agent_that_gives_no_sign_of_life_is_given_up() {
    let rig = Rig::start();
    let quick = Hello {
        stall_s: 1,
        ..hello(1)
    };
    let mut client = rig.first_agent(&quick);
    rig.hand(0, b"x");
    let _never_answered = batch(&mut client);
    let expected = Answer::Failed("the agent stalled while it ran this task".to_owned());
    assert_eq!(rig.answers(1)[&0], expected);
    assert!(matches!(client.wanted(), Ok(Wanted::Ended)), "given up");
    assert_eq!(rig.status().stalls, 1);
    rig.end();
}

#[test]
fn a_task_that_is_to_run_again_fails_if_no_agent_comes_back() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&idempotent(2));
    rig.hand(1, b"x");
    rig.hand(2, b"x");
    let _both = batch(&mut client);
    drop(client);
    let answers = rig.answers(2);
    for index in [1, 2] {
        assert_eq!(answers[&index], Answer::Failed(DIED.to_owned()));
    }
    rig.end();
}

#[test]
fn no_task_is_answered_twice_or_left_over_a_hundred_deaths() {
    let rig = Rig::start();
    let mut next = 0;
    let mut answered = 0;
    let spirited = Hello {
        idempotent: true,
        ..hello(16)
    };
    let mut client = rig.first_agent(&spirited);
    for round in 0..100_u32 {
        for _ in 0..(round % 17 + 2) {
            rig.hand(next, b"x");
            next += 1;
        }
        let mut taken = batch(&mut client);
        // Where in the batch it dies differs from round to round.
        match round % 3 {
            0 => {}
            1 => client.answer(&mut taken, 0, 1, b"half").expect("it fits"),
            _ => upper(&mut client, &mut taken),
        }
        drop(client);
        let deaths = u64::from(round) + 1;
        rig.until("its death is noticed", |status| status.deaths == deaths);
        client = rig.agent(&spirited);
        rig.until("the next is ready", |status| status.ready == 1);
        answered += rig.inbox.finished.len();
    }
    assert!(answered > 0, "some were answered on the way");
    let agent = serve(client);
    let answers = rig.answers(next as usize);
    assert_eq!(answers.len(), next as usize, "none is left");
    rig.end();
    agent.join().expect("it does not panic");
}
