//! Agents that do as they should.

use super::*;
use crate::port::wire::Message;

#[test]
fn one_task_goes_to_the_agent_and_its_answer_comes_back() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(8));
    rig.hand(7, b"hello");
    let mut batch = batch(&mut client);
    assert_eq!(payloads(&client, &batch), [b"hello"]);
    upper(&mut client, &mut batch);
    assert_eq!(rig.answers(1)[&7], Answer::Done(b"HELLO".to_vec()));
    let status = rig.until("settled", |status| status.batches == 1);
    assert_eq!((status.agents, status.ready, status.done), (1, 1, 1));
    assert!(status.stages_us["hand_over"][3] > 0.0, "{status:#?}");
    drop(client);
    rig.end();
}

#[test]
fn many_tasks_ride_together_and_each_gets_its_own_answer() {
    let rig = Rig::start();
    let agent = serve(rig.first_agent(&full(200)));
    for index in 0..600 {
        rig.hand(index, format!("task {index}").as_bytes());
    }
    let answers = rig.answers(600);
    for index in 0..600 {
        let expected = format!("TASK {index}").into_bytes();
        assert_eq!(answers[&index], Answer::Done(expected));
    }
    let status = rig.until("settled", |status| status.tasks == 600);
    assert_eq!((status.batches, status.closed_by["items"]), (3, 3));
    assert!((status.fill - 1.0).abs() < 1e-9, "{status:#?}");
    rig.end();
    agent.join().expect("it does not panic");
}

#[test]
fn tasks_fail_one_by_one_or_all_together_as_the_agent_says() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&full(4));
    for index in 1..=4 {
        rig.hand(index, b"x");
    }
    let mut taken = batch(&mut client);
    client.answer(&mut taken, 0, 1, b"fine").expect("it fits");
    client
        .answer(&mut taken, 1, 2, b"bad input")
        .expect("it fits");
    client.answer(&mut taken, 2, 4, b"").expect("it fits");
    client.done(&taken, 1).expect("it listens");
    let mut found: Vec<_> = rig.answers(4).into_values().collect();
    found.sort_by_key(|answer| format!("{answer:?}"));
    let expected = [
        Answer::Done(b"fine".to_vec()),
        Answer::Failed("bad input".to_owned()),
        Answer::Failed("the agent did not answer this task".to_owned()),
        Answer::Refused("busy"),
    ];
    assert_eq!(found, expected);

    for index in 5..=8 {
        rig.hand(index, b"x");
    }
    let third = batch(&mut client);
    let failed = Message::Failed {
        batch: third.note.batch,
        reason: b"ValueError: no model",
    };
    client.send(&failed).expect("it listens");
    let expected = Answer::Failed("ValueError: no model".to_owned());
    assert!(rig.answers(4).values().all(|answer| *answer == expected));
    drop(client);
    rig.end();
}

#[test]
fn two_batches_are_with_an_agent_and_no_more() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(1));
    for index in 0..5 {
        rig.hand(index, b"x");
    }
    let mut running = batch(&mut client);
    // The second is staged while the first runs, and the third waits for either.
    let mut staged = batch(&mut client);
    assert_ne!(running.note.region, staged.note.region);
    rig.until("three wait", |status| status.waiting == 3);
    upper(&mut client, &mut running);
    upper(&mut client, &mut staged);
    let agent = serve(client);
    assert_eq!(rig.answers(5).len(), 5);
    rig.end();
    agent.join().expect("it does not panic");
}

#[test]
fn without_an_agent_that_is_ready_tasks_are_refused() {
    let rig = Rig::start();
    rig.hand(0, b"x");
    assert_eq!(
        rig.answers(1)[&0],
        Answer::Refused("busy"),
        "nobody ever came"
    );
    let mut loading = rig.attach(&hello(8)).expect("welcomed");
    rig.hand(1, b"x");
    assert_eq!(rig.answers(1)[&1], Answer::Refused("busy"), "it loads");
    loading.send(&Message::Ready).expect("it listens");
    rig.wait_offer(true);
    rig.hand(2, &[b'x'; 1_025]);
    assert_eq!(rig.answers(1)[&2], Answer::Refused("too_big"));
    loading.send(&Message::Bye).expect("it listens");
    rig.wait_offer(false);
    rig.hand(3, b"x");
    assert_eq!(rig.answers(1)[&3], Answer::Refused("busy"), "it left");
    assert!(matches!(loading.wanted(), Ok(Wanted::Ended)), "let go");
    let status = rig.until("gone", |status| status.agents == 0);
    assert_eq!(status.deaths, 0, "it took its leave");
    rig.end();
}

#[test]
fn an_agent_that_leaves_answers_what_it_has() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(8));
    rig.hand(0, b"x");
    let mut last = batch(&mut client);
    client.send(&Message::Bye).expect("it listens");
    rig.wait_offer(false);
    upper(&mut client, &mut last);
    assert_eq!(rig.answers(1)[&0], Answer::Done(b"X".to_vec()));
    assert!(matches!(client.wanted(), Ok(Wanted::Ended)), "let go");
    rig.end();
}

#[test]
fn agents_share_a_skill_if_they_declare_the_same() {
    let rig = Rig::start();
    let first = rig.first_agent(&hello(1));
    let shorter = Hello {
        max_payload: 9,
        ..hello(1)
    };
    let error = rig.attach(&shorter).expect_err("it differs");
    let expected = "max_payload is 9, but 1024 with the agents that run \"upper\" already";
    assert!(error.to_string().contains(expected), "{error}");
    let other = rig.agent(&hello(1));
    rig.until("both are ready", |status| status.ready == 2);
    let agents = [serve(first), serve(other)];
    for index in 0..64 {
        rig.hand(index, b"x");
    }
    assert_eq!(rig.answers(64).len(), 64);
    rig.end();
    for agent in agents {
        agent.join().expect("it does not panic");
    }
}

#[test]
fn agents_are_told_when_the_node_ends() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(8));
    let agent = std::thread::spawn(move || {
        let drained = matches!(client.wanted(), Ok(Wanted::Drain));
        (drained, matches!(client.wanted(), Ok(Wanted::Ended)))
    });
    rig.end();
    assert_eq!(agent.join().expect("it does not panic"), (true, true));
}

#[test]
fn memory_for_arenas_is_bounded() {
    let rig = Rig::start();
    let greedy = |skill: &str| Hello {
        skill: skill.to_owned(),
        max_batch: 4_096,
        max_payload: 16 << 20,
        result_len_max: 16 << 20,
        ..Hello::default()
    };
    let mut clients = Vec::new();
    let error = loop {
        match rig.attach(&greedy(&format!("s{}", clients.len()))) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("at most 1073741824"), "{error}");
    let held: usize = clients
        .iter()
        .map(|client| client.welcome().arena_len)
        .sum();
    assert!(held <= 1 << 30 && clients.len() >= 8, "{held} bytes");
    rig.end();
}
