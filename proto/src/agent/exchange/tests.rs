//! The messages of data exchange against bytes that were seen, and against damage.

use super::*;
use crate::agent::framing::FrameReader;
use proptest::prelude::*;

fn only_frame(bytes: &[u8]) -> Frame {
    let mut reader = FrameReader::new(PAYLOAD_LEN_MAX);
    reader.push(bytes);
    let frame = reader.next_frame().expect("short").expect("whole");
    assert_eq!(reader.kept_len(), 0);
    frame
}

#[test]
fn frames_are_those_on_the_wire() {
    let text = Message::new(MessageKind::Text, "hi");
    assert_eq!(text.frame()[..], *b"\0\0\0\x01\0\0\0\x02hi");
    let file = Message::file("a.txt", &b"xyz"[..]).expect("a name");
    assert_eq!(file.frame()[..], *b"\0\0\0\x04\0\0\0\x0a\0\x05a.txtxyz");
    assert_eq!(
        text.trace_frame(258)[..],
        *b"\0\0\0\x05\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0\x01\x02hi"
    );
    let tags = Tags {
        message_id: Some("m-1".to_owned()),
        reply_to: None,
    };
    assert_eq!(
        text.tagged_frame(&tags).expect("valid")[..],
        *b"\0\0\0\x0a\0\0\0\x1c\0\x14{\"message_id\":\"m-1\"}\0\0\0\x01hi"
    );
}

#[test]
fn acknowledgements_are_those_on_the_wire() {
    let taken = |name, len, duplicate| Ack::Taken {
        name,
        len,
        duplicate,
    };
    let table = [
        (
            taken(AckName::Message(MessageKind::Json), 17, false),
            "ACK JSON 17 bytes",
        ),
        (
            taken(AckName::Message(MessageKind::Text), 0, true),
            "ACK TEXT 0 bytes (duplicate)",
        ),
        (
            taken(AckName::Unknown(10), 26, false),
            "ACK UNKNOWN(10) 26 bytes",
        ),
        (
            Ack::Refused {
                name: AckName::Message(MessageKind::File),
                reason: "disk full".to_owned(),
            },
            "ERR FILE save failed: disk full",
        ),
    ];
    for (ack, text) in table {
        assert_eq!(ack.to_string(), text);
        assert_eq!(Ack::read(text), Some(ack));
    }
    for text in [
        "",
        "ACK",
        "ACK TEXT",
        "ACK TEXT x bytes",
        "ACK NOTE 1 bytes",
        "OK",
    ] {
        assert_eq!(Ack::read(text), None, "{text}");
    }
}

#[test]
fn only_the_last_component_of_a_name_counts_and_it_must_name_a_file() {
    for (name, expected) in [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.bin", "y.bin"),
        (".hidden", ".hidden"),
    ] {
        assert_eq!(safe_file_name(name).as_deref(), Ok(expected));
    }
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/", "a/..", "a\0b", "a\nb", &long] {
        assert!(safe_file_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_malformed_payload_is_named_and_a_foreign_type_is_unknown() {
    let read = |kind, payload: &'static [u8]| {
        Incoming::read(Frame {
            kind,
            payload: Bytes::from_static(payload),
        })
    };
    for (kind, payload) in [
        (KIND_FILE, &b""[..]),
        (KIND_FILE, b"\0\x09short"),
        (KIND_FILE, b"\0\x01\xff"),
        (KIND_TRACE, b"\0\0\0\x01"),
        (KIND_TRACE, b"\0\0\0\x0a\0\0\0\0\0\0\0\0"),
        (KIND_TAGGED, b"\x08\x00"),
        (KIND_TAGGED, b"\0\x02{}\0\0\0\x05"),
        (KIND_TAGGED, b"\0\x02[]\0\0\0\x01"),
        (KIND_TAGGED, b"\0\x12{\"message_id\":\" \"}\0\0\0\x01"),
        (KIND_FILE_STREAM, b""),
    ] {
        let malformed = read(kind, payload).expect_err("malformed");
        assert!(!malformed.reason.is_empty());
    }
    assert_eq!(read(8, b"abc"), Ok(Incoming::Unknown { kind: 8, len: 3 }));
}

fn any_message() -> impl Strategy<Value = Message> {
    let content = prop::collection::vec(any::<u8>(), 0..200);
    (0..4u8, "[a-zA-Z0-9 .äß_-]{1,40}[a-z]", content).prop_map(|(kind, name, content)| match kind {
        0 => Message::new(MessageKind::Text, content),
        1 => Message::new(MessageKind::Binary, content),
        2 => Message::new(MessageKind::Json, content),
        _ => Message::file(&name, content).expect("a good name"),
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        message in any_message(), sent_at_ns: u64,
        message_id in proptest::option::of("[A-Za-z0-9._:-]{1,128}"),
        reply_to in proptest::option::of("[A-Za-z0-9._:-]{1,128}"),
    ) {
        let read = |bytes: Bytes| Incoming::read(only_frame(&bytes)).expect("own frame");
        prop_assert_eq!(read(message.frame()), Incoming::Message(message.clone()));
        prop_assert_eq!(
            read(message.trace_frame(sent_at_ns)),
            Incoming::Trace { sent_at_ns, message: message.clone() }
        );
        let tags = Tags { message_id, reply_to };
        let tagged = message.tagged_frame(&tags).expect("valid ids");
        prop_assert_eq!(read(tagged), Incoming::Tagged(tags, message));
    }

    #[test]
    fn any_payload_is_read_or_named(
        kind in 0u32..12, payload in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        if let Err(malformed) = Incoming::read(Frame { kind, payload: payload.into() }) {
            prop_assert!(!malformed.reason.is_empty());
        }
    }
}
