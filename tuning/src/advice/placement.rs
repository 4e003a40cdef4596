//! Cores: who else uses them, how they rest, and what lies near them.

use crate::{Finding, Readings, Severity};

/// A core that takes longer than this to wake adds it to the latency of a worker that parks.
const IDLE_LATENCY_MAX_US: u64 = 50;
/// Share of the time that the host may take before it shows as a tail, in thousandths.
const STEAL_MAX: u64 = 5;

const STEAL_WHY: &str = "time that the host gives to others while a worker wants to run shows as a \
                         tail of milliseconds; no setting of this guest changes it";
const IDLE_WHY: &str = "a core that sleeps deeply wakes late; a worker that parks, and every \
                        interrupt, waits for it";
const ISOLATION_WHY: &str = "a core that the scheduler gives to nobody else has no other tail than \
                             the kernel's own";
const SMT_WHY: &str = "two workers on the threads of one core share its units; each then does \
                       about 60 % of what it does alone";
const NUMA_WHY: &str = "memory of the other node costs half as much again; a worker belongs on the \
                        node of its network device";
const GPU_WHY: &str = "what is copied to a device from the other node crosses the link between \
                       them; the agent and the worker belong on the near cores";

/// Steal since boot: a host that is oversold now was oversold before.
pub(crate) fn steal(readings: &Readings) -> Finding {
    let id = "steal";
    let Some(share) = readings.stat.as_deref().and_then(stolen_thousandths) else {
        return Finding::fine(id, "the kernel does not tell", STEAL_WHY);
    };
    let what_is = format!(
        "{}.{} % of the cores' time since boot",
        share / 10,
        share % 10
    );
    if share <= STEAL_MAX {
        return Finding::fine(id, what_is, STEAL_WHY);
    }
    let better = "under 0.5 %: a host that is not shared, or dedicated cores";
    Finding::lacking(Severity::Advice, id, what_is, better, STEAL_WHY)
}

pub(crate) fn idle_states(readings: &Readings) -> Finding {
    let id = "idle_states";
    let enabled = readings.idle_states.iter().filter(|state| !state.disabled);
    let Some(deepest) = enabled.max_by_key(|state| state.latency_us) else {
        return Finding::fine(id, "the kernel does not tell: the host decides", IDLE_WHY);
    };
    let what_is = format!(
        "{}, which wakes within {} us",
        deepest.name, deepest.latency_us
    );
    if deepest.latency_us <= IDLE_LATENCY_MAX_US {
        return Finding::fine(id, what_is, IDLE_WHY);
    }
    let better = format!("no state that takes more than {IDLE_LATENCY_MAX_US} us to leave");
    Finding::lacking(Severity::Advice, id, what_is, better, IDLE_WHY).mended_by(
        format!("cpupower idle-set -D {IDLE_LATENCY_MAX_US}"),
        "cpupower idle-set -E",
    )
}

pub(crate) fn isolation(readings: &Readings) -> Finding {
    let id = "isolated_cores";
    let what_is = match readings.isolated.as_deref().map(str::trim) {
        None => "the kernel does not tell".to_owned(),
        Some("") => {
            "none; for workers that spin on a host of their own, isolcpus= at boot and --cores"
                .to_owned()
        }
        Some(cores) => format!("{cores}: pin the workers there with --cores {cores}"),
    };
    Finding::fine(id, what_is, ISOLATION_WHY)
}

pub(crate) fn smt(readings: &Readings) -> Finding {
    let id = "smt";
    let what_is = match readings.smt_active.as_deref().map(str::trim) {
        Some("1") => "on: give --cores one thread of each core",
        Some("0") => "off, or not there",
        _ => "the kernel does not tell",
    };
    Finding::fine(id, what_is, SMT_WHY)
}

pub(crate) fn numa(readings: &Readings) -> Finding {
    let id = "numa_nodes";
    let what_is = match readings.numa_nodes.as_deref().map(str::trim) {
        None => "the kernel does not tell".to_owned(),
        Some("0") => "one".to_owned(),
        Some(nodes) => {
            format!("{nodes}: pin the workers (--cores) to the node of the network device")
        }
    };
    Finding::fine(id, what_is, NUMA_WHY)
}

pub(crate) fn gpus(readings: &Readings) -> Finding {
    let id = "gpus";
    let gpus: Vec<String> = readings
        .gpus
        .iter()
        .map(|gpu| match gpu.numa_node.as_str() {
            "-1" | "" => format!("{}, near every core as far as the firmware says", gpu.slot),
            node => format!("{} on node {node}, near cores {}", gpu.slot, gpu.cores),
        })
        .collect();
    let what_is = match gpus.is_empty() {
        true => "none".to_owned(),
        false => gpus.join("; "),
    };
    Finding::fine(id, what_is, GPU_WHY)
}

/// The eighth number of the first line of `/proc/stat` over the sum of the first eight (proc(5)).
fn stolen_thousandths(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|time| time.parse().ok())
        .collect();
    let sum: u64 = times.iter().sum();
    times.get(7)?.saturating_mul(1_000).checked_div(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::{Gpu, IdleState};

    #[test]
    fn stolen_time_is_counted_in_thousandths() {
        let table = [
            ("cpu  90 0 0 0 0 0 0 10 0 0\ncpu0 1\n", Some(100)),
            ("cpu  1 1 1 1 1 1 1 0 5 5\n", Some(0)),
            ("cpu  1 2 3\n", None),
            ("cpu  0 0 0 0 0 0 0 0\n", None),
            ("intr 1\n", None),
        ];
        for (text, share) in table {
            assert_eq!(stolen_thousandths(text), share, "{text:?}");
        }
        let with = |text: &str| Readings {
            stat: Some(text.to_owned()),
            ..Readings::default()
        };
        assert_eq!(
            steal(&with("cpu  994 0 0 0 0 0 0 6\n")).severity,
            Severity::Advice
        );
        assert_eq!(
            steal(&with("cpu  995 0 0 0 0 0 0 5\n")).severity,
            Severity::Ok
        );
    }

    #[test]
    fn a_deep_state_counts_unless_it_is_switched_off() {
        let with = |disabled| Readings {
            idle_states: vec![
                IdleState {
                    name: "C1".to_owned(),
                    latency_us: 1,
                    disabled: false,
                },
                IdleState {
                    name: "C6".to_owned(),
                    latency_us: 133,
                    disabled,
                },
            ],
            ..Readings::default()
        };
        let deep = idle_states(&with(false));
        assert_eq!(deep.severity, Severity::Advice);
        assert!(deep.what_is.contains("C6"), "{deep:?}");
        assert_eq!(idle_states(&with(true)).severity, Severity::Ok);
    }

    #[test]
    fn a_device_is_named_with_its_cores() {
        let readings = Readings {
            gpus: vec![Gpu {
                slot: "0000:17:00.0".to_owned(),
                numa_node: "1".to_owned(),
                cores: "32-63".to_owned(),
            }],
            ..Readings::default()
        };
        let found = gpus(&readings).what_is;
        assert_eq!(found, "0000:17:00.0 on node 1, near cores 32-63");
    }
}
