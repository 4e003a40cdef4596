//! Messages, files and tasks as JSON between two nodes.

use bytes::Bytes;
use ramjet_proto::agent::exchange::{Ack, Incoming, Message, MessageKind, Tags};
use ramjet_proto::agent::framing::{FrameReader, frame};
use ramjet_proto::agent::request::{TaskRequest, TaskStatus};
use ramjet_proto::agent::transfer::{Step, Transfer, TransferId};
use serde_json::Value;
use tempfile::TempDir;

use super::super::host::{AgentStream, Host};
use super::*;
use crate::control::agent::{AgentAsk, AgentRequest};

/// Two nodes; the second keeps what it is sent.
fn pair(network: &Network) -> (Node, Node, TempDir) {
    let state = tempfile::tempdir().expect("a folder");
    let a = run_node(network, setup(1));
    let b = run_node(
        network,
        Setup {
            state: Some(state.path()),
            ..setup(2)
        },
    );
    (a, b, state)
}

/// The files in a folder of the state directory, by name.
fn kept(state: &TempDir, folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(state.path().join(folder)).expect("a folder");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            (name.into_owned(), std::fs::read(&path).expect("read"))
        })
        .collect();
    files.sort();
    files
}

fn inbox(state: &TempDir) -> Vec<Value> {
    kept(state, "inbox")
        .iter()
        .map(|(_, bytes)| serde_json::from_slice(bytes).expect("JSON"))
        .collect()
}

async fn ask(node: &Node, request: AgentRequest) -> Result<Value, String> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    node.agent().ask(AgentAsk {
        request,
        respond: Box::new(move |answer| drop(sender.send(answer))),
    });
    receiver.await.expect("answered").map_err(|error| error.0)
}

/// Pattern that no shift or cut leaves as it is.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 7 + i).to_be_bytes()[7]).collect()
}

#[test]
fn each_kind_of_message_is_kept_and_acknowledged() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        for (kind, content) in [
            (MessageKind::Text, "grüß dich".as_bytes().to_vec()),
            (MessageKind::Json, br#"{"note":1}"#.to_vec()),
            (MessageKind::Binary, pattern(300_000)),
        ] {
            let len = content.len();
            let message = Message::new(kind, content);
            let ack = a.agent().send(b.id, message, Tags::default()).await;
            let expected = format!("ACK {} {len} bytes", kind.name());
            assert_eq!(ack.map(|ack| ack.to_string()), Ok(expected));
        }
        let mut kinds: Vec<_> = inbox(&state)
            .iter()
            .map(|row| {
                (
                    row["type"].clone(),
                    row["bytes"].clone(),
                    row["from"].clone(),
                )
            })
            .collect();
        kinds.sort_by_key(|row| row.0.to_string());
        let from = || Value::from("0:0000.0000.0001");
        assert_eq!(
            kinds,
            [
                (Value::from("BINARY"), Value::from(300_000), from()),
                (Value::from("JSON"), Value::from(10), from()),
                (Value::from("TEXT"), Value::from(11), from()),
            ]
        );
    });
}

#[test]
fn a_repeat_is_acknowledged_and_kept_once() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        let send = async |id: &str, text: &'static str| {
            let tags = Tags {
                message_id: Some(id.to_owned()),
                reply_to: Some("r".to_owned()),
            };
            let message = Message::new(MessageKind::Text, text);
            let ack = a.agent().send(b.id, message, tags).await.expect("taken");
            matches!(
                ack,
                Ack::Taken {
                    duplicate: true,
                    ..
                }
            )
        };
        assert!(!send("m-1", "once").await);
        assert!(send("m-1", "once").await);
        assert!(!send("m-2", "once").await, "another id");
        assert!(!send("m-1", "else").await, "another content");
        assert_eq!(inbox(&state).len(), 3);
        assert_eq!(inbox(&state)[0]["reply_to"], "r");
        network.advance(Duration::from_secs(601));
        assert!(!send("m-1", "once").await, "after ten minutes");
    });
}

#[test]
fn files_arrive_whole_in_one_message_or_in_chunks() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        let folder = tempfile::tempdir().expect("a folder");
        for len in [0, 1_000, 49_153, 3_000_000] {
            let path = folder.path().join(format!("f{len}.bin"));
            std::fs::write(&path, pattern(len)).expect("written");
            let sent = a.agent().send_file(b.id, path, None).await.expect("sent");
            assert_eq!(sent.chunked, len > 48 << 10, "{sent:?}");
            let names = kept(&state, "received");
            let found = names
                .iter()
                .find(|(name, _)| name.starts_with(&format!("f{len}-")));
            let (name, content) = found.expect("received");
            assert!(name.ends_with(".bin"), "{name}");
            assert!(*content == pattern(len), "the content of {name}");
        }
        assert!(kept(&state, "received/.partial").is_empty());
        let nobody = a.agent().send_file(b.id, "/nowhere/x".into(), None).await;
        assert!(nobody.is_err_and(|why| why.contains("/nowhere/x")));
    });
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("big.bin");
        let content = pattern(200_000);
        std::fs::write(&path, &content).expect("written");
        let sha256 = super::super::inbox::sha256_of(&path).expect("read");
        let id = TransferId::of(&sha256);
        let init = ramjet_proto::agent::transfer::Init {
            size: 200_000,
            sha256,
            chunk_len: 49_152,
            name: "big.bin".to_owned(),
        };
        let mut stream = a
            .agent()
            .host
            .dial(b.id, 1_001, PATIENCE)
            .await
            .expect("it listens");
        let mut reader = FrameReader::new(1 << 16);
        let say = |step| Transfer { id, step }.frame();
        let data = Bytes::from(content[..49_152].to_vec());
        stream.write(say(Step::Init(init))).await.expect("taken");
        stream
            .write(say(Step::Chunk { offset: 0, data }))
            .await
            .expect("taken");
        assert_eq!(hear(&mut stream, &mut reader).await, Step::InitAck(0));
        assert_eq!(hear(&mut stream, &mut reader).await, Step::Ack(49_152));
        drop(stream);
        let partial = kept(&state, "received/.partial");
        assert_eq!(partial.len(), 1);
        assert_eq!(partial[0].1.len(), 49_152);
        // The other end notices the broken stream before the transfer may be taken up again.
        until("the end of the stream", || {
            b.agent().transfers.borrow().is_empty()
        })
        .await;
        let sent = a.agent().send_file(b.id, path, None).await.expect("sent");
        assert!(sent.chunked);
        assert!(kept(&state, "received")[0].1 == content);
    });
}

async fn hear(stream: &mut impl AgentStream, reader: &mut FrameReader) -> Step {
    loop {
        if let Some(frame) = reader.next_frame().expect("short") {
            let Ok(Incoming::Transfer(transfer)) = Incoming::read(frame) else {
                panic!("no transfer");
            };
            return transfer.step;
        }
        let chunk = stream.read().await.expect("no reset").expect("no end");
        reader.push(&chunk);
    }
}

#[test]
fn what_is_unknown_or_malformed_is_answered_and_the_stream_goes_on() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        let mut stream = a
            .agent()
            .host
            .dial(b.id, 1_001, PATIENCE)
            .await
            .expect("it listens");
        let trace = Message::new(MessageKind::Text, "t").trace_frame(5);
        for bytes in [
            frame(8, &[b"governed"]),
            frame(4, &[b"\0\x09cut"]),
            frame(7, &[&[4; 17]]),
            trace,
            Message::new(MessageKind::Text, "last").frame(),
        ] {
            stream.write(bytes).await.expect("taken");
        }
        let mut reader = FrameReader::new(1 << 16);
        let mut answers = Vec::new();
        while answers.len() < 5 {
            while let Some(frame) = reader.next_frame().expect("short") {
                answers.push(frame);
            }
            if answers.len() < 5 {
                let chunk = stream.read().await.expect("no reset").expect("no end");
                reader.push(&chunk);
            }
        }
        let text = |at: usize| String::from_utf8_lossy(&answers[at].payload).into_owned();
        assert_eq!(text(0), "ACK UNKNOWN(8) 8 bytes");
        assert!(
            text(1).starts_with("ERR FILE save failed: 5 bytes"),
            "{}",
            text(1)
        );
        assert_eq!(answers[2].payload[17..][..8], *b"\x01no such");
        let report: Value = serde_json::from_slice(&answers[3].payload).expect("JSON");
        assert_eq!(report["sent_at_ns"], 5);
        assert_eq!(report["inner_ack"], "ACK TEXT 1 bytes");
        assert_eq!(text(4), "ACK TEXT 4 bytes");
        assert_eq!(inbox(&state).len(), 2);
        // A length beyond the bound cannot be passed over.
        stream
            .write(Bytes::from_static(b"\0\0\0\x01\xff\xff\xff\xff"))
            .await
            .expect("taken");
        while let Ok(Some(_)) = stream.read().await {}
    });
}

#[test]
fn a_task_as_json_is_run_and_its_result_comes_back() {
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let b = run_node(
            &network,
            Setup {
                skills: vec![shout(AcceptFrom::Gate)],
                ..setup(2)
            },
        );
        let request = |skill: &str, text: &str| TaskRequest {
            task_id: None,
            skill: skill.to_owned(),
            description: text.to_owned(),
            params: None,
            timeout: PATIENCE,
        };
        let run = async |request| {
            a.agent()
                .request_task(b.id, request)
                .await
                .expect("a result")
        };
        let done = run(request("shout", "hello")).await;
        assert_eq!(done.status, TaskStatus::Completed(b"HELLO".to_vec()));
        let failed = run(request("shout", "")).await;
        assert_eq!(failed.status, TaskStatus::Failed("nothing".to_owned()));
        let none = run(request("sing", "la")).await;
        let expected = "no skill \"sing\": this node offers shout".to_owned();
        assert_eq!(none.status, TaskStatus::Refused(expected));
        network.set_polo(b.id, 3);
        let refused = run(request("shout", "hello")).await;
        let TaskStatus::Refused(why) = refused.status else {
            panic!("{refused:?}");
        };
        assert!(why.contains("polo gate"), "{why}");
        let asked = AgentRequest::Request {
            to: "node-2".to_owned(),
            skill: "sing".to_owned(),
            description: String::new(),
            params: None,
            timeout_ms: Some(5_000),
        };
        assert_eq!(ask(&a, asked).await.expect("a result")["status"], "refused");
        assert!(a.agent().waiting.borrow().is_empty());
    });
}

#[test]
fn a_result_that_nobody_waits_for_is_a_message_like_any_other() {
    on_control(async {
        let network = Network::new();
        let (a, b, state) = pair(&network);
        let result = r#"{"type":"task_result","task_id":"x","skill":"s","status":"failed"}"#;
        let message = Message::new(MessageKind::Json, result);
        let ack = a.agent().send(b.id, message, Tags::default()).await;
        assert!(matches!(ack, Ok(Ack::Taken { .. })));
        assert_eq!(inbox(&state).len(), 1);
    });
}

#[test]
fn what_cannot_be_kept_or_sent_is_said() {
    on_control(async {
        let network = Network::new();
        let (a, b, _state) = pair(&network);
        let message = |to: &str, kind, text: &str| AgentRequest::Message {
            to: to.to_owned(),
            kind,
            data: super::super::Data::Text(text.to_owned()),
            reply_to: None,
        };
        use super::super::DataKind::{Json, Text};
        let unkept = ask(&b, message("1", Text, "x")).await;
        assert!(unkept.is_err_and(|why| why.contains("state directory")));
        let nobody = ask(&a, message("node-7", Text, "x")).await;
        assert!(nobody.is_err_and(|why| why.contains("node-7")));
        let broken = ask(&a, message("2", Json, "{")).await;
        assert!(broken.is_err_and(|why| why.contains("no JSON")));
        let taken = ask(&a, message("0:0000.0000.0002", Json, "{}")).await;
        assert_eq!(taken.expect("taken")["ack"], "ACK JSON 2 bytes");
    });
}
