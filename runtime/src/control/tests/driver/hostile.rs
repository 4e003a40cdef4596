//! Clients that break the rules of the driver socket, or their own promises.

use std::io::Write;

use super::*;

#[test]
fn what_cannot_be_read_is_answered_and_the_client_goes_on() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let send = |client: &mut Script, frame: &[u8]| {
        let len = u32::try_from(frame.len()).expect("short");
        client
            .stream
            .write_all(&len.to_be_bytes())
            .expect("written");
        client.stream.write_all(frame).expect("written");
    };
    for (frame, text) in [
        (&b"\x7f"[..], "unknown command: 0x7F"),
        (
            b"\x01",
            "bind: a payload of 0 bytes, must hold a port of 2 bytes",
        ),
        (b"\x0f\x09", "handshake: unknown sub-command 0x09"),
        (b"\x11\xff", "resolve_hostname: a text that is not UTF-8"),
        (b"\xb0", "unknown command: 0xB0"),
    ] {
        send(&mut client, frame);
        assert_eq!(client.hear(), Heard::Error(text.to_owned()));
    }
    // Commands that are not answered are not answered when they are wrong either.
    for frame in [
        &b"\x06"[..],
        b"\x06\x00\x00\x00\x63data",
        b"\x0b\x00",
        b"\x2b",
        b"\xa9",
    ] {
        send(&mut client, frame);
    }
    assert_eq!(client.ask(&Command::Info)["node_id"], json!(world.node(1)));
    assert_eq!(world.counter(1, "control_driver_commands_refused"), 8);
    assert_eq!(world.counter(1, "control_driver_sends_dropped"), 1);
    world.end();
}

#[test]
fn a_length_outside_the_limit_is_named_and_ends_the_connection() {
    let world = World::of(1, |config| config);
    for (head, text) in [
        (
            &b"\x00\x00\x00\x00\x0d"[..],
            "a frame of 0 bytes, must be 1 to 1048576",
        ),
        (
            b"\x00\x10\x00\x01\x0d",
            "a frame of 1048577 bytes, must be 1 to 1048576",
        ),
    ] {
        let mut client = world.client(1);
        client.stream.write_all(head).expect("written");
        assert_eq!(client.hear(), Heard::Error(text.to_owned()));
        assert_eq!(client.hear(), Heard::Gone);
    }
    assert_eq!(world.counter(1, "control_driver_frames_refused"), 2);
    world.end();
}

/// The longest frame is read; what its command makes of it is another matter.
#[test]
fn the_longest_frame_is_taken() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let hostname = "x".repeat(driver_payload_max());
    let refusal = client.fail(&Command::ResolveHostname {
        hostname: &hostname,
    });
    assert_eq!(
        refusal,
        "resolve_hostname: a text of 1048575 bytes, at most 1024"
    );
    world.end();
}

fn driver_payload_max() -> usize {
    ramjet_proto::driver::FRAME_LEN_MAX - 1
}

#[test]
fn a_client_that_does_not_read_is_dropped_by_name_and_others_are_served() {
    let world = World::of(1, |config| config);
    let mut quick = timings();
    quick.client_stall = Duration::from_millis(300);
    let toy = Toy::start();
    let socket = world.directory.path().join("quick.sock");
    let node = Node::start_with(
        NodeConfig {
            socket: Some(socket.clone()),
            ..at(world.market.tcp_addr(), config(&toy, 9, false))
        },
        quick,
    )
    .expect("a node");
    let mut idle = Script::connect(&socket);
    let mut info = Vec::new();
    Command::Info.append(&mut info);
    // Asks until the node reads no further: its answers wait unread.
    idle.stream.set_nonblocking(true).expect("a mode");
    let many = info.repeat(1_000);
    wait_until("the end of its patience", || {
        let _ = idle.stream.write(&many);
        let status = node.status().expect("a status");
        status.counters.get("control_driver_clients_slow") == Some(&1)
    });
    let mut other = Script::connect(&socket);
    assert_eq!(other.ask(&Command::Info)["node_id"], json!(node.node_id()));
    node.shutdown().expect("an end");
    world.end();
}

/// Answers to commands of one kind keep their order; many at once are all answered.
#[test]
fn many_commands_at_once_are_answered_in_their_order() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    let names: Vec<String> = (0..200).map(|index| format!("nobody-{index}")).collect();
    for hostname in &names {
        client.tell(&Command::ResolveHostname { hostname });
    }
    for name in &names {
        let text = format!("resolve_hostname: registry: hostname {name:?} not found");
        assert_eq!(client.hear(), Heard::Error(text));
    }
    world.end();
}

#[test]
fn half_a_close_gets_its_answers_and_half_a_frame_none() {
    let world = World::of(1, |config| config);
    let mut client = world.client(1);
    client.tell(&Command::Health);
    client.tell(&Command::Info);
    client.stream.write_all(&[0, 0]).expect("written");
    client
        .stream
        .shutdown(std::net::Shutdown::Write)
        .expect("half closed");
    let codes: BTreeSet<u8> = (0..2)
        .map(|_| match client.hear() {
            Heard::Json(code, _) => code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, BTreeSet::from([0x0D, 0x21]));
    assert_eq!(client.hear(), Heard::Gone);
    world.end();
}
