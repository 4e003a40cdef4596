//! One worker and many requesters: the benchmark's own generator at a size for tests.

use serde_json::json;

use crate::harness::{Process, ramjet};

/// More than the worker has send trains in a batch, so that turns go round in parts.
const TUNNELS: u64 = 40;

#[test]
fn forty_requesters_of_one_worker_get_what_they_sent() {
    let home = tempfile::tempdir().expect("temporary folder");
    let mut command = ramjet(home.path());
    let arguments = [
        "bench",
        "tunnels",
        "--json",
        "--tunnels",
        "40",
        "--seconds",
        "0.05",
        "--idle",
        "adaptive",
        "--burst",
        "8",
        "--window",
        "64",
        "--payload",
        "100",
        // What it measures beside other tests is of no interest.
        "--force",
        "--retries",
        "0",
    ];
    let ended = Process::start("bench", command.env("TMPDIR", home.path()).args(arguments)).end();
    let ended = ended.expect(0);
    let report = ended.json();
    assert_eq!(
        (&report["tunnels"], &report["credits"]),
        (&json!(TUNNELS), &json!(8))
    );
    // A wrong, missing or foreign result ends the command with an error; these say that there were
    // results, and how many went where.
    assert!(report["tasks_per_s"].as_f64() > Some(0.0), "{report}");
    assert!(report["control"].as_f64() > Some(0.0), "{report}");
    assert!(report["handshakes_per_s"].as_f64() > Some(0.0), "{report}");
    let tasks = report["tasks_run"].as_u64().expect("a count");
    assert!(tasks >= TUNNELS * 8, "every tunnel was served: {report}");
    assert_eq!(report["memory"], json!(null), "too few to tell");
    let drops = report["worker_drops"].as_object().expect("by reason");
    let repeats = [
        "dropped_duplicate",
        "dropped_stale",
        "dropped_key_exchange_limited",
        // The worker was off its core for a while; what it missed came again.
        "out_of_buffers",
    ];
    for reason in drops.keys() {
        assert!(repeats.contains(&reason.as_str()), "{reason}: {report}");
    }
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("the home").collect();
    assert!(left.is_empty(), "nothing is left behind: {left:?}");
}

#[test]
fn a_number_of_tunnels_that_cannot_be_is_refused_by_its_bound() {
    let home = tempfile::tempdir().expect("temporary folder");
    for (arguments, said) in [
        (["--tunnels", "0"], "from 1 to 65536"),
        (["--tunnels", "65537"], "from 1 to 65536"),
        (["--window", "32"], "at least one --burst of 64"),
        (["--payload", "7"], "7 is not in 8..=1200"),
    ] {
        let mut command = ramjet(home.path());
        let ended =
            Process::start("bench", command.args(["bench", "tunnels"]).args(arguments)).end();
        let ended = ended.expect(2);
        assert!(
            ended.errors.contains(said),
            "{arguments:?}: {}",
            ended.errors
        );
    }
}
