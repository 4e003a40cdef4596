//! Replays every file of the fuzz corpora through its target.

#[path = "../fuzz/src/streams.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate's interface")]
mod streams;
#[path = "../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate's interface")]
mod targets;

#[path = "../fuzz/src/agent.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate's interface")]
mod agent_target;

use std::path::Path;

/// Runs `target` over each file of `corpus/name` and answers how many there were.
fn replay(name: &str, target: impl Fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus is part of the tree")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    files.sort();
    for file in &files {
        target(&std::fs::read(file).expect("a readable file"));
    }
    files.len()
}

#[test]
fn tunnel() {
    let target = |data: &[u8]| {
        targets::tunnel(data);
    };
    assert!(replay("tunnel", target) >= 8);
}

#[test]
fn packet() {
    assert!(replay("packet", targets::packet) >= 12);
}

#[test]
fn driver() {
    let target = |data: &[u8]| {
        targets::driver(data);
    };
    assert!(replay("driver", target) >= 8);
    let session = include_bytes!("../fuzz/corpus/driver/ping-1.18.0");
    assert_eq!(targets::driver(session), 13, "all of a session is read");
}

#[test]
fn market() {
    assert!(replay("market", targets::market) >= 8);
}

#[test]
fn agent() {
    assert!(replay("agent", agent_target::agent) >= 14);
}

#[test]
fn frames() {
    assert!(replay("frames", targets::frames) >= 6);
}

#[test]
fn streams() {
    let target = |data: &[u8]| {
        streams::streams(data);
    };
    assert!(replay("streams", target) >= 12);
}

proptest::proptest! {
    /// Steps that follow each other in any order, most of them of a length that makes sense.
    #[test]
    fn streams_take_any_steps(
        first in 0_u8..4,
        steps in proptest::collection::vec(
            (0_u8..=255, proptest::collection::vec(proptest::num::u8::ANY, 0..40)),
            0..60,
        ),
    ) {
        let mut input = vec![first];
        for (kind, mut bytes) in steps {
            if kind % 6 == 0 && bytes.len() >= 7 {
                // Numbers near the right ones reach deeper.
                (bytes[0], bytes[1], bytes[3]) = (bytes[0] | 2, bytes[1] & 1, bytes[3] & 1);
            }
            input.push(kind);
            input.extend_from_slice(&u16::try_from(bytes.len()).expect("short").to_be_bytes());
            input.extend_from_slice(&bytes);
        }
        streams::streams(&input);
    }
}

/// Inputs reach the depth that they are there for.
#[test]
fn streams_are_opened_read_and_ended() {
    use ramjet_proto::stream::Event;
    let echo = streams::streams(include_bytes!("../fuzz/corpus/streams/dial-and-echo"));
    assert_eq!(echo.events, [Event::Connected, Event::Closed]);
    assert_eq!(echo.read, 900);
    let gap = streams::streams(include_bytes!("../fuzz/corpus/streams/accept-gap-and-fin"));
    assert_eq!((gap.read, &gap.events[..]), (39, &[Event::Finished][..]));
    let dead = streams::streams(include_bytes!("../fuzz/corpus/streams/quiet-and-dead"));
    assert_eq!(dead.events, [Event::TimedOut]);
    let close = streams::streams(include_bytes!(
        "../fuzz/corpus/streams/close-without-answer"
    ));
    assert_eq!(close.events, [Event::Cut]);
}

/// The captured exchange reaches the depth it is there for: the daemon's announcement is taken, its
/// pong confirms the session, pong, SYN-ACK and SACK are delivered, and the SACK again is a replay.
#[test]
fn the_captured_exchange_opens() {
    let captured = include_bytes!("../fuzz/corpus/tunnel/captured-exchange");
    let tally = targets::tunnel(captured);
    assert_eq!(
        (
            tally.received,
            tally.delivered,
            tally.handled,
            tally.dropped
        ),
        (5, 3, 1, 1)
    );
}
