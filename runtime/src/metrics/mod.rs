//! Metrics for Prometheus: what a node and a registry count, as a page that is fetched over HTTP.
//!
//! | module | holds |
//! |---|---|
//! | [`page`] | metric families, one after the other, in Prometheus' text format |
//! | [`node`] | the families of a node |
//! | [`registry`] | the families of a registry |
//! | [`process`] | the families of any process: version, processor time, memory |
//! | [`server`] | one thread that answers `GET /metrics` |
//!
//! Invariants:
//! - A page is made of counters that one thread writes and anybody may read, and of one answer of
//!   the control thread: no worker is asked for anything and none waits.
//! - Names begin with `ramjet_`, or with `process_` where every exporter has the same; units are
//!   base units; what only grows ends in `_total`.
//! - Labels are bounded: worker, stage, reason, event, side. Never a peer, an address or a skill's
//!   payload: who wants to know about one peer asks `ramjet status`.
//! - A family has all its series from the start, zeros included, but for events of control, which
//!   have a series once they occurred.
//!
//! Absent: authentication and TLS. The address decides who may read; off by default.

pub mod node;
pub mod page;
pub mod process;
pub mod registry;
pub mod server;
