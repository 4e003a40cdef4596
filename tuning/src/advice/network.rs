//! Socket buffers and segmentation offload.

use super::bytes;
use crate::{Finding, Readings, Severity};

/// What a worker asks for: a window of coalesced tasks with room for the kernel's own overhead.
const BUFFER_BETTER: u64 = 4 << 20;
/// Below this a full turn of a worker overflows its socket.
const BUFFER_MIN: u64 = 1 << 20;

const BUFFER_WHY: &str = "the kernel cuts a socket buffer to this size; the usual 212,992 bytes \
                          hold fewer than a hundred full datagrams, and what does not fit is lost";
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
    Finding::lacking(severity, id, bytes(size), bytes(BUFFER_BETTER), BUFFER_WHY).mended_by(
        format!("sysctl -w net.core.{id}={BUFFER_BETTER}"),
        format!("sysctl -w net.core.{id}={size}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
