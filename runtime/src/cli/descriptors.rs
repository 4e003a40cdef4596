//! File descriptors of this process: a connection takes one, and the usual soft limit is 1,024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process opens beside its connections: log, sockets, rings, standard streams.
const RESERVED: u64 = 256;

/// Raises the soft limit to the hard one; how many connections fit then.
pub(super) fn for_connections() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    // Where that is refused, the soft limit is what there is.
    let open = if setrlimit(Resource::Nofile, raised).is_ok() {
        limits.maximum
    } else {
        limits.current
    };
    // No limit at all reads as nothing.
    let open = open.unwrap_or(u64::MAX).saturating_sub(RESERVED);
    usize::try_from(open.max(1)).unwrap_or(usize::MAX)
}
