//! What a program does with an established stream of its node, besides single round trips: a long
//! transfer through the echo service, and acknowledged messages through data exchange.
//!
//! Invariants: every byte that comes back is compared; nothing is counted that was not.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::frames::{Frame, command, write_frame};
use super::link::{Link, at};
use crate::failure::Failure;
use crate::load::{number_of, write_payload};

/// Port of data exchange.
const EXCHANGE_PORT: u16 = 1001;
/// Bytes of one write to the local socket.
const WRITE_LEN: usize = 16 * 1024;
/// What the transfer is made of: blocks with their number, so that nothing that is lost, doubled or
/// moved stays unseen.
const BLOCK_LEN: usize = 1_024;
/// Bytes on their way at most. With 1 MiB a daemon of 1.9.1 stops for good, towards its own kind as
/// well: what it cannot hand on keeps it from what it could.
const AHEAD_MAX: u64 = 256 * 1024;
/// How long a transfer may take.
const ECHO_LIMIT: Duration = Duration::from_secs(150);
/// How long messages may take.
const MESSAGES_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a message.
const MESSAGE_LEN: u32 = 64;
/// Messages without an acknowledgment.
const UNACKNOWLEDGED_MAX: u64 = 256;
/// A message of text, in the frames of data exchange.
const TEXT: u32 = 1;
/// Bytes before a message or an acknowledgment: type and length.
const HEAD_LEN: usize = 8;

/// Sends `len` bytes, a multiple of 16 KiB, to the echo service of `node` and takes them back.
/// Returns how long that took.
///
/// # Errors
/// If what comes back differs, or does not come in time.
pub(crate) async fn echo(link: &mut Link, node: u32, len: u64) -> Result<Duration, Failure> {
    let id = link.dial_echo(node).await?;
    let began = Instant::now();
    let (mut sent, mut received) = (0, 0);
    let (mut out, mut block) = (Vec::new(), Vec::with_capacity(BLOCK_LEN));
    let transfer = async {
        while received < len {
            while sent < len && sent - received < AHEAD_MAX && out.is_empty() {
                write_frame(&mut out, command::SEND, |out| {
                    out.extend_from_slice(&id);
                    for at in (0..WRITE_LEN).step_by(BLOCK_LEN) {
                        let number = (sent + at as u64) / BLOCK_LEN as u64;
                        write_payload(number, BLOCK_LEN, |part| out.extend_from_slice(part));
                    }
                })?;
                sent += WRITE_LEN as u64;
            }
            link.exchange(&mut out).await?;
            while let Some(frame) = link.frames.next()? {
                let Some(mut bytes) = of_stream(frame, id)? else {
                    continue;
                };
                received += bytes.len() as u64;
                while !bytes.is_empty() {
                    let (part, rest) = bytes.split_at(bytes.len().min(BLOCK_LEN - block.len()));
                    block.extend_from_slice(part);
                    bytes = rest;
                    if block.len() == BLOCK_LEN {
                        let upto = received - bytes.len() as u64;
                        let expected = upto / BLOCK_LEN as u64 - 1;
                        if number_of(&block, BLOCK_LEN)? != expected {
                            return Err(Failure::Wrong(format!(
                                "block {expected} of the echo is another one"
                            )));
                        }
                        block.clear();
                    }
                }
            }
        }
        Ok(began.elapsed())
    };
    timeout(ECHO_LIMIT, transfer).await.unwrap_or_else(|_| {
        Err(at(format!(
            "the echo of {len} bytes was not back within {} s",
            ECHO_LIMIT.as_secs()
        )))
    })
}

/// Sends `count` messages of 64 bytes to data exchange at `node`, [`UNACKNOWLEDGED_MAX`] of them
/// unacknowledged at a time. Returns how long it took until all were.
///
/// # Errors
/// If one is refused or acknowledged as something else, or not in time.
pub(crate) async fn messages(link: &mut Link, node: u32, count: u64) -> Result<Duration, Failure> {
    let id = link.dial(node, EXCHANGE_PORT).await?;
    let acknowledged = format!("ACK TEXT {MESSAGE_LEN} bytes");
    let began = Instant::now();
    let (mut out, mut back) = (Vec::new(), Vec::new());
    let (mut sent, mut done) = (0, 0);
    let talk = async {
        while done < count {
            while sent < count && sent - done < UNACKNOWLEDGED_MAX {
                write_frame(&mut out, command::SEND, |out| {
                    out.extend_from_slice(&id);
                    out.extend_from_slice(&TEXT.to_be_bytes());
                    out.extend_from_slice(&MESSAGE_LEN.to_be_bytes());
                    // Text, and another one each time: a message that was seen is not kept again.
                    let words = format!("{sent:0width$}", width = MESSAGE_LEN as usize);
                    out.extend_from_slice(words.as_bytes());
                })?;
                sent += 1;
            }
            link.exchange(&mut out).await?;
            while let Some(frame) = link.frames.next()? {
                if let Some(bytes) = of_stream(frame, id)? {
                    back.extend_from_slice(bytes);
                }
            }
            while let Some(words) = take_words(&mut back) {
                if words != acknowledged || done == sent {
                    return Err(Failure::Wrong(format!("{words:?}, not {acknowledged:?}")));
                }
                done += 1;
            }
        }
        Ok(began.elapsed())
    };
    timeout(MESSAGES_LIMIT, talk)
        .await
        .unwrap_or_else(|_| Err(at(format!("messages to node {node} were not acknowledged"))))
}

/// The bytes of a frame, if it brings some of stream `id`.
fn of_stream(frame: Frame<'_>, id: [u8; 4]) -> Result<Option<&[u8]>, Failure> {
    let ours = frame
        .payload
        .split_first_chunk()
        .filter(|(head, _)| **head == id);
    match (frame.command, ours) {
        (command::RECEIVED, Some((_, bytes))) => Ok(Some(bytes)),
        (command::CLOSED, Some(_)) => Err(at("the stream was closed")),
        (command::ERROR, _) => Err(at(String::from_utf8_lossy(
            frame.payload.get(2..).unwrap_or_default(),
        ))),
        _ => Ok(None),
    }
}

/// The text of the first whole frame of data exchange in `back`.
fn take_words(back: &mut Vec<u8>) -> Option<String> {
    let length = *back.get(4..)?.first_chunk::<4>()?;
    let end = HEAD_LEN.saturating_add(usize::try_from(u32::from_be_bytes(length)).ok()?);
    let words = String::from_utf8_lossy(back.get(HEAD_LEN..end)?).into_owned();
    back.drain(..end);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgments_are_cut_out_of_what_came() {
        let mut back = b"\0\0\0\x01\0\0\0\x03ACK\0\0\0\x01\0\0\0\x02E".to_vec();
        assert_eq!(take_words(&mut back).as_deref(), Some("ACK"));
        assert_eq!(take_words(&mut back), None, "not whole");
        back.push(b'R');
        assert_eq!(take_words(&mut back).as_deref(), Some("ER"));
        assert!(back.is_empty());
    }

    #[test]
    fn only_the_bytes_of_the_stream_count() {
        let frame = |command, payload| Frame { command, payload };
        let id = [0, 0, 0, 7];
        let ours = of_stream(frame(command::RECEIVED, b"\0\0\0\x07hi"), id).expect("no error");
        assert_eq!(ours, Some(&b"hi"[..]));
        let other = of_stream(frame(command::RECEIVED, b"\0\0\0\x08hi"), id).expect("no error");
        assert_eq!(other, None);
        of_stream(frame(command::CLOSED, b"\0\0\0\x07"), id).expect_err("closed");
        of_stream(frame(command::ERROR, b"\0\x01no"), id).expect_err("an error");
    }
}
