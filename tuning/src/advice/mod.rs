//! One rule a setting; each is a pure function of the readings.

mod host;
mod kernel;
mod network;
mod placement;
mod reach;

use crate::{Finding, Readings};

pub use kernel::ring_probe;
pub use network::offload_probe;
pub use reach::nat_probe;

/// Every rule, in the order of the report: what stops a worker first, what costs a little last.
pub(crate) const RULES: &[fn(&Readings) -> Finding] = &[
    kernel::release,
    kernel::io_uring,
    network::receive_buffer,
    network::send_buffer,
    host::memory_lock,
    host::open_files,
    host::cores,
    host::quota,
    placement::steal,
    kernel::seccomp,
    network::steering,
    reach::backlog,
    host::governor,
    placement::idle_states,
    host::clocksource,
    reach::time_service,
    host::huge_pages,
    placement::isolation,
    placement::smt,
    placement::numa,
    placement::gpus,
];

/// A soft limit of `/proc/self/limits`: `None` if the line is absent, `u64::MAX` for `unlimited`.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// A size in bytes with the unit that reads best.
fn bytes(size: u64) -> String {
    match size {
        u64::MAX => String::from("unlimited"),
        size if size >= 1 << 20 && size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        size => format!("{size} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Severity, judge};

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max open files            1024                 524288               files     
Max locked memory         unlimited            unlimited            bytes     
";

    #[test]
    fn limits_are_read_by_name() {
        assert_eq!(soft_limit(LIMITS, "Max open files"), Some(1024));
        assert_eq!(soft_limit(LIMITS, "Max locked memory"), Some(u64::MAX));
        assert_eq!(soft_limit(LIMITS, "Max stack size"), None);
    }

    #[test]
    fn sizes_carry_their_unit() {
        assert_eq!(bytes(4 << 20), "4 MiB");
        assert_eq!(bytes(212_992), "212992 bytes");
        assert_eq!(bytes(u64::MAX), "unlimited");
    }

    #[test]
    fn a_host_that_tells_nothing_has_no_problem() {
        let findings = judge(&Readings::default());
        assert_eq!(findings.len(), RULES.len());
        for finding in findings {
            assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
            let absent = ["does not tell", "no network device", "none"];
            assert!(
                absent.iter().any(|text| finding.what_is.contains(text)),
                "{finding:?}"
            );
            assert_eq!(finding.change, None);
        }
    }

    #[test]
    fn a_finding_to_act_on_says_what_is_better_and_why() {
        let poor = Readings {
            kernel_release: Some(String::from("5.15.0\n")),
            io_uring_disabled: Some(String::from("2\n")),
            limits: Some(String::from(LIMITS)),
            rmem_max: Some(String::from("212992\n")),
            wmem_max: Some(String::from("212992\n")),
            governor: Some(String::from("powersave\n")),
            clocksource: Some(String::from("hpet\n")),
            clocksources: Some(String::from("tsc hpet acpi_pm\n")),
            huge_pages: Some(String::from("always madvise [never]\n")),
            status: Some(String::from("Cpus_allowed_list:\t0\n")),
            cpu_quota: Some(String::from("50000 100000\n")),
            stat: Some(String::from("cpu  90 0 0 0 0 0 0 10 0 0\n")),
            ..Readings::default()
        };
        let findings = judge(&poor);
        let lacking = findings
            .iter()
            .filter(|finding| finding.severity > Severity::Ok);
        for finding in lacking.clone() {
            assert!(
                !finding.better.is_empty() && !finding.why.is_empty(),
                "{finding:?}"
            );
            assert_eq!(
                finding.command.is_some(),
                finding.undo.is_some(),
                "{finding:?}"
            );
        }
        let ids: Vec<&str> = lacking.map(|finding| finding.id).collect();
        assert_eq!(
            ids,
            [
                "kernel",
                "io_uring_disabled",
                "rmem_max",
                "wmem_max",
                "nofile",
                "cores",
                "cpu_quota",
                "steal",
                "governor",
                "clocksource",
                "time",
                "huge_pages"
            ]
        );
        let changes = findings
            .iter()
            .filter_map(|finding| finding.change.as_ref());
        let files: Vec<&str> = changes.map(|change| change.file.as_str()).collect();
        assert_eq!(
            files,
            [
                "/proc/sys/kernel/io_uring_disabled",
                "/proc/sys/net/core/rmem_max",
                "/proc/sys/net/core/wmem_max",
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                "/sys/kernel/mm/transparent_hugepage/enabled"
            ],
            "what may be changed without asking further"
        );
    }
}
