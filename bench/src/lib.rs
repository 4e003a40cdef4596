//! How ramjet is measured.
//!
//! What lives here:
//! * [`arms`]: control arms, the same work over the same kernel path without ramjet's protocol;
//! * [`pairs`]: interleaved pairs of a subject and its control, so that a ratio survives a noisy
//!   machine;
//! * [`facts`]: what the machine is, and how much of a run it spent on something else;
//! * [`schedule`]: when the tasks of an open loop are meant to be sent;
//! * [`latencies`]: what a histogram says, and its log formats;
//! * [`ladder`], [`soak`]: latency at stated rates, a rate for a long time, and what counts;
//! * [`report`]: one object a case for `--json`, and the plain table;
//! * [`page`]: all of a command's figures as one HTML page and one JSON object.
//!
//! Invariants:
//! * A figure never stands alone: whoever prints a rate or a latency prints the control of the same
//!   run.
//! * Every arm stays on loopback, on ports the kernel chose, and ends by itself: a lost datagram or
//!   a dead thread becomes an [`arms::ArmError`], never a hang.
//! * An arm that checks nothing measures nothing: each one proves that what came back is what went
//!   out.
//!
//! Who may call it: anyone. It calls no other ramjet crate, so that a control cannot get faster or
//! slower with the thing it controls. Absent: the subject. A caller brings it as a closure.
//!
//! ```
//! use std::time::Duration;
//! use ramjet_bench::arms::{self, Payload, RoundTrip, WaitMode};
//! use ramjet_bench::pairs;
//!
//! let mut spec = RoundTrip::new(WaitMode::Spinning, Payload::bytes(64));
//! spec.duration = Duration::from_millis(5);
//! let once = || arms::udp_round_trip(&spec).map(|result| result.per_s);
//! let twin = pairs::interleave(5, once, once)?;
//! assert!(twin.ratio_low <= twin.ratio_median);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arms;
pub mod facts;
pub mod ladder;
pub mod latencies;
pub mod page;
pub mod pairs;
pub mod report;
pub mod schedule;
pub mod soak;

mod random;
mod ring;
