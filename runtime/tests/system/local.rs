//! The socket of a running node: the same answers as without it, and work through it.

use serde_json::{Value, json};

use crate::harness::{Ended, Market, Process, Worker};

/// A command put to a node through its socket.
fn through(market: &Market, node: &Worker, arguments: &[&str]) -> Ended {
    let mut command = market.ramjet();
    Process::start(
        "through",
        command.args(arguments).arg("--socket").arg(&node.socket),
    )
    .end()
}

#[test]
fn a_node_answers_through_its_socket_as_the_registry_does() {
    let market = Market::start();
    let worker = market.worker("worker", "echo,sha256", &["--capability", "model=small"]);
    let requester = market.node("requester", &[]);
    market
        .submit("another", "echo", &["--data", "x", "--reject"])
        .expect(0);
    let who = worker.node.to_string();
    for command in [
        &["resolve", "--json"][..],
        &[
            "resolve",
            "--json",
            "--capability",
            "task-ready",
            "--filter",
            "model=small",
        ],
        &["polo", &who, "--json"],
        &["engagements", "--json"],
        &["engagements", &who, "--json"],
        &["resolve"],
    ] {
        let asked = market.run(command).expect(0);
        let told = through(&market, &requester, command).expect(0);
        assert_eq!(told.lines, asked.lines, "{command:?}");
        assert!(!told.lines.is_empty(), "{command:?}");
    }
    let nobody = ["resolve", "--filter", "skills=translation"];
    market.run(&nobody).expect(3);
    through(&market, &requester, &nobody).expect(3);

    // Whose polo need not be said to a node.
    let own = through(&market, &requester, &["polo", "--json"])
        .expect(0)
        .json();
    assert_eq!(own["node"], requester.node);
    let status = through(&market, &worker, &["status", "--json"])
        .expect(0)
        .json();
    assert_eq!(status["node"], worker.node);
    assert_eq!(status["address"], worker.address.as_str());
    assert_eq!(status["listen"], worker.listen.to_string());
    assert_eq!(
        status["registry"],
        json!([market.registry_addr.to_string(), true])
    );
    assert_eq!(status["skills"], json!(["echo", "sha256"]));
    assert_eq!(status["task_ready"], true);
}

#[test]
fn a_node_requests_for_its_host_what_another_one_serves() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &[]);
    // A worker itself, of something else, so that it serves and requests over the same tunnels.
    let requester = market.worker("requester", "sha256", &[]);
    let lines: Vec<String> = (0..5_000)
        .map(|index| format!("{index} through a socket"))
        .collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let submit = [
        "submit",
        "--skill",
        "echo",
        "--lines",
        file.to_str().expect("text"),
        "--json",
    ];
    let ended = through(&market, &requester, &submit).expect(0);
    let (summary, answers) = ended.lines.split_last().expect("a summary");
    let results = answers
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    for ((index, answer), line) in (1..).zip(results).zip(&lines) {
        assert_eq!(answer, json!({ "line": index, "result": line }));
    }
    let summary: Value = serde_json::from_str(summary).expect("JSON");
    assert_eq!(summary["summary"]["accepted"], lines.len());
    assert_eq!(summary["summary"]["outcome"], "settled");
    let row = &market.engagements(worker.node)[0];
    assert_eq!(
        (&row["requester"], &row["accepted"]),
        (&json!(requester.node), &json!(5_000))
    );

    // The worker has risen above the node, which is told so through the socket too.
    let refused = through(
        &market,
        &requester,
        &["submit", "--skill", "echo", "--data", "x"],
    );
    assert!(refused.expect(4).errors.contains("your polo is 0"));
    // And the other way round: the first one asks what the second one serves.
    let hash = ["submit", "--skill", "sha256", "--data", "abc"];
    let hash = through(&market, &worker, &hash).expect(0);
    // FIPS 180-2, appendix B.1.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hash.lines, [expected]);
    let unmatched = [
        "submit",
        "--skill",
        "none",
        "--data",
        "x",
        "--accept-timeout",
        "200ms",
    ];
    let unmatched = through(&market, &requester, &unmatched).expect(3);
    assert!(
        unmatched.errors.contains("It cost -1 polo"),
        "{}",
        unmatched.errors
    );
}
