//! The market of ramjet: discovery, the polo gate, matching, settlement; and the beacon.
//!
//! A registry is a deterministic state machine over an ordered log of commands, behind Pilot's
//! registry protocol on TCP. It never sees a payload, and no task waits for it: engagements that
//! were granted go on while it is down, and it comes back with nothing lost.
//!
//! ```text
//!  TCP ─▶ session ─▶ frame ─▶ message ─▶ ┌──────────── log thread ────────────┐
//!            ▲                           │ ledger: queries, deadlines, changes │
//!            │                           │   pilot: answer     market: trade   │
//!            │                           │             state                   │
//!            └──── answers and news ◀────│   commit: store, then let out       │
//!  UDP ─▶ beacon                         └─────────────────────────────────────┘
//! ```
//!
//! | module | holds | may call |
//! |---|---|---|
//! | [`config`] | configuration, limits, why a start fails | |
//! | [`state`] | the state machine: one command in, one outcome out | the four below |
//! | [`directory`], [`trust`] | nodes and their polo; who trusts whom | |
//! | [`book`], [`engagements`] | leases, offers, matching; grants, receipts, evidence | |
//! | [`command`] | the words of the log, outcomes, refusals | |
//! | [`store`] | append, snapshot, recover | state |
//! | [`ledger`] | the turn: answer, apply, commit, let out | state, store, desk |
//! | [`answer`], [`trade`] | Pilot's replies; the market's | state, desk |
//! | [`desk`] | who is connected and what waits to be written to them | |
//! | [`frame`], [`message`], [`pilot`] | bytes to requests, pure | |
//! | [`session`], [`beacon`], [`server`], [`byte_log`] | sockets, threads, the clock | everything |
//! | [`fault`] | every counter, by name | |
//! | [`fuzzing`] | the pure parts as fuzz entries | |
//!
//! A program starts one with [`Registry::start`] and holds it by its [`RegistryHandle`].

#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
pub mod beacon;
pub mod book;
pub mod byte_log;
pub mod command;
pub mod config;
pub mod desk;
pub mod directory;
pub mod engagements;
pub mod fault;
pub mod frame;
pub mod fuzzing;
pub mod ledger;
pub mod message;
pub mod pilot;
pub mod server;
pub mod session;
pub mod state;
pub mod store;
pub mod trade;
pub mod trust;

pub use config::{Config, Limits, RegistryError, Rules};
pub use server::{Registry, RegistryHandle};
