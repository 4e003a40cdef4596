//! Limits of the process, cores, clock and pages.

use super::{bytes, soft_limit};
use crate::change::value_of;
use crate::{Finding, Readings, Severity};

/// Locked memory that one worker's ring and buffers take, with room to spare.
const MEMORY_LOCK_BETTER: u64 = 64 << 20;
/// Sockets, rings, logs and a connection to every peer's registry link.
const OPEN_FILES_BETTER: u64 = 4096;

const MEMORY_LOCK_WHY: &str = "rings and registered buffers count against locked memory; over the \
                               limit the ring is refused at start";
const OPEN_FILES_WHY: &str = "every connection of the registry and every local client takes one; \
                              over the limit new ones are refused";
const CORES_WHY: &str = "a worker that spins takes a core for itself; control, the kernel and the \
                         requester need another";
const QUOTA_WHY: &str = "a group over its quota is stopped for the rest of the period, which \
                         shows as a tail of tens of milliseconds";
const GOVERNOR_WHY: &str =
    "any other governor lowers the clock between bursts and pays for it at the next";
const CLOCK_WHY: &str = "a worker reads the clock every turn; tsc and kvm-clock are read in about \
                         20 ns, hpet and acpi_pm in a microsecond or more";
const PAGES_WHY: &str =
    "buffers on 2 MiB pages miss the translation cache less often; a few percent";

pub(crate) fn memory_lock(readings: &Readings) -> Finding {
    limit(
        readings,
        ("memlock", "Max locked memory"),
        MEMORY_LOCK_BETTER,
        bytes,
        ("LimitMEMLOCK=64M", "-l 65536"),
        MEMORY_LOCK_WHY,
    )
}

pub(crate) fn open_files(readings: &Readings) -> Finding {
    limit(
        readings,
        ("nofile", "Max open files"),
        OPEN_FILES_BETTER,
        |count| format!("{count} files"),
        ("LimitNOFILE=4096", "-n 4096"),
        OPEN_FILES_WHY,
    )
}

pub(crate) fn cores(readings: &Readings) -> Finding {
    let id = "cores";
    match readings.status.as_deref().and_then(allowed_cores) {
        None => Finding::fine(id, "the kernel does not tell the allowed cores", CORES_WHY),
        Some(1) => Finding::lacking(
            Severity::Advice,
            id,
            "1 core allowed",
            "two cores or more, or a worker that parks (--idle park)",
            CORES_WHY,
        ),
        Some(count) => Finding::fine(id, format!("{count} cores allowed"), CORES_WHY),
    }
}

pub(crate) fn quota(readings: &Readings) -> Finding {
    let id = "cpu_quota";
    let cores = readings.status.as_deref().and_then(allowed_cores);
    match readings.cpu_quota.as_deref().map(parse_quota) {
        None => Finding::fine(id, "the kernel does not tell of any quota", QUOTA_WHY),
        Some(Quota::None) => Finding::fine(id, "no quota", QUOTA_WHY),
        Some(Quota::Unread) => Finding::fine(
            id,
            "the kernel does not tell the quota in a known form",
            QUOTA_WHY,
        ),
        Some(Quota::Thousandths(share)) => {
            let what_is = format!("{}.{:03} cores of time", share / 1000, share % 1000);
            let whole = cores.is_some_and(|cores| share >= cores * 1000);
            if whole {
                return Finding::fine(id, what_is, QUOTA_WHY);
            }
            let better = "no quota, and cores given by cpuset instead (CPUQuota=, AllowedCPUs=)";
            Finding::lacking(Severity::Advice, id, what_is, better, QUOTA_WHY)
        }
    }
}

pub(crate) fn governor(readings: &Readings) -> Finding {
    let id = "governor";
    match readings.governor.as_deref().map(str::trim) {
        None => Finding::fine(
            id,
            "the kernel does not tell: the hypervisor decides",
            GOVERNOR_WHY,
        ),
        Some("performance") => Finding::fine(id, "performance", GOVERNOR_WHY),
        Some(other) => Finding::lacking(Severity::Advice, id, other, "performance", GOVERNOR_WHY)
            .mended_by(
                "cpupower frequency-set -g performance",
                format!("cpupower frequency-set -g {other}"),
            ),
    }
}

pub(crate) fn clocksource(readings: &Readings) -> Finding {
    const FILE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let id = "clocksource";
    let offered = readings.clocksources.as_deref().unwrap_or_default();
    match readings.clocksource.as_deref().map(str::trim) {
        None => Finding::fine(id, "the kernel does not tell its clocksource", CLOCK_WHY),
        Some(fast @ ("tsc" | "kvm-clock" | "arch_sys_counter")) => {
            Finding::fine(id, fast, CLOCK_WHY)
        }
        Some(slow) if offered.split_whitespace().any(|name| name == "tsc") => {
            Finding::lacking(Severity::Advice, id, slow, "tsc", CLOCK_WHY)
                .mended_by_writing(FILE, slow, "tsc")
        }
        Some(slow) => Finding::lacking(
            Severity::Advice,
            id,
            slow,
            "tsc, which this kernel does not offer (look for \"Marking TSC unstable\" in dmesg)",
            CLOCK_WHY,
        ),
    }
}

pub(crate) fn huge_pages(readings: &Readings) -> Finding {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let id = "huge_pages";
    match readings.huge_pages.as_deref().map(value_of) {
        None => Finding::fine(
            id,
            "the kernel does not tell its choice of page size",
            PAGES_WHY,
        ),
        Some("never") => Finding::lacking(Severity::Advice, id, "never", "madvise", PAGES_WHY)
            .mended_by_writing(FILE, "never", "madvise"),
        Some(choice) => Finding::fine(id, choice, PAGES_WHY),
    }
}

/// A soft limit against its better value; `change` is the unit's line and the shell's `ulimit`
/// option.
fn limit(
    readings: &Readings,
    (id, name): (&'static str, &str),
    better: u64,
    show: impl Fn(u64) -> String,
    (unit_line, shell_option): (&str, &str),
    why: &'static str,
) -> Finding {
    match readings
        .limits
        .as_deref()
        .and_then(|limits| soft_limit(limits, name))
    {
        None => Finding::fine(id, "the kernel does not tell this limit", why),
        Some(size) if size >= better => Finding::fine(id, show(size), why),
        Some(size) => {
            let target = format!("{} ({unit_line} in the unit)", show(better));
            let option = shell_option.split_whitespace().next().unwrap_or_default();
            let present = if option == "-l" { size >> 10 } else { size };
            Finding::lacking(Severity::Advice, id, show(size), target, why).mended_by(
                format!("ulimit {shell_option}"),
                format!("ulimit {option} {present}"),
            )
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Quota {
    None,
    Unread,
    /// Thousandths of a core.
    Thousandths(u64),
}

/// `cpu.max`: quota or `max`, then the period, both in microseconds.
fn parse_quota(text: &str) -> Quota {
    let mut fields = text.split_whitespace();
    match (
        fields.next(),
        fields.next().and_then(|period| period.parse::<u64>().ok()),
    ) {
        (Some("max"), _) => Quota::None,
        (Some(quota), Some(period)) if period > 0 => match quota.parse::<u64>() {
            Ok(quota) => Quota::Thousandths(quota.saturating_mul(1000) / period),
            Err(_) => Quota::Unread,
        },
        _ => Quota::Unread,
    }
}

/// Counts `Cpus_allowed_list` of `/proc/self/status`, such as `0-3,8`.
pub(super) fn allowed_cores(status: &str) -> Option<u64> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        Some(count + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_cores_are_counted() {
        let table = [
            ("Cpus_allowed_list:\t0-1\n", Some(2)),
            ("Name:\tx\nCpus_allowed_list:\t0-3,8,10-11\n", Some(7)),
            ("Cpus_allowed_list:\t5\n", Some(1)),
            ("Cpus_allowed_list:\t3-1\n", None),
            ("Cpus_allowed:\t3\n", None),
        ];
        for (text, count) in table {
            assert_eq!(allowed_cores(text), count, "{text:?}");
        }
    }

    #[test]
    fn a_quota_is_read_in_thousandths_of_a_core() {
        let table = [
            ("max 100000\n", Quota::None),
            ("150000 100000\n", Quota::Thousandths(1500)),
            ("50000 100000", Quota::Thousandths(500)),
            ("100000 0", Quota::Unread),
            ("", Quota::Unread),
            ("much 100000", Quota::Unread),
        ];
        for (text, quota) in table {
            assert_eq!(parse_quota(text), quota, "{text:?}");
        }
    }

    #[test]
    fn a_quota_below_the_cores_is_advised_against() {
        let with = |text: &str| Readings {
            status: Some(String::from("Cpus_allowed_list:\t0-1\n")),
            cpu_quota: Some(String::from(text)),
            ..Readings::default()
        };
        assert_eq!(quota(&with("150000 100000")).severity, Severity::Advice);
        assert_eq!(quota(&with("150000 100000")).what_is, "1.500 cores of time");
        assert_eq!(quota(&with("200000 100000")).severity, Severity::Ok);
        assert_eq!(quota(&with("max 100000")).severity, Severity::Ok);
    }

    #[test]
    fn a_slow_clock_is_changed_only_to_one_that_is_offered() {
        let with = |current: &str, offered: &str| Readings {
            clocksource: Some(String::from(current)),
            clocksources: Some(String::from(offered)),
            ..Readings::default()
        };
        assert_eq!(
            clocksource(&with("tsc\n", "tsc kvm-clock\n")).severity,
            Severity::Ok
        );
        assert_eq!(
            clocksource(&with("kvm-clock\n", "tsc kvm-clock\n")).severity,
            Severity::Ok
        );
        let offered = clocksource(&with("hpet\n", "tsc hpet acpi_pm\n"));
        assert!(
            offered
                .command
                .is_some_and(|command| command.starts_with("echo tsc >"))
        );
        let missing = clocksource(&with("hpet\n", "hpet acpi_pm\n"));
        assert_eq!(
            (missing.severity, missing.command),
            (Severity::Advice, None)
        );
    }

    #[test]
    fn limits_are_raised_and_put_back_in_the_shells_unit() {
        let limits = "Max open files            1024   4096   files\n\
                      Max locked memory         8388608   8388608   bytes\n";
        let readings = Readings {
            limits: Some(String::from(limits)),
            ..Readings::default()
        };
        let lock = memory_lock(&readings);
        assert_eq!(lock.what_is, "8 MiB");
        assert_eq!(lock.undo.as_deref(), Some("ulimit -l 8192"));
        assert_eq!(
            open_files(&readings).undo.as_deref(),
            Some("ulimit -n 1024")
        );
    }

    #[test]
    fn the_choice_of_pages_is_the_word_in_brackets() {}
}
