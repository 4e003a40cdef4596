//! Agents that break the protocol: each ends its own connection, and fails its own tasks.

use std::os::fd::AsFd;

use super::*;
use crate::port::layout::AnswerEntry;
use crate::port::wire::{Breach, PACKET_LEN_MAX};

/// A packet as its bytes.
fn packet(kind: u16, epoch: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = kind.to_le_bytes().to_vec();
    packet.extend_from_slice(&1_u16.to_le_bytes());
    packet.extend_from_slice(&epoch.to_le_bytes());
    packet.extend_from_slice(body);
    packet
}

#[test]
fn every_breach_ends_the_connection_and_is_counted_by_name() {
    let rig = Rig::start();
    // One that behaves serves all the while.
    let witness = serve(rig.first_agent(&hello(1)));
    let done = |batch: u64| [batch.to_le_bytes(), [0; 8]].concat();
    let progress = |index: u32| [&1_u64.to_le_bytes()[..], &index.to_le_bytes(), &[0; 4]].concat();
    // The epochs are counted up from 1: the witness has the first.
    let mut epoch = 1;
    let table: [(u16, u32, Vec<u8>, Breach); 9] = [
        (6, 1, done(1), Breach::WrongEpoch),
        (99, 0, Vec::new(), Breach::UnknownKind),
        (5, 0, vec![0; 40], Breach::UnknownKind),
        (1, 0, b"{}".to_vec(), Breach::UnknownKind),
        (6, 0, vec![0; 3], Breach::BadLength),
        (6, 0, done(77), Breach::UnknownBatch),
        (11, 0, 5_u64.to_le_bytes().to_vec(), Breach::UnknownBatch),
        (8, 0, progress(0), Breach::UnknownBatch),
        (4, 0, vec![0; PACKET_LEN_MAX], Breach::TooLong),
    ];
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, wrong_by, body, breach) in table {
        let mut client = rig.agent(&hello(1));
        epoch += 1;
        rig.until("both are ready", |status| status.ready == 2);
        let bytes = packet(kind, epoch + wrong_by, &body);
        socket::send(client.as_fd(), &bytes).expect("it listens");
        assert!(matches!(client.wanted(), Ok(Wanted::Ended)), "{breach:?}");
        *expected.entry(breach.label()).or_default() += 1;
        let status = rig.until("the other remains", |status| status.ready == 1);
        assert_eq!(status.breaches[breach.label()], expected[breach.label()]);
    }
    rig.hand(0, b"still here");
    assert_eq!(rig.answers(1)[&0], Answer::Done(b"STILL HERE".to_vec()));
    rig.end();
    witness.join().expect("it does not panic");
}

#[test]
fn a_breach_fails_the_batch_that_runs() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(8));
    rig.hand(0, b"x");
    let taken = batch(&mut client);
    // There is no second batch.
    let unknown = Message::Done {
        batch: taken.note.batch + 1,
        run_ns: 0,
    };
    client.send(&unknown).expect("it listens");
    let expected = "the agent broke the protocol while it ran this task";
    assert_eq!(rig.answers(1)[&0], Answer::Failed(expected.to_owned()));
    assert_eq!(rig.status().breaches["unknown_batch"], 1);
    rig.end();
}

#[test]
fn a_batch_out_of_order_is_a_breach() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(1));
    rig.hand(0, b"a");
    rig.hand(1, b"b");
    let _running = batch(&mut client);
    let staged = batch(&mut client);
    client.done(&staged, 0).expect("it listens");
    rig.answers(2);
    assert_eq!(rig.status().breaches["out_of_order"], 1);
    rig.end();
}

#[test]
fn an_answer_that_points_elsewhere_fails_its_own_task_alone() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&full(6));
    for index in 0..6 {
        rig.hand(index, b"x");
    }
    let mut taken = batch(&mut client);
    let results = taken.note.result_offset;
    let end = results + taken.note.result_len;
    let entries = [
        (1, 0, 64),
        (1, end, 1),
        (1, u32::MAX, u32::MAX),
        (1, results, 1_025),
        (9, results, 1),
    ];
    for (index, (status, offset, len)) in entries.into_iter().enumerate() {
        let entry = AnswerEntry {
            status,
            offset,
            len,
        };
        client.write_answer(&taken, index, &entry);
    }
    client.answer(&mut taken, 5, 1, b"honest").expect("it fits");
    client.done(&taken, u64::MAX).expect("it listens");
    let answers = rig.answers(6);
    let count = |part: &str| {
        let failed = answers.values().filter(|answer| match answer {
            Answer::Failed(why) => why.contains(part),
            _ => false,
        });
        failed.count()
    };
    assert_eq!(count("lies outside the results"), 2, "{answers:?}");
    assert_eq!(count("longer than it declared"), 2, "{answers:?}");
    assert_eq!(count("unknown status"), 1, "{answers:?}");
    let honest = Answer::Done(b"honest".to_vec());
    assert!(
        answers.values().any(|answer| *answer == honest),
        "{answers:?}"
    );
    let status = rig.status();
    assert_eq!(status.agents, 1, "a wrong answer is no breach");
    assert!(
        status.stages_us["run"][3] < 60e6,
        "its own account is bounded"
    );
    drop(client);
    rig.end();
}

#[test]
fn what_an_agent_writes_after_done_changes_nothing() {
    let rig = Rig::start();
    let mut client = rig.first_agent(&hello(8));
    for index in 0..200_u32 {
        rig.hand(index, b"x");
        let mut taken = batch(&mut client);
        client.answer(&mut taken, 0, 1, b"before").expect("it fits");
        client.done(&taken, 1).expect("it listens");
        // The node may be reading just now, or have read.
        let entry = AnswerEntry {
            status: 1,
            offset: u32::MAX,
            len: u32::MAX,
        };
        client.write_answer(&taken, 0, &entry);
        match &rig.answers(1)[&index] {
            Answer::Done(bytes) => assert_eq!(bytes, b"before"),
            // Each entry is read once, so it is either one or the other, or torn and refused.
            Answer::Failed(why) => assert!(why.starts_with("the agent's answer"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.status().agents, 1);
    drop(client);
    rig.end();
}

#[test]
fn a_stride_is_kept_to() {
    let rig = Rig::start();
    let strided = Hello {
        result_stride: 4,
        ..hello(1)
    };
    let mut client = rig.first_agent(&strided);
    for (index, answer) in [(0, &b"four"[..]), (1, b"two")] {
        rig.hand(index, b"x");
        let mut taken = batch(&mut client);
        client.answer(&mut taken, 0, 1, answer).expect("it fits");
        client.done(&taken, 1).expect("it listens");
    }
    let answers = rig.answers(2);
    assert_eq!(answers[&0], Answer::Done(b"four".to_vec()));
    let expected = "the agent's answer has not the length it declared";
    assert_eq!(answers[&1], Answer::Failed(expected.to_owned()));
    drop(client);
    rig.end();
}

#[test]
fn what_does_not_begin_with_a_hello_is_told_why_and_let_go() {
    let rig = Rig::start();
    let table: [(Vec<u8>, &str); 4] = [
        (packet(4, 0, b""), "the first packet is no HELLO"),
        (b"GET / HTTP/1.1".to_vec(), "the first packet is no HELLO"),
        (
            packet(1, 0, b"{\"skill\":\"Not a name\"}"),
            "must be 1 to 64",
        ),
        (packet(1, 3, b"{\"skill\":\"name\"}"), "HELLO has epoch 0"),
    ];
    for (bytes, expected) in table {
        let socket = socket::connect(&rig.path).expect("it listens");
        socket::send(socket.as_fd(), &bytes).expect("it listens");
        let mut space = vec![0; PACKET_LEN_MAX];
        let received = socket::receive_waiting(socket.as_fd(), &mut space).expect("a socket");
        let socket::Received::Packet(len) = received else {
            panic!("{received:?}");
        };
        let (_, message) = crate::port::wire::decode(&space[..len]).expect("a packet");
        let Message::Refused(why) = message else {
            panic!("{message:?}");
        };
        let why = String::from_utf8_lossy(why);
        assert!(why.contains(expected), "{why}");
        let ended = socket::receive_waiting(socket.as_fd(), &mut space).expect("a socket");
        assert_eq!(ended, socket::Received::Ended);
    }
    rig.end();
}
