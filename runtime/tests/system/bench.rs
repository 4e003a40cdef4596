//! `bench` as its users run it: what it counts and writes, never how fast it is.

use serde_json::Value;

use crate::harness::{Market, Process, ramjet};

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Every task that was due was sent and has its result.
#[track_caller]
fn assert_complete(rung: &Value, least: u64) {
    let counts = &rung["counts"];
    assert!(counts["due"].as_u64() >= Some(least), "{rung}");
    assert_eq!(counts["due"], counts["sent"], "{rung}");
    assert_eq!(counts["lost"], 0, "{rung}");
    assert!(rung["latencies"]["max_us"].as_f64() > Some(0.0), "{rung}");
}

#[test]
fn a_stated_rate_is_offered_and_reported() {
    let home = tempfile::tempdir().expect("temporary folder");
    let file = |name: &str| home.path().join(name);
    let mut command = ramjet(home.path());
    command
        .args([
            "bench", "latency", "--json", "--rate", "1000", "--for", "500ms",
        ])
        .args([
            "--arrivals",
            "fixed",
            "--idle",
            "adaptive",
            "--retries",
            "0",
            "--force",
        ]);
    for (flag, name) in [
        ("--report", "r.html"),
        ("--report-json", "r.json"),
        ("--hlog", "x.hlog"),
        ("--hgrm", "x.hgrm"),
    ] {
        command.arg(flag).arg(file(name));
    }
    let ended = Process::start("bench", &mut command).end().expect(0);
    let [unloaded, rated] = &ended.lines[..] else {
        panic!("one object a rate: {ended:#?}");
    };
    let (unloaded, rated) = (json(unloaded), json(rated));
    assert_eq!(unloaded["name"], "one outstanding");
    assert_complete(&unloaded, 1);
    assert_complete(&rated, 500);
    assert_eq!(rated["counts"]["due"], 500, "a fixed interval: {rated}");
    assert_eq!(rated["offered_per_s"], 1_000.0);
    let stages: Vec<&str> = rated["stages"]
        .as_array()
        .expect("an array")
        .iter()
        .filter_map(|stage| stage["name"].as_str())
        .collect();
    assert_eq!(
        stages,
        ["send", "worker queue", "handler", "network and reply"]
    );

    let read = |name: &str| std::fs::read_to_string(file(name)).expect(name);
    let report = json(&read("r.json"));
    assert_eq!(report["ladder"]["rungs"][0]["counts"], rated["counts"]);
    let command = report["command"].as_str().expect("text");
    assert!(
        command.starts_with("ramjet bench latency --json --rate 1000"),
        "{command}"
    );
    let page = read("r.html");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("bench latency --json"));
    assert!(read("x.hlog").contains("HIST"), "an encoded histogram");
    assert!(
        read("x.hgrm").contains("Total count    =          500"),
        "{}",
        read("x.hgrm")
    );
}

#[test]
fn a_worker_of_another_process_is_soaked_with_its_own_skill() {
    let market = Market::start();
    let _worker = market.worker(
        "worker",
        "sha256",
        &["--accept-from", "anyone", "--idle", "adaptive"],
    );
    let mut command = market.ramjet();
    command
        .args([
            "bench",
            "soak",
            "--json",
            "--skill",
            "sha256",
            "--data",
            "what to hash",
        ])
        .args([
            "--rate",
            "200",
            "--for",
            "1s",
            "--interval",
            "250ms",
            "--force",
        ])
        .args([
            "--idle",
            "adaptive",
            "--registry",
            &market.registry_addr.to_string(),
        ]);
    let ended = Process::start("bench", &mut command).end().expect(0);
    let soak = ended.json();
    assert_complete(&soak["run"], 100);
    assert_eq!(soak["failed"], Value::Array(Vec::new()), "{soak}");
    assert_eq!(soak["payload"], 12);
    let intervals = soak["intervals"].as_array().expect("an array");
    assert!(intervals.len() >= 3, "{intervals:?}");
    for interval in intervals {
        assert!(
            interval["resident_bytes"].as_u64() > Some(1 << 20),
            "{interval}"
        );
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    let home = tempfile::tempdir().expect("temporary folder");
    let table: [(&[&str], &str); 6] = [
        (
            &["latency", "--report", "/no/such/folder/r.html"],
            "--report: /no/such/folder",
        ),
        (
            &["latency", "--rate", "0"],
            "must be a number of tasks a second",
        ),
        (
            &["latency", "--rate", "5", "--ladder"],
            "cannot be used with",
        ),
        (&["latency", "--hlog", "x"], "add --rate N or --ladder"),
        (&["tasks", "--skill", "langid"], "give --data TEXT"),
        (
            &["soak", "--rate", "5", "--for", "2days"],
            "must be from 1s to 23h",
        ),
    ];
    for (arguments, words) in table {
        let mut command = ramjet(home.path());
        let ended = Process::start("bench", command.arg("bench").args(arguments)).end();
        let ended = ended.expect(2);
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
}
