//! What people get wrong, and that they are told: the thing, its value, and the next step.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Ended, Market, Process, ramjet};

fn run(command: &mut Command) -> Ended {
    Process::start("ramjet", command).end()
}

/// A port that nobody listens on: it was free a moment ago, and the kernel hands it out last.
fn unused_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    socket.local_addr().expect("bound").to_string()
}

/// Asserts the exit code and that standard error holds every part.
#[track_caller]
fn told(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    for part in parts {
        assert!(ended.errors.contains(part), "{part:?} in {}", ended.errors);
    }
}

#[test]
fn a_wrong_argument_is_named_with_what_was_meant() {
    let home = tempfile::tempdir().expect("temporary folder");
    let node = |arguments: &[&str]| {
        let mut command = ramjet(home.path());
        run(command
            .arg("node")
            .arg("--state")
            .arg(home.path())
            .args(arguments))
    };
    let plain = |arguments: &[&str]| run(ramjet(home.path()).args(arguments));
    told(
        &plain(&["node", "--task-redy"]),
        2,
        &["--task-redy", "--task-ready"],
    );
    told(&plain(&["sumbit"]), 2, &["sumbit", "submit"]);
    told(
        &plain(&["submit", "--skill", "echo"]),
        2,
        &["--data", "--file", "--lines"],
    );
    let skill = ["--skill", "lang-id", "--task-ready"];
    told(
        &node(&skill),
        2,
        &["\"lang-id\"", "did you mean \"langid\"?"],
    );
    told(
        &node(&["--io", "iouring"]),
        2,
        &["--io", "\"iouring\"", "uring, mmsg"],
    );
    told(
        &node(&["--workers", "0"]),
        2,
        &["--workers", "\"0\"", "from 1 to"],
    );
    told(
        &node(&["--accept-from", "friends"]),
        2,
        &["\"friends\"", "gate, trusted"],
    );
    told(
        &node(&["--registry", "localhost"]),
        2,
        &["--registry", "127.0.0.1:9000"],
    );
    let timeout = [
        "submit",
        "--skill",
        "echo",
        "--data",
        "x",
        "--timeout",
        "2days",
    ];
    told(&plain(&timeout), 2, &["--timeout", "86400"]);
    let state = std::fs::read_dir(home.path()).expect("the home").count();
    assert_eq!(state, 0, "a wrong argument leaves nothing behind");
}

#[test]
fn an_unknown_key_is_named_wherever_it_was_written() {
    let home = tempfile::tempdir().expect("temporary folder");
    let file = home.path().join("ramjet.toml");
    let with_file = |text: &str| {
        std::fs::write(&file, text).expect("written");
        run(ramjet(home.path()).arg("status").arg("--config").arg(&file))
    };
    told(
        &with_file("task-redy = true"),
        2,
        &["\"task-redy\"", "did you mean \"task-ready\"?"],
    );
    told(
        &with_file("io = [['uring']]"),
        2,
        &["io cannot be", "it takes text"],
    );
    told(
        &with_file("this is no TOML"),
        2,
        &["ramjet.toml", "no TOML"],
    );
    let variable = run(ramjet(home.path())
        .arg("status")
        .env("RAMJET_REGISTY", "127.0.0.1:1"));
    told(&variable, 2, &["RAMJET_REGISTY", "RAMJET_REGISTRY"]);
    let missing = run(ramjet(home.path()).args(["status", "--config", "/no/such/file.toml"]));
    told(&missing, 2, &["/no/such/file.toml"]);
}

#[test]
fn a_host_in_the_way_is_named_with_the_next_step() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    let taken = market.registry_addr.to_string();
    let state = market.path("second");
    let registry = |state: &Path, listen: &str| {
        let mut command = market.ramjet();
        run(command
            .args([
                "registry", "--beacon", "none", "--listen", listen, "--state",
            ])
            .arg(state))
    };
    told(&registry(&state, &taken), 5, &[&taken, "in use", "port 0"]);
    let same = registry(&market.path("registry"), "127.0.0.1:0");
    told(
        &same,
        5,
        &["open in another process", "another state directory"],
    );

    let listen = worker.listen.to_string();
    let node = run(&mut market.node_command("other", &["--listen", &listen]));
    told(&node, 5, &[&listen, "in use"]);
    let socket = worker.socket.to_str().expect("text");
    let node = run(&mut market.node_command("other", &["--socket", socket]));
    told(&node, 5, &[socket, "another node listens there"]);

    let away = unused_address();
    for command in [&["resolve"][..], &["polo", "1"], &["engagements"]] {
        let ended = run(market.ramjet().args(command).args(["--registry", &away]));
        told(&ended, 5, &[&away]);
    }
    let submit = [
        "submit",
        "--skill",
        "echo",
        "--data",
        "x",
        "--json",
        "--registry",
        &away,
    ];
    let submit = run(market.ramjet().args(submit));
    told(&submit, 5, &[&away]);
    assert_eq!(submit.json()["error"]["kind"], "environment");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().expect("temporary folder");
    let submit = |arguments: &[&str]| {
        let mut command = ramjet(home.path());
        run(command
            .args(["submit", "--skill", "echo", "--registry", "127.0.0.1:1"])
            .args(arguments))
    };
    let missing = home.path().join("missing.txt");
    let missing = missing.to_str().expect("text");
    for flag in ["--lines", "--file"] {
        told(
            &submit(&[flag, missing]),
            2,
            &[missing, "could not be read", "No such file"],
        );
    }
    told(&submit(&["--lines", "/"]), 2, &["/ could not be read"]);
    let demo = run(ramjet(home.path()).args(["demo", missing]));
    told(&demo, 2, &[missing, "could not be read"]);

    open_identity(&home);
    let identity = home.path().join("identity.json");
    std::fs::write(&identity, "{}").expect("written");
    std::fs::set_permissions(&identity, Permissions::from_mode(0o600)).expect("set");
    let node = run(ramjet(home.path())
        .arg("node")
        .arg("--state")
        .arg(home.path()));
    told(
        &node,
        2,
        &[identity.to_str().expect("text"), "move it away"],
    );
}

/// An identity that others can read is refused with the command that mends it.
fn open_identity(home: &TempDir) {
    let identity = home.path().join("open.json");
    let name = identity.to_str().expect("text");
    let submit = |data: &str| {
        let mut command = ramjet(home.path());
        let asked = [
            "submit",
            "--skill",
            "echo",
            "--data",
            data,
            "--registry",
            "127.0.0.1:1",
        ];
        run(command.args(asked).args(["--identity", name]))
    };
    // Made by the first use, for its owner alone; that nobody is at the registry comes after.
    told(&submit("x"), 5, &["created the identity", name]);
    let mode = |path: &Path| std::fs::metadata(path).expect("made").permissions().mode() & 0o777;
    assert_eq!(mode(&identity), 0o600);
    std::fs::set_permissions(&identity, Permissions::from_mode(0o644)).expect("set");
    told(
        &submit("x"),
        2,
        &[name, "mode 0644", &format!("chmod 600 {name}")],
    );
    assert_eq!(mode(&identity), 0o644, "it is told, not changed");
}

#[test]
fn without_a_registry_or_a_socket_the_ways_are_named() {
    let home = tempfile::tempdir().expect("temporary folder");
    let ways = [
        "no node serves a socket",
        "ramjet up",
        "ramjet node",
        "--socket",
        "--registry",
    ];
    for command in [
        &["submit", "--skill", "echo", "--data", "x"][..],
        &["resolve"],
        &["engagements"],
        &["polo", "1"],
    ] {
        told(&run(ramjet(home.path()).args(command)), 5, &ways);
    }
    let status = run(ramjet(home.path()).args(["status", "--json"]));
    told(
        &status,
        5,
        &["ramjet.sock", "is the node running", "ramjet up"],
    );
    let object: Value = status.json();
    assert_eq!(
        (object["error"]["code"].as_u64(), &object["error"]["kind"]),
        (Some(5), &"environment".into())
    );
}
