//! Why an arm gave no figure, each with what to do next.

use std::{fmt, io};

/// Why an arm gave no figure.
#[derive(Debug)]
#[non_exhaustive]
pub enum ArmError {
    /// A length, window or train is outside its bounds.
    OutOfBounds {
        /// Which parameter.
        what: &'static str,
        /// What was given.
        given: usize,
        /// The least accepted.
        least: usize,
        /// The most accepted.
        most: usize,
    },
    /// Not even one datagram fits the receive buffer the kernel granted.
    WindowOverflow {
        /// Bytes one datagram may occupy in the receive buffer.
        needed: usize,
        /// Bytes the kernel granted.
        granted: usize,
    },
    /// This process may run on no core at all.
    NoCore,
    /// The kernel refused a call.
    Kernel {
        /// What the call was for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// io_uring, or an option of it, is not available here.
    RingUnavailable {
        /// Which step failed.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No reply within [`STALL_LIMIT`](super::STALL_LIMIT).
    Stalled {
        /// Replies counted before the silence.
        datagrams: u64,
    },
    /// Replies came back changed.
    Corrupt {
        /// How many.
        count: u64,
    },
    /// A thread of the arm ended without an answer.
    ThreadLost,
}

impl ArmError {
    pub(crate) fn kernel(what: &'static str, source: io::Error) -> Self {
        Self::Kernel { what, source }
    }

    pub(crate) fn ring(what: &'static str, source: io::Error) -> Self {
        Self::RingUnavailable { what, source }
    }

    /// Refuses a parameter outside `least..=most`.
    pub(crate) fn check(
        what: &'static str,
        given: usize,
        least: usize,
        most: usize,
    ) -> Result<(), Self> {
        if (least..=most).contains(&given) {
            Ok(())
        } else {
            Err(Self::OutOfBounds {
                what,
                given,
                least,
                most,
            })
        }
    }
}

impl fmt::Display for ArmError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds {
                what,
                given,
                least,
                most,
            } => write!(
                out,
                "{what} is {given}, outside {least} to {most}; choose a value inside"
            ),
            Self::WindowOverflow { needed, granted } => write!(
                out,
                "one datagram may need {needed} bytes of receive buffer and the kernel granted \
                 {granted}; shorten the datagram or raise net.core.rmem_max"
            ),
            Self::NoCore => write!(
                out,
                "this process may run on no core; look at its affinity mask (taskset -p)"
            ),
            Self::Kernel { what, source } => write!(out, "could not {what}: {source}"),
            Self::RingUnavailable { what, source } => write!(
                out,
                "io_uring is not available: could not {what}: {source}; \
                 look at kernel.io_uring_disabled and the seccomp filter"
            ),
            Self::Stalled { datagrams } => write!(
                out,
                "no reply for two seconds after {datagrams} datagrams; \
                 the cores are taken or loopback drops: repeat on a quieter machine"
            ),
            Self::Corrupt { count } => {
                write!(out, "{count} replies came back changed; the figure is void")
            }
            Self::ThreadLost => write!(out, "a thread of the arm ended without an answer"),
        }
    }
}

impl std::error::Error for ArmError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel { source, .. } | Self::RingUnavailable { source, .. } => Some(source),
            _ => None,
        }
    }
}
