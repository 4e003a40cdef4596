//! Replays every file of the fuzz corpora through its target.

#[path = "../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate's interface")]
mod targets;

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
fn market() {
    assert!(replay("market", targets::market) >= 8);
}

#[test]
fn frames() {
    assert!(replay("frames", targets::frames) >= 6);
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
