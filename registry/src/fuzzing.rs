//! The parser and the state machine without sockets, threads, clock or disk, for fuzz targets.

use ramjet_proto::identity::PublicKey;
use ramjet_proto::market::message::RequestBody;

use crate::answer;
use crate::beacon::Beacon;
use crate::command::{Command, Registration};
use crate::frame::Decoder;
use crate::message::{self, Message};
use crate::pilot::Ask;
use crate::state::State;

/// Feeds bytes to the frame decoder, what it cuts to the request parser, and what that reads to a
/// small state, as if every signature had verified.
///
/// # Panics
/// On any breach of an invariant: that is what it is for.
pub fn requests(data: &[u8]) {
    let mut state = State::default();
    for seed in 1..=3 {
        let registration = Registration {
            key: PublicKey([seed; 32]),
            signed: true,
            endpoint: "127.0.0.1:4000".to_owned(),
            owner: String::new(),
            hostname: String::new(),
            version: String::new(),
            lan_addrs: Vec::new(),
            relay_only: false,
        };
        state
            .apply(0, &Command::Register(registration))
            .expect("a new key registers");
    }
    let mut decoder = Decoder::default();
    decoder.feed(data);
    let mut at_ms = 1;
    while let Ok(Some(frame)) = decoder.next_frame() {
        at_ms += 50;
        match message::read(&frame) {
            Ok(message) => take(&mut state, at_ms, message),
            Err(fault) => assert!(!fault.answer().is_empty(), "every fault is answered"),
        }
        while let Some((due_ms, offer)) = state.book().next_due().filter(|due| due.0 <= at_ms) {
            let expired = state.apply(due_ms, &Command::ExpireOffer { offer });
            assert!(expired.is_ok(), "a due offer expires: {expired:?}");
        }
    }
    let bytes = state.to_bytes();
    let again = State::from_bytes(&bytes).expect("its own snapshot");
    assert_eq!(
        again, state,
        "a snapshot holds everything, the indices included"
    );
}

fn take(state: &mut State, at_ms: u64, message: Message) {
    let command = match message {
        Message::Pilot(Ask::Change { command, .. } | Ask::UnsignedPolo(command)) => command,
        Message::Pilot(Ask::Register(_)) | Message::PilotRefused(_) => return,
        Message::Pilot(ask) => {
            let _ = answer::query(state, &ask, at_ms, None);
            return;
        }
        Message::Market(request) => match request.body {
            RequestBody::Advertise { advertisement, .. } => Command::Advertise(advertisement),
            RequestBody::Offer { offer, .. } => {
                let _ = state.survey(&offer, at_ms, |_| true);
                Command::Offer(offer)
            }
            RequestBody::Accept { terms, .. } => Command::Accept(terms),
            RequestBody::Settle { receipt } => Command::Settle { receipt },
            RequestBody::Release { engagement, reason } => Command::Release {
                engagement,
                node: ramjet_proto::ids::NodeId(1),
                reason,
            },
            RequestBody::Renew {
                engagement,
                tasks,
                duration_s,
            } => {
                let node = ramjet_proto::ids::NodeId(1);
                Command::Renew {
                    engagement,
                    node,
                    tasks,
                    duration_s,
                }
            }
            _ => return,
        },
    };
    let before = state.position();
    let outcome = state.apply(at_ms, &command);
    let advanced = state.position() - before;
    assert!(
        advanced <= 1,
        "one command, one position: {command:?} came to {outcome:?}"
    );
}

/// Feeds one datagram to a beacon.
pub fn beacon(data: &[u8]) {
    let mut beacon = Beacon::new(10);
    let source = std::net::SocketAddr::from(([127, 0, 0, 1], 4_000));
    for now_ms in [0, 10] {
        let _ = beacon.receive(now_ms, source, data, |_, message| {
            assert!(
                message.len() <= data.len() + 20,
                "no amplification beyond an endpoint"
            );
        });
    }
}
