//! The kernel itself: its release, and whether io_uring may be used.

use crate::{Finding, Readings, Severity};

/// Oldest release with `SINGLE_ISSUER`, `DEFER_TASKRUN` and multishot receives: 6.0 and 6.1.
const RELEASE_MIN: (u32, u32) = (6, 1);

const RELEASE_WHY: &str = "a worker's ring needs multishot receives and deferred task work; \
                           without them the mmsg backend carries the traffic at about the rate of \
                           plain batching";
const SECCOMP_WHY: &str = "containers filter io_uring away by default; what a ring does is not \
                           filtered any more once it is built";
const RING_WHY: &str = "io_uring carries a worker's datagrams; without it the mmsg backend does, \
                        with more calls into the kernel for each task";

pub(crate) fn release(readings: &Readings) -> Finding {
    let id = "kernel";
    let Some(text) = readings.kernel_release.as_deref().map(str::trim) else {
        return Finding::fine(id, "the kernel does not tell its release", RELEASE_WHY);
    };
    match parse_release(text) {
        Some(release) if release >= RELEASE_MIN => {
            Finding::fine(id, format!("Linux {text}"), RELEASE_WHY)
        }
        Some(_) => Finding::lacking(
            Severity::Problem,
            id,
            format!("Linux {text}"),
            format!("Linux {}.{} or later", RELEASE_MIN.0, RELEASE_MIN.1),
            RELEASE_WHY,
        ),
        None => Finding::fine(
            id,
            format!("the kernel does not tell a release in {text:?}"),
            RELEASE_WHY,
        ),
    }
}

pub(crate) fn io_uring(readings: &Readings) -> Finding {
    let id = "io_uring_disabled";
    let state = readings.io_uring_disabled.as_deref().map(str::trim);
    let lacking = |what_is: &str, value: &str| {
        Finding::lacking(
            Severity::Problem,
            id,
            what_is,
            "0, allowed for everyone",
            RING_WHY,
        )
        .mended_by_writing("/proc/sys/kernel/io_uring_disabled", value, "0")
    };
    match state {
        None => Finding::fine(
            id,
            "the kernel does not tell: it has no such switch",
            RING_WHY,
        ),
        Some("0") => Finding::fine(id, "0, allowed for everyone", RING_WHY),
        Some("1") => lacking(
            "1, only for root and the members of kernel.io_uring_group",
            "1",
        ),
        Some("2") => lacking("2, refused to everyone", "2"),
        Some(other) => Finding::fine(
            id,
            format!("the kernel does not tell with {other:?}"),
            RING_WHY,
        ),
    }
}

pub(crate) fn seccomp(readings: &Readings) -> Finding {
    let id = "seccomp";
    let status = readings.status.as_deref().unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .map(str::trim);
    let what_is = match mode {
        None => "the kernel does not tell",
        Some("0") => "no filter",
        Some(_) => "a filter; whether it lets io_uring pass says the finding io_uring",
    };
    Finding::fine(id, what_is, SECCOMP_WHY)
}

/// Turns the outcome of building a real ring into a finding; the caller owns the probe.
#[must_use]
pub fn ring_probe(outcome: &Result<(), String>) -> Finding {
    let id = "io_uring";
    match outcome {
        Ok(()) => Finding::fine(
            id,
            "a ring with the worker's options can be built",
            RING_WHY,
        ),
        Err(reason) => Finding::lacking(
            Severity::Problem,
            id,
            format!("a ring with the worker's options is refused: {reason}"),
            "a ring that can be built: look at kernel.io_uring_disabled and at the seccomp filter \
             of the container or unit",
            RING_WHY,
        ),
    }
}

/// Major and minor number of a release such as `6.18.44-generic`.
fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|symbol: char| !symbol.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_number() {
        let table = [
            ("6.18.44-fc", Severity::Ok),
            ("6.1.0-amd64", Severity::Ok),
            ("6.0.19", Severity::Problem),
            ("5.15.0-91-generic", Severity::Problem),
            ("10.0", Severity::Ok),
            ("unnumbered", Severity::Ok),
        ];
        for (text, severity) in table {
            let readings = Readings {
                kernel_release: Some(format!("{text}\n")),
                ..Readings::default()
            };
            assert_eq!(release(&readings).severity, severity, "{text}");
        }
    }

    #[test]
    fn the_switch_is_mended_and_put_back() {
        let readings = Readings {
            io_uring_disabled: Some(String::from("1\n")),
            ..Readings::default()
        };
        let finding = io_uring(&readings);
        assert_eq!(finding.severity, Severity::Problem);
        assert_eq!(
            finding.undo.as_deref(),
            Some("sysctl -w kernel.io_uring_disabled=1")
        );
    }

    #[test]
    fn a_refused_ring_is_told_with_its_reason() {
        let finding = ring_probe(&Err(String::from("Operation not permitted")));
        assert_eq!(finding.severity, Severity::Problem);
        assert!(finding.what_is.contains("Operation not permitted"));
        assert_eq!(ring_probe(&Ok(())).severity, Severity::Ok);
    }
}
