//! What the machine is, and how much of a run it spent on something else.
//!
//! A figure without its machine is only good as a ratio, and a figure taken while a neighbour had
//! the cores is good for nothing: [`Watch`] reads the kernel's counters around a run and [`Quiet`]
//! says whether the run counts, with the figure that decides.
//!
//! Invariants: reading facts changes nothing on the machine; a counter that cannot be read is
//! absent, never zero. Absent: advice, which is `ramjet-tuning`'s.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::ring;

/// Length of one tick of `/proc/stat`, in nanoseconds: Linux reports them at 100 Hz on every
/// machine.
const TICK_NS: u64 = 10_000_000;

/// Share of the cores' time the hypervisor may take before a run is called disturbed.
pub const STEAL_SHARE_MAX: f64 = 0.01;
/// Share of the cores' time other processes may take before a run is called disturbed.
pub const FOREIGN_SHARE_MAX: f64 = 0.05;
/// Involuntary context switches per second of wall time before a run is called disturbed. The control
/// threads of a subject's own two nodes make some 150 of them.
pub const SWITCHES_PER_S_MAX: f64 = 500.0;

/// What the machine is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MachineFacts {
    /// Model name of the first processor.
    pub cpu_model: String,
    /// Processors the kernel runs.
    pub cores: usize,
    /// Processors this process may use.
    pub cores_allowed: usize,
    /// Whether a hypervisor runs underneath.
    pub virtual_machine: bool,
    /// Kernel release.
    pub kernel: String,
    /// Processor mitigations that are active or missing, as `name: state`; the unaffected are left
    /// out.
    pub mitigations: Vec<String>,
    /// What chooses the frequency of the first processor; absent where the kernel leaves it to
    /// firmware or hypervisor.
    pub governor: Option<String>,
    /// What the kernel tells the time by.
    pub clock_source: Option<String>,
}

impl MachineFacts {
    /// Reads the facts; what the kernel does not tell stays empty.
    #[must_use]
    pub fn read() -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu_model: cpu_model(&processors),
            cores: processor_count(&processors),
            cores_allowed: ring::allowed_cores().map_or(0, |cores| cores.len()),
            virtual_machine: is_virtual(&processors),
            kernel: release.trim().to_owned(),
            mitigations: read_mitigations(),
            governor: read_word("cpu/cpu0/cpufreq/scaling_governor"),
            clock_source: read_word("clocksource/clocksource0/current_clocksource"),
        }
    }

    /// The facts on one line, for the head of a report.
    #[must_use]
    pub fn line(&self) -> String {
        let place = if self.virtual_machine {
            "virtual machine"
        } else {
            "bare metal"
        };
        format!(
            "{}, {} of {} cores, {place}, Linux {}, mitigations: {}",
            self.cpu_model,
            self.cores_allowed,
            self.cores,
            self.kernel,
            if self.mitigations.is_empty() {
                "none".to_owned()
            } else {
                self.mitigations.join("; ")
            }
        )
    }
}

/// Resident memory of this process, in bytes; absent where the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmRSS").map(|kib| kib * 1_024)
}

/// A line of `/proc/self/status` in kibibytes, as in `VmRSS:   1234 kB`.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    field(status, name)?.split_whitespace().next()?.parse().ok()
}

/// Open descriptors of this process, but for the one that counts them.
#[must_use]
pub fn descriptors() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(open.saturating_sub(1)).ok()
}

/// How long the threads of this process whose names begin alike waited for a core, before a run.
#[derive(Clone, Debug)]
pub struct Stalls {
    began: Instant,
    prefix: String,
    waited_ns: BTreeMap<u32, u64>,
}

impl Stalls {
    /// Reads how long each has waited so far.
    #[must_use]
    pub fn begin(prefix: &str) -> Self {
        Self {
            began: Instant::now(),
            waited_ns: waits_of(prefix),
            prefix: prefix.to_owned(),
        }
    }

    /// For which share of the time since then a thread was ready to run and another one had its
    /// core, summed over the threads that ran all the time; absent where the kernel does not count.
    #[must_use]
    pub fn end(&self) -> Option<f64> {
        let wall_ns = self.began.elapsed().as_nanos();
        let after = waits_of(&self.prefix);
        let waits = after
            .iter()
            .filter_map(|(thread, after)| Some(after.saturating_sub(*self.waited_ns.get(thread)?)));
        let known = self
            .waited_ns
            .keys()
            .any(|thread| after.contains_key(thread));
        (known && wall_ns > 0).then(|| as_f64(waits.sum()) / wall_ns as f64)
    }
}

/// Thread number to the nanoseconds it has waited for a core.
fn waits_of(prefix: &str) -> BTreeMap<u32, u64> {
    let Ok(folder) = fs::read_dir("/proc/self/task") else {
        return BTreeMap::new();
    };
    let waits = folder.filter_map(Result::ok).filter_map(|thread| {
        let number = thread.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let waited = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        name.starts_with(prefix).then_some(())?;
        Some((number, run_delay_ns(&waited)?))
    });
    waits.collect()
}

/// The second field of `schedstat`: time on the run queue.
fn run_delay_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

/// Counters read before a run.
///
/// Processor time of child processes that ended within the run, and were waited for, is the run's
/// own; their context switches are not, as children may share cores by design.
#[derive(Clone, Debug)]
pub struct Watch {
    began: Instant,
    machine: Option<MachineTicks>,
    own_cpu_ns: u64,
    involuntary_switches: u64,
}

impl Watch {
    /// Reads the counters.
    #[must_use]
    pub fn begin() -> Self {
        let own = ring::process_usage();
        Self {
            began: Instant::now(),
            machine: read_machine_ticks(),
            own_cpu_ns: own.cpu_ns + ring::children_usage().cpu_ns,
            involuntary_switches: own.involuntary_switches,
        }
    }

    /// Reads them again and judges the run between.
    #[must_use]
    pub fn end(&self) -> Quiet {
        self.end_beside(0)
    }

    /// As [`Self::end`], for a run to which processes belong that go on; they took `others_cpu_ns`
    /// of processor time.
    #[must_use]
    pub fn end_beside(&self, others_cpu_ns: u64) -> Quiet {
        let own = ring::process_usage();
        let own_cpu_ns =
            (own.cpu_ns + ring::children_usage().cpu_ns).saturating_sub(self.own_cpu_ns);
        Quiet::judge(
            self.began.elapsed(),
            self.machine.zip(read_machine_ticks()),
            own_cpu_ns.saturating_add(others_cpu_ns),
            own.involuntary_switches
                .saturating_sub(self.involuntary_switches),
        )
    }
}

/// Whether a run had the machine to itself.
#[derive(Clone, Debug, Serialize)]
pub struct Quiet {
    /// Length of the run, in milliseconds.
    pub wall_ms: u64,
    /// Share of the cores' time that the hypervisor gave to others; absent where the kernel does
    /// not count.
    pub steal_share: Option<f64>,
    /// Share of the cores' time that other processes of this machine used.
    pub foreign_share: Option<f64>,
    /// Involuntary context switches of this process.
    pub involuntary_switches: u64,
    /// Whether any figure is over its threshold: the run is to be repeated, not reported.
    pub disturbed: bool,
    /// The figures over their thresholds, in words.
    pub reasons: Vec<String>,
}

impl Quiet {
    fn judge(
        wall: Duration,
        machine: Option<(MachineTicks, MachineTicks)>,
        own_cpu_ns: u64,
        involuntary_switches: u64,
    ) -> Self {
        let shares = machine.and_then(|(before, after)| before.shares(after, own_cpu_ns));
        let switches_per_s = as_f64(involuntary_switches) / wall.as_secs_f64().max(1e-9);
        let mut reasons = Vec::new();
        if let Some((steal, foreign)) = shares {
            if steal > STEAL_SHARE_MAX {
                reasons.push(format!("steal time {:.1} % of the cores", steal * 100.0));
            }
            if foreign > FOREIGN_SHARE_MAX {
                reasons.push(format!(
                    "other processes {:.1} % of the cores",
                    foreign * 100.0
                ));
            }
        }
        if switches_per_s > SWITCHES_PER_S_MAX {
            reasons.push(format!(
                "{switches_per_s:.0} involuntary context switches per second"
            ));
        }
        Self {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            steal_share: shares.map(|(steal, _)| steal),
            foreign_share: shares.map(|(_, foreign)| foreign),
            involuntary_switches,
            disturbed: !reasons.is_empty(),
            reasons,
        }
    }
}

/// The `cpu` line of `/proc/stat`, in ticks since boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct MachineTicks {
    total: u64,
    idle: u64,
    steal: u64,
}

impl MachineTicks {
    /// Shares of steal and of other processes between two readings; nothing if no tick has passed.
    fn shares(self, after: Self, own_cpu_ns: u64) -> Option<(f64, f64)> {
        let total = after
            .total
            .checked_sub(self.total)
            .filter(|&ticks| ticks > 0)?;
        let idle = after.idle.saturating_sub(self.idle);
        let steal = after.steal.saturating_sub(self.steal);
        let own = own_cpu_ns / TICK_NS;
        let foreign = total
            .saturating_sub(idle)
            .saturating_sub(steal)
            .saturating_sub(own);
        Some((
            as_f64(steal) / as_f64(total),
            as_f64(foreign) / as_f64(total),
        ))
    }
}

fn read_machine_ticks() -> Option<MachineTicks> {
    parse_machine_ticks(&fs::read_to_string("/proc/stat").ok()?)
}

/// Fields of the line: user, nice, system, idle, iowait, irq, softirq, steal, then guest time that
/// the first two already contain.
fn parse_machine_ticks(stat: &str) -> Option<MachineTicks> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Option<Vec<u64>> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|field| field.parse().ok())
        .collect();
    let ticks = ticks.filter(|ticks| ticks.len() == 8)?;
    Some(MachineTicks {
        total: ticks.iter().sum(),
        idle: ticks[3] + ticks[4],
        steal: ticks[7],
    })
}

fn cpu_model(processors: &str) -> String {
    field(processors, "model name")
        .unwrap_or("unknown processor")
        .to_owned()
}

fn processor_count(processors: &str) -> usize {
    processors
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count()
}

fn is_virtual(processors: &str) -> bool {
    field(processors, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// A file of `/sys/devices/system` that holds one word.
fn read_word(path: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/devices/system/{path}")).ok()?;
    Some(text.trim().to_owned()).filter(|word| !word.is_empty())
}

fn read_mitigations() -> Vec<String> {
    let Ok(folder) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut found: Vec<String> = folder
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            mitigation(&entry.file_name().to_string_lossy(), &state)
        })
        .collect();
    found.sort();
    found
}

/// One vulnerability as `name: state`, or nothing where the processor is not affected.
fn mitigation(name: &str, state: &str) -> Option<String> {
    let state = state.trim();
    let state = state.strip_prefix("Mitigation: ").unwrap_or(state);
    let first = state.split(';').next().unwrap_or(state);
    (first != "Not affected").then(|| format!("{name}: {first}"))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks and counts of a run stay far below 2^53"
)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "\
                           processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu hypervisor aes\n\n\
                           processor\t: 1\nmodel name\t: EPYC\nflags\t\t: fpu hypervisor aes\n";

    #[test]
    fn the_processor_file_is_read() {
        assert_eq!(cpu_model(CPUINFO), "EPYC");
        assert_eq!(processor_count(CPUINFO), 2);
        assert!(is_virtual(CPUINFO));
        assert!(!is_virtual("flags : fpu aes\n"));
        assert_eq!(cpu_model(""), "unknown processor");
    }

    #[test]
    fn only_mitigations_that_cost_or_lack_are_named() {
        assert_eq!(mitigation("l1tf", "Not affected\n"), None);
        assert_eq!(
            mitigation("spectre_v2", "Mitigation: Retpolines; STIBP: disabled\n").as_deref(),
            Some("spectre_v2: Retpolines")
        );
        assert_eq!(
            mitigation("spec_store_bypass", "Vulnerable\n").as_deref(),
            Some("spec_store_bypass: Vulnerable")
        );
    }

    #[test]
    fn the_stat_line_is_read_and_a_short_one_is_refused() {
        let stat = "cpu  100 0 50 800 10 1 2 30 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        let ticks = parse_machine_ticks(stat).expect("eight fields");
        assert_eq!(
            ticks,
            MachineTicks {
                total: 993,
                idle: 810,
                steal: 30
            }
        );
        assert_eq!(parse_machine_ticks("cpu  1 2 3\n"), None);
        assert_eq!(parse_machine_ticks("cpu0 1 2 3 4 5 6 7 8\n"), None);
    }

    #[test]
    fn a_run_is_disturbed_by_the_figure_that_says_so() {
        let before = MachineTicks {
            total: 0,
            idle: 0,
            steal: 0,
        };
        let second = Duration::from_secs(1);
        let own_ns = 190 * TICK_NS;
        let table = [
            (
                MachineTicks {
                    total: 200,
                    idle: 5,
                    steal: 0,
                },
                10,
                None,
            ),
            (
                MachineTicks {
                    total: 200,
                    idle: 5,
                    steal: 4,
                },
                10,
                Some("steal time 2.0 %"),
            ),
            (
                MachineTicks {
                    total: 240,
                    idle: 5,
                    steal: 0,
                },
                10,
                Some("other processes 18.8 %"),
            ),
            (
                MachineTicks {
                    total: 200,
                    idle: 5,
                    steal: 0,
                },
                600,
                Some("600 involuntary"),
            ),
        ];
        for (after, switches, reason) in table {
            let quiet = Quiet::judge(second, Some((before, after)), own_ns, switches);
            assert_eq!(quiet.disturbed, reason.is_some(), "{quiet:?}");
            let said = quiet.reasons.join("; ");
            assert!(said.contains(reason.unwrap_or_default()), "{said}");
        }
        let blind = Quiet::judge(second, None, own_ns, 0);
        assert_eq!((blind.steal_share, blind.disturbed), (None, false));
    }

    #[test]
    fn memory_and_descriptors_of_this_process_are_read() {
        assert_eq!(
            kibibytes("Name:\tx\nVmRSS:\t   1234 kB\n", "VmRSS"),
            Some(1_234)
        );
        assert_eq!(kibibytes("Name:\tx\n", "VmRSS"), None);
        let before = descriptors().expect("a folder of descriptors");
        let files: Vec<fs::File> = (0..40)
            .map(|_| fs::File::open("/proc/self/status").expect("readable"))
            .collect();
        // Other tests of this process open and close a few meanwhile.
        assert!(descriptors().expect("a folder") >= before + 20, "{before}");
        drop(files);
        assert!(resident_bytes().expect("a line") > 1 << 20);
    }

    #[test]
    fn waits_are_those_of_threads_by_their_names() {
        assert_eq!(run_delay_ns("5000 1234 17\n"), Some(1_234));
        assert_eq!(run_delay_ns(""), None);
        let (go, gone) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            let named = std::thread::Builder::new().name("stall-test-7".to_owned());
            let idle = || {
                go.wait();
                gone.wait();
            };
            named.spawn_scoped(scope, idle).expect("a thread");
            go.wait();
            assert_eq!(waits_of("stall-test").len(), 1);
            let share = Stalls::begin("stall-test").end();
            gone.wait();
            assert!(share.is_some_and(f64::is_finite), "{share:?}");
        });
        assert_eq!(Stalls::begin("no-such-thread").end(), None);
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = MachineFacts::read();
        assert!(facts.cores >= 1 && facts.cores_allowed >= 1, "{facts:?}");
        assert!(facts.line().contains(&facts.kernel));
        let watch = Watch::begin();
        assert!(watch.end().wall_ms < 60_000);
    }
}
