//! `ramjet doctor` on a host with lowered limits, and on the files of a broken one.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Process, ramjet};

/// What `doctor` with these arguments printed as JSON, and its exit code.
fn doctor(home: &Path, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let mut command = ramjet(home);
    command.args(["doctor", "--json"]).args(arguments);
    let ended = Process::start("doctor", &mut command).end();
    let values: Vec<Value> = serde_json::from_str(ended.lines.join("").trim()).expect("one array");
    (values, ended.code)
}

fn finding<'v>(findings: &'v [Value], id: &str) -> &'v Value {
    let found = findings.iter().find(|finding| finding["id"] == id);
    found.expect("the finding is there")
}

/// The files of a host on which a worker cannot run as it should.
fn broken(root: &Path) {
    for (file, text) in [
        ("proc/sys/kernel/io_uring_disabled", "2\n"),
        ("proc/sys/net/core/rmem_max", "212992\n"),
        ("proc/sys/net/core/wmem_max", "4194304\n"),
    ] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }
}

#[test]
fn what_is_applied_mends_and_what_is_undone_is_as_it_was() {
    let home = tempfile::tempdir().expect("temporary folder");
    let host = tempfile::tempdir().expect("temporary folder");
    broken(host.path());
    let root = host.path().display().to_string();
    let record = home.path().join("record.json").display().to_string();
    let with = |more: &[&str]| {
        let arguments = [&["--root", &root, "--record", &record], more].concat();
        doctor(home.path(), &arguments)
    };
    let text = |file: &str| fs::read_to_string(host.path().join(file)).expect("a file");
    let severity = |findings: &[Value], id: &str| finding(findings, id)["severity"].clone();

    let (before, code) = with(&[]);
    assert_eq!(code, Some(5), "a worker cannot run there");
    assert_eq!(severity(&before, "io_uring_disabled"), "problem");
    assert_eq!(severity(&before, "rmem_max"), "problem");
    assert_eq!(severity(&before, "wmem_max"), "ok");

    let (planned, code) = with(&["--apply"]);
    assert_eq!((planned.len(), code), (2, Some(0)));
    assert_eq!(
        text("proc/sys/kernel/io_uring_disabled"),
        "2\n",
        "only said"
    );
    let (done, code) = with(&["--apply", "--yes"]);
    assert_eq!(code, Some(0));
    assert!(
        done.iter().all(|outcome| outcome["done"] == true),
        "{done:?}"
    );
    assert_eq!(text("proc/sys/kernel/io_uring_disabled"), "0");
    let (after, code) = with(&[]);
    assert_eq!((code, severity(&after, "rmem_max")), (Some(0), "ok".into()));

    let (undone, code) = with(&["--undo", "--yes"]);
    assert_eq!((undone.len(), code), (2, Some(0)));
    let (restored, code) = with(&[]);
    assert_eq!(code, Some(5));
    assert_eq!(restored, before, "as it was");
    assert!(!Path::new(&record).exists(), "nothing is left to undo");
}

#[test]
fn lowered_limits_are_found_and_the_command_mends_them() {
    let home = tempfile::tempdir().expect("temporary folder");
    let under = |limit: &str| {
        let script = format!("{limit}; exec \"$0\" doctor --json --only nofile");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_ramjet")]);
        command.env_clear().env("HOME", home.path());
        let ended = Process::start("doctor", &mut command).end();
        let findings: Vec<Value> =
            serde_json::from_str(ended.lines.join("").trim()).expect("one array");
        finding(&findings, "nofile").clone()
    };
    let lowered = under("ulimit -S -n 256");
    assert_eq!(lowered["severity"], "advice");
    assert_eq!(lowered["what_is"], "256 files");
    let command = lowered["command"].as_str().expect("a command");
    let mended = under(&format!(
        "ulimit -S -n 256; {}",
        command.replace("ulimit", "ulimit -S")
    ));
    assert_eq!(mended["severity"], "ok", "{command}");
}
