//! The program as it is called: built-in peers are run for a moment, absent ones are refused.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ramjet-bench-peers");

fn run(words: &str) -> Output {
    let output = Command::new(PROGRAM)
        .args(words.split_whitespace())
        .env_remove("PILOT_DIR")
        .output();
    output.expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn built_in_peers_print_one_line_of_json() {
    for (peer, encrypted) in [
        ("tonic", false),
        ("quinn-stream", true),
        ("quinn-datagram", true),
    ] {
        let output = run(&format!(
            "run --peer {peer} --setting single-1 --window 8 --payload 100 --seconds 0.1 \
             --warm-up-ms 20"
        ));
        assert!(output.status.success(), "{peer}: {}", said(&output));
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let object: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(object["peer"], peer);
        assert_eq!(object["encrypted"], encrypted);
        assert_eq!(object["payload"], 100);
        assert_eq!(object["window"], 8);
        let number = |name: &str| object[name].as_f64().expect(name);
        assert!(number("tasks") > 0.0, "{text}");
        let order = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
        assert!(order[0] > 0.0 && order.is_sorted(), "{text}");
        let rate = number("tasks") / number("seconds");
        assert!((rate - number("tasks_per_s")).abs() <= 0.1, "{text}");
    }
}

#[test]
fn an_absent_peer_is_refused_with_code_5_and_no_figure() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let place = empty.path().display();
    for words in [
        format!("run --peer nats --nats-server {place}/nats-server"),
        format!("run --peer pilot --pilot-dir {place}"),
        format!("run --peer pilot-packed --pilot-dir {place}"),
    ] {
        let output = run(&words);
        assert_eq!(output.status.code(), Some(5), "{words}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{words}");
        assert!(
            said(&output).contains(&place.to_string()),
            "{}",
            said(&output)
        );
    }
    let output = run("run --peer tonic --setting quick");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("multi-4"), "{}", said(&output));
}

#[test]
fn the_list_names_every_peer_and_what_is_missing() {
    let output = run("list --json --nats-server /nonexistent/nats-server");
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let objects: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let names: Vec<&str> = objects.iter().filter_map(|o| o["peer"].as_str()).collect();
    assert_eq!(
        names,
        [
            "tonic",
            "nats",
            "quinn-stream",
            "quinn-datagram",
            "pilot",
            "pilot-packed"
        ]
    );
    assert_eq!(objects[0]["available"], true);
    assert_eq!(objects[1]["available"], false);
    assert_eq!(objects[1]["version"], Value::Null);
    let reason = objects[1]["reason"].as_str().expect("a reason");
    assert!(reason.contains("/nonexistent/nats-server"), "{reason}");
    assert_eq!(objects[1]["install"], "apt-get install nats-server");
}

#[test]
fn a_held_program_ends_with_the_input_of_its_holder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut holder = Command::new(PROGRAM)
        .arg("hold")
        .arg("--log")
        .arg(folder.path().join("log"))
        .args(["--print", "--", "/bin/sh", "-c", "echo $$; exec sleep 600"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdout = holder.stdout.take().expect("it is piped");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("the held program prints its number");
    let process = Path::new("/proc").join(line.trim());
    assert!(process.exists(), "{line}");
    drop(holder.stdin.take());
    assert!(holder.wait().expect("it ends").success());
    assert!(!process.exists(), "{line}");
}
