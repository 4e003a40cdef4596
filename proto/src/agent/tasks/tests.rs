//! The task service's messages against bytes that were seen, and against damage.

use super::*;
use crate::agent::framing::FrameReader;
use proptest::prelude::*;

fn only_frame(bytes: &[u8]) -> Frame {
    let mut reader = FrameReader::new(TASK_FRAME_LEN_MAX);
    reader.push(bytes);
    reader.next_frame().expect("short").expect("whole")
}

fn read(kind: u32, json: &str) -> Result<TaskMessage, TaskFault> {
    TaskMessage::read(&Frame {
        kind,
        payload: json.to_owned().into(),
    })
}

#[test]
fn messages_of_a_daemon_are_read() {
    let submit = r#"{"task_id":"5f0a1c1e-0000-4000-8000-000000000001","task_description":"echo: hi",
        "from_addr":"0:0000.0000.0001","to_addr":"0:0000.0000.0002"}"#;
    let Ok(TaskMessage::Submit(submit)) = read(1, submit) else {
        panic!("a submit");
    };
    assert_eq!(submit.task_description, "echo: hi");
    let status = r#"{"task_id":"a","status":"EXECUTING","justification":"Task execution started"}"#;
    assert_eq!(
        read(3, status),
        Ok(TaskMessage::Status(StatusUpdate {
            task_id: "a".to_owned(),
            status: TaskState::Executing,
            justification: "Task execution started".to_owned(),
        }))
    );
    let results = r#"{"task_id":"a","result_type":"file","filename":"x/../r.txt","file_data":"aGk=",
        "completed_at":"2026-05-06T10:00:00Z","time_idle_ms":3217}"#;
    let Ok(TaskMessage::Results(results)) = read(4, results) else {
        panic!("results");
    };
    assert_eq!(
        results.output,
        Output::File {
            name: "r.txt".to_owned(),
            content: Bytes::from_static(b"hi"),
        }
    );
    assert_eq!(results.times.idle_ms, 3_217);
    let reply = SubmitReply::read(&only_frame(
        b"\0\0\0\x01\0\0\0\x30{\"task_id\":\"a\",\"status\":400,\"message\":\"no such\"}",
    ));
    assert_eq!(reply.expect("an answer").status, STATUS_REFUSED);
}

#[test]
fn what_could_leave_its_folder_or_its_bounds_is_refused() {
    for id in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a b",
        &"x".repeat(129),
    ] {
        assert!(!is_task_id(id), "{id}");
        let json = serde_json::json!({"task_id": id, "status": "NEW"}).to_string();
        assert!(read(3, &json).is_err(), "{id}");
    }
    let long = "x".repeat(DESCRIPTION_LEN_MAX + 1);
    let json = serde_json::json!({"task_id": "a", "task_description": long}).to_string();
    assert_eq!(
        read(1, &json),
        Err(TaskFault {
            task_id: "a".to_owned(),
            submit: true,
            reason: "submit: task_description 16385 > 16384 bytes".to_owned(),
        })
    );
    for (kind, json) in [
        (3, r#"{"task_id":"a","status":"PAID"}"#),
        (4, r#"{"task_id":"a","result_type":"video"}"#),
        (
            4,
            r#"{"task_id":"a","result_type":"file","filename":"..","file_data":""}"#,
        ),
        (
            4,
            r#"{"task_id":"a","result_type":"file","filename":"a","file_data":"?"}"#,
        ),
        (2, "{}"),
        (1, "[]"),
    ] {
        assert!(read(kind, json).is_err(), "{json}");
    }
}

#[test]
fn states_go_forward_only() {
    use TaskState::{Accepted, Cancelled, Declined, Executing, Expired, New, Succeeded};
    let path = [New, Accepted, Executing, Succeeded];
    for (earlier, state) in path.iter().enumerate() {
        for (later, next) in path.iter().enumerate() {
            assert_eq!(state.may_become(*next), later > earlier, "{state} {next}");
        }
    }
    assert!(!Declined.may_become(Succeeded) && !Declined.may_become(Accepted));
    assert!(Expired.may_become(Succeeded) && Cancelled.may_become(Succeeded));
    assert!(!Expired.may_become(Executing) && !Succeeded.may_become(Succeeded));
    for state in TaskState::ALL {
        assert_eq!(TaskState::read(state.name()), Some(state));
        let json = serde_json::to_string(&state).expect("serializes");
        assert_eq!(json, format!("{:?}", state.name()));
    }
}

#[test]
fn the_reward_is_that_of_the_daemon() {
    let times = |idle_s: u64, staged_s: u64, busy_min: u64| TaskTimes {
        idle_ms: idle_s * 1_000,
        staged_ms: staged_s * 1_000,
        busy_ms: busy_min * 60_000,
    };
    assert_eq!(times(3, 0, 0).reward(), 1);
    assert_eq!(times(30, 300, 10).reward(), 3);
    assert_eq!(times(5, 60, 31).reward(), 6);
    let most = TaskTimes {
        idle_ms: u64::MAX,
        staged_ms: u64::MAX,
        busy_ms: u64::MAX,
    };
    assert!(most.reward() <= 30);
}

#[test]
fn a_record_is_the_daemons_file() {
    let json = r#"{"task_id":"a","task_description":"d","created_at":"2026-05-06T10:00:00.1Z",
        "status":"NEW","from":"0:0000.0000.0001","to":"0:0000.0000.0002"}"#;
    let record: TaskRecord = serde_json::from_str(json).expect("a record");
    let again = serde_json::to_value(&record).expect("serializes");
    assert_eq!(
        again,
        serde_json::from_str::<serde_json::Value>(json).expect("JSON")
    );
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        id in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,60}", text in ".{0,80}",
        data in prop::collection::vec(any::<u8>(), 0..200), file: bool,
        idle_ms: u64, busy_ms: u64, state in 0usize..8,
    ) {
        let output = if file {
            Output::File { name: "r.bin".to_owned(), content: data.into() }
        } else {
            Output::Text(text.clone())
        };
        for message in [
            TaskMessage::Submit(Submit {
                task_id: id.clone(),
                task_description: text.clone(),
                from_addr: "0:0000.0000.0001".to_owned(),
                to_addr: String::new(),
            }),
            TaskMessage::Status(StatusUpdate {
                task_id: id.clone(),
                status: TaskState::ALL[state],
                justification: bounded(&text, 80),
            }),
            TaskMessage::Results(Results {
                task_id: id.clone(),
                output,
                completed_at: "now".to_owned(),
                times: TaskTimes { idle_ms, staged_ms: 0, busy_ms },
            }),
        ] {
            let frame = only_frame(&message.frame().expect("within the bounds"));
            prop_assert_eq!(TaskMessage::read(&frame), Ok(message));
        }
    }

    #[test]
    fn any_bytes_are_read_or_named(
        kind in 0u32..6, payload in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let frame = Frame { kind, payload: payload.into() };
        if let Err(fault) = TaskMessage::read(&frame) {
            prop_assert!(!fault.reason.is_empty());
        }
    }
}
