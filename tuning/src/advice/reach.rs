//! What is between a node and its peers beside the wire: the kernel's queue, addresses, the time of day.

use std::net::IpAddr;

use crate::{Finding, Readings, Severity};

/// Packets that wait for a core: some bursts of a megabyte's transfer.
pub(crate) const BACKLOG_BETTER: u64 = 4096;

const BACKLOG_WHY: &str = "packets over loopback, and those handed to another core, wait in this queue; \
                           what does not fit is lost without a word";
const TIME_WHY: &str = "grants, leases and deadlines end at a time of day: with a clock that is minutes \
                        off every grant looks expired";
const NAT_WHY: &str = "peers must reach the node's UDP port; behind a translated address they do not, until \
                       a hole is punched or the port is forwarded";

pub(crate) fn backlog(readings: &Readings) -> Finding {
    let id = "backlog";
    let size = readings.backlog.as_deref();
    let Some(size) = size.and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Finding::fine(
            id,
            "the kernel does not tell (another network namespace?)",
            BACKLOG_WHY,
        );
    };
    let what_is = format!("{size} packets");
    let mut finding = if size >= BACKLOG_BETTER {
        Finding::fine(id, what_is, BACKLOG_WHY)
    } else {
        let better = format!("{BACKLOG_BETTER} packets");
        Finding::lacking(Severity::Advice, id, what_is, better, BACKLOG_WHY).mended_by_writing(
            "/proc/sys/net/core/netdev_max_backlog",
            &size.to_string(),
            &BACKLOG_BETTER.to_string(),
        )
    };
    let lost = readings.softnet.as_deref().map(lost);
    finding.measured = lost.map(|lost| format!("{lost} packets lost in it since boot"));
    finding
}

/// The second column of `/proc/net/softnet_stat`, in hexadecimal, a line a core.
fn lost(softnet: &str) -> u64 {
    let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    softnet.lines().filter_map(column).sum()
}

pub(crate) fn time_service(readings: &Readings) -> Finding {
    let id = "time";
    match readings.time_service {
        Some(service) => Finding::fine(id, format!("kept by {service}"), TIME_WHY),
        // Files of which not even the kernel's release can be read say nothing about a clock.
        None if readings.kernel_release.is_none() => {
            Finding::fine(id, "the kernel does not tell", TIME_WHY)
        }
        None => Finding::lacking(
            Severity::Advice,
            id,
            "no sign of anything that keeps the clock right",
            "systemd-timesyncd or chrony",
            TIME_WHY,
        )
        .mended_by(
            "systemctl enable --now systemd-timesyncd",
            "systemctl disable --now systemd-timesyncd",
        ),
    }
}

/// Turns the address that this host would send from into a finding; the caller owns the probe.
#[must_use]
pub fn nat_probe(source: Option<IpAddr>) -> Finding {
    let id = "nat";
    match source {
        None => Finding::fine(id, "no way out: this host serves itself alone", NAT_WHY),
        Some(address) if is_translated(address) => Finding::lacking(
            Severity::Advice,
            id,
            format!("{address}, which only its own network reaches"),
            "--beacon of the market, or --endpoint with the public address and the port forwarded; \
             nothing, if every peer is in the same network",
            NAT_WHY,
        ),
        Some(address) => Finding::fine(id, format!("{address}, reached from anywhere"), NAT_WHY),
    }
}

/// Private, link-local, or of a carrier that shares addresses (100.64.0.0/10).
fn is_translated(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || ip.is_link_local() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            let head = ip.segments()[0];
            head & 0xfe00 == 0xfc00 || head & 0xffc0 == 0xfe80
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_backlog_lost_is_summed_over_the_cores() {
        let finding = backlog(&Readings {
            backlog: Some("1000\n".to_owned()),
            softnet: Some("0a 00000002 00\n0b 00000010 00\n".to_owned()),
            ..Readings::default()
        });
        assert_eq!(finding.severity, Severity::Advice);
        assert_eq!(
            finding.measured.as_deref(),
            Some("18 packets lost in it since boot")
        );
        assert_eq!(
            finding.undo.as_deref(),
            Some("sysctl -w net.core.netdev_max_backlog=1000")
        );
    }

    #[test]
    fn addresses_that_only_their_network_reaches_are_told() {
        for (address, severity) in [
            ("10.1.2.3", Severity::Advice),
            ("100.64.0.1", Severity::Advice),
            ("100.128.0.1", Severity::Ok),
            ("192.0.2.9", Severity::Ok),
            ("fd00::1", Severity::Advice),
            ("2001:db8::1", Severity::Ok),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(nat_probe(Some(address)).severity, severity, "{address}");
        }
        assert_eq!(nat_probe(None).severity, Severity::Ok);
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_told() {
        let of = |time_service| Readings {
            kernel_release: Some("6.18\n".to_owned()),
            time_service,
            ..Readings::default()
        };
        assert_eq!(time_service(&of(None)).severity, Severity::Advice);
        assert_eq!(time_service(&of(Some("chrony"))).what_is, "kept by chrony");
    }
}
