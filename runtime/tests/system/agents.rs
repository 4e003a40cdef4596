//! Agents as processes: programs that know nothing of ramjet behind a node, their deaths, their ends.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::harness::{Market, Process, Worker, until};

/// A task-ready node with one agent, ready.
fn node_with(market: &Market, agent: &str) -> Worker {
    let arguments = [
        "--agent",
        agent,
        "--task-ready",
        "--public",
        "--accept-from",
        "anyone",
    ];
    let worker = market.node("worker", &arguments);
    until("the agent is ready", || {
        (status_of(&worker)?["ready"] == 1).then_some(())
    });
    market.listed(worker.node);
    worker
}

/// What the node says of its one skill of agents; none before the first attached.
fn status_of(worker: &Worker) -> Option<Value> {
    let status = worker.status();
    status["agents"].as_array()?.first().cloned()
}

/// The process of the agent that attached last, as the node's log has it.
fn agent_pid(worker: &Worker) -> Option<i32> {
    let errors = worker.process.errors();
    let line = errors
        .lines()
        .rfind(|line| line.contains("agent started"))?;
    line.split("pid=").nth(1)?.trim().parse().ok()
}

fn watch(pid: i32) -> OwnedFd {
    let pid = Pid::from_raw(pid).expect("above 0");
    pidfd_open(pid, PidfdFlags::empty()).expect("it runs")
}

#[track_caller]
fn assert_ends(process: &OwnedFd) {
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit));
    assert_eq!(ended, Ok(1), "the agent's process ends");
}

#[test]
fn lines_go_through_a_program_that_knows_nothing_of_ramjet() {
    let market = Market::start();
    let worker = node_with(&market, "tr=lines:tr a-z A-Z");
    let lines: Vec<String> = (0..1_000).map(|index| format!("line {index}")).collect();
    let file = market.file("lines", lines.join("\n") + "\n");
    let path = file.to_str().expect("text");
    let ended = market
        .submit("requester", "tr", &["--lines", path])
        .expect(0);
    let expected: Vec<String> = lines.iter().map(|line| line.to_uppercase()).collect();
    assert_eq!(ended.lines, expected);
    let status = status_of(&worker).expect("it attached");
    assert_eq!(status["done"], 1_000);
    assert_eq!(status["skill"], "tr");

    let pid = agent_pid(&worker).expect("it was logged");
    let agent = watch(pid);
    worker.process.terminate().expect(0);
    assert_ends(&agent);
}

#[test]
fn frames_carry_any_bytes() {
    let market = Market::start();
    let _worker = node_with(&market, "copy=frames:cat");
    let text: String = (0..60_000_u32)
        .map(|at| char::from(b'a' + u8::try_from(at % 26).expect("a letter")))
        .collect();
    let file = market.file("payload", &text);
    let path = file.to_str().expect("text");
    let ended = market
        .submit("requester", "copy", &["--file", path])
        .expect(0);
    assert_eq!(ended.lines.concat(), text);
}

#[test]
fn a_program_that_ends_at_once_is_started_again_after_pauses_that_grow() {
    let market = Market::start();
    let worker = market.node("worker", &["--agent", "no=lines:false", "--task-ready"]);
    until("it was started again twice", || {
        let errors = worker.process.errors();
        let pauses = errors.matches("restart_in=").count();
        (pauses >= 3).then_some(())
    });
    let errors = worker.process.errors();
    for pause in ["restart_in=100ms", "restart_in=200ms", "restart_in=400ms"] {
        assert!(errors.contains(pause), "{pause} in {errors}");
    }
    worker.process.terminate().expect(0);
}

#[test]
fn a_program_that_writes_too_much_is_not_believed() {
    let market = Market::start();
    let worker = node_with(&market, "twice=lines:sed -u p");
    let file = market.file("lines", "one\ntwo\nthree\n");
    let path = file.to_str().expect("text");
    // Each batch of it fails, or is answered before the surplus is seen.
    market.submit("requester", "twice", &["--lines", path]);
    until("it is started again", || {
        let restarts = status_of(&worker)?["restarts"].as_u64()?;
        (restarts >= 1).then_some(())
    });
    let errors = worker.process.errors();
    assert!(
        errors.contains("it wrote more than it was asked"),
        "{errors}"
    );
    worker.process.terminate().expect(0);
}

#[test]
fn kill_9_of_an_agent_fails_its_batch_and_nothing_else() {
    let market = Market::start();
    let held = market.path("held");
    // It goes no further than a certain line, and says so.
    let script = format!(
        "while IFS= read -r line; do \
         if [ \"$line\" = \"line 700\" ]; then : > {}; sleep 300; fi; \
         echo \"<$line>\"; done",
        held.display()
    );
    let worker = node_with(&market, &format!("hold=lines:sh -c '{script}'"));
    let lines: Vec<String> = (0..2_000).map(|index| format!("line {index}")).collect();
    let file = market.file("lines", lines.join("\n") + "\n");
    let path = file.to_str().expect("text");
    let mut command = market.submit_command("requester", "hold");
    command.args(["--lines", path, "--window", "128"]);
    let submit = Process::start("submit", &mut command);
    until("the program is held", || held.exists().then_some(()));
    let pid = agent_pid(&worker).expect("it was logged");
    let agent = watch(pid);
    kill_process(Pid::from_raw(pid).expect("above 0"), Signal::KILL).expect("it runs");
    assert_ends(&agent);
    let ended = submit.end();
    assert_eq!(ended.lines.len(), lines.len(), "an answer for each line");
    let pairs = lines.iter().zip(&ended.lines);
    let failed: Vec<&String> = pairs
        .filter(|(line, answer)| **answer != format!("<{line}>"))
        .map(|(line, _)| line)
        .collect();
    // What was in the killed program's batch: no more than the window, and the line that held it.
    assert!(failed.len() <= 128, "{} failed", failed.len());
    assert!(failed.contains(&&"line 700".to_owned()), "{failed:?}");
    until("another runs", || {
        let status = status_of(&worker)?;
        (status["ready"] == 1 && status["restarts"] == 1).then_some(())
    });
    let status = status_of(&worker).expect("it is there");
    assert_eq!(status["done"], 2_000 - failed.len());
    assert_eq!(status["failed"], failed.len());
    worker.process.terminate().expect(0);
}

#[test]
fn no_agent_outlives_a_killed_node() {
    let market = Market::start();
    let worker = node_with(&market, "tr=lines:tr a-z A-Z");
    let agent = watch(agent_pid(&worker).expect("it was logged"));
    worker.process.kill();
    assert_ends(&agent);
}
