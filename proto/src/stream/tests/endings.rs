//! How streams begin and end.

use super::*;

#[test]
fn a_dial_without_an_answer_ends_and_a_refusal_is_told() {
    let mut world = World::new(false, Weather { lost: 100, ..CALM }, 1, [1, 2]);
    let began = world.now;
    world.run(Duration::from_secs(21), |world| {
        !world.ends[0].events.is_empty()
    });
    assert_eq!(world.ends[0].events, [Event::TimedOut]);
    assert_eq!(world.now.since(began), Duration::from_secs(20));
    assert!((5..12).contains(&world.log.len()), "{}", world.log.len());
    assert!(world.session(0).is_over());
    let mut world = World::new(false, CALM, 1, [1, 2]);
    let reset = SegmentHead {
        flags: FLAG_RST,
        ..SegmentHead::default()
    };
    world.settle();
    world.deliver(0, &reset, &[]);
    world.settle();
    assert_eq!(world.ends[0].events, [Event::Refused]);
}

#[test]
fn a_reset_is_told_and_ends_at_once() {
    let mut world = World::new(false, CALM, 1, [1, 2]);
    world.connect();
    world.write(1, b"never read");
    let end = &mut world.ends[0];
    let session = end.session.as_mut().expect("it has begun");
    session.reset(&mut end.path);
    world.run(Duration::from_secs(1), |world| {
        !world.ends[1].events.is_empty()
    });
    assert_eq!(world.ends[1].events, [Event::Reset]);
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.session.as_ref().is_some_and(Session::is_over))
    );
}

#[test]
fn a_close_waits_for_what_was_written_and_gives_up() {
    let mut world = World::new(false, CALM, 1, [1, 2]);
    world.connect();
    world.write(0, &text(100_000, 1));
    world.close(0);
    world.run(Duration::from_secs(5), |world| {
        world.ends[0].events.len() == 2
    });
    assert_eq!(world.ends[0].events[1], Event::Closed);
    assert_eq!(world.ends[1].read.len(), 100_000);
    let mut world = World::new(false, CALM, 1, [1, 2]);
    world.connect();
    world.weather.lost = 100;
    world.write(0, b"lost");
    world.close(0);
    let began = world.now;
    world.run(Duration::from_secs(60), |world| {
        world.ends[0].events.len() == 2
    });
    assert_eq!(world.ends[0].events[1], Event::Cut);
    assert_eq!(world.now.since(began), Duration::from_secs(5));
    world.run(Duration::from_secs(60), |world| {
        world.session(0).state() == State::TimeWait
    });
    let fins = world
        .log
        .iter()
        .filter(|(_, head, _)| head.flags == FLAG_FIN);
    assert_eq!(fins.count(), FIN_SENDS_MAX as usize);
}

#[test]
fn both_may_close_at_once_and_are_forgotten_in_time() {
    let mut world = World::new(false, CALM, 1, [1, 2]);
    world.connect();
    world.close(0);
    world.close(1);
    world.run(Duration::from_secs(2), |world| {
        world
            .ends
            .iter()
            .all(|end| end.events.contains(&Event::Closed))
    });
    let began = world.now;
    world.run(Duration::from_secs(60), |world| {
        let mut sessions = world.ends.iter().filter_map(|end| end.session.as_ref());
        sessions.all(Session::is_over)
    });
    assert!(world.now.since(began) <= TIME_WAIT);
}

#[test]
fn a_fin_waits_for_what_was_sent_before_it() {
    let mut world = World::new(true, CALM, 1, [1, 2]);
    world.connect();
    let (now, mut path) = (world.now, Congestion::new(Time::ZERO));
    let session = world.session(1);
    let head = |flags, sequence| SegmentHead {
        flags,
        sequence,
        acknowledgment: 3,
        window: 512,
    };
    let mut give = |session: &mut Session, head: SegmentHead, payload: &[u8]| {
        session.receive(now, &head, payload, &mut path, ALLOWANCE_MAX)
    };
    give(session, head(FLAG_FIN, 8), &[]).expect("held");
    assert_eq!(session.state(), State::Established);
    give(session, head(FLAG_ACK, 2), b"before").expect("data");
    assert_eq!(session.state(), State::TimeWait);
    assert_eq!(session.take_event(), None, "there is something to read");
    assert_eq!(&session.take_inbound()[..], b"before");
    assert_eq!(session.take_event(), Some(Event::Finished));
    // Again without ACK it is answered, with ACK it is not.
    let mut log = Log(Vec::new());
    let mut quota = 0;
    session.transmit(now, &mut Congestion::new(now), 1_152, &mut quota, &mut log);
    assert_eq!(
        (log.0[0].0.flags, log.0[0].0.acknowledgment),
        (FLAG_FIN | FLAG_ACK, 9)
    );
    let again = give(session, head(FLAG_FIN, 8), &[]);
    assert_eq!(again, Err(DropReason::Duplicate));
    session.transmit(now, &mut Congestion::new(now), 1_152, &mut quota, &mut log);
    assert_eq!(log.0.len(), 2);
    let answer = give(session, head(FLAG_FIN | FLAG_ACK, 8), &[]);
    assert_eq!(answer, Err(DropReason::OutOfOrder));
    session.transmit(now, &mut Congestion::new(now), 1_152, &mut quota, &mut log);
    assert_eq!(log.0.len(), 2, "older daemons would answer for ever");
}

#[test]
fn a_quiet_stream_lives_and_a_dead_one_ends() {
    for foreign in [false, true] {
        let mut world = World::new(foreign, CALM, 1, [1, 2]);
        world.connect();
        let began = world.now;
        world.run(Duration::from_secs(400), |world| {
            world.now.since(began) > Duration::from_secs(300)
        });
        assert!(world.ends.iter().all(|end| end.events.len() <= 1));
        assert!(world.log.len() < 60, "{} packets", world.log.len());
        world.weather.lost = 100;
        world.run(Duration::from_secs(200), |world| {
            world
                .ends
                .iter()
                .all(|end| end.events.contains(&Event::TimedOut))
        });
    }
}

#[test]
fn a_syn_of_another_life_is_told_from_a_repeat() {
    let mut world = World::new(true, CALM, 1, [1, 2]);
    world.connect();
    let now = world.now;
    let syn = |sequence| SegmentHead {
        flags: FLAG_SYN,
        sequence,
        acknowledgment: 0,
        window: 512,
    };
    let session = world.session(1);
    assert!(!session.is_superseded(now, &syn(1)));
    assert!(session.is_superseded(now, &syn(77)));
    assert!(session.is_superseded(now + Duration::from_secs(6), &syn(1)));
    let mut path = Congestion::new(now);
    let again = session.receive(now, &syn(1), &[], &mut path, ALLOWANCE_MAX);
    assert_eq!(again, Err(DropReason::Duplicate));
    let (mut log, mut quota) = (Log(Vec::new()), 0);
    session.transmit(now, &mut path, 1_152, &mut quota, &mut log);
    let head = log.0[0].0;
    assert_eq!(
        (head.flags, head.sequence, head.acknowledgment),
        (FLAG_SYN | FLAG_ACK, 2, 2)
    );
}

/// The stream packets that were captured from daemon 1.18.0: we answer what it answered.
#[test]
fn captured_packets_are_answered_as_the_daemon_does() {
    let now = Time::from_nanos(1_000_000_000);
    let mut path = Congestion::new(now);
    let head = |flags, sequence, acknowledgment, window| SegmentHead {
        flags,
        sequence,
        acknowledgment,
        window,
    };
    let mut session = Session::accept(now, 0, &head(FLAG_SYN, 0, 0, 0x200), &[], ALLOWANCE_MAX);
    let says = |session: &mut Session, path: &mut Congestion| {
        let (mut log, mut quota) = (Log(Vec::new()), 1_000);
        session.transmit(now, path, 1_330, &mut quota, &mut log);
        log.0
    };
    let syn_ack = (head(FLAG_SYN | FLAG_ACK, 0, 1, 0x200), vec![]);
    assert_eq!(says(&mut session, &mut path), [syn_ack]);
    session
        .receive(
            now,
            &head(FLAG_ACK, 11, 1, 0x200),
            b"BBBBBBBBBB",
            &mut path,
            ALLOWANCE_MAX,
        )
        .expect("kept");
    let sack = b"SACK\x01\0\0\0\x0b\0\0\0\x15".to_vec();
    assert_eq!(
        says(&mut session, &mut path),
        [(head(FLAG_ACK, 1, 1, 0x200), sack)]
    );
    session
        .receive(
            now,
            &head(FLAG_ACK, 1, 1, 0x200),
            b"AAAAAAAAAA",
            &mut path,
            ALLOWANCE_MAX,
        )
        .expect("the gap is filled");
    assert_eq!(&session.take_inbound()[..], b"AAAAAAAAAABBBBBBBBBB");
    session
        .receive(
            now,
            &head(FLAG_FIN, 21, 0, 0),
            &[],
            &mut path,
            ALLOWANCE_MAX,
        )
        .expect("the end");
    let fin_ack = (head(FLAG_FIN | FLAG_ACK, 1, 22, 0), vec![]);
    assert_eq!(says(&mut session, &mut path), [fin_ack]);
}
