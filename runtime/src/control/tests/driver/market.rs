//! The task market over the driver socket: a worker and a requester that are programs of their hosts.

use ramjet_proto::driver::{MarketCommand, Submission, TaskEnd};
use ramjet_proto::market::message::{Query, WorkerRow};

use super::*;

fn market(command: MarketCommand<'_>) -> Command<'_> {
    Command::Market(command)
}

fn capabilities(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// Says what it can do and that it wants tasks.
fn serve(client: &mut Script, pairs: &[(&str, &str)]) {
    let capabilities = capabilities(pairs);
    client.ask(&market(MarketCommand::SetCapabilities { capabilities }));
    let ready = client.ask(&market(MarketCommand::SetTaskReady { ready: true }));
    assert_eq!(ready, json!({"task_ready": true}));
}

fn submission(skill: &str) -> Submission {
    Submission {
        skill: skill.to_owned(),
        filters: Vec::new(),
        min_polo: None,
        accept_deadline_ms: 20_000,
        duration_s: 60,
    }
}

fn submit(client: &mut Script, skill: &str, payload: &[u8]) -> u64 {
    let submission = submission(skill);
    let reply = client.ask(&market(MarketCommand::SubmitTask {
        submission,
        payload,
    }));
    reply["task"].as_u64().expect("a task")
}

/// The result of a task, once it is there.
fn result(client: &mut Script, task: u64) -> (Value, Vec<u8>) {
    let timeout_ms = 25_000;
    client.tell(&market(MarketCommand::WaitTaskResult { task, timeout_ms }));
    loop {
        match client.hear() {
            Heard::Progress(..) => {}
            Heard::Task(0xAD, json, bytes) => return (json, bytes),
            other => panic!("{other:?}"),
        }
    }
}

fn accept(client: &mut Script) -> (u64, Value, Vec<u8>) {
    let timeout_ms = 25_000;
    match client.hear_after(&market(MarketCommand::AcceptTask { timeout_ms })) {
        Heard::Task(0xA5, json, bytes) => (json["task"].as_u64().expect("a task"), json, bytes),
        other => panic!("{other:?}"),
    }
}

/// Who offers a skill and wants tasks, as the registry tells it.
fn workers(world: &World, skill: &str) -> Vec<WorkerRow> {
    let query = Query {
        task_ready: true,
        filters: vec![ramjet_proto::market::Filter {
            key: "skills".to_owned(),
            value: skill.to_owned(),
        }],
        ..Query::default()
    };
    world.nodes[0].resolve(query).expect("an answer")
}

#[test]
fn a_task_is_offered_accepted_run_and_settled_between_programs() {
    let world = World::of(2, |config| config);
    let (mut worker, mut requester) = (world.client(1), world.client(2));
    let said = [
        ("skills", "sum, product"),
        ("model", "abacus"),
        ("accept-from", "anyone"),
    ];
    serve(&mut worker, &said);
    wait_until("the advertisement", || {
        !workers(&world, "product").is_empty()
    });
    let row = workers(&world, "sum").remove(0);
    assert_eq!(row.node, world.node(1));
    assert_eq!(
        row.capabilities,
        capabilities(&[("skills", "sum,product"), ("model", "abacus")])
    );
    for round in 1..=3_u64 {
        let task = submit(&mut requester, "sum", b"2 and 2");
        let (accepted, json, payload) = accept(&mut worker);
        assert_eq!(
            (&json["skill"], &payload[..]),
            (&json!("sum"), &b"2 and 2"[..])
        );
        worker.tell(&market(MarketCommand::ReportProgress {
            task: accepted,
            bytes: b"counting",
        }));
        assert_eq!(
            requester.hear(),
            Heard::Progress(task, b"counting".to_vec())
        );
        let done = worker.ask(&market(MarketCommand::CompleteTask {
            task: accepted,
            end: TaskEnd::Done,
            bytes: b"4",
        }));
        assert_eq!(done, json!({"task": accepted}));
        let (json, bytes) = result(&mut requester, task);
        assert_eq!((&json["status"], &bytes[..]), (&json!("done"), &b"4"[..]));
        assert_eq!(json["worker"], json!(world.node(1)));
        assert!(
            json["round_trip_us"].as_u64().expect("a time") > 0,
            "round {round}"
        );
    }
    // Settled like any other engagement: the first pays, then the worker is above the gate.
    wait_until("the settlements", || {
        let rows = world.nodes[1].engagements(None, 10).expect("rows");
        rows.len() == 3 && rows.iter().all(|row| row.accepted == 1)
    });
    let standing = world.nodes[1].standing(&world.node(1).to_string());
    assert_eq!(standing.expect("known").polo, 1);
    world.end();
}

#[test]
fn a_task_that_fails_says_why_and_one_whose_program_leaves_too() {
    let world = World::of(2, |config| config);
    let (mut worker, mut requester) = (world.client(1), world.client(2));
    serve(&mut worker, &[("skills", "sum"), ("accept-from", "anyone")]);
    wait_until("the advertisement", || !workers(&world, "sum").is_empty());
    let task = submit(&mut requester, "sum", b"one and one");
    let (accepted, ..) = accept(&mut worker);
    worker.ask(&market(MarketCommand::CompleteTask {
        task: accepted,
        end: TaskEnd::Failed,
        bytes: b"not digits",
    }));
    let (json, bytes) = result(&mut requester, task);
    assert_eq!(
        (&json["status"], &json["reason"], bytes.len()),
        (&json!("failed"), &json!("not digits"), 0)
    );
    let task = submit(&mut requester, "sum", b"1 and 1");
    accept(&mut worker);
    drop(worker);
    let (json, _) = result(&mut requester, task);
    assert_eq!(json["status"], "failed");
    assert_eq!(json["reason"], "the program that ran this skill has left");
    wait_until("the end of its advertisement", || {
        workers(&world, "sum").is_empty()
    });
    // Its name is free again for the next program.
    let mut next = world.client(1);
    serve(&mut next, &[("skills", "sum")]);
    world.end();
}

#[test]
fn a_task_that_nobody_takes_expires_and_one_that_nobody_wants_is_cancelled() {
    let world = World::of(2, |config| config);
    let mut requester = world.client(2);
    let submission = Submission {
        accept_deadline_ms: 200,
        ..submission("nobody-has-this")
    };
    let reply = requester.ask(&market(MarketCommand::SubmitTask {
        submission,
        payload: b"x",
    }));
    let task = reply["task"].as_u64().expect("a task");
    let (json, _) = result(&mut requester, task);
    assert_eq!(json["status"], "expired");
    assert_eq!(json["reason"], "nobody took it, of 0 who were told");
    let task = submit(&mut requester, "nobody-has-this", b"x");
    let early = requester.fail(&market(MarketCommand::WaitTaskResult {
        task,
        timeout_ms: 20,
    }));
    assert_eq!(
        early,
        format!("wait_task_result: task {task} has no result after 20 ms; it goes on")
    );
    requester.ask(&market(MarketCommand::CancelTask { task }));
    let (json, _) = result(&mut requester, task);
    assert_eq!(
        (&json["status"], &json["reason"]),
        (&json!("closed"), &json!("cancelled"))
    );
    // Told once, and to nobody else.
    for mut client in [requester, world.client(2)] {
        let refusal = client.fail(&market(MarketCommand::WaitTaskResult {
            task,
            timeout_ms: 0,
        }));
        assert_eq!(
            refusal,
            format!("wait_task_result: task {task} is none of this program's, or over")
        );
    }
    world.end();
}

#[test]
fn what_a_program_may_not_say_is_refused_by_name() {
    let echo = Skill {
        name: "echo".to_owned(),
        accept_from: AcceptFrom::Gate,
        handler: Arc::new(Echo),
    };
    let world = World::of(1, |config| NodeConfig {
        skills: vec![echo.clone()],
        ..config
    });
    let (mut one, mut two) = (world.client(1), world.client(1));
    let set = |client: &mut Script, pairs: &[(&str, &str)]| {
        let capabilities = capabilities(pairs);
        client.hear_after(&market(MarketCommand::SetCapabilities { capabilities }))
    };
    let refused = |client: &mut Script, pairs: &[(&str, &str)], text: &str| {
        let Heard::Error(refusal) = set(client, pairs) else {
            panic!("{pairs:?} was taken")
        };
        assert!(refusal.contains(text), "{refusal}");
    };
    refused(
        &mut one,
        &[("skills", "echo")],
        "\"echo\" is offered already",
    );
    refused(
        &mut one,
        &[("skills", "Sum!")],
        "must be 1 to 64 of [a-z0-9._-]",
    );
    refused(&mut one, &[("skills", "sum,sum")], "is named twice");
    refused(&mut one, &[("accept-from", "friends")], "is none of gate");
    let many: Vec<String> = (0..17).map(|index| format!("s{index}")).collect();
    refused(
        &mut one,
        &[("skills", &many.join(","))],
        "finds no place: 16 skills",
    );
    let sixteen = many[..16].join(",");
    assert!(matches!(
        set(&mut one, &[("skills", &sixteen)]),
        Heard::Json(..)
    ));
    refused(&mut two, &[("skills", "s3")], "\"s3\" is offered already");
    refused(&mut two, &[("skills", "other")], "finds no place");
    // What it no longer names is free for others at once.
    assert!(matches!(
        set(&mut one, &[("skills", "s3,s4")]),
        Heard::Json(..)
    ));
    assert!(matches!(
        set(&mut two, &[("skills", "s5,other")]),
        Heard::Json(..)
    ));
    let none = two.fail(&market(MarketCommand::AcceptTask { timeout_ms: 20 }));
    assert_eq!(none, "accept_task: no task within 20 ms");
    let mut three = world.client(1);
    let none = three.fail(&market(MarketCommand::AcceptTask { timeout_ms: 20 }));
    assert!(
        none.starts_with("accept_task: this program has no skills"),
        "{none}"
    );
    let unknown = three.fail(&market(MarketCommand::CompleteTask {
        task: 9,
        end: TaskEnd::Done,
        bytes: b"",
    }));
    assert!(
        unknown.starts_with("complete_task: task 9 is none"),
        "{unknown}"
    );
    let long = vec![0; 300_000];
    let refusal = three.fail(&market(MarketCommand::CompleteTask {
        task: 9,
        end: TaskEnd::Done,
        bytes: &long,
    }));
    assert_eq!(
        refusal,
        "complete_task: a result of 300000 bytes, at most 262144"
    );
    world.end();
}

#[test]
fn a_node_without_skills_wants_no_tasks() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let refusal = client.fail(&market(MarketCommand::SetTaskReady { ready: true }));
    assert!(
        refusal.starts_with("set_task_ready: this node offers no skill"),
        "{refusal}"
    );
    let off = client.ask(&market(MarketCommand::SetTaskReady { ready: false }));
    assert_eq!(off, json!({"task_ready": false}));
    world.end();
}
