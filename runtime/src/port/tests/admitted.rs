//! Tasks with everything that a worker's admission gives them: a deadline, and a name for progress.

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::engagement::serving::{Admitted, Serving, ServingLimits};
use ramjet_proto::frame::kind::Kind;
use ramjet_proto::frame::{Frame, Head, TaskId};
use ramjet_proto::ids::ChannelId;
use ramjet_proto::time::Time;

use super::*;
use crate::port::wire::Message;
use crate::worker::clock;

/// Takes frames and keeps none.
struct Nowhere(Vec<u8>);

impl FrameSink for Nowhere {
    fn reserve(&mut self, payload_max: usize) -> Option<&mut [u8]> {
        self.0.resize(payload_max, 0);
        Some(&mut self.0)
    }

    fn commit(&mut self, _head: Head, _payload_len: usize) {}
}

/// Admits the tasks of one channel, each to a slot of its own.
struct Door {
    slots: Serving,
    next: u16,
}

impl Door {
    fn new() -> Self {
        let limits = ServingLimits {
            credits: 64,
            tasks: 64,
            expires_at: Time::NEVER,
            unsigned_max: 64,
        };
        Door {
            slots: Serving::new(ChannelId(1), limits),
            next: 0,
        }
    }

    /// A deadline of 0 is none.
    fn admit(&mut self, deadline_us: u32) -> Admitted {
        let task = TaskId {
            slot: self.next,
            generation: 1,
        };
        self.next += 1;
        let frame = Frame {
            kind: Kind::Task,
            flags: 0,
            channel: ChannelId(1),
            task,
            auxiliary: deadline_us,
            payload: &[],
        };
        let admitted = self
            .slots
            .admit(clock::now(), &frame, &mut Nowhere(Vec::new()));
        admitted.expect("a good frame").expect("nothing refuses it")
    }
}

fn hand(rig: &Rig, door: &mut Door, index: u32, deadline_us: u32) {
    let mut task = Box::new(TaskBox::new(Stock::Agents, Arc::clone(&rig.inbox)));
    task.channel = (index, 0);
    task.admitted = Some(door.admit(deadline_us));
    task.payload.extend_from_slice(b"x");
    let place = &rig.places.0[0];
    assert!(place.hand_over(task).is_ok(), "agents are ready");
    place.wake_agents();
}

#[test]
fn what_waits_beyond_its_deadline_is_refused_and_what_runs_is_marked() {
    let rig = Rig::start();
    let mut door = Door::new();
    let mut client = rig.first_agent(&hello(1));
    // Long enough for the agent to have it, and short enough to wait for.
    hand(&rig, &mut door, 0, 200_000);
    let mut running = batch(&mut client);
    assert!(running.tasks[0].deadline_ns > clock::now().as_nanos());
    hand(&rig, &mut door, 1, 0);
    let mut staged = batch(&mut client);
    hand(&rig, &mut door, 2, 20_000);
    // The agent is busy with two others for all that time.
    assert_eq!(rig.answers(1)[&2], Answer::Refused("late"));
    let until = Instant::now() + PATIENCE;
    while client.is_wanted(&running, 0) {
        assert!(Instant::now() < until, "it is marked once it is late");
        std::thread::yield_now();
    }
    assert!(client.is_wanted(&staged, 0), "without a deadline");
    // It may skip what is late, and say so.
    client.answer(&mut running, 0, 3, b"").expect("it fits");
    client.done(&running, 1).expect("it listens");
    upper(&mut client, &mut staged);
    let answers = rig.answers(2);
    assert_eq!(answers[&0], Answer::Refused("late"));
    assert_eq!(answers[&1], Answer::Done(b"X".to_vec()));
    drop(client);
    rig.end();
}

#[test]
fn progress_goes_to_the_worker_under_the_task_s_name() {
    let rig = Rig::start();
    let mut door = Door::new();
    let mut client = rig.first_agent(&hello(1));
    for index in 0..2 {
        hand(&rig, &mut door, index, 0);
    }
    let mut first = batch(&mut client);
    let progress = Message::Progress {
        batch: first.note.batch,
        index: 0,
        bytes: b"half",
    };
    client.send(&progress).expect("it listens");
    upper(&mut client, &mut first);
    assert_eq!(rig.answers(1).len(), 1);
    let piece = rig.inbox.pieces.pop().expect("it came before the answer");
    assert_eq!((piece.channel, &piece.bytes[..]), ((0, 0), &b"half"[..]));
    assert_eq!((piece.task.slot, piece.task.generation), (0, 1));
    let mut second = batch(&mut client);
    // There is one task in it.
    let beyond = Message::Progress {
        batch: second.note.batch,
        index: 1,
        bytes: b"half",
    };
    client.send(&beyond).expect("it listens");
    assert!(matches!(rig.answers(1)[&1], Answer::Failed(_)), "a breach");
    assert_eq!(rig.status().breaches["unknown_batch"], 1);
    // Nobody reads it any more.
    let _ = client.answer(&mut second, 0, 1, b"");
    rig.end();
}
