//! What a plain Pilot agent says on a stream: the services above Pilot's ports.
//!
//! | module | port | holds |
//! |---|---|---|
//! | [`framing`] | | the frame that data exchange and the task service share, and its incremental reader |
//! | [`exchange`] | 1001 | data exchange: messages, files, traces, tags, acknowledgements |
//! | [`transfer`] | 1001 | files in chunks, as pieces of a data exchange |
//! | [`request`] | 1001 | a task as a JSON message, and its result |
//! | [`tasks`] | 1003 | the task service of Pilot up to 1.9 |
//! | [`handshake`] | 444 | trust between two nodes |
//!
//! All of it is sans-IO: chunks of a stream in, values out, and the other way about. Whatever a peer
//! sent is checked here, every length against its bound before anything is kept for it; what is
//! wrong is named by value and bound. Absent: storage, policy, and who may say what.

pub mod exchange;
pub mod framing;
pub mod handshake;
pub mod request;
pub mod tasks;
pub mod transfer;

/// Port of the handshake service.
pub const PORT_HANDSHAKE: u16 = 444;
/// Port of data exchange.
pub const PORT_EXCHANGE: u16 = 1_001;
/// Port of the task service.
pub const PORT_TASKS: u16 = 1_003;

/// At most `max` characters of `text` without control characters: what a peer wrote, for logs,
/// errors and answers.
pub fn bounded(text: &str, max: usize) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(max)
        .collect()
}
