//! Bytes on their way, in any weather and against any reader.

use super::*;

#[test]
fn a_calm_wire_repeats_nothing() {
    for foreign in [false, true] {
        let world = both_ways(World::new(foreign, CALM, 1, [7, 9]), [3 << 20, 1 << 20]);
        for end in &world.ends {
            let session = end.session.as_ref().expect("it has begun");
            assert_eq!(session.is_foreign(), foreign);
            assert_eq!(session.standing(&end.path).retransmits, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_arrive_whole_and_in_order_in_any_weather(
        seed in any::<u64>(),
        foreign in any::<bool>(),
        lost in 0_u64..12,
        late in 0_u64..30,
        twice in 0_u64..15,
        delay_us in 20_u64..40_000,
        // Numbers that wrap on the way are as likely as others.
        numbers in prop::array::uniform2(prop_oneof![any::<u32>(), (u32::MAX - 90_000)..]),
        lens in prop::array::uniform2(0_usize..200_000),
    ) {
        let delay = Duration::from_micros(delay_us);
        let weather = Weather { lost, late, twice, delay };
        both_ways(World::new(foreign, weather, seed, numbers), lens);
    }
}

/// Small writes towards other daemons share segments while a short one is unacknowledged, and no
/// longer than a moment; a ramjet node gets each at once.
#[test]
fn small_writes_share_segments_towards_other_daemons() {
    let delay = Duration::from_micros(200);
    for (foreign, most) in [(false, 40), (true, 4)] {
        let mut world = World::new(foreign, Weather { delay, ..CALM }, 1, [1, 2]);
        world.connect();
        let before = world.log.len();
        for write in 0..40_u8 {
            world.write(0, &[write; 64]);
            world.settle();
        }
        world.run(Duration::from_secs(1), |world| {
            world.ends[1].read.len() == 40 * 64
        });
        let data = |packet: &&Packet| packet.0 == 0 && packet.2.len() >= 64;
        let segments = world.log[before..].iter().filter(data).count();
        assert!(
            (1..=most).contains(&segments),
            "{segments} segments, foreign: {foreign}"
        );
        assert!(foreign || segments == 40, "{segments}");
    }
}

/// A peer that acknowledges late does not hold a short tail for longer than its bound.
#[test]
fn a_short_tail_leaves_by_itself() {
    let delay = Duration::from_millis(30);
    let mut world = World::new(true, Weather { delay, ..CALM }, 1, [1, 2]);
    world.connect();
    let began = world.now;
    world.write(0, b"a short one");
    world.settle();
    world.write(0, b"and its tail");
    let both = b"a short oneand its tail".len();
    world.run(Duration::from_secs(1), |world| {
        world.ends[1].read.len() == both
    });
    let took = world.now.since(began);
    assert!(took <= delay + 2 * MS, "{took:?}");
    assert!(took > delay, "held back for no time at all: {took:?}");
}

#[test]
fn a_long_path_is_used() {
    // 40 ms there and back, and 64 MiB: with a window that opens, some seconds.
    let weather = Weather {
        delay: 20 * MS,
        ..CALM
    };
    let mut world = World::new(false, weather, 1, [1, 2]);
    world.connect();
    let whole = text(16 << 20, 3);
    world.write(0, &whole);
    world.run(Duration::from_secs(6), |world| {
        world.ends[1].read.len() == whole.len()
    });
    assert!(world.ends[1].read == whole);
}

#[test]
fn a_reader_that_rests_stops_the_writer_and_starts_it_again() {
    for foreign in [false, true] {
        let mut world = World::new(foreign, CALM, 1, [1, 2]);
        world.connect();
        world.ends[1].reads = false;
        let whole = text(12 << 20, 3);
        world.write(0, &whole);
        let started = world.now;
        world.run(Duration::from_secs(300), |world| {
            world.now.since(started) > Duration::from_secs(50)
        });
        let kept = world.session(1).take_inbound();
        assert!(
            !kept.is_empty() && kept.len() <= ALLOWANCE_MAX,
            "{}",
            kept.len()
        );
        assert_eq!(world.session(0).state(), State::Established);
        world.ends[1].read.extend_from_slice(&kept);
        world.ends[1].unconsumed = kept.len();
        world.ends[1].reads = true;
        world.run(Duration::from_secs(60), |world| {
            world.ends[1].read.len() == whole.len()
        });
        assert!(world.ends[1].read == whole);
    }
}

#[test]
fn a_window_that_opens_unheard_is_asked_about() {
    let mut world = World::new(true, CALM, 1, [1, 2]);
    world.connect();
    let (now, own) = (
        world.now,
        world.session(1).standing(&Congestion::new(Time::ZERO)),
    );
    assert_eq!(own.own_window, 512);
    // The peer says that its window is closed, and, as daemons do, nothing when it opens.
    let closed = SegmentHead {
        flags: FLAG_ACK,
        sequence: 3,
        acknowledgment: 2,
        window: 0,
    };
    let end = &mut world.ends[0];
    let session = end.session.as_mut().expect("it has begun");
    session
        .receive(now, &closed, &[], &mut end.path, ALLOWANCE_MAX)
        .expect("an acknowledgment");
    world.write(0, &text(5_000, 1));
    world.settle();
    assert!(world.ends[0].segments.is_empty(), "nothing leaves");
    world.run(Duration::from_secs(2), |world| {
        world.ends[1].read.len() == 5_000
    });
    let first = world.ends[0].segments.values().next();
    assert_eq!(first, Some(&1), "it asks with a byte");
}

#[test]
fn what_looks_like_ranges_is_never_a_segment() {
    for foreign in [false, true] {
        let mut world = World::new(foreign, CALM, 1, [1, 2]);
        world.connect();
        let tricky = b"SACK\x01\0\0\0\x02\0\0\0\x03".repeat(400);
        world.write(0, &tricky);
        world.run(Duration::from_secs(5), |world| {
            world.ends[1].read.len() == tricky.len()
        });
        assert_eq!(world.ends[1].read, tricky);
        let of_data = world.log.iter().filter(|(from, _, _)| *from == 0);
        assert!(of_data.clone().count() > 2);
        assert!(
            of_data
                .clone()
                .all(|(_, _, payload)| !payload.starts_with(b"SACK"))
        );
    }
}

#[test]
fn a_path_that_shrinks_gets_shorter_segments() {
    let mut world = World::new(false, CALM, 1, [1, 2]);
    world.ends[0].len_max = 16_000;
    world.connect();
    let whole = text(300_000, 1);
    world.write(0, &whole);
    world.settle();
    // What is on its way is too long, and lost.
    world.wire.clear();
    world.ends[0].len_max = 1_000;
    world.run(Duration::from_secs(10), |world| {
        world.ends[1].read.len() == whole.len()
    });
    assert!(world.ends[1].read == whole);
}
