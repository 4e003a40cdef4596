//! Kill -9 of each process in the middle of a run, and the ends that were asked for.
//!
//! A run is held in its middle by not reading its output: `submit` hands out no line further than
//! 65,536 after the last one it could print, so a run of [`LINES`] cannot end before the test reads
//! on, however fast the machine is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Market, Process, Worker, until};

/// Lines of a run: more than may be handed out ahead, and what a pipe and its readers hold.
const LINES: usize = 100_000;
/// Lines after which a run is in its middle.
const HEAD: usize = 500;

/// A worker is given up after ten seconds of silence; the rest is for a busy machine.
const LOST_WITHIN: Duration = Duration::from_secs(30);

fn line(index: usize) -> String {
    format!("line {index:06} of a run that is disturbed")
}

fn lines_file(market: &Market) -> PathBuf {
    market.file(
        "lines.txt",
        (0..LINES)
            .map(|index| line(index) + "\n")
            .collect::<String>(),
    )
}

/// A run that has printed its first lines and is held there.
fn held_run(market: &Market, arguments: &[&str]) -> Process {
    let file = lines_file(market);
    let mut command = market.submit_command("requester", "echo");
    let run = Process::start("submit", command.arg("--lines").arg(file).args(arguments));
    for index in 0..HEAD {
        let printed = run
            .line()
            .unwrap_or_else(|| panic!("line {index}: {}", run.errors()));
        if !arguments.contains(&"--json") {
            assert_eq!(printed, line(index));
        }
    }
    run
}

/// The engagement of a run, once some of it is settled.
fn settled_in_part(market: &Market, worker: &Worker) -> Value {
    until("a first receipt is settled", || {
        let row = market.engagements(worker.node).into_iter().next()?;
        (row["accepted"].as_u64()? > 0).then_some(row)
    })
}

#[test]
fn tasks_go_on_while_the_registry_is_dead_and_every_receipt_settles_once() {
    let mut market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    let run = held_run(&market, &[]);
    let before = settled_in_part(&market, &worker);
    market.kill_registry();
    until("the worker knows that the registry is away", || {
        (worker.status()["registry"][1] == false).then_some(())
    });
    let done = worker.counter("tasks_run");
    assert!(
        done < LINES as u64,
        "{done} tasks done: the run is in its middle"
    );

    // Every remaining line arrives before the registry is back.
    for index in HEAD..LINES {
        assert_eq!(run.line().as_deref(), Some(&*line(index)));
    }
    assert_eq!(worker.counter("tasks_run"), LINES as u64, "each ran once");
    assert_eq!(worker.status()["registry"][1], false, "still away");

    market.start_registry();
    let ended = run.end().expect(0);
    assert!(ended.lines.is_empty(), "every line was printed once");
    let settled = until("the last receipt is settled", || {
        let row = market.engagements(worker.node).into_iter().next()?;
        (row["accepted"] == LINES).then_some(row)
    });
    assert!(
        settled["k"].as_u64() > before["k"].as_u64(),
        "{before} then {settled}"
    );
    assert_eq!(
        (&settled["rejected"], &settled["earned"]),
        (&json!(0), &json!(1))
    );
    until("no receipt waits", || {
        (worker.status()["spooled"] == 0).then_some(())
    });
    assert_eq!(market.engagements(worker.node).len(), 1);
    let standing = market.standing(&worker.node.to_string());
    assert_eq!(standing["polo"], 1, "earned once for the whole engagement");
    assert_eq!(standing["worked"], json!([1, LINES]));

    // What is settled stays as it is.
    market.kill_registry();
    market.start_registry();
    market.listed(worker.node);
    assert_eq!(market.standing(&worker.node.to_string()), standing);
    assert_eq!(market.engagements(worker.node), [settled]);
}

#[test]
fn a_dead_worker_ends_the_run_by_name_and_comes_back_as_itself() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    let run = held_run(&market, &["--json"]);
    settled_in_part(&market, &worker);
    let (node, address, listen) = (worker.node, worker.address.clone(), worker.listen);
    worker.process.kill();

    // Ten seconds of silence and the run ends; each line is either answered or named.
    let begun = Instant::now();
    let ended = run.end().expect(1);
    let took = begun.elapsed();
    assert!(
        took < LOST_WITHIN,
        "{took:?} until the run ended: {}",
        ended.errors
    );
    let (last, lines) = ended.lines.split_last().expect("a summary");
    let mut refused = 0;
    for (index, text) in (HEAD..).zip(lines) {
        let object: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(object["line"], index + 1);
        if object["refused"] == "lost" {
            refused += 1;
        } else {
            assert_eq!(object["result"], line(index).as_str());
        }
    }
    assert_eq!(HEAD + lines.len(), LINES, "no line is left out");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(
        (&last["error"]["kind"], &last["closed"]),
        (&json!("failed"), &json!("lost"))
    );
    let accepted = last["summary"]["accepted"].as_u64().expect("a number");
    assert!(
        refused > 0 && accepted > HEAD as u64,
        "{refused} lost, {accepted} accepted"
    );
    assert_eq!(accepted + refused, LINES as u64);
    assert!(
        ended.errors.contains("the worker fell silent"),
        "{}",
        ended.errors
    );

    // What both had signed stays earned; a last receipt that only the worker held may be added.
    assert_eq!(market.polo(node), 1);
    let settled = |market: &Market| market.engagements(node)[0]["accepted"].as_u64();
    let before = settled(&market);
    assert!(
        before > Some(0) && before <= Some(accepted),
        "{before:?} of {accepted}"
    );
    // On the same port, which the kernel may still be taking from the dead one's ring.
    let listen = listen.to_string();
    let arguments = ["--accept-from", "anyone", "--listen", &listen];
    let again = market.worker("worker", "echo", &arguments);
    assert_eq!((again.node, &again.address), (node, &address));
    until("no receipt waits", || {
        (again.status()["spooled"] == 0).then_some(())
    });
    let after = settled(&market);
    assert!(
        after >= before && after <= Some(accepted),
        "{before:?}, {after:?} of {accepted}"
    );
    assert_eq!(market.polo(node), 1);
    let served = market
        .submit("requester", "echo", &["--data", "again"])
        .expect(0);
    assert_eq!(served.lines, ["again"]);
}

#[test]
fn another_worker_does_what_a_dead_one_left() {
    let market = Market::start();
    let workers = [
        market.worker("one", "echo", &[]),
        market.worker("other", "echo", &[]),
    ];
    let run = held_run(&market, &["--resubmit", "1"]);
    let busy = market.run(&["engagements", "--json"]).expect(0).json()[0]["worker"].clone();
    let [dead, alive] = match workers {
        [one, other] if busy == one.node => [one, other],
        [one, other] => [other, one],
    };
    assert_eq!(busy, dead.node);
    dead.process.kill();
    let ended = run.end().expect(0);
    let expected: Vec<String> = (HEAD..LINES).map(line).collect();
    assert!(ended.lines == expected, "every line once, in order");
    assert!(ended.errors.contains("resubmitted"), "{}", ended.errors);
    let row = &market.engagements(alive.node)[0];
    assert_eq!(row["worker"], alive.node);
    assert_eq!(row["accepted"], alive.counter("tasks_run"));
}

#[test]
fn a_dead_requester_leaves_the_worker_to_the_next_one() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &["--accept-from", "anyone"]);
    let run = held_run(&market, &[]);
    let row = settled_in_part(&market, &worker);
    run.kill();
    let next = market
        .submit("next", "echo", &["--data", "next", "--json"])
        .expect(0)
        .json();
    assert_eq!(next["result"], "next");
    // The same identity in a new process, while the worker still has a tunnel and a channel to the
    // old one.
    let same = market
        .submit("requester", "echo", &["--data", "same", "--json"])
        .expect(0)
        .json();
    assert_eq!(same["result"], "same");
    let rows = market.engagements(worker.node);
    let engagements: BTreeSet<u64> = rows
        .iter()
        .map(|row| row["engagement"].as_u64().expect("a number"))
        .collect();
    assert_eq!(engagements.len(), 3);
    let dead = rows
        .iter()
        .find(|other| other["engagement"] == row["engagement"]);
    let accepted = dead
        .and_then(|row| row["accepted"].as_u64())
        .expect("on file");
    assert!(
        accepted < LINES as u64,
        "only what the dead requester has signed for: {accepted}"
    );
}

#[test]
fn an_interrupted_requester_signs_for_what_it_has_and_leaves() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    let run = held_run(&market, &[]);
    run.signal(Signal::INT);
    let ended = run.end().expect(130);
    assert!(ended.errors.contains("ended by SIGINT"), "{}", ended.errors);
    let row = until("the engagement is released", || {
        let row = market.engagements(worker.node).into_iter().next()?;
        (row["state"] == "released").then_some(row)
    });
    assert!(row["accepted"].as_u64() >= Some(HEAD as u64), "{row}");
    until("the worker has let it go", || {
        (worker.status()["engagements"] == json!([])).then_some(())
    });
}

#[test]
fn a_worker_that_is_asked_to_end_drains_and_says_so() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    // Nobody takes its place within this time.
    let run = held_run(&market, &["--json", "--accept-timeout", "1s"]);
    let node = worker.node;
    worker.process.signal(Signal::TERM);
    let ended = run.end().expect(1);
    assert_eq!(HEAD + ended.lines.len() - 1, LINES, "no line is left out");
    let last = ended.json();
    assert_eq!(last["error"]["kind"], "failed");
    let summary = &last["summary"];
    assert_eq!(
        summary["outcome"], "settled",
        "what was done is accounted for, and nothing was offered to nobody"
    );
    let accepted = summary["accepted"].as_u64().expect("a number");
    let never_run = summary["never_run"].as_u64().expect("a number");
    assert!(
        accepted >= HEAD as u64 && never_run > 0,
        "{accepted} accepted, {never_run} never run"
    );
    assert_eq!(accepted + never_run, LINES as u64);
    worker.process.end().expect(0);
    let row = &market.engagements(node)[0];
    assert_eq!(
        (&row["state"], &row["accepted"]),
        (&json!("released"), &json!(accepted))
    );
    assert_eq!(market.polo(node), 1, "what was done is paid");
}
