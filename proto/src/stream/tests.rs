//! Two sessions on a virtual clock, with a wire between them that loses, reorders and repeats.

mod endings;
mod flow;

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::session::{ALLOWANCE_MAX, FIN_SENDS_MAX, Spoken, TIME_WAIT};
use super::*;
use crate::engagement::congestion::Congestion;
use crate::fault::DropReason;
use crate::time::Time;
use crate::wire::header::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN};

const MS: Duration = Duration::from_millis(1);

/// What the wire does to packets, in percent, and how long they take.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u64,
    late: u64,
    twice: u64,
    delay: Duration,
}

const CALM: Weather = Weather {
    lost: 0,
    late: 0,
    twice: 0,
    delay: MS,
};

struct End {
    session: Option<Session>,
    path: Congestion,
    read: Vec<u8>,
    events: Vec<Event>,
    /// Whether what arrives is read at once.
    reads: bool,
    unconsumed: usize,
    number: u32,
    len_max: usize,
    /// Lengths of data segments by their number.
    segments: BTreeMap<u32, usize>,
    held: bool,
}

type Packet = (usize, SegmentHead, Vec<u8>);

struct World {
    now: Time,
    ends: [End; 2],
    wire: BTreeMap<(Time, u64), Packet>,
    weather: Weather,
    foreign: bool,
    drawn: u64,
    packets: u64,
    /// Packets that left, with who sent them.
    log: Vec<Packet>,
}

/// Collects what a session says.
struct Log(Vec<(SegmentHead, Vec<u8>)>);

impl SegmentSink for Log {
    fn put(&mut self, head: SegmentHead, payload: &[u8]) -> bool {
        self.0.push((head, payload.to_vec()));
        true
    }
}

fn end(number: u32) -> End {
    End {
        session: None,
        path: Congestion::new(Time::ZERO),
        read: Vec::new(),
        events: Vec::new(),
        reads: true,
        unconsumed: 0,
        number,
        len_max: SEGMENT_LEN_BASE,
        segments: BTreeMap::new(),
        held: false,
    }
}

impl World {
    fn new(foreign: bool, weather: Weather, seed: u64, numbers: [u32; 2]) -> Self {
        let mut world = World {
            now: Time::from_nanos(1_000_000_000),
            ends: numbers.map(end),
            wire: BTreeMap::new(),
            weather,
            foreign,
            drawn: seed,
            packets: 0,
            log: Vec::new(),
        };
        let mut session = Session::dial(world.now, numbers[0], Duration::from_secs(20));
        session.begin(world.now);
        world.ends[0].session = Some(session);
        world
    }

    fn session(&mut self, side: usize) -> &mut Session {
        self.ends[side].session.as_mut().expect("it has begun")
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.drawn = self.drawn.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.drawn;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % below
    }

    fn post(&mut self, from: usize, head: SegmentHead, mut payload: Vec<u8>) {
        if self.foreign && head.flags & FLAG_SYN != 0 {
            payload.clear();
        }
        self.log.push((from, head, payload.clone()));
        let copies = if self.draw(100) < self.weather.twice {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.draw(100) < self.weather.lost {
                continue;
            }
            let mut at = self.now + self.weather.delay;
            if self.draw(100) < self.weather.late {
                at = at + self.weather.delay * u32::try_from(self.draw(4)).expect("small");
            }
            self.packets += 1;
            self.wire
                .insert((at, self.packets), (1 - from, head, payload.clone()));
        }
    }

    /// Everything that may happen without time passing.
    fn settle(&mut self) {
        for side in 0..2 {
            let end = &mut self.ends[side];
            let Some(session) = &mut end.session else {
                continue;
            };
            let mut log = Log(Vec::new());
            let mut quota = 64 << 10;
            let spoken =
                session.transmit(self.now, &mut end.path, end.len_max, &mut quota, &mut log);
            end.held = spoken == Spoken::Held;
            if end.reads {
                let bytes = session.take_inbound();
                session.consumed(bytes.len() + std::mem::take(&mut end.unconsumed));
                end.read.extend_from_slice(&bytes);
            }
            while let Some(event) = session.take_event() {
                end.events.push(event);
            }
            for (head, payload) in log.0 {
                self.check(side, &head, &payload);
                self.post(side, head, payload);
            }
        }
    }

    /// What every packet that leaves must keep to.
    fn check(&mut self, side: usize, head: &SegmentHead, payload: &[u8]) {
        let marks = FLAG_SYN | FLAG_FIN | FLAG_RST;
        let is_data = head.flags & marks == 0 && !payload.is_empty();
        if !is_data || payload.starts_with(b"SACK") || payload == [0] {
            return;
        }
        let end = &mut self.ends[side];
        if self.foreign {
            assert!(payload.len() <= SEGMENT_LEN_FOREIGN);
            let known = *end.segments.entry(head.sequence).or_insert(payload.len());
            assert_eq!(known, payload.len(), "bounds of a segment have changed");
            let standing = end.session.as_ref().expect("it spoke").standing(&end.path);
            assert!(standing.unacknowledged <= SEGMENTS_FOREIGN_MAX);
        } else {
            assert!(payload.len() <= end.len_max);
        }
    }

    fn deliver(&mut self, to: usize, head: &SegmentHead, payload: &[u8]) {
        let end = &mut self.ends[to];
        match &mut end.session {
            Some(session) => {
                // What it makes of it shows in what it says and tells.
                let _ = session.receive(self.now, head, payload, &mut end.path, ALLOWANCE_MAX);
            }
            None if head.flags == FLAG_SYN => {
                end.session = Some(Session::accept(
                    self.now,
                    end.number,
                    head,
                    payload,
                    ALLOWANCE_MAX,
                ));
            }
            None => {}
        }
    }

    /// Runs until something holds; it must within `limit` of virtual time.
    fn run(&mut self, limit: Duration, mut holds: impl FnMut(&mut World) -> bool) {
        let until = self.now + limit;
        loop {
            self.settle();
            if holds(self) {
                return;
            }
            let due = self.ends.iter().filter_map(|end| {
                let session = end.session.as_ref()?;
                // Who shares a path looks again now and then.
                let again = if end.held { self.now + MS } else { Time::NEVER };
                Some(session.next_timeout().min(again))
            });
            let next = due.min().unwrap_or(Time::NEVER);
            let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
            let next = next.min(arrival.unwrap_or(Time::NEVER)).max(self.now);
            assert!(next <= until, "not within {limit:?}: {}", self.standing());
            self.now = next;
            while let Some(entry) = self.wire.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to, head, payload) = entry.remove();
                self.deliver(to, &head, &payload);
            }
            for end in &mut self.ends {
                if let Some(session) = &mut end.session {
                    session.handle_timeout(self.now, &mut end.path);
                }
            }
        }
    }

    fn standing(&self) -> String {
        let of = |end: &End| {
            let session = end.session.as_ref();
            session.map(|session| (session.state(), session.standing(&end.path)))
        };
        let ends = self.ends.iter();
        let ends = ends.map(|end| (of(end), &end.events, end.read.len()));
        format!("{:?}", ends.collect::<Vec<_>>())
    }

    fn connect(&mut self) {
        self.run(Duration::from_secs(20), |world| {
            world.ends[1].session.is_some() && world.ends[0].events == [Event::Connected]
        });
    }

    fn write(&mut self, side: usize, bytes: &[u8]) {
        self.session(side).write(Bytes::copy_from_slice(bytes));
    }

    fn close(&mut self, side: usize) {
        let now = self.now;
        let end = &mut self.ends[side];
        let session = end.session.as_mut().expect("it has begun");
        session.close(now, &mut end.path);
    }
}

/// Bytes in which a swap or a gap shows.
fn text(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|index| (index.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ seed)
        .collect()
}

fn both_ways(mut world: World, lens: [usize; 2]) -> World {
    world.connect();
    let texts = [text(lens[0], 1), text(lens[1], 2)];
    for (side, text) in texts.iter().enumerate() {
        // In pieces of all lengths.
        let mut rest = &text[..];
        let mut len = 1;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            world.write(side, piece);
            (rest, len) = (behind, len * 3 % 50_021 + 1);
        }
    }
    let minutes = Duration::from_secs(600);
    world.run(minutes, |world| {
        world.ends[0].read.len() == lens[1] && world.ends[1].read.len() == lens[0]
    });
    assert_eq!(world.ends[0].read, texts[1]);
    assert_eq!(world.ends[1].read, texts[0]);
    world.close(0);
    world.run(minutes, |world| {
        let over = |end: &End| end.events.iter().any(|event| *event != Event::Connected);
        world.ends.iter().all(over)
    });
    assert_eq!(world.ends[0].events, [Event::Connected, Event::Closed]);
    assert_eq!(world.ends[1].events, [Event::Finished]);
    world
}
