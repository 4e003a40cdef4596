//! The framing of the registry's TCP port: a 4-byte big-endian length, then one JSON object.
//!
//! The decoder holds at most one unfinished frame and grows with the bytes that arrive, never with
//! the length that is announced. After a fault nothing more can be told apart on that connection.

use core::fmt;

use bytes::{Buf, Bytes, BytesMut};
use ramjet_proto::market::message::MESSAGE_LEN_MAX;

use crate::fault::Count;

const LENGTH_LEN: usize = 4;
/// Room for one read: of a short message, and of the rest of a long one.
const ROOM_MIN: usize = 2 << 10;
const ROOM_MAX: usize = 64 << 10;

/// Why the bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// An HTTP request.
    Http,
    /// A TLS handshake.
    Tls,
    /// Pilot's binary mode.
    BinaryMode,
    /// A length above the limit.
    TooLong(u32),
    /// A length of zero.
    Empty,
}

impl FrameFault {
    /// Its counter.
    pub const fn count(self) -> Count {
        match self {
            FrameFault::Http => Count::FrameHttp,
            FrameFault::Tls => Count::FrameTls,
            FrameFault::BinaryMode => Count::FrameBinaryMode,
            FrameFault::TooLong(_) => Count::FrameTooLong,
            FrameFault::Empty => Count::FrameEmpty,
        }
    }
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self {
            FrameFault::Http => "an HTTP request",
            FrameFault::Tls => "a TLS handshake",
            FrameFault::BinaryMode => "the binary mode, which this registry does not speak",
            FrameFault::TooLong(length) => {
                return write!(
                    f,
                    "invalid frame: a length of {length} bytes, at most {MESSAGE_LEN_MAX}"
                );
            }
            FrameFault::Empty => "a length of zero",
        };
        write!(
            f,
            "invalid frame: {found}; send a 4-byte big-endian length, then one JSON object"
        )
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where to read into: room for a short message, or for what is left of a long one, in steps.
    pub fn room(&mut self) -> &mut BytesMut {
        let left = self.expected().unwrap_or(0).saturating_sub(self.held());
        self.buffer.reserve(left.clamp(ROOM_MIN, ROOM_MAX));
        &mut self.buffer
    }

    /// Gives the memory back between messages: most connections are silent for a minute.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Takes bytes that were read elsewhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What came after the first `held` bytes.
    pub fn tail(&self, held: usize) -> &[u8] {
        self.buffer.get(held..).unwrap_or_default()
    }

    /// Bytes of the unfinished frame that are held.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// How many bytes the unfinished frame will have, once its length is known.
    pub fn expected(&self) -> Option<usize> {
        let length: [u8; LENGTH_LEN] = self.buffer.get(..LENGTH_LEN)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(length))
            .ok()
            .map(|length| LENGTH_LEN + length)
    }

    /// The next whole frame's content, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameFault`]: close the connection.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameFault> {
        let Some(head) = self.buffer.get(..LENGTH_LEN) else {
            return Ok(None);
        };
        let head: [u8; LENGTH_LEN] = head.try_into().expect("the slice has this length");
        let length = u32::from_be_bytes(head);
        match usize::try_from(length) {
            Ok(0) => Err(FrameFault::Empty),
            Ok(length) if length <= MESSAGE_LEN_MAX => {
                if self.buffer.len() < LENGTH_LEN + length {
                    return Ok(None);
                }
                self.buffer.advance(LENGTH_LEN);
                Ok(Some(self.buffer.split_to(length).freeze()))
            }
            _ => Err(match &head {
                b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"PRI " | b"CONN" | b"DELE" => {
                    FrameFault::Http
                }
                [0x16, 0x03, ..] => FrameFault::Tls,
                b"PILT" => FrameFault::BinaryMode,
                _ => FrameFault::TooLong(length),
            }),
        }
    }
}

/// The framed form of one message.
///
/// # Panics
/// If it is longer than a frame may be: callers bound what they answer.
pub fn encode(json: &[u8]) -> Bytes {
    assert!(
        json.len() <= MESSAGE_LEN_MAX,
        "a message of {} bytes",
        json.len()
    );
    let length = u32::try_from(json.len()).expect("bounded above");
    let mut frame = BytesMut::with_capacity(LENGTH_LEN + json.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(json);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let stream = [&encode(b"{}")[..], &encode(b"[1,2]")[..]].concat();
        for cut in 0..=stream.len() {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.feed(part);
                while let Some(frame) = decoder.next_frame().expect("well framed") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&b"{}"[..], &b"[1,2]"[..]], "cut at {cut}");
            assert_eq!(decoder.held(), 0);
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let table: [(&[u8], FrameFault); 6] = [
            (b"GET / HTTP/1.1\r\n", FrameFault::Http),
            (b"\x16\x03\x01\x02\x00", FrameFault::Tls),
            (b"PILT\x01", FrameFault::BinaryMode),
            (b"\xff\xff\xff\xff", FrameFault::TooLong(u32::MAX)),
            (b"\x00\x10\x00\x01", FrameFault::TooLong(0x0010_0001)),
            (b"\x00\x00\x00\x00", FrameFault::Empty),
        ];
        for (bytes, fault) in table {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            assert_eq!(decoder.next_frame(), Err(fault));
        }
    }
}
