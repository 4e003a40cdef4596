//! The target of what plain agents say on their streams.

use ramjet_proto::agent::exchange::{Ack, Incoming};
use ramjet_proto::agent::framing::{Frame, FrameReader};
use ramjet_proto::agent::handshake::HandshakeReader;
use ramjet_proto::agent::request::{TaskRequest, TaskResult};
use ramjet_proto::agent::tasks::TaskMessage;

/// A stream of a plain agent, in chunks: what is read is written again to the same meaning.
///
/// The first byte chooses the service (mod 4: data exchange, tasks, handshake, task requests), the
/// second the length of a chunk, the rest is the stream.
pub fn agent(data: &[u8]) {
    let Some((&[service, chunk], stream)) = data.split_first_chunk::<2>() else {
        return;
    };
    let chunks = stream.chunks(usize::from(chunk).max(1));
    match service % 4 {
        0 => agent_frames(chunks, exchange_frame),
        1 => agent_frames(chunks, task_frame),
        2 => {
            let mut reader = HandshakeReader::default();
            for chunk in chunks {
                match reader.push(chunk) {
                    Ok(None) => {}
                    Ok(Some((message, _))) => {
                        let again = HandshakeReader::default().push(&message.to_bytes());
                        let (again, _) = again.expect("own JSON").expect("whole");
                        assert_eq!(again, message);
                        return;
                    }
                    Err(_) => return,
                }
            }
        }
        _ => {
            if let Some(Ok(request)) = TaskRequest::read(stream) {
                let again = TaskRequest::read(request.to_json().to_string().as_bytes());
                assert_eq!(again, Some(Ok(request)));
            }
            if let Some(result) = TaskResult::read(stream) {
                let again = TaskResult::read(result.to_json().to_string().as_bytes());
                assert!(again.is_some(), "{result:?}");
            }
            let text = String::from_utf8_lossy(stream);
            if let Some(ack) = Ack::read(&text) {
                assert_eq!(Ack::read(&ack.to_string()), Some(ack));
            }
        }
    }
}

fn agent_frames<'a>(chunks: impl Iterator<Item = &'a [u8]>, read: fn(Frame)) {
    const LIMIT: usize = 1 << 16;
    let mut reader = FrameReader::new(LIMIT);
    for chunk in chunks {
        reader.push(chunk);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => read(frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(reader.kept_len() <= LIMIT + 8 + 255);
    }
}

fn exchange_frame(frame: Frame) {
    let whole = |bytes: bytes::Bytes| {
        let mut reader = FrameReader::new(1 << 20);
        reader.push(&bytes);
        Incoming::read(reader.next_frame().expect("short").expect("whole"))
    };
    let incoming = Incoming::read(frame);
    let again = match &incoming {
        Ok(Incoming::Message(message)) => message.frame(),
        Ok(Incoming::Tagged(tags, message)) => message.tagged_frame(tags).expect("checked ids"),
        Ok(Incoming::Trace {
            sent_at_ns,
            message,
        }) => message.trace_frame(*sent_at_ns),
        Ok(Incoming::Transfer(transfer)) => transfer.frame(),
        Ok(Incoming::Unknown { .. }) | Err(_) => return,
    };
    assert_eq!(whole(again), incoming);
}

fn task_frame(frame: Frame) {
    let Ok(message) = TaskMessage::read(&frame) else {
        return;
    };
    let mut reader = FrameReader::new(1 << 20);
    reader.push(&message.frame().expect("what was in bounds"));
    let again = reader.next_frame().expect("short").expect("whole");
    assert_eq!(TaskMessage::read(&again), Ok(message));
}
