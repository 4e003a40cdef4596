//! Data exchange, port 1001: what its frames mean, and how they are acknowledged.
//!
//! ```text
//!  1 TEXT, 2 BINARY, 3 JSON   the bytes
//!  4 FILE                     name length u16 | name | content
//!  5 TRACE                    inner type u32 | sent at, ns since 1970, u64 | inner payload
//!  7 FILESTREAM               see `transfer`
//!  10 TAGGED                  tag length u16 | tags, JSON | inner type u32 | inner payload
//! ```
//!
//! Every message is answered by a TEXT frame, `ACK <NAME> <n> bytes` or `ERR <NAME> save failed:
//! <reason>`, where n counts the bytes of the content and a tagged or traced message is named by what
//! it carries. A type that is not known is answered `ACK UNKNOWN(<type>) <n> bytes` and not kept:
//! that is how a newer sender learns that this peer is older.

use core::fmt;

use bytes::Bytes;
use serde_json::{Value, json};

use super::bounded;
use super::framing::{Fields, Frame, frame};
use super::transfer::{KIND_FILE_STREAM, Transfer};

/// Longest payload that a node takes: what Pilot's current daemons take by default.
pub const PAYLOAD_LEN_MAX: usize = 64 << 20;
/// Longest payload that every peer takes: daemons up to 1.9 drop the stream beyond.
pub const PAYLOAD_LEN_OLD: usize = 16 << 20;
/// Longest name of a file, in bytes.
pub const FILE_NAME_LEN_MAX: usize = 255;
/// Longest tags, in bytes of JSON.
pub const TAGS_LEN_MAX: usize = 1_024;
/// Longest id of a message.
pub const MESSAGE_ID_LEN_MAX: usize = 128;

const KIND_TEXT: u32 = 1;
const KIND_BINARY: u32 = 2;
const KIND_JSON: u32 = 3;
const KIND_FILE: u32 = 4;
const KIND_TRACE: u32 = 5;
const KIND_TAGGED: u32 = 10;

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8, by agreement: it is not checked.
    Text,
    /// Bytes.
    Binary,
    /// JSON, by agreement: it is not checked.
    Json,
    /// A named file.
    File,
}

impl MessageKind {
    /// Its name in acknowledgements and in the inbox.
    pub fn name(self) -> &'static str {
        match self {
            MessageKind::Text => "TEXT",
            MessageKind::Binary => "BINARY",
            MessageKind::Json => "JSON",
            MessageKind::File => "FILE",
        }
    }

    fn number(self) -> u32 {
        match self {
            MessageKind::Text => KIND_TEXT,
            MessageKind::Binary => KIND_BINARY,
            MessageKind::Json => KIND_JSON,
            MessageKind::File => KIND_FILE,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// The name of a file, safe to use as one; empty for the other kinds.
    pub name: String,
    /// Text, bytes, JSON, or the content of a file.
    pub content: Bytes,
}

impl Message {
    /// A message of a kind without a name.
    pub fn new(kind: MessageKind, content: impl Into<Bytes>) -> Self {
        Message {
            kind,
            name: String::new(),
            content: content.into(),
        }
    }

    /// A file.
    ///
    /// # Errors
    /// The name and what is wrong with it.
    pub fn file(name: &str, content: impl Into<Bytes>) -> Result<Self, String> {
        Ok(Message {
            kind: MessageKind::File,
            name: safe_file_name(name)?,
            content: content.into(),
        })
    }

    /// Reads the payload of type `kind`; `Ok(None)` if that is no message.
    fn read(kind: u32, payload: Bytes) -> Result<Option<Self>, Malformed> {
        let kind = match kind {
            KIND_TEXT => MessageKind::Text,
            KIND_BINARY => MessageKind::Binary,
            KIND_JSON => MessageKind::Json,
            KIND_FILE => return Self::read_file(payload).map(Some),
            _ => return Ok(None),
        };
        Ok(Some(Message::new(kind, payload)))
    }

    fn read_file(payload: Bytes) -> Result<Self, Malformed> {
        let malformed = |reason: String| Malformed {
            name: AckName::Message(MessageKind::File),
            reason,
        };
        let payload_len = payload.len();
        let mut fields = Fields(payload);
        let name = fields
            .u16()
            .and_then(|len| fields.bytes(usize::from(len)))
            .ok_or_else(|| {
                malformed(format!(
                    "{payload_len} bytes do not hold the name they announce"
                ))
            })?;
        let name = core::str::from_utf8(&name)
            .map_err(|_| malformed("the file's name is not UTF-8".to_owned()))?;
        Message::file(name, fields.rest()).map_err(malformed)
    }

    /// Its payload in two parts: what stands before the content.
    fn head(&self) -> Vec<u8> {
        match self.kind {
            MessageKind::File => {
                let len = u16::try_from(self.name.len()).expect("names are 255 bytes at most");
                [&len.to_be_bytes()[..], self.name.as_bytes()].concat()
            }
            MessageKind::Text | MessageKind::Binary | MessageKind::Json => Vec::new(),
        }
    }

    /// Its frame.
    pub fn frame(&self) -> Bytes {
        frame(self.kind.number(), &[&self.head(), &self.content])
    }

    /// Its frame with tags.
    ///
    /// # Errors
    /// Tags that are longer than [`TAGS_LEN_MAX`], or an id that is none.
    pub fn tagged_frame(&self, tags: &Tags) -> Result<Bytes, String> {
        let tags = tags.to_json()?;
        let len = u16::try_from(tags.len()).expect("1,024 at most");
        Ok(frame(
            KIND_TAGGED,
            &[
                &len.to_be_bytes(),
                &tags,
                &self.kind.number().to_be_bytes(),
                &self.head(),
                &self.content,
            ],
        ))
    }

    /// Its frame with the time it is sent, in nanoseconds since 1970.
    pub fn trace_frame(&self, sent_at_ns: u64) -> Bytes {
        frame(
            KIND_TRACE,
            &[
                &self.kind.number().to_be_bytes(),
                &sent_at_ns.to_be_bytes(),
                &self.head(),
                &self.content,
            ],
        )
    }
}

/// Whether `id` can name a message: 1 to 128 of `[A-Za-z0-9._:-]`.
pub fn is_message_id(id: &str) -> bool {
    (1..=MESSAGE_ID_LEN_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
}

/// The last component of `name` if it can be a file's name anywhere: 1 to 255 bytes without
/// separators and control characters, and neither `.` nor `..`.
///
/// # Errors
/// The name and why it is refused.
pub fn safe_file_name(name: &str) -> Result<String, String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let refused = |why: &str| Err(format!("file name {:?}: {why}", bounded(name, 80)));
    if last.is_empty() || last == "." || last == ".." {
        return refused("names no file");
    }
    if last.len() > FILE_NAME_LEN_MAX {
        return refused(&format!(
            "{} bytes, at most {FILE_NAME_LEN_MAX}",
            last.len()
        ));
    }
    if last.chars().any(char::is_control) {
        return refused("holds a control character");
    }
    Ok(last.to_owned())
}

/// What a tagged message says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Its own id: a repeat of the same content from the same sender is kept once.
    pub message_id: Option<String>,
    /// The id of the message that it answers.
    pub reply_to: Option<String>,
}

impl Tags {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| format!("tags are no JSON: {error}"))?;
        let id = |member: &str| match value.get(member) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(id)) if id.is_empty() => Ok(None),
            Some(Value::String(id)) if is_message_id(id) => Ok(Some(id.clone())),
            Some(other) => Err(format!(
                "{member} {}, must be 1 to {MESSAGE_ID_LEN_MAX} of A-Z a-z 0-9 . _ : -",
                bounded(&other.to_string(), 80)
            )),
        };
        if !value.is_object() {
            return Err("tags are no JSON object".to_owned());
        }
        Ok(Tags {
            message_id: id("message_id")?,
            reply_to: id("reply_to")?,
        })
    }

    fn to_json(&self) -> Result<Vec<u8>, String> {
        let mut members = serde_json::Map::new();
        for (member, id) in [
            ("message_id", &self.message_id),
            ("reply_to", &self.reply_to),
        ] {
            let Some(id) = id else { continue };
            if !is_message_id(id) {
                return Err(format!(
                    "{member} {:?}, must be 1 to {MESSAGE_ID_LEN_MAX} of A-Z a-z 0-9 . _ : -",
                    bounded(id, 80)
                ));
            }
            members.insert(member.to_owned(), Value::from(id.as_str()));
        }
        // Two ids of 128 bytes and their names stay far below the bound.
        Ok(Value::Object(members).to_string().into_bytes())
    }
}

/// What a frame of data exchange says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message.
    Message(Message),
    /// A message with tags.
    Tagged(Tags, Message),
    /// A message whose sender wants to know when it passed where.
    Trace {
        /// When it was sent by the sender's clock, in nanoseconds since 1970.
        sent_at_ns: u64,
        /// What it carries.
        message: Message,
    },
    /// A piece of a file in chunks.
    Transfer(Transfer),
    /// Something that this node does not know.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its length in bytes.
        len: usize,
    },
}

/// A frame whose payload is not what its type promises. The stream goes on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// How it is named in the answer.
    pub name: AckName,
    /// What is wrong, with the value and the bound.
    pub reason: String,
}

impl Incoming {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`Malformed`]: to be answered, and passed over.
    pub fn read(frame: Frame) -> Result<Self, Malformed> {
        let Frame { kind, payload } = frame;
        let len = payload.len();
        match kind {
            KIND_TRACE => Self::read_trace(payload),
            KIND_TAGGED => Self::read_tagged(payload),
            KIND_FILE_STREAM => Transfer::read(payload)
                .map(Incoming::Transfer)
                .map_err(|reason| Malformed {
                    name: AckName::Unknown(kind),
                    reason,
                }),
            _ => Ok(Message::read(kind, payload)?
                .map_or(Incoming::Unknown { kind, len }, Incoming::Message)),
        }
    }

    fn read_trace(payload: Bytes) -> Result<Self, Malformed> {
        let name = AckName::Unknown(KIND_TRACE);
        let len = payload.len();
        let mut fields = Fields(payload);
        let (Some(kind), Some(sent_at_ns)) = (fields.u32(), fields.u64()) else {
            let reason = format!("a trace of {len} bytes, at least 12");
            return Err(Malformed { name, reason });
        };
        match Message::read(kind, fields.rest())? {
            Some(message) => Ok(Incoming::Trace {
                sent_at_ns,
                message,
            }),
            None => Err(Malformed {
                name,
                reason: format!("a trace of type {kind}, which is no message"),
            }),
        }
    }

    fn read_tagged(payload: Bytes) -> Result<Self, Malformed> {
        let name = AckName::Unknown(KIND_TAGGED);
        let malformed = |reason: String| Malformed { name, reason };
        let len = payload.len();
        let mut fields = Fields(payload);
        let tags_len = usize::from(fields.u16().unwrap_or(0));
        if tags_len > TAGS_LEN_MAX {
            return Err(malformed(format!(
                "tags of {tags_len} bytes, at most {TAGS_LEN_MAX}"
            )));
        }
        let (Some(tags), Some(kind)) = (fields.bytes(tags_len), fields.u32()) else {
            return Err(malformed(format!(
                "{len} bytes do not hold tags of {tags_len} bytes and a type"
            )));
        };
        let tags = Tags::read(&tags).map_err(malformed)?;
        match Message::read(kind, fields.rest())? {
            Some(message) => Ok(Incoming::Tagged(tags, message)),
            None => Err(malformed(format!(
                "a tagged frame of type {kind}, which is no message"
            ))),
        }
    }
}

/// How a message is named in its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckName {
    /// By its kind.
    Message(MessageKind),
    /// By a number that the receiver does not know.
    Unknown(u32),
}

impl fmt::Display for AckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AckName::Message(kind) => f.write_str(kind.name()),
            AckName::Unknown(number) => write!(f, "UNKNOWN({number})"),
        }
    }
}

impl AckName {
    fn read(text: &str) -> Option<Self> {
        let all = [
            MessageKind::Text,
            MessageKind::Binary,
            MessageKind::Json,
            MessageKind::File,
        ];
        if let Some(kind) = all.into_iter().find(|kind| kind.name() == text) {
            return Some(AckName::Message(kind));
        }
        let number = text.strip_prefix("UNKNOWN(")?.strip_suffix(')')?;
        number.parse().ok().map(AckName::Unknown)
    }
}

/// The answer to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It is kept, or it is of no known type.
    Taken {
        /// What it was.
        name: AckName,
        /// Its content, in bytes.
        len: u64,
        /// Whether it had been kept before.
        duplicate: bool,
    },
    /// It is not kept.
    Refused {
        /// What it was.
        name: AckName,
        /// Why.
        reason: String,
    },
}

/// Between `ERR <NAME>` and the reason.
const SAVE_FAILED: &str = "save failed: ";

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ack::Taken {
                name,
                len,
                duplicate,
            } => {
                let suffix = if *duplicate { " (duplicate)" } else { "" };
                write!(f, "ACK {name} {len} bytes{suffix}")
            }
            Ack::Refused { name, reason } => write!(f, "ERR {name} {SAVE_FAILED}{reason}"),
        }
    }
}

impl Ack {
    /// Reads the text of an answer; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("ACK ") {
            let (name, rest) = rest.split_once(' ')?;
            let (rest, duplicate) = match rest.strip_suffix(" (duplicate)") {
                Some(rest) => (rest, true),
                None => (rest, false),
            };
            let len = rest.strip_suffix(" bytes")?.parse().ok()?;
            let name = AckName::read(name)?;
            return Some(Ack::Taken {
                name,
                len,
                duplicate,
            });
        }
        let (name, reason) = text.strip_prefix("ERR ")?.split_once(' ')?;
        let reason = reason.strip_prefix(SAVE_FAILED).unwrap_or(reason);
        Some(Ack::Refused {
            name: AckName::read(name)?,
            reason: bounded(reason, 300),
        })
    }

    /// Its frame.
    pub fn frame(&self) -> Bytes {
        frame(KIND_TEXT, &[self.to_string().as_bytes()])
    }
}

/// When a traced message passed where, in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceReport {
    /// As the sender said.
    pub sent_at_ns: u64,
    /// When it was read off the stream.
    pub received_at_ns: u64,
    /// When it was kept; 0 if it was not.
    pub inbox_written_at_ns: u64,
    /// When the answer left.
    pub ack_sent_at_ns: u64,
    /// The answer to what it carried.
    pub inner_ack: Ack,
}

impl TraceReport {
    /// Its frame, of type JSON.
    pub fn frame(&self) -> Bytes {
        let value = json!({
            "sent_at_ns": self.sent_at_ns,
            "received_at_ns": self.received_at_ns,
            "inbox_written_at_ns": self.inbox_written_at_ns,
            "ack_sent_at_ns": self.ack_sent_at_ns,
            "inner_ack": self.inner_ack.to_string(),
        });
        frame(KIND_JSON, &[value.to_string().as_bytes()])
    }
}

#[cfg(test)]
mod tests;
