//! Files in chunks: the payload of a FILESTREAM frame of data exchange.
//!
//! ```text
//!  kind u8 | transfer id 16 | body
//!  1 INIT       size u64 | SHA-256 32 | chunk u32 | name length u16 | name
//!  2 CHUNK      offset u64 | data
//!  3 ACK        offset u64: everything before it is kept
//!  4 DONE
//!  5 INIT-ACK   offset u64: where to begin
//!  6 COMPLETE   status u8, 0 if all is well | message
//!  7 ABORT      message
//! ```
//!
//! The id is the first half of the content's SHA-256, so that a sender that comes back continues
//! the same transfer.

use bytes::Bytes;

use super::bounded;
use super::exchange::safe_file_name;
use super::framing::{Fields, frame};

/// The type of its frames.
pub const KIND_FILE_STREAM: u32 = 7;
/// Content in a chunk, in bytes, as Pilot's daemons send it.
pub const CHUNK_LEN: usize = 48 << 10;
/// Longest content of a chunk that is taken.
pub const CHUNK_LEN_MAX: usize = 1 << 20;
/// Chunks that a sender may have unacknowledged.
pub const WINDOW_CHUNKS: usize = 16;
/// Longest message of a COMPLETE or an ABORT that is read.
const MESSAGE_LEN_MAX: usize = 1_024;

/// Names a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// The id of the transfer of a content with this digest.
    pub fn of(sha256: &[u8; 32]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&sha256[..16]);
        TransferId(id)
    }
}

impl core::fmt::Display for TransferId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Length of the content, in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: [u8; 32],
    /// Length of a chunk, in bytes.
    pub chunk_len: u32,
    /// The file's name, safe to use as one.
    pub name: String,
}

/// One step of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sender announces a file.
    Init(Init),
    /// A piece of it.
    Chunk {
        /// Where it belongs.
        offset: u64,
        /// The piece.
        data: Bytes,
    },
    /// The receiver keeps everything before the offset.
    Ack(u64),
    /// The sender has sent everything.
    Done,
    /// The receiver wants everything from the offset on.
    InitAck(u64),
    /// The receiver has it all, or not.
    Complete {
        /// Whether it is kept.
        ok: bool,
        /// Why not, or what became of it.
        message: String,
    },
    /// Either gives up.
    Abort(String),
}

/// A frame of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which.
    pub id: TransferId,
    /// What.
    pub step: Step,
}

impl Transfer {
    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// What is wrong with it, by value and bound.
    pub fn read(payload: Bytes) -> Result<Self, String> {
        let len = payload.len();
        let mut fields = Fields(payload);
        let (Some(kind), Some(id)) = (fields.byte(), fields.array::<16>()) else {
            return Err(format!("a transfer frame of {len} bytes, at least 17"));
        };
        let short = || format!("a transfer frame of kind {kind} is cut short at {len} bytes");
        let step = match kind {
            1 => Step::Init(read_init(fields)?),
            2 => {
                let offset = fields.u64().ok_or_else(short)?;
                let data = fields.rest();
                if data.len() > CHUNK_LEN_MAX {
                    let len = data.len();
                    return Err(format!("a chunk of {len} bytes, at most {CHUNK_LEN_MAX}"));
                }
                Step::Chunk { offset, data }
            }
            3 => Step::Ack(fields.u64().ok_or_else(short)?),
            4 => Step::Done,
            5 => Step::InitAck(fields.u64().ok_or_else(short)?),
            6 => Step::Complete {
                ok: fields.byte().ok_or_else(short)? == 0,
                message: read_text(&fields.rest()),
            },
            7 => Step::Abort(read_text(&fields.rest())),
            _ => return Err(format!("a transfer frame of kind {kind}, must be 1 to 7")),
        };
        Ok(Transfer {
            id: TransferId(id),
            step,
        })
    }

    /// Its frame.
    pub fn frame(&self) -> Bytes {
        let of = |kind: u8, parts: &[&[u8]]| {
            let kind = [kind];
            let head: [&[u8]; 2] = [&kind, &self.id.0];
            frame(KIND_FILE_STREAM, &[&head, parts].concat())
        };
        match &self.step {
            Step::Init(init) => {
                let name_len = u16::try_from(init.name.len()).expect("255 at most");
                of(
                    1,
                    &[
                        &init.size.to_be_bytes(),
                        &init.sha256,
                        &init.chunk_len.to_be_bytes(),
                        &name_len.to_be_bytes(),
                        init.name.as_bytes(),
                    ],
                )
            }
            Step::Chunk { offset, data } => of(2, &[&offset.to_be_bytes(), data]),
            Step::Ack(offset) => of(3, &[&offset.to_be_bytes()]),
            Step::Done => of(4, &[]),
            Step::InitAck(offset) => of(5, &[&offset.to_be_bytes()]),
            Step::Complete { ok, message } => of(6, &[&[u8::from(!ok)], message.as_bytes()]),
            Step::Abort(message) => of(7, &[message.as_bytes()]),
        }
    }
}

fn read_init(mut fields: Fields) -> Result<Init, String> {
    let short = || "an announcement of a file is cut short".to_owned();
    let size = fields.u64().ok_or_else(short)?;
    let sha256 = fields.array::<32>().ok_or_else(short)?;
    let chunk_len = fields.u32().ok_or_else(short)?;
    let name_len = fields.u16().ok_or_else(short)?;
    let name = fields.bytes(usize::from(name_len)).ok_or_else(short)?;
    let name =
        core::str::from_utf8(&name).map_err(|_| "the file's name is not UTF-8".to_owned())?;
    if chunk_len == 0 || chunk_len as usize > CHUNK_LEN_MAX {
        return Err(format!(
            "chunks of {chunk_len} bytes, must be 1 to {CHUNK_LEN_MAX}"
        ));
    }
    Ok(Init {
        size,
        sha256,
        chunk_len,
        name: safe_file_name(name)?,
    })
}

fn read_text(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(4 * MESSAGE_LEN_MAX)];
    bounded(&String::from_utf8_lossy(head), MESSAGE_LEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::framing::FRAME_HEADER_LEN;
    use proptest::prelude::*;

    fn again(transfer: &Transfer) -> Result<Transfer, String> {
        Transfer::read(transfer.frame().slice(FRAME_HEADER_LEN..))
    }

    #[test]
    fn an_announcement_is_laid_out_as_it_travels() {
        let mut sha256 = [0; 32];
        sha256[0] = 0xAB;
        let init = Transfer {
            id: TransferId::of(&sha256),
            step: Step::Init(Init {
                size: 258,
                sha256,
                chunk_len: 49_152,
                name: "a.b".to_owned(),
            }),
        };
        let frame = init.frame();
        assert_eq!(frame[..9], [0, 0, 0, 7, 0, 0, 0, 66, 1]);
        assert_eq!(frame[9], 0xAB, "the id");
        assert_eq!(frame[25..33], 258u64.to_be_bytes());
        assert_eq!(frame[33], 0xAB, "the digest");
        assert_eq!(frame[65..], *b"\0\0\xc0\0\0\x03a.b");
        assert_eq!(init.id.to_string(), format!("ab{}", "0".repeat(30)));
        assert_eq!(again(&init), Ok(init));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let long = Transfer {
            id: TransferId([0; 16]),
            step: Step::Chunk {
                offset: 0,
                data: vec![0; CHUNK_LEN_MAX + 1].into(),
            },
        };
        assert!(again(&long).is_err_and(|reason| reason.contains("1048577")));
        let none = Transfer {
            id: TransferId([0; 16]),
            step: Step::Init(Init {
                size: 0,
                sha256: [0; 32],
                chunk_len: 0,
                name: "x".to_owned(),
            }),
        };
        assert!(again(&none).is_err());
        for cut in 0..17 {
            assert!(Transfer::read(vec![4; cut].into()).is_err());
        }
        assert!(Transfer::read(vec![9; 40].into()).is_err());
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let data = prop::collection::vec(any::<u8>(), 0..300);
        let text = "[a-z ]{0,60}";
        (0..7u8, any::<u64>(), any::<[u8; 32]>(), data, text).prop_map(
            |(kind, number, sha256, data, text)| match kind {
                0 => Step::Init(Init {
                    size: number,
                    sha256,
                    chunk_len: u32::from(sha256[0]) + 1,
                    name: format!("x{text}"),
                }),
                1 => Step::Chunk {
                    offset: number,
                    data: data.into(),
                },
                2 => Step::Ack(number),
                3 => Step::Done,
                4 => Step::InitAck(number),
                5 => Step::Complete {
                    ok: number % 2 == 0,
                    message: text,
                },
                _ => Step::Abort(text),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_its_prefixes_never_panic(
            id: [u8; 16], step in any_step(),
        ) {
            let transfer = Transfer { id: TransferId(id), step };
            prop_assert_eq!(again(&transfer), Ok(transfer.clone()));
            let payload = transfer.frame().slice(FRAME_HEADER_LEN..);
            for len in 0..payload.len() {
                let _ = Transfer::read(payload.slice(..len));
            }
        }
    }
}
