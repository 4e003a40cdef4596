//! Smoke sizes of every arm: echoes come back whole, counts are positive, bounds hold. No speed is
//! asserted.

use super::*;

const SMOKE: Duration = Duration::from_millis(15);

fn assert_measured(result: &ArmResult, datagram_len: usize) {
    assert!(result.details.datagrams > 0, "{result:?}");
    assert!(result.per_s > 0.0, "{result:?}");
    assert!(result.p50_us > 0.0, "{result:?}");
    assert!(result.p99_us >= result.p50_us, "{result:?}");
    assert_eq!(result.details.corrupt, 0, "{result:?}");
    assert_eq!(result.details.datagram_len, datagram_len);
    assert!(result.details.elapsed_ns >= 15_000_000, "{result:?}");
}

#[test]
fn a_round_trip_comes_back_in_both_modes() {
    for mode in [WaitMode::Spinning, WaitMode::Blocking] {
        let mut spec = RoundTrip::new(mode, Payload::bytes(64));
        spec.duration = SMOKE;
        let result = udp_round_trip(&spec).expect("loopback carries a datagram");
        assert_measured(&result, 64);
    }
}

#[test]
fn a_batched_window_comes_back() {
    for (payload, window, encrypted) in [(64, 1, false), (64, 100, true), (1400, 33, false)] {
        let mut spec = MmsgEcho::new(Payload::bytes(payload), window);
        spec.duration = SMOKE;
        spec.encrypted = encrypted;
        let result = mmsg_echo(&spec).expect("loopback carries a window");
        assert_measured(&result, payload);
    }
}

#[test]
fn a_segmented_window_comes_back() {
    let cases = [
        (64, 1, false),
        (64, 256, true),
        (1400, 128, false),
        (1400, 128, true),
        (1400, 50, true),
        (30_000, 8, true),
    ];
    for (datagram_len, window, encrypted) in cases {
        let mut spec = GsoEcho::new(datagram_len, window, encrypted);
        spec.duration = SMOKE;
        let result = gso_echo(&spec).expect("loopback carries trains");
        assert_measured(&result, datagram_len);
        let by_ring = result.details.path.starts_with("io_uring");
        assert!(
            by_ring || result.details.note.is_some(),
            "a stand-in says so: {result:?}"
        );
    }
}

#[test]
fn the_cipher_opens_what_it_seals() {
    let spec = AesGcm {
        datagram_len: 1400,
        duration: Duration::from_millis(5),
    };
    let cost = aes_gcm(&spec).expect("the cipher works on 1400 bytes");
    assert!(cost.seal_ns > 0.0);
    assert!(cost.open_ns > 0.0);
    assert!(cost.datagrams >= 64);
}

#[test]
fn parameters_outside_their_bounds_are_refused_by_name() {
    let mut long_train = GsoEcho::new(1400, 128, false);
    long_train.train = TRAIN_MAX + 1;
    let mut wide_train = GsoEcho::new(30_000, 8, false);
    wide_train.train = 3;
    let refusals = [
        (
            gso_echo(&GsoEcho::new(8, 1, false)).err(),
            "datagram length is 8",
        ),
        (gso_echo(&GsoEcho::new(64, 0, false)).err(), "window is 0"),
        (gso_echo(&long_train).err(), "train is 65"),
        (gso_echo(&wide_train).err(), "train is 3, outside 1 to 2"),
        (
            mmsg_echo(&MmsgEcho::new(Payload::bytes(64), WINDOW_MAX + 1)).err(),
            "window is 16385",
        ),
        (
            udp_round_trip(&RoundTrip::new(WaitMode::Spinning, Payload::bytes(7))).err(),
            "payload length is 7",
        ),
        (aes_gcm(&AesGcm::new(0)).err(), "datagram length is 0"),
    ];
    for (refusal, expected) in refusals {
        let text = refusal
            .expect("the parameter is outside its bounds")
            .to_string();
        assert!(text.contains(expected), "{text:?} names {expected:?}");
    }
}

#[test]
fn a_core_that_does_not_exist_is_an_error_and_not_a_hang() {
    let nowhere = Some(Cores {
        server: 100_000,
        client: 0,
    });
    let mut spec = MmsgEcho::new(Payload::bytes(64), 4);
    spec.cores = nowhere;
    let text = mmsg_echo(&spec).expect_err("no such core").to_string();
    assert!(text.contains("pin a thread"), "{text}");
    let mut spec = RoundTrip::new(WaitMode::Spinning, Payload::bytes(64));
    spec.cores = nowhere;
    assert!(udp_round_trip(&spec).is_err());
}
