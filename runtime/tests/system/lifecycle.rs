//! The market's promises, from the outside: right answers in order, the gate, and polo.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::harness::{Ended, Market, Worker};

/// Lines unlike each other: empty, long enough for several datagrams, and beyond ASCII.
fn mixed_lines(count: usize) -> Vec<String> {
    (0..count)
        .map(|index| match index % 50 {
            7 => String::new(),
            13 => format!("{index} {}", "wide ".repeat(700)),
            21 => format!("{index} Größe Ελλάδα 東京"),
            _ => format!("line {index} of a file that a requester has"),
        })
        .collect()
}

fn sha256_of(line: &str) -> String {
    digest(&SHA256, line.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn steps(object: &Value) -> Vec<&str> {
    let timeline = object["timeline"].as_array().expect("an array");
    timeline
        .iter()
        .map(|mark| mark["step"].as_str().expect("text"))
        .collect()
}

/// The step `step` of a timeline, in words.
fn detail<'a>(object: &'a Value, step: &str) -> &'a str {
    let timeline = object["timeline"].as_array().expect("an array");
    let mark = timeline.iter().find(|mark| mark["step"] == step);
    mark.unwrap_or_else(|| panic!("{step} in {object}"))["detail"]
        .as_str()
        .expect("text")
}

#[test]
fn every_line_is_answered_rightly_and_in_order_and_again_where_the_gate_is_widened() {
    let market = Market::start();
    let arguments = ["--hostname", "gpu-1", "--accept-from", "sha256=anyone"];
    let worker = market.worker("worker", "langid,sha256,echo", &arguments);
    let lines = mixed_lines(3_000);
    let expected: Vec<String> = lines.iter().map(|line| sha256_of(line)).collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let file = file.to_str().expect("text");

    // Both ends at zero: the gate is met and the worker earns the rule's least reward.
    let first = market
        .submit("requester", "sha256", &["--lines", file])
        .expect(0);
    assert!(first.lines == expected, "as text, in the order of the file");
    assert_eq!(market.polo(worker.node), 1);

    // The same requester is now below the worker, who serves anyone: answered, and nothing earned.
    let second = market
        .submit("requester", "sha256", &["--lines", file, "--json"])
        .expect(0);
    let (summary, answers) = second.lines.split_last().expect("a summary");
    let answers: Vec<Value> = answers
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(answers.len(), expected.len());
    for ((index, answer), digest) in (1..).zip(&answers).zip(&expected) {
        assert_eq!(*answer, json!({ "line": index, "result": digest }));
    }
    let summary: Value = serde_json::from_str(summary).expect("JSON");
    let summary = &summary["summary"];
    assert_eq!(summary["outcome"], "settled");
    let (lines, done, accepted) = (&summary["lines"], &summary["done"], &summary["accepted"]);
    assert_eq!(
        (lines, done, accepted),
        (&json!(3_000), &json!(3_000), &json!(3_000))
    );
    assert_eq!(summary["worker"], worker.node);
    assert!(
        detail(summary, "granted").contains("gate widened"),
        "{summary}"
    );
    assert_eq!(
        summary["polo"]["worker"],
        json!({ "before": 1, "after": 1 })
    );
    assert_eq!(
        summary["polo"]["requester"],
        json!({ "before": 0, "after": 0 })
    );

    refused_by_the_gate(&market.submit("requester", "langid", &["--lines", file, "--json"]));
    standing_is_shown(&market, &worker);
}

/// What the worker does not widen is refused, with both scores and what would help.
fn refused_by_the_gate(third: &Ended) {
    assert_eq!(third.code, Some(4), "{third:#?}");
    for part in [
        "refused by the polo gate",
        "your polo is 0",
        "asks for 1",
        "--accept-from",
    ] {
        assert!(third.errors.contains(part), "{part:?} in {}", third.errors);
    }
    let object = third.json();
    assert_eq!(object["error"]["kind"], "refused");
    assert_eq!(object["refused"], "gate");
    assert_eq!(object["diagnosis"]["requester_polo"], 0);
    assert_eq!(object["diagnosis"]["polo_needed"], 1);
}

/// By number, address and name alike, and in the list of engagements.
fn standing_is_shown(market: &Market, worker: &Worker) {
    let standing = market.standing(&worker.node.to_string());
    assert_eq!(standing["polo"], 1);
    assert_eq!(standing["hostname"], "gpu-1");
    assert_eq!(
        standing["worked"],
        json!([2, 6_000]),
        "engagements and accepted results"
    );
    assert_eq!(market.standing("gpu-1"), standing);
    assert_eq!(market.standing(&worker.address), standing);
    let rows = market.engagements(worker.node);
    let members = |row: &Value| {
        let member = |name: &str| row[name].clone();
        ["skill", "state", "accepted", "rejected", "earned"].map(member)
    };
    let told: Vec<_> = rows.iter().map(members).collect();
    let row = |earned: i64| {
        [
            json!("sha256"),
            json!("released"),
            json!(3_000),
            json!(0),
            json!(earned),
        ]
    };
    assert_eq!(told, [row(0), row(1)], "the newest first");
}

#[test]
fn a_single_task_shows_every_step_and_a_rejected_result_earns_nothing() {
    let market = Market::start();
    // Offered before anybody is there: the offer waits for a worker that shows up.
    let arguments = [
        "--data",
        "ping",
        "--json",
        "--reject",
        "--accept-timeout",
        "1m",
    ];
    let mut early = market.submit_command("requester", "echo");
    let early = crate::harness::Process::start("submit", early.args(arguments));
    crate::harness::until("the offer is made", || {
        early.errors().contains("offered").then_some(())
    });
    let worker = market.worker("worker", "echo", &[]);
    let rejected = early.end().expect(0).json();
    assert_eq!(rejected["verdict"], "reject");
    assert_eq!(rejected["result"], "ping");
    assert_eq!(
        rejected["polo"]["worker"],
        json!({ "before": 0, "after": 0 })
    );
    let row = &market.engagements(worker.node)[0];
    assert_eq!((&row["accepted"], &row["rejected"]), (&json!(0), &json!(1)));
    assert_eq!(row["earned"], 0);
    assert_eq!(market.polo(worker.node), 0);

    let accepted = market
        .submit("requester", "echo", &["--data", "pong", "--json"])
        .expect(0)
        .json();
    assert_eq!(accepted["result"], "pong");
    assert_eq!(accepted["worker"], worker.node);
    assert_eq!(accepted["worker_address"], worker.address.as_str());
    let all = [
        "registered",
        "offered",
        "notified",
        "granted",
        "opened",
        "first result",
        "settled",
    ];
    assert_eq!(steps(&accepted), all);
    assert_eq!(detail(&accepted, "notified"), "1 worker");
    assert_eq!(
        accepted["polo"]["worker"],
        json!({ "before": 0, "after": 1 })
    );
    assert_eq!(
        accepted["polo"]["requester"],
        json!({ "before": 0, "after": 0 })
    );
    assert_eq!(market.polo(worker.node), 1);
    let requester = market.engagements(worker.node)[0]["requester"]
        .as_u64()
        .expect("a number");
    assert_eq!(market.polo(requester), 0, "a requester keeps its polo");
}

#[test]
fn an_offer_that_nobody_takes_costs_one_polo_and_says_so() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    let arguments = ["--data", "x", "--json", "--accept-timeout", "300ms"];
    let expired = market
        .submit("requester", "translation", &arguments)
        .expect(3);
    for part in [
        "the offer expired",
        "It cost -1 polo, 0 → -1",
        "nobody has the skill",
    ] {
        assert!(
            expired.errors.contains(part),
            "{part:?} in {}",
            expired.errors
        );
    }
    let object = expired.json();
    assert_eq!(object["error"]["kind"], "unmatched");
    assert_eq!(object["outcome"], "expired");
    assert_eq!(
        object["polo"]["requester"],
        json!({ "before": 0, "after": -1 })
    );
    assert_eq!(object["notified"], 0);
    assert_eq!(object["diagnosis"]["capable"], 0);

    // The requester has fallen below the worker, which is still at zero.
    let refused = market
        .submit("requester", "echo", &["--data", "x", "--json"])
        .expect(4)
        .json();
    assert_eq!(refused["diagnosis"]["requester_polo"], -1);
    assert_eq!(refused["diagnosis"]["polo_needed"], 0);
    let standing = market.standing(&(worker.node + 1).to_string());
    assert_eq!(standing["polo"], -1);
    assert_eq!(
        standing["requested"],
        json!([0, 1]),
        "engagements and expired offers"
    );
}
