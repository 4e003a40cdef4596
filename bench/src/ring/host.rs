//! Thread placement, one socket option and usage counters: short calls, each without a safe form.

use std::os::fd::RawFd;
use std::{io, mem, ptr};

/// What a thread or the process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Processor time in user and kernel mode, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Times the scheduler took the core away.
    pub(crate) involuntary_switches: u64,
}

/// Usage of the calling thread.
pub(crate) fn thread_usage() -> Usage {
    usage(libc::RUSAGE_THREAD)
}

/// Usage of the whole process, ended threads included.
pub(crate) fn process_usage() -> Usage {
    usage(libc::RUSAGE_SELF)
}

/// Usage of child processes that have ended and were waited for, and of theirs.
pub(crate) fn children_usage() -> Usage {
    usage(libc::RUSAGE_CHILDREN)
}

/// The cores the process may run on, in ascending order.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is a bit array, for which zero (no core) is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of::<cpu_set_t>()` bytes into `set`; process 0 is the
    // caller.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: `core` stays below `CPU_SETSIZE`, the number of bits in the set.
    Ok((0..count)
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect())
}

/// Pins the calling thread to one core.
pub(crate) fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: `cpu_set_t` is a bit array, for which zero (no core) is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `core` is below `CPU_SETSIZE` by the check above; thread 0 is the caller and the set
    // outlives the call.
    let result = unsafe {
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the kernel hand over several datagrams of one sender as one buffer (`UDP_GRO`).
pub(crate) fn allow_receive_offload(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(4);
    // SAFETY: the option reads one `int` of `length` bytes from `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_UDP,
            libc::UDP_GRO,
            ptr::from_ref(&on).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn usage(who: libc::c_int) -> Usage {
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    let mut used: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one `rusage` into `used`; with a known `who` and a valid pointer
    // the call cannot fail, and a failure would leave zeros.
    unsafe { libc::getrusage(who, &raw mut used) };
    Usage {
        cpu_ns: time_ns(used.ru_utime) + time_ns(used.ru_stime),
        involuntary_switches: u64::try_from(used.ru_nivcsw).unwrap_or(0),
    }
}

fn time_ns(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    seconds * 1_000_000_000 + micros * 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_on_the_core_it_was_pinned_to() {
        let cores = allowed_cores().expect("the kernel names the allowed cores");
        let last = *cores.last().expect("at least one core is allowed");
        std::thread::spawn(move || {
            pin_to_core(last).expect("an allowed core can be pinned");
            assert_eq!(allowed_cores().expect("readable"), [last]);
        })
        .join()
        .expect("the pinned thread ends well");
        assert!(pin_to_core(usize::MAX).is_err());
    }

    #[test]
    fn processor_time_grows_with_work() {
        let before = thread_usage();
        let mut sum = 0_u64;
        while thread_usage().cpu_ns == before.cpu_ns {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(thread_usage().cpu_ns > before.cpu_ns);
        assert!(process_usage().cpu_ns >= before.cpu_ns);
    }

    #[test]
    fn a_child_that_was_waited_for_is_charged() {
        let before = children_usage();
        let count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let ended = std::process::Command::new("/bin/sh")
            .args(["-c", count])
            .status();
        assert!(ended.expect("there is a shell").success());
        assert!(children_usage().cpu_ns > before.cpu_ns);
    }
}
