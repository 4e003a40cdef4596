//! The families of any process: which build it is, what it takes of the host.
//!
//! The names of the `process_` families are those that every Prometheus client exports, so that
//! ready-made dashboards and rules apply. What the kernel does not tell is left out.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::page::{Labels, Page, float};

/// Fields of `/proc/self/stat` after the name, which is in parentheses and may hold anything:
/// counted from the state, which is field 3 in proc(5).
const USER_TICKS: usize = 14 - 3;
const SYSTEM_TICKS: usize = 15 - 3;
const START_TICKS: usize = 22 - 3;
const VIRTUAL_BYTES: usize = 23 - 3;
const RESIDENT_PAGES: usize = 24 - 3;

pub(crate) fn write(page: &mut Page) {
    let version = env!("CARGO_PKG_VERSION");
    page.gauges(
        "ramjet_build_info",
        "Always 1; its labels say which build runs.",
        [(
            &[
                ("version", version),
                ("architecture", std::env::consts::ARCH),
                (
                    "profile",
                    if cfg!(debug_assertions) {
                        "debug"
                    } else {
                        "release"
                    },
                ),
            ] as Labels<'_>,
            1.0,
        )],
    );
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        write_stat(&stat, page);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The folder itself is open meanwhile.
        let open = entries.count().saturating_sub(1) as u64;
        page.gauge("process_open_fds", "Open file descriptors.", float(open));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        page.gauge(
            "process_max_fds",
            "Most file descriptors it may open.",
            float(most),
        );
    }
}

fn write_stat(stat: &str, page: &mut Page) {
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return;
    };
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let Some(field) = (fields.len() > RESIDENT_PAGES).then_some(|at: usize| fields[at]) else {
        return;
    };
    let ticks_per_s = float(rustix::param::clock_ticks_per_second());
    let cpu = float(field(USER_TICKS) + field(SYSTEM_TICKS)) / ticks_per_s;
    page.counter(
        "process_cpu_seconds_total",
        "Processor time, user and system.",
        cpu,
    );
    let resident = field(RESIDENT_PAGES) * rustix::param::page_size() as u64;
    page.gauge(
        "process_resident_memory_bytes",
        "Memory in use.",
        float(resident),
    );
    page.gauge(
        "process_virtual_memory_bytes",
        "Addresses in use.",
        float(field(VIRTUAL_BYTES)),
    );
    if let Some(booted_s) = booted_s() {
        let started = float(booted_s) + float(field(START_TICKS)) / ticks_per_s;
        page.gauge(
            "process_start_time_seconds",
            "When it started, since 1970.",
            started,
        );
    }
}

/// When the host booted, in seconds since 1970.
fn booted_s() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
