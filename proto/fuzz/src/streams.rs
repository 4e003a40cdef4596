//! A stream whose peer says whatever it likes.

use std::time::Duration;

use ramjet_proto::engagement::congestion::Congestion;
use ramjet_proto::stream::session::ALLOWANCE_MIN;
use ramjet_proto::stream::{Event, SegmentHead, SegmentSink, Session};
use ramjet_proto::time::Time;
use ramjet_proto::wire::header::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN};

/// Our first sequence number: the third kilobyte wraps.
const OURS: u32 = u32::MAX - 2_500;
/// The peer's.
const THEIRS: u32 = u32::MAX - 60;
const OPTIONS: &[u8] = b"RJST\x01\x0a\0\0";

/// What became of an input, for tests that want to know how deep it reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that were read in order.
    pub read: usize,
    /// Packets that left.
    pub sent: usize,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// Takes packets while there is room, and checks each against what was written.
struct Wire<'w> {
    room: usize,
    written: &'w [u8],
    sent: usize,
}

impl SegmentSink for Wire<'_> {
    fn put(&mut self, head: SegmentHead, payload: &[u8]) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.sent += 1;
        let marks = FLAG_SYN | FLAG_FIN | FLAG_RST;
        let from = head.sequence.wrapping_sub(OURS.wrapping_add(1));
        // The byte before the next is asked for with a zero; ranges have a mark of their own.
        let asks = payload == [0] && (from as usize + 1 == self.written.len() || from == u32::MAX);
        let is_data = head.flags & marks == 0 && !payload.is_empty();
        if is_data && !payload.starts_with(b"SACK") && !asks {
            let from = from as usize;
            let expected = self.written.get(from..from + payload.len());
            let sent_alike = expected == Some(payload) || payload == [0];
            assert!(sent_alike, "what leaves is what was written");
        }
        true
    }
}

/// A session, its peer's packets, its user and its clock, step by step: one byte kind, two bytes
/// length (big-endian), that many bytes. The first byte of all: even dials, odd answers a SYN; its
/// second bit makes the peer a ramjet node.
///
/// | kind mod 6 | the bytes are |
/// |---|---|
/// | 0 | a packet: flags, sequence and acknowledgment as offsets of two bytes, window, payload |
/// | 1 | bytes that the user writes |
/// | 2 | milliseconds that pass, two bytes |
/// | 3 | none: the user reads, and lets the peer send more |
/// | 4 | none: what may leave leaves, as far as kind / 6 packets |
/// | 5 | the user closes, or resets if the first is odd |
pub fn streams(data: &[u8]) -> Outcome {
    let Some((&first, mut rest)) = data.split_first() else {
        return Outcome::default();
    };
    let mut now = Time::from_nanos(1_000_000_000);
    let mut path = Congestion::new(now);
    let options = if first & 2 == 0 { &[][..] } else { OPTIONS };
    let syn = SegmentHead {
        flags: FLAG_SYN,
        sequence: THEIRS,
        acknowledgment: 0,
        window: 512,
    };
    let mut session = if first & 1 == 0 {
        let mut session = Session::dial(now, OURS, Duration::from_secs(8));
        session.begin(now);
        session
    } else {
        Session::accept(now, OURS, &syn, options, ALLOWANCE_MIN)
    };
    let (mut outcome, mut written) = (Outcome::default(), Vec::new());
    while let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (bytes, after) = after.split_at(length);
        rest = after;
        match kind % 6 {
            0 => packet(&mut session, now, bytes, options, &mut path),
            1 => {
                written.extend_from_slice(bytes);
                let before = session.unsent();
                session.write(bytes.to_vec().into());
                if session.unsent() == before {
                    // Nothing is taken before it is open, or after its end.
                    written.truncate(written.len() - bytes.len());
                }
            }
            2 => {
                let millis = bytes.first_chunk::<2>();
                let millis = millis.map_or(1, |bytes| u16::from_be_bytes(*bytes));
                now = now + Duration::from_millis(u64::from(millis));
                session.handle_timeout(now, &mut path);
            }
            3 => {
                let bytes = session.take_inbound();
                assert!(bytes.len() <= ALLOWANCE_MIN, "more than was promised");
                session.consumed(bytes.len());
                outcome.read += bytes.len();
            }
            4 => {
                let mut wire = Wire {
                    room: usize::from(kind / 6),
                    written: &written,
                    sent: 0,
                };
                let mut quota = 10_000;
                session.transmit(now, &mut path, 1_330, &mut quota, &mut wire);
                outcome.sent += wire.sent;
            }
            _ if bytes.first().is_some_and(|byte| byte % 2 == 1) => session.reset(&mut path),
            _ => session.close(now, &mut path),
        }
        outcome.events.extend(session.take_event());
    }
    let standing = session.standing(&path);
    assert!(standing.bytes_sent <= written.len() as u64);
    session.vanish(&mut path);
    assert_eq!(path.in_flight(), (0, 0), "an end counts nothing");
    outcome
}

/// A packet of the peer, its numbers near those that would be right.
fn packet(session: &mut Session, now: Time, bytes: &[u8], options: &[u8], path: &mut Congestion) {
    let Some((&[flags, s0, s1, a0, a1, w0, w1], payload)) = bytes.split_first_chunk::<7>() else {
        return;
    };
    let offset = |high, low| u32::from(u16::from_be_bytes([high, low]));
    let head = SegmentHead {
        flags: flags & 0x0F,
        sequence: THEIRS.wrapping_add(offset(s0, s1)),
        acknowledgment: OURS.wrapping_add(offset(a0, a1)),
        window: u16::from_be_bytes([w0, w1]),
    };
    let answers = head.flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN | FLAG_ACK;
    let payload = if answers { options } else { payload };
    // Refusals by reason are the point; that none of them panics is checked.
    let _ = session.receive(now, &head, payload, path, ALLOWANCE_MIN);
}
