//! Many nodes at one registry: the benchmark's own generator at a size for tests.

use crate::harness::{Process, ramjet};

#[test]
fn a_crowd_of_nodes_is_looked_up_while_it_is_alive() {
    let home = tempfile::tempdir().expect("temporary folder");
    let mut command = ramjet(home.path());
    let arguments = [
        "bench",
        "registry",
        "--json",
        "--nodes",
        "150",
        "--rate",
        "500",
        "--seconds",
        "0.2",
        // Every node beats several times in a run.
        "--heartbeat",
        "50ms",
        // What it measures beside other tests is of no interest.
        "--force",
        "--retries",
        "0",
    ];
    let ended = Process::start("bench", command.env("TMPDIR", home.path()).args(arguments)).end();
    let ended = ended.expect(0);
    let report = ended.json();
    assert_eq!(report["nodes"], 150);
    // A wrong or missing answer ends the command with an error; these say that there were answers.
    let lookups = report["lookups"]["count"].as_u64().expect("a count");
    assert!(lookups >= 5 * 80, "five runs of about 100: {report}");
    assert!(report["lookups"]["p50_us"].as_f64() > Some(0.0), "{report}");
    let beats = report["heartbeats"]["count"].as_u64().expect("a count");
    assert!(beats >= 150, "{report}");
    assert!(report["control"].as_f64() > Some(0.0), "{report}");
    let process = report["memory"]["process_bytes"].as_u64();
    assert!(process > Some(1 << 20), "{report}");
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("the home").collect();
    assert!(left.is_empty(), "nothing is left behind: {left:?}");
}

#[test]
fn a_number_of_nodes_that_cannot_be_is_refused_by_its_bound() {
    let home = tempfile::tempdir().expect("temporary folder");
    for (arguments, said) in [
        (["--nodes", "0"], "0 is not in 1..=100000"),
        (["--heartbeat", "60"], "with its unit"),
        (["--rate", "0"], "tasks a second from"),
    ] {
        let mut command = ramjet(home.path());
        let ended =
            Process::start("bench", command.args(["bench", "registry"]).args(arguments)).end();
        let ended = ended.expect(2);
        assert!(
            ended.errors.contains(said),
            "{arguments:?}: {}",
            ended.errors
        );
    }
}
