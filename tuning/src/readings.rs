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
}

impl Readings {
    /// Reads this host.
    #[must_use]
    pub fn read() -> Self {
        let cpu = Path::new("/sys/devices/system");
        Self {
            kernel_release: text("/proc/sys/kernel/osrelease"),
            io_uring_disabled: text("/proc/sys/kernel/io_uring_disabled"),
            limits: text("/proc/self/limits"),
            rmem_max: text("/proc/sys/net/core/rmem_max"),
            wmem_max: text("/proc/sys/net/core/wmem_max"),
            governor: text(cpu.join("cpu/cpu0/cpufreq/scaling_governor")),
            clocksource: text(cpu.join("clocksource/clocksource0/current_clocksource")),
            clocksources: text(cpu.join("clocksource/clocksource0/available_clocksource")),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            status: text("/proc/self/status"),
            cpu_quota: text("/proc/self/cgroup").and_then(|groups| read_quota(&groups)),
        }
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Reads the quota of the group this process is in, or of the nearest parent that the mount shows.
fn read_quota(groups: &str) -> Option<String> {
    let root = Path::new("/sys/fs/cgroup");
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
        let readings = Readings::read();
        assert!(readings.kernel_release.is_some());
        assert!(readings.limits.is_some());
    }
}
