//! Socket buffers and segmentation offload.

use super::bytes;
use super::host::allowed_cores;
use crate::readings::Link;
use crate::{Finding, Readings, Severity};

/// What a worker asks for: a window of coalesced tasks with room for the kernel's own overhead.
const BUFFER_BETTER: u64 = 4 << 20;
/// Below this a full turn of a worker overflows its socket.
const BUFFER_MIN: u64 = 1 << 20;

const BUFFER_WHY: &str = "the kernel cuts a socket buffer to this size; the usual 212,992 bytes \
                          hold fewer than a hundred full datagrams, and what does not fit is lost";
const STEERING_WHY: &str = "the core that takes the interrupt also does the kernel's part of every \
                            packet; on a worker's core it takes the worker's time";
const OFFLOAD_WHY: &str = "one call then carries up to 64 datagrams of one peer; it is the \
                           largest single gain for UDP";

pub(crate) fn receive_buffer(readings: &Readings) -> Finding {
    buffer("rmem_max", readings.rmem_max.as_deref())
}

pub(crate) fn send_buffer(readings: &Readings) -> Finding {
    buffer("wmem_max", readings.wmem_max.as_deref())
}

/// Turns the outcome of sending and receiving a real train into a finding; the caller owns the
/// probe.
#[must_use]
pub fn offload_probe(outcome: &Result<(), String>) -> Finding {
    let id = "udp_offload";
    match outcome {
        Ok(()) => Finding::fine(
            id,
            "segmented sends and coalesced receives work",
            OFFLOAD_WHY,
        ),
        Err(reason) => Finding::lacking(
            Severity::Advice,
            id,
            format!("segmented sends or coalesced receives fail: {reason}"),
            "a kernel and interface with UDP_SEGMENT and UDP_GRO (ethtool -k shows \
            tx-udp-segmentation)",
            OFFLOAD_WHY,
        ),
    }
}

pub(crate) fn steering(readings: &Readings) -> Finding {
    let id = "packet_steering";
    let idle =
        |link: &&Link| link.queues == 1 && link.steering.chars().all(|digit| "0,".contains(digit));
    let one_core = readings.status.as_deref().and_then(allowed_cores) == Some(1);
    let Some(link) = readings.links.iter().find(idle).filter(|_| !one_core) else {
        let links: Vec<String> = readings
            .links
            .iter()
            .map(|link| format!("{} with {} receive queues", link.name, link.queues))
            .collect();
        let what_is = match links.is_empty() {
            true => "no network device with hardware behind it".to_owned(),
            false => links.join(", "),
        };
        return Finding::fine(id, what_is, STEERING_WHY);
    };
    let file = format!("/sys/class/net/{}/queues/rx-0/rps_cpus", link.name);
    let cores = readings.status.as_deref().and_then(allowed_cores);
    Finding::lacking(
        Severity::Advice,
        id,
        format!(
            "{} has one receive queue, and one core takes all its packets",
            link.name
        ),
        "packets handed to the cores that no worker is pinned to; the mask here is all but the first",
        STEERING_WHY,
    )
    .mended_by(
        format!("echo {:x} > {file}", mask_without_first(cores.unwrap_or(2))),
        format!("echo {} > {file}", link.steering),
    )
}

/// The mask of cores 1 and up, of the 32 that fit its first word.
fn mask_without_first(cores: u64) -> u64 {
    ((1 << cores.min(32)) - 1) & !1
}

fn buffer(id: &'static str, reading: Option<&str>) -> Finding {
    let size = reading.and_then(|text| text.trim().parse::<u64>().ok());
    let Some(size) = size else {
        return Finding::fine(
            id,
            "the kernel does not tell (another network namespace?)",
            BUFFER_WHY,
        );
    };
    let severity = match size {
        BUFFER_BETTER.. => return Finding::fine(id, bytes(size), BUFFER_WHY),
        BUFFER_MIN.. => Severity::Advice,
        _ => Severity::Problem,
    };
    Finding::lacking(severity, id, bytes(size), bytes(BUFFER_BETTER), BUFFER_WHY).mended_by_writing(
        &format!("/proc/sys/net/core/{id}"),
        &size.to_string(),
        &BUFFER_BETTER.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_queue_is_steered_to_the_other_cores_unless_it_is_already() {
        let with = |queues, steering: &str| Readings {
            status: Some("Cpus_allowed_list:\t0-3\n".to_owned()),
            links: vec![Link {
                name: "eth0".to_owned(),
                queues,
                steering: steering.to_owned(),
            }],
            ..Readings::default()
        };
        let one = steering(&with(1, "00000000,00000000"));
        let command = "echo e > /sys/class/net/eth0/queues/rx-0/rps_cpus";
        assert_eq!(one.command.as_deref(), Some(command));
        assert_eq!(steering(&with(1, "e")).severity, Severity::Ok);
        assert_eq!(steering(&with(4, "0")).severity, Severity::Ok);
        assert_eq!(mask_without_first(64), 0xffff_fffe);
    }

    /// The files for every boot say what the rules say.
    #[test]
    fn the_sysctl_file_is_what_the_rules_want() {
        let text = include_str!("../../sysctl.d/60-ramjet.conf");
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut found = lines.filter(|(name, _)| name.trim() == key);
            found.next().map(|(_, value)| value.trim().to_owned())
        };
        for id in ["rmem_max", "wmem_max"] {
            let set = value(&format!("net.core.{id}"));
            assert_eq!(buffer(id, set.as_deref()).severity, Severity::Ok, "{set:?}");
        }
        assert_eq!(value("kernel.io_uring_disabled").as_deref(), Some("0"));
    }

    #[test]
    fn a_buffer_is_judged_by_its_bounds() {
        let table = [
            ("212992\n", Severity::Problem),
            ("1048575", Severity::Problem),
            ("1048576", Severity::Advice),
            ("4194303", Severity::Advice),
            ("4194304", Severity::Ok),
            ("many", Severity::Ok),
        ];
        for (text, severity) in table {
            assert_eq!(buffer("rmem_max", Some(text)).severity, severity, "{text}");
        }
    }

    #[test]
    fn the_undo_restores_what_is_set_now() {
        let finding = buffer("wmem_max", Some("212992\n"));
        assert_eq!(
            finding.command.as_deref(),
            Some("sysctl -w net.core.wmem_max=4194304")
        );
        assert_eq!(
            finding.undo.as_deref(),
            Some("sysctl -w net.core.wmem_max=212992")
        );
    }

    #[test]
    fn a_failed_probe_is_advice_with_its_reason() {
        let finding = offload_probe(&Err(String::from("EIO")));
        assert_eq!(finding.severity, Severity::Advice);
        assert!(finding.what_is.contains("EIO"));
        assert_eq!(offload_probe(&Ok(())).severity, Severity::Ok);
    }
}
