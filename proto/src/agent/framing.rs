//! The frame of data exchange and of the task service, and its incremental reader.
//!
//! ```text
//!  type u32 | length u32 | payload        big-endian, back to back on one stream
//! ```
//!
//! Invariants: the reader keeps at most one whole payload and what its last chunk held beyond it; a
//! length beyond the bound ends the stream, because what follows it cannot be told apart from
//! frames; space is taken as bytes arrive, never because a length was announced.

use core::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before the payload.
pub const FRAME_HEADER_LEN: usize = 8;

/// One frame as it travelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is; each service has its own numbers.
    pub kind: u32,
    /// Its payload.
    pub payload: Bytes,
}

/// A length that the reader does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameTooLong {
    /// The type of the frame.
    pub kind: u32,
    /// The length it announced, in bytes.
    pub len: u32,
    /// The bound, in bytes.
    pub max: usize,
}

impl fmt::Display for FrameTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrameTooLong { kind, len, max } = self;
        write!(f, "a frame of type {kind} with {len} bytes, at most {max}")
    }
}

impl std::error::Error for FrameTooLong {}

/// Cuts the chunks of a stream into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    payload_len_max: usize,
    fault: Option<FrameTooLong>,
}

impl FrameReader {
    /// A reader that takes payloads of up to `payload_len_max` bytes.
    pub fn new(payload_len_max: usize) -> Self {
        FrameReader {
            buffer: BytesMut::new(),
            payload_len_max,
            fault: None,
        }
    }

    /// Takes a chunk. Call [`Self::next_frame`] until it answers `None` before the next one. After a fault
    /// chunks are dropped.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.fault.is_none() {
            self.buffer.extend_from_slice(chunk);
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// A frame longer than the bound, from then on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameTooLong> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let Some((kind, len)) = self.header() else {
            return Ok(None);
        };
        let len_here = len as usize;
        if len_here > self.payload_len_max {
            let fault = FrameTooLong {
                kind,
                len,
                max: self.payload_len_max,
            };
            self.fault = Some(fault);
            self.buffer = BytesMut::new();
            return Err(fault);
        }
        if self.buffer.len() < FRAME_HEADER_LEN + len_here {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_LEN);
        let payload = self.buffer.split_to(len_here).freeze();
        Ok(Some(Frame { kind, payload }))
    }

    /// Length of the payload that is being awaited, once its header is here: 0 between frames.
    pub fn awaited_len(&self) -> usize {
        self.header().map_or(0, |(_, len)| len as usize)
    }

    /// Bytes that are kept.
    pub fn kept_len(&self) -> usize {
        self.buffer.len()
    }

    fn header(&self) -> Option<(u32, u32)> {
        let header = self.buffer.first_chunk::<FRAME_HEADER_LEN>()?;
        let [a, b, c, d, e, f, g, h] = *header;
        Some((
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        ))
    }
}

/// One frame of type `kind` whose payload is `parts` in order.
///
/// # Panics
/// If the payload is 4 GiB or longer: the services bound what they send far below.
pub fn frame(kind: u32, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(FRAME_HEADER_LEN + len);
    out.extend_from_slice(&kind.to_be_bytes());
    let announced = u32::try_from(len).expect("payloads are bounded below 4 GiB");
    out.extend_from_slice(&announced.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.freeze()
}

/// Reads big-endian fields off the front of a payload.
pub(super) struct Fields(pub(super) Bytes);

impl Fields {
    pub(super) fn byte(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.0.get_u8())
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        (self.0.len() >= 2).then(|| self.0.get_u16())
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        (self.0.len() >= 4).then(|| self.0.get_u32())
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        (self.0.len() >= 8).then(|| self.0.get_u64())
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<Bytes> {
        (self.0.len() >= len).then(|| self.0.split_to(len))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.0.first_chunk::<N>()?;
        self.0.advance(N);
        Some(array)
    }

    /// What is left.
    pub(super) fn rest(self) -> Bytes {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_type_length_payload() {
        let bytes = frame(1, &[b"he", b"llo"]);
        assert_eq!(bytes[..], *b"\0\0\0\x01\0\0\0\x05hello");
    }

    #[test]
    fn a_length_beyond_the_bound_ends_the_stream_without_taking_space() {
        let mut reader = FrameReader::new(16);
        reader.push(&frame(2, &[&[7; 16]]));
        assert_eq!(
            reader
                .next_frame()
                .expect("at the bound")
                .map(|f| f.payload.len()),
            Some(16)
        );
        reader.push(&[0, 0, 0, 2, 0xFF, 0xFF, 0xFF, 0xFF]);
        let fault = reader.next_frame().expect_err("too long");
        assert_eq!(
            fault.to_string(),
            "a frame of type 2 with 4294967295 bytes, at most 16"
        );
        reader.push(&frame(1, &[b"x"]));
        assert_eq!(reader.next_frame(), Err(fault), "for good");
        assert_eq!(reader.kept_len(), 0);
    }

    proptest! {
        #[test]
        fn chunks_of_any_size_give_the_same_frames(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(1usize..200, 1..40),
        ) {
            let sent: Vec<Frame> = (0u32..)
                .zip(&payloads)
                .map(|(kind, payload)| Frame { kind, payload: payload.clone().into() })
                .collect();
            let mut stream: Vec<u8> = Vec::new();
            for Frame { kind, payload } in &sent {
                stream.extend_from_slice(&frame(*kind, &[payload]));
            }
            let mut reader = FrameReader::new(300);
            let mut received = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                rest = after;
                reader.push(chunk);
                while let Some(frame) = reader.next_frame().expect("within the bound") {
                    received.push(frame);
                }
                prop_assert!(reader.kept_len() <= FRAME_HEADER_LEN + 300 + 200);
            }
            prop_assert_eq!(received, sent);
            prop_assert_eq!(reader.kept_len(), 0);
        }
    }
}
