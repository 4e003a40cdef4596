//! The kernel's files that advice is made from, read once, unparsed.

use std::fs;
use std::path::{Path, PathBuf};

/// What the kernel's files say; `None` where a file is absent or unreadable.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Readings {
    /// `/proc/sys/kernel/osrelease`.
    pub kernel_release: Option<String>,
    /// `/proc/sys/kernel/io_uring_disabled`.
    pub io_uring_disabled: Option<String>,
    /// `/proc/self/limits`.
    pub limits: Option<String>,
    /// `/proc/sys/net/core/rmem_max`.
    pub rmem_max: Option<String>,
    /// `/proc/sys/net/core/wmem_max`.
    pub wmem_max: Option<String>,
    /// `/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor`.
    pub governor: Option<String>,
    /// `/sys/devices/system/clocksource/clocksource0/current_clocksource`.
    pub clocksource: Option<String>,
    /// `/sys/devices/system/clocksource/clocksource0/available_clocksource`.
    pub clocksources: Option<String>,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// `/proc/self/status`, for the allowed cores.
    pub status: Option<String>,
    /// The processor quota of this process's control group: `cpu.max` of version 2, or quota and
    /// period of version 1 in the same form.
    pub cpu_quota: Option<String>,
    /// Idle states of the first core.
    pub idle_states: Vec<IdleState>,
    /// `/sys/devices/system/cpu/smt/active`.
    pub smt_active: Option<String>,
    /// `/sys/devices/system/node/online`.
    pub numa_nodes: Option<String>,
    /// `/sys/devices/system/cpu/isolated`.
    pub isolated: Option<String>,
    /// `/proc/stat`.
    pub stat: Option<String>,
    /// Network devices with hardware behind them.
    pub links: Vec<Link>,
    /// Display and compute devices of NVIDIA and AMD.
    pub gpus: Vec<Gpu>,
    /// `/proc/sys/net/core/netdev_max_backlog`.
    pub backlog: Option<String>,
    /// `/proc/net/softnet_stat`, for what the backlog dropped.
    pub softnet: Option<String>,
    /// What keeps the time of day right, by the file that shows it.
    pub time_service: Option<&'static str>,
}

/// A state that a core goes to when it has nothing to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdleState {
    /// Its name, such as `C6`.
    pub name: String,
    /// Microseconds until the core works again.
    pub latency_us: u64,
    /// Whether it is switched off.
    pub disabled: bool,
}

/// A network device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its name, such as `eth0`.
    pub name: String,
    /// Receive queues.
    pub queues: usize,
    /// `rps_cpus` of the first: the cores that packets are handed to, as a mask.
    pub steering: String,
}

/// A device that computes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gpu {
    /// Its place on the bus, such as `0000:17:00.0`.
    pub slot: String,
    /// `numa_node`: -1 if the firmware does not say.
    pub numa_node: String,
    /// `local_cpulist`: the cores near it.
    pub cores: String,
}

impl Readings {
    /// Reads the host whose files lie below `root`: `/` for this one.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| text(root.join(path));
        Self {
            kernel_release: text("proc/sys/kernel/osrelease"),
            io_uring_disabled: text("proc/sys/kernel/io_uring_disabled"),
            limits: text("proc/self/limits"),
            rmem_max: text("proc/sys/net/core/rmem_max"),
            wmem_max: text("proc/sys/net/core/wmem_max"),
            governor: text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clocksource: text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            clocksources: text("sys/devices/system/clocksource/clocksource0/available_clocksource"),
            huge_pages: text("sys/kernel/mm/transparent_hugepage/enabled"),
            status: text("proc/self/status"),
            cpu_quota: text("proc/self/cgroup").and_then(|groups| read_quota(root, &groups)),
            idle_states: read_idle_states(root),
            smt_active: text("sys/devices/system/cpu/smt/active"),
            numa_nodes: text("sys/devices/system/node/online"),
            isolated: text("sys/devices/system/cpu/isolated"),
            stat: text("proc/stat"),
            links: read_links(root),
            gpus: read_gpus(root),
            backlog: text("proc/sys/net/core/netdev_max_backlog"),
            softnet: text("proc/net/softnet_stat"),
            time_service: read_time_service(root),
        }
    }
}

/// The first sign of something that keeps the time of day right.
fn read_time_service(root: &Path) -> Option<&'static str> {
    const SIGNS: &[(&str, &str)] = &[
        ("run/systemd/timesync/synchronized", "systemd-timesyncd"),
        ("run/chrony/chronyd.pid", "chrony"),
        ("run/chronyd.pid", "chrony"),
        ("run/ntpd.pid", "ntpd"),
        (
            "dev/ptp0",
            "a clock of the hypervisor or of the network device",
        ),
    ];
    let there = |(path, _): &&(&str, &str)| root.join(path).exists();
    SIGNS.iter().find(there).map(|(_, service)| *service)
}

/// Names in a folder, sorted; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A file's text without the line's end.
fn line(path: &Path) -> Option<String> {
    text(path).map(|text| text.trim().to_owned())
}

fn read_idle_states(root: &Path) -> Vec<IdleState> {
    let folder = root.join("sys/devices/system/cpu/cpu0/cpuidle");
    let state = |name: String| {
        let state = folder.join(name);
        Some(IdleState {
            name: line(&state.join("name"))?,
            latency_us: line(&state.join("latency"))?.parse().ok()?,
            disabled: line(&state.join("disable")).as_deref() == Some("1"),
        })
    };
    names(&folder).into_iter().filter_map(state).collect()
}

fn read_links(root: &Path) -> Vec<Link> {
    let folder = root.join("sys/class/net");
    let link = |name: String| {
        let queues = folder.join(&name).join("queues");
        // Loopback, bridges and tunnels have no device and no queue of their own.
        folder.join(&name).join("device").exists().then(|| Link {
            queues: names(&queues)
                .iter()
                .filter(|queue| queue.starts_with("rx-"))
                .count(),
            steering: line(&queues.join("rx-0/rps_cpus")).unwrap_or_default(),
            name,
        })
    };
    names(&folder).into_iter().filter_map(link).collect()
}

fn read_gpus(root: &Path) -> Vec<Gpu> {
    const VENDORS: [&str; 2] = ["0x10de", "0x1002"];
    let folder = root.join("sys/bus/pci/devices");
    let gpu = |slot: String| {
        let device = folder.join(&slot);
        let vendor = line(&device.join("vendor"))?;
        // Display controllers are class 03, processing accelerators 12.
        let class = line(&device.join("class"))?;
        let computes = class.starts_with("0x03") || class.starts_with("0x12");
        (computes && VENDORS.contains(&vendor.as_str())).then(|| Gpu {
            slot,
            numa_node: line(&device.join("numa_node")).unwrap_or_default(),
            cores: line(&device.join("local_cpulist")).unwrap_or_default(),
        })
    };
    names(&folder).into_iter().filter_map(gpu).collect()
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Reads the quota of the group this process is in, or of the nearest parent that the mount shows.
fn read_quota(host: &Path, groups: &str) -> Option<String> {
    let root = &host.join("sys/fs/cgroup");
    if let Some(group) = unified_group(groups) {
        for folder in upward(root, group) {
            if let Some(quota) = text(folder.join("cpu.max")) {
                return Some(quota);
            }
        }
    }
    let group = controller_group(groups, "cpu")?;
    upward(&root.join("cpu"), group)
        .into_iter()
        .find_map(|folder| {
            let quota = text(folder.join("cpu.cfs_quota_us"))?;
            let period = text(folder.join("cpu.cfs_period_us"))?;
            Some(format!(
                "{} {}",
                quota.trim().replace("-1", "max"),
                period.trim()
            ))
        })
}

/// The version 2 group of `/proc/self/cgroup`: the line `0::/path`.
fn unified_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The version 1 group of one controller: a line `7:cpu,cpuacct:/path`.
fn controller_group<'text>(groups: &'text str, controller: &str) -> Option<&'text str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let named = fields.next()?.split(',').any(|name| name == controller);
        named.then(|| fields.next()).flatten()
    })
}

/// The group's folder and its parents up to the mount point, innermost first.
fn upward(mount: &Path, group: &str) -> Vec<PathBuf> {
    let inner = mount.join(group.trim().trim_start_matches('/'));
    inner
        .ancestors()
        .take_while(|folder| folder.starts_with(mount))
        .map(Path::to_path_buf)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_this_process_is_found_in_both_versions() {
        let unified = "0::/system.slice/ramjet-node.service\n";
        assert_eq!(
            unified_group(unified),
            Some("/system.slice/ramjet-node.service")
        );
        let legacy = "4:memory:/jobs\n2:cpu,cpuacct:/jobs/7\n0::/\n";
        assert_eq!(controller_group(legacy, "cpu"), Some("/jobs/7"));
        assert_eq!(controller_group(legacy, "cpuset"), None);
        assert_eq!(unified_group("1:cpu:/\n"), None);
    }

    #[test]
    fn the_search_for_a_quota_ends_at_the_mount() {
        let folders = upward(Path::new("/sys/fs/cgroup"), "/a/b");
        let folders: Vec<_> = folders
            .iter()
            .filter_map(|folder| folder.to_str())
            .collect();
        assert_eq!(
            folders,
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]
        );
    }

    #[test]
    fn this_host_can_be_read() {
        let readings = Readings::read(Path::new("/"));
        assert!(readings.kernel_release.is_some());
        assert!(readings.limits.is_some());
    }
}
