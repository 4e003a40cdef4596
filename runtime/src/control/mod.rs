//! The control thread: everything of a node that is not the path of a task.
//!
//! | file | holds |
//! |---|---|
//! | [`vocabulary`] | the only words between control and the workers |
//! | `handle` | what a [`crate::node::Node`] asks of the thread, and how it is answered |
//! | `thread` | the thread: runtime, the one loop, the carrying-out of decisions |
//! | `plane` | every decision, as a state machine without input or output |
//! | `requester`, `accounting` | our engagements, and their account |
//! | `serving`, `peers` | engagements that we serve; who a peer is and where |
//! | `agent` | the services that plain Pilot agents speak, above the ports |
//! | `observe`, `pulse`, `reload`, `shutdown` | what a node says of itself; whether its workers turn; what changes while it runs; its end |
//! | `engagements` | the tables of both |
//! | `externals`, `agent_port` | skills that programs of the host run, and agents; the agent port as control has it |
//! | `receipts`, `settle`, `spool`, `pin` | the account of an engagement: its rules, its way to the registry, its place on disk; the registry's key beside it |
//! | `link`, `pilot`, `transport`, `backoff` | the registry: protocol state, Pilot messages, framed TCP |
//! | `advertise` | what the node says of itself |
//! | `ports` | virtual ports: Pilot streams and datagrams, for services on this thread |
//! | `driver` | the driver socket: Pilot's own programs, and those in other languages, at this node |
//! | `local`, [`local_client`], `local_wire`, `local_job`, `local_listener` | the local socket: both ends, their protocol, the job between |
//! | [`query`], [`member`] | questions to a registry, and a node's own business there, without a running node |
//!
//! Invariants: the plane never blocks and reads no clock; a receipt is durable before a command
//! that sends it is released; whatever comes from the registry, a peer or a local client is checked
//! where it enters, and what is refused is named and counted. If this thread stops for a second,
//! tasks flow on and only accounting is late.

mod accounting;
mod advertise;
pub(crate) mod agent;
mod agent_port;
mod backoff;
mod driver;
mod engagements;
mod externals;
mod handle;
mod link;
mod local;
pub mod local_client;
mod local_job;
mod local_listener;
mod local_stream;
mod local_wire;
pub mod member;
mod observe;
mod peers;
pub(crate) mod pilot;
mod pin;
mod plane;
pub(crate) mod ports;
mod pulse;
pub mod query;
mod receipts;
mod reload;
mod requester;
mod serving;
mod settle;
mod shutdown;
mod spool;
#[cfg(test)]
mod tests;
mod thread;
mod timings;
pub(crate) mod transport;
pub mod vocabulary;

pub use handle::ControlHandle;
pub(crate) use thread::start;
pub use timings::ControlTimings;
