//! One frame's content, read: a Pilot message, a market request, or a fault with a name.
//!
//! A pure function of bytes. What it returns is bounded by the frame it was given.

use std::borrow::Cow;

use bytes::Bytes;
use ramjet_proto::market::message::Request;
use serde::Deserialize;
use serde_json::Value;
use serde_json::error::Category;

use crate::command::{Refused, Why};
use crate::fault::Count;
use crate::ledger::{market_refusal, pilot_error};
use crate::pilot;

/// What marks a market request.
const MARKET_PREFIX: &str = "market_";
/// The market requests there are.
const MARKET_KINDS: [&str; 11] = [
    "market_accept",
    "market_advertise",
    "market_engagements",
    "market_hello",
    "market_offer",
    "market_prove",
    "market_release",
    "market_renew",
    "market_resolve",
    "market_settle",
    "market_standing",
];

/// A message of known type.
#[derive(Debug)]
pub enum Message {
    /// Of Pilot.
    Pilot(pilot::Ask),
    /// Of Pilot, and refused without asking the state.
    PilotRefused(Refused),
    /// Of the market.
    Market(Box<Request>),
}

/// Why a frame's content is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageFault {
    /// Its counter.
    pub count: Count,
    /// The request's number, if it is one of the market's.
    market_id: Option<u64>,
    reason: String,
}

impl MessageFault {
    fn new(count: Count, reason: impl Into<String>) -> Self {
        MessageFault {
            count,
            market_id: None,
            reason: reason.into(),
        }
    }

    /// The framed answer: a refusal to market clients, Pilot's error object to others.
    pub fn answer(&self) -> Bytes {
        match self.market_id {
            None => pilot_error(&self.reason),
            Some(id) => market_refusal(id, Refused::new(Why::Malformed, self.reason.clone())),
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    id: Value,
}

/// Reads one frame's content.
///
/// # Errors
/// [`MessageFault`]; the connection can go on.
pub fn read(frame: &[u8]) -> Result<Message, MessageFault> {
    let text = core::str::from_utf8(frame).map_err(|error| {
        MessageFault::new(
            Count::MessageNotUtf8,
            format!("invalid message: not UTF-8 at byte {}", error.valid_up_to()),
        )
    })?;
    let no_type = || {
        MessageFault::new(
            Count::MessageNoType,
            "invalid message: a JSON object with a text member \"type\" is required",
        )
    };
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| {
        if error.classify() == Category::Data {
            return no_type();
        }
        MessageFault::new(Count::MessageNotJson, format!("invalid message: {error}"))
    })?;
    // A sequence would pass for a structure.
    if !text.trim_start().starts_with('{') {
        return Err(no_type());
    }
    if envelope.kind.starts_with(MARKET_PREFIX) {
        return read_market(text, &envelope);
    }
    let value: Value = serde_json::from_str(text).map_err(|error| {
        MessageFault::new(Count::MessageNotJson, format!("invalid message: {error}"))
    })?;
    match pilot::read(&envelope.kind, &value) {
        Some(Ok(ask)) => Ok(Message::Pilot(ask)),
        Some(Err(refused)) => Ok(Message::PilotRefused(refused)),
        None => Err(unknown(&envelope.kind, None)),
    }
}

fn read_market(text: &str, envelope: &Envelope<'_>) -> Result<Message, MessageFault> {
    let market_id = Some(envelope.id.as_u64().unwrap_or(0));
    if !MARKET_KINDS.contains(&&*envelope.kind) {
        return Err(unknown(&envelope.kind, market_id));
    }
    serde_json::from_str(text)
        .map(|request| Message::Market(Box::new(request)))
        .map_err(|error| {
            let reason = format!("{}: {error}", envelope.kind);
            MessageFault {
                market_id,
                ..MessageFault::new(Count::MessageMalformed, reason)
            }
        })
}

fn unknown(kind: &str, market_id: Option<u64>) -> MessageFault {
    let reason = format!("invalid message: the type {kind:?} is unknown to this registry");
    MessageFault {
        market_id,
        ..MessageFault::new(Count::MessageUnknownType, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_told_apart_by_name() {
        let deep = format!(
            "{{\"type\":\"lookup\",\"a\":{}1{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let table: [(&[u8], Count); 11] = [
            (b"\xff\xfe{}", Count::MessageNotUtf8),
            (b"not json", Count::MessageNotJson),
            (b"{\"type\":\"lookup\"", Count::MessageNotJson),
            (deep.as_bytes(), Count::MessageNotJson),
            (b"[\"lookup\",1]", Count::MessageNoType),
            (b"7", Count::MessageNoType),
            (b"{}", Count::MessageNoType),
            (b"{\"type\":7}", Count::MessageNoType),
            (b"{\"type\":\"make_coffee\"}", Count::MessageUnknownType),
            (
                b"{\"type\":\"market_coffee\",\"id\":1}",
                Count::MessageUnknownType,
            ),
            (
                b"{\"type\":\"market_accept\",\"id\":1,\"terms\":[]}",
                Count::MessageMalformed,
            ),
        ];
        for (bytes, count) in table {
            let fault = read(bytes).expect_err("garbage");
            assert_eq!(fault.count, count, "{:.80}", String::from_utf8_lossy(bytes));
            assert!(fault.answer().len() > 10);
        }
    }

    #[test]
    fn every_market_request_has_its_name_in_the_list() {
        use ramjet_proto::market::message::RequestBody;
        let standing = RequestBody::Standing {
            who: "1".to_owned(),
        };
        let json = serde_json::to_vec(&Request {
            id: 3,
            body: standing,
        })
        .expect("serializes");
        assert!(matches!(read(&json), Ok(Message::Market(request)) if request.id == 3));
        let mut sorted = MARKET_KINDS;
        sorted.sort_unstable();
        assert_eq!(sorted, MARKET_KINDS);
    }
}
