//! The commands that run a whole market in one process: `demo` and `up`.

use serde_json::{Value, json};

use crate::harness::{Process, ramjet};

#[test]
fn demo_reports_what_it_did_and_ends_well() {
    let home = tempfile::tempdir().expect("temporary folder");
    let mut command = ramjet(home.path());
    let ended = Process::start("demo", command.args(["demo", "--json", "--tasks", "3000"])).end();
    let ended = ended.expect(0);
    assert_eq!(
        ended.lines.len(),
        1,
        "data and nothing else: {:?}",
        ended.lines
    );
    let report = ended.json();
    assert_eq!(
        (&report["tasks"], &report["accepted"]),
        (&json!(3_000), &json!(3_000))
    );
    assert_eq!(
        (&report["rejected"], &report["failed"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(
        (&report["settled"], &report["refused"]),
        (&json!(true), &json!({}))
    );
    assert_eq!(report["skill"], "langid");
    assert!(
        report["lines"].as_u64() > Some(1_000),
        "real text: {report}"
    );
    assert!(report["tasks_per_s"].as_f64() > Some(0.0), "{report}");
    let quantiles = ["p50", "p99", "p999", "max"]
        .map(|name| report["latency_us"][name].as_f64().expect("microseconds"));
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    assert_eq!(report["polo"]["worker"], json!({ "before": 0, "after": 1 }));
    assert_eq!(
        report["polo"]["requester"],
        json!({ "before": 0, "after": 0 })
    );
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("the home").collect();
    assert!(left.is_empty(), "a demo leaves nothing behind: {left:?}");
}

#[test]
fn up_serves_its_host_again_and_again_and_ends_when_asked() {
    let home = tempfile::tempdir().expect("temporary folder");
    let state = home.path().join("state");
    let up = || {
        let mut command = ramjet(home.path());
        command
            .args([
                "up",
                "--json",
                "--registry-listen",
                "127.0.0.1:0",
                "--registry-beacon",
                "none",
            ])
            .arg("--state")
            .arg(&state);
        let process = Process::start("up", &mut command);
        let ready = process.json();
        assert_eq!(ready["event"], "ready");
        (process, ready)
    };
    let submit = |data: &str| {
        let mut command = ramjet(home.path());
        let task = ["submit", "--skill", "langid", "--json", "--data", data];
        Process::start("submit", command.args(task).arg("--state").arg(&state)).end()
    };
    let text = "Alle Menschen sind frei und gleich an Würde und Rechten geboren.";
    let (process, first) = up();
    let answer = submit(text).expect(0).json();
    let result = answer["result"].as_str().expect("text");
    let result: Value = serde_json::from_str(result).expect("langid answers in JSON");
    assert_eq!(result["lang"], "deu");
    assert_eq!(answer["polo"]["worker"], json!({ "before": 0, "after": 1 }));
    // The worker is above the requester now, and serves it all the same.
    let answer = submit(text).expect(0).json();
    assert_eq!(answer["polo"]["worker"], json!({ "before": 1, "after": 1 }));
    let ended = process.terminate().expect(0);
    assert_eq!(ended.json()["event"], "stopped");
    assert!(ended.errors.contains("SIGTERM"), "{}", ended.errors);
    for socket in ["ramjet.sock", "requester.sock"] {
        assert!(!state.join(socket).exists(), "{socket} is left behind");
    }

    // On the next day it is who it was, and still serves its host.
    let (process, second) = up();
    let same = |name: &str| assert_eq!(second[name], first[name], "{name}");
    same("public_key");
    let node = |ready: &Value, who: &str| ready[who]["node"].clone();
    for who in ["worker", "requester"] {
        assert_eq!(node(&second, who), node(&first, who), "{who}");
    }
    let answer = submit(text).expect(0).json();
    assert_eq!(answer["polo"]["worker"], json!({ "before": 1, "after": 1 }));
    process.terminate().expect(0);
}
