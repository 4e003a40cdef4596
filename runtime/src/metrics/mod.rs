//! Metrics: what a node and a registry count, as a page that Prometheus fetches over HTTP, or that is
//! pushed to a collector of OpenTelemetry.
//!
//! | module | holds |
//! |---|---|
//! | [`page`] | metric families, one after the other, in Prometheus' text format |
//! | [`node`] | the families of a node |
//! | `agents` | the families of the skills that agents run |
//! | [`registry`] | the families of a registry |
//! | [`process`] | the families of any process: version, processor time, memory |
//! | [`server`] | one thread that answers `GET /metrics` |
//! | [`push`] | one thread that sends the same families to a collector of OpenTelemetry |
//!
//! Invariants:
//! - A page is made of counters that one thread writes and anybody may read, and of two answers of
//!   the control thread. For one of them a worker swaps its histograms, between two turns; none waits.
//!   The engine of a skill waits at most while its counters are copied.
//! - Names begin with `ramjet_`, or with `process_` where every exporter has the same; units are
//!   base units; what only grows ends in `_total`.
//! - Labels are bounded: worker, stage, reason, outcome, event, side, and the skills that agents run.
//!   Never a peer or an address: who wants to know about one peer asks `ramjet status`.
//! - A family has all its series from the start, zeros included, but for events of control, which
//!   have a series once they occurred, and skills, once an agent attached.
//!
//! Absent: authentication and TLS. The address decides who may read; both are off by default.

mod agents;
pub mod node;
pub mod page;
pub mod process;
pub mod push;
pub mod registry;
pub mod server;

/// Writes the families of what is watched onto a page.
type Write = Box<dyn Fn(&mut page::Page) + Send>;
