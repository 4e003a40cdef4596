//! Frames of the daemon's local socket.
//!
//! ```text
//!   0        4         5
//!   ┌────────┬─────────┬──────────────┐
//!   │ length │ command │ payload      │   length: big-endian, of command and payload
//!   └────────┴─────────┴──────────────┘
//! ```
//!
//! Invariants: a frame is handed out once it is whole and never before; a length beyond
//! [`FRAME_LEN_MAX`] is refused at its first four bytes. Absent: the socket.

use std::ops::Range;

use crate::failure::Failure;

/// Most bytes of command and payload.
pub(crate) const FRAME_LEN_MAX: usize = 1 << 20;
const HEAD_LEN: usize = 4;

/// Commands of the daemon that an echo needs.
pub(crate) mod command {
    /// Open a stream: address, port.
    pub(crate) const DIAL: u8 = 0x03;
    /// The stream is open: its id.
    pub(crate) const DIAL_OK: u8 = 0x04;
    /// Write to a stream: its id, bytes. Not answered.
    pub(crate) const SEND: u8 = 0x06;
    /// Bytes of a stream: its id, bytes.
    pub(crate) const RECEIVED: u8 = 0x07;
    /// The other side closed a stream: its id.
    pub(crate) const CLOSED: u8 = 0x09;
    /// The last command failed: a code of two bytes, words.
    pub(crate) const ERROR: u8 = 0x0A;
    /// What the daemon knows of itself.
    pub(crate) const INFO: u8 = 0x0D;
    /// The same as JSON.
    pub(crate) const INFO_OK: u8 = 0x0E;
}

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// What it says.
    pub(crate) command: u8,
    /// What it says it about.
    pub(crate) payload: &'a [u8],
}

/// Appends a frame whose payload `fill` appends.
pub(crate) fn write_frame(
    out: &mut Vec<u8>,
    command: u8,
    fill: impl FnOnce(&mut Vec<u8>),
) -> Result<(), Failure> {
    let head = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    out.push(command);
    fill(out);
    let len = out.len() - head - HEAD_LEN;
    let stated = u32::try_from(len).ok().filter(|_| len <= FRAME_LEN_MAX);
    let Some(stated) = stated else {
        out.truncate(head);
        return Err(Failure::Usage(format!(
            "a frame of {len} bytes is too long for the Pilot daemon, at most {FRAME_LEN_MAX}"
        )));
    };
    out[head..head + HEAD_LEN].copy_from_slice(&stated.to_be_bytes());
    Ok(())
}

/// Bytes that came, cut into frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    /// Where the first frame that was not handed out begins.
    begin: usize,
}

impl Frames {
    /// Appends what came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Frames that were handed out leave with the next arrival, in one move.
        self.bytes.drain(..self.begin);
        self.begin = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// If the daemon states a length that no frame has.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, Failure> {
        let Some(body) = self.next_body()? else {
            return Ok(None);
        };
        self.begin = body.end;
        Ok(self.bytes[body]
            .split_first()
            .map(|(&command, payload)| Frame { command, payload }))
    }

    fn next_body(&self) -> Result<Option<Range<usize>>, Failure> {
        let waiting = &self.bytes[self.begin..];
        let Some(&head) = waiting.first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
        if !(1..=FRAME_LEN_MAX).contains(&len) {
            return Err(Failure::Environment(format!(
                "the Pilot daemon states a frame of {len} bytes; frames have 1 to {FRAME_LEN_MAX}"
            )));
        }
        let begin = self.begin + HEAD_LEN;
        Ok((waiting.len() >= HEAD_LEN + len).then_some(begin..begin + len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Send on stream 1, two bytes; Info without payload; Error 1 with words.
    const WIRE: &[u8] = b"\x00\x00\x00\x07\x06\x00\x00\x00\x01hi\
        \x00\x00\x00\x01\x0d\
        \x00\x00\x00\x06\x0a\x00\x01no!";

    #[test]
    fn frames_are_written_as_the_daemon_reads_them() {
        let mut out = Vec::new();
        write_frame(&mut out, command::SEND, |out| {
            out.extend_from_slice(&1_u32.to_be_bytes());
            out.extend_from_slice(b"hi");
        })
        .expect("short");
        write_frame(&mut out, command::INFO, |_| {}).expect("short");
        write_frame(&mut out, command::ERROR, |out| {
            out.extend_from_slice(b"\x00\x01no!");
        })
        .expect("short");
        assert_eq!(out, WIRE);
    }

    #[test]
    fn frames_are_read_whatever_the_pieces_they_come_in() {
        for piece in 1..=WIRE.len() {
            let mut frames = Frames::default();
            let mut read = Vec::new();
            for bytes in WIRE.chunks(piece) {
                frames.push(bytes);
                while let Some(frame) = frames.next().expect("good lengths") {
                    read.push((frame.command, frame.payload.to_vec()));
                }
            }
            let expected: [(u8, &[u8]); 3] = [
                (command::SEND, b"\x00\x00\x00\x01hi"),
                (command::INFO, b""),
                (command::ERROR, b"\x00\x01no!"),
            ];
            assert_eq!(read.len(), 3, "{piece}");
            for ((command, payload), (expected, bytes)) in read.iter().zip(expected) {
                assert_eq!((*command, &payload[..]), (expected, bytes), "{piece}");
            }
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_at_its_head() {
        for head in [[0, 0, 0, 0], [0, 0x10, 0, 1], [0xFF; 4]] {
            let mut frames = Frames::default();
            frames.push(&head);
            let refused = frames.next().expect_err("no such frame").to_string();
            assert!(refused.contains("1 to 1048576"), "{refused}");
        }
        let mut out = b"before".to_vec();
        let fill = |out: &mut Vec<u8>| out.resize(out.len() + FRAME_LEN_MAX, 0);
        write_frame(&mut out, command::SEND, fill).expect_err("a byte too long");
        assert_eq!(out, b"before");
    }
}
