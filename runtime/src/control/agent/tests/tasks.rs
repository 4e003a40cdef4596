//! The task service between two nodes: submitter and worker.

use ramjet_proto::agent::tasks::{
    Output, Results, StatusUpdate, Submit, TaskMessage, TaskState, TaskTimes,
};

use super::super::host::{AgentStream, Host};
use super::super::task_store::TaskSide;
use super::*;

fn worker(network: &Network, accept_from: AcceptFrom) -> Node {
    let skills = vec![shout(accept_from)];
    run_node(network, Setup { skills, ..setup(2) })
}

/// Sends a frame of port 1003 and reads the stream to its end.
async fn send(host: &MemoryHost, to: NodeId, message: &TaskMessage) -> Vec<u8> {
    let mut stream = host.dial(to, 1_003, PATIENCE).await.expect("it listens");
    let frame = message.frame().expect("in bounds");
    stream.write(frame).await.expect("taken");
    let mut answer = Vec::new();
    while let Ok(Some(chunk)) = stream.read().await {
        answer.extend_from_slice(&chunk);
    }
    answer
}

#[test]
fn a_task_goes_all_its_way_and_the_worker_earns() {
    on_control(async {
        let state = tempfile::tempdir().expect("a folder");
        let network = Network::new();
        let a = run_node(
            &network,
            Setup {
                state: Some(state.path()),
                ..setup(1)
            },
        );
        let b = worker(&network, AcceptFrom::Gate);
        let record = a
            .agent()
            .submit_task(b.id, "shout: hello")
            .await
            .expect("taken");
        let over = a
            .agent()
            .wait_task(&record.task_id, PATIENCE)
            .await
            .expect("known");
        assert_eq!(over.status, TaskState::Succeeded);
        assert_eq!(
            (over.results.as_str(), over.result_type.as_str()),
            ("HELLO", "text")
        );
        assert!(!over.accepted_at.is_empty() && !over.execute_started_at.is_empty());
        until("the worker's record", || {
            let rows = b.agent().task_rows(TaskSide::Received);
            rows.len() == 1 && rows[0].status == TaskState::Succeeded
        })
        .await;
        until("the reward", || network.polo(b.id) == 1).await;
        assert_eq!(network.polo(a.id), 0, "success costs the submitter nothing");
        let result = state
            .path()
            .join(format!("tasks/results/{}_result.txt", over.task_id));
        assert_eq!(std::fs::read(result).expect("kept"), b"HELLO");
        // The worker has earned: the gate is closed for a submitter without polo.
        let refused = a
            .agent()
            .submit_task(b.id, "shout: again")
            .await
            .expect("answered");
        assert_eq!(refused.status, TaskState::Declined);
        assert!(refused.status_justification.contains("polo gate"));
    });
}

#[test]
fn a_node_with_one_skill_needs_no_name_and_declines_what_it_cannot_do() {
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let b = worker(&network, AcceptFrom::Anyone);
        for (description, expected) in [
            ("say it loud", TaskState::Succeeded),
            ("note: say it loud", TaskState::Succeeded),
            (
                r#"{"skill":"shout","params":{"text":"x"}}"#,
                TaskState::Succeeded,
            ),
            (r#"{"skill":"sing"}"#, TaskState::Declined),
            (r#"{"skill":"shout","timeout":-1}"#, TaskState::Declined),
            ("shout:", TaskState::Cancelled),
        ] {
            let record = a
                .agent()
                .submit_task(b.id, description)
                .await
                .expect("answered");
            let over = a
                .agent()
                .wait_task(&record.task_id, PATIENCE)
                .await
                .expect("known");
            assert_eq!(
                over.status, expected,
                "{description}: {}",
                over.status_justification
            );
            until("the worker's record", || {
                let rows = b.agent().task_rows(TaskSide::Received);
                rows.iter().all(|row| row.status.is_over())
            })
            .await;
        }
    });
}

#[test]
fn only_the_worker_moves_a_task_forward_and_is_paid_once() {
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        // A worker of the test's own, which answers nothing by itself.
        let (b, c) = (network.host(2, true), network.host(3, true));
        let mut listener = b.listen(1_003).expect("free");
        let answering = async {
            use super::super::host::AgentListener;
            let mut stream = listener.accept().await.expect("a stream");
            stream.read().await.expect("no reset");
            let reply = ramjet_proto::agent::tasks::SubmitReply {
                task_id: String::new(),
                status: 200,
                message: String::new(),
            };
            stream.write(reply.frame()).await.expect("taken");
            stream.close().await.expect("closed");
        };
        let (record, ()) = tokio::join!(a.agent().submit_task(b.node, "x"), answering);
        let id = record.expect("taken").task_id;
        let status = |status| {
            TaskMessage::Status(StatusUpdate {
                task_id: id.clone(),
                status,
                justification: String::new(),
            })
        };
        let results = |text: &str| {
            TaskMessage::Results(Results {
                task_id: id.clone(),
                output: Output::Text(text.to_owned()),
                completed_at: String::new(),
                times: TaskTimes {
                    busy_ms: 3 * 60_000,
                    ..TaskTimes::default()
                },
            })
        };
        let stands = || a.agent().submitted(&id).expect("known").status;
        send(&c, a.id, &status(TaskState::Executing)).await;
        send(&c, a.id, &results("stolen")).await;
        assert_eq!(stands(), TaskState::New, "a third node is not heard");
        send(&b, a.id, &status(TaskState::Executing)).await;
        send(&b, a.id, &status(TaskState::Accepted)).await;
        assert_eq!(stands(), TaskState::Executing, "not back");
        send(&b, a.id, &status(TaskState::Succeeded)).await;
        assert_eq!(stands(), TaskState::Executing, "results say so, not words");
        send(&b, a.id, &results("done")).await;
        until("the reward", || network.polo(b.node) == 3).await;
        send(&b, a.id, &results("again")).await;
        assert_eq!(a.agent().submitted(&id).expect("known").results, "done");
        assert_eq!(network.polo(b.node), 3);
    });
}

#[test]
fn what_waits_too_long_is_given_up() {
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let (to, minute) = ("0:0000.0000.0002", Duration::from_secs(60));
        let put = |id: &str| {
            let submit = Submit {
                task_id: id.to_owned(),
                task_description: String::new(),
                from_addr: String::new(),
                to_addr: to.to_owned(),
            };
            let record = a.agent().record(submit, a.id, NodeId(2));
            let store = &a.agent().tasks;
            store.add(TaskSide::Submitted, record).expect("room");
        };
        put("waits");
        put("stalls");
        let accepted = async || {
            let agent = a.agent();
            let moved =
                agent.move_submitted("stalls".to_owned(), TaskState::Accepted, String::new());
            moved.await.expect("forward");
        };
        let stands = |id: &str| a.agent().submitted(id).expect("known").status;
        network.advance(minute - Duration::from_millis(1));
        accepted().await;
        a.agent().sweep_once().await;
        assert_eq!(stands("waits"), TaskState::New);
        network.advance(Duration::from_millis(1));
        a.agent().sweep_once().await;
        assert_eq!(stands("waits"), TaskState::Cancelled);
        assert_eq!(stands("stalls"), TaskState::Accepted);
        network.advance(minute);
        a.agent().sweep_once().await;
        assert_eq!(stands("stalls"), TaskState::Expired);
    });
}

#[test]
fn a_submit_for_a_third_node_and_a_repeated_id_are_refused() {
    on_control(async {
        let network = Network::new();
        let a = network.host(1, true);
        let b = worker(&network, AcceptFrom::Gate);
        let submit = |from_addr: &str, id: &str| {
            TaskMessage::Submit(Submit {
                task_id: id.to_owned(),
                task_description: "shout: x".to_owned(),
                from_addr: from_addr.to_owned(),
                to_addr: String::new(),
            })
        };
        let answer = async |from: &str, id: &str| {
            let bytes = send(&a, b.id, &submit(from, id)).await;
            String::from_utf8_lossy(&bytes[8..]).into_owned()
        };
        let other = answer("0:0000.0000.0009", "t").await;
        assert!(
            other.contains("400") && other.contains("from_addr names node 9"),
            "{other}"
        );
        let taken = answer("0:0000.0000.0001", "t").await;
        assert!(taken.contains("200"), "{taken}");
        let again = answer("", "t").await;
        assert!(
            again.contains("400") && again.contains("known already"),
            "{again}"
        );
    });
}

#[test]
fn what_a_former_life_left_open_is_given_up_and_told() {
    on_control(async {
        let state = tempfile::tempdir().expect("a folder");
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let record = {
            let submit = Submit {
                task_id: "left".to_owned(),
                task_description: String::new(),
                from_addr: String::new(),
                to_addr: String::new(),
            };
            a.agent().record(submit, a.id, NodeId(2))
        };
        let store = &a.agent().tasks;
        store
            .add(TaskSide::Submitted, record.clone())
            .expect("room");
        let former = super::super::task_store::TaskStore::open(Some(state.path()));
        former
            .expect("opened")
            .add(TaskSide::Received, record)
            .expect("kept");
        let b = run_node(
            &network,
            Setup {
                state: Some(state.path()),
                ..setup(2)
            },
        );
        let over = a.agent().wait_task("left", PATIENCE).await.expect("known");
        assert_eq!(over.status, TaskState::Cancelled);
        assert_eq!(over.status_justification, "the worker has restarted");
        let rows = b.agent().task_rows(TaskSide::Received);
        assert_eq!(rows[0].status, TaskState::Cancelled);
    });
}
