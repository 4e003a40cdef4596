//! A worker runtime for Pilot Protocol task markets.
//!
//! | module | holds | thread |
//! |---|---|---|
//! | [`worker`] | the data path: one pinned thread, one ring, ten rooms | N workers |
//! | [`control`] | registry link, engagements, receipts, spool, local socket | one, beside them |
//! | [`node`] | starts both and hands out the one handle to them | the caller's |
//! | [`handler`], [`skills`] | what runs a task, and the skills built in | a worker, or the pool |
//! | [`events`] | what an operator wants to know of, by stable ids | any |
//! | [`job`] | what a requester sends and does with the answers | a worker |
//! | [`latency`] | histograms of latencies, and their buckets | any |
//! | [`metrics`] | what both count, for Prometheus | its own |
//! | `port` | agents: external processes that run skills in batches | its own |
//! | [`cli`] | the command line | main |
//!
//! Workers and control share no state: they exchange the two enums of [`control::vocabulary`].

pub mod cli;
pub mod control;
pub mod events;
pub mod handler;
pub mod job;
pub mod latency;
pub mod metrics;
pub mod node;
pub mod port;
pub mod skills;
pub mod worker;
