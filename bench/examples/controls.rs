//! Prints every control arm of this machine: `cargo run --release -p ramjet-bench --example
//! controls`.
//!
//! Use it to learn what the kernel path gives before asking what ramjet adds to it.

use std::error::Error;
use std::time::Duration;

use ramjet_bench::arms::{
    self, AesGcm, ArmResult, GsoEcho, MmsgEcho, Payload, RoundTrip, WaitMode,
};
use ramjet_bench::facts::{MachineFacts, Watch};
use ramjet_bench::report::{self, CaseReport};

const DURATION: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn Error>> {
    eprintln!("{}", MachineFacts::read().line());
    let watch = Watch::begin();
    let mut results = Vec::new();
    for mode in [WaitMode::Spinning, WaitMode::Blocking] {
        let mut spec = RoundTrip::new(mode, Payload::bytes(64));
        spec.duration = DURATION;
        results.push(arms::udp_round_trip(&spec)?);
    }
    for (payload, window) in [(64, 64), (64, 512), (1400, 256)] {
        let mut spec = MmsgEcho::new(Payload::bytes(payload), window);
        spec.duration = DURATION;
        results.push(arms::mmsg_echo(&spec)?);
    }
    for (datagram_len, window) in [(64, 512), (1400, 256), (8900, 64)] {
        for encrypted in [false, true] {
            let mut spec = GsoEcho::new(datagram_len, window, encrypted);
            spec.duration = DURATION;
            results.push(arms::gso_echo(&spec)?);
        }
    }
    let quiet = watch.end();
    let mut cases: Vec<CaseReport> = results
        .iter()
        .map(|arm| CaseReport::of_arm(arm, processor_time(arm)))
        .collect();
    for case in &mut cases {
        case.quiet = Some(quiet.clone());
    }
    print!("{}", report::table(&cases));
    for datagram_len in [64, 256, 1400, 8900] {
        let cost = arms::aes_gcm(&AesGcm::new(datagram_len))?;
        println!(
            "AES-256-GCM {datagram_len} B: seal {:.0} ns, open {:.0} ns",
            cost.seal_ns, cost.open_ns
        );
    }
    Ok(())
}

fn processor_time(arm: &ArmResult) -> String {
    format!(
        "{}; client {:.0} ns, server {:.0} ns of processor a datagram",
        arm.details.path,
        arm.details.client_cpu_ns_per_datagram,
        arm.details.server_cpu_ns_per_datagram
    )
}
