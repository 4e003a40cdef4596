//! The protocol of ramjet, without input or output.
//!
//! Everything in this crate is a function of bytes, the time it is told, and the entropy it is
//! lent. It opens no socket, reads no clock, starts no thread, and allocates nothing per packet
//! once its tables are built. The same code therefore runs under io_uring, under
//! `recvmmsg`/`sendmmsg`, in the tests' two-peer harness, and in the fuzzers.
//!
//! | module | holds | entered by |
//! |---|---|---|
//! | [`ids`], [`addr`], [`time`] | the names of things, and the clock as an argument | everyone |
//! | [`wire`] | geometry, packet header, datagram kinds, beacon messages | tunnel, runtime, registry |
//! | [`tunnel`] | PILA/PILK key exchange, PILS sealing, replay windows, rekeying | a worker thread |
//! | [`stream`] | Pilot streams: sessions and their table | a worker thread |
//! | [`frame`] | the micro-task frames inside a datagram packet | a worker thread |
//! | [`engagement`] | the two ends of an engagement as state tables over slots | a worker thread |
//! | [`market`] | offers, grants, receipts, their signatures, the market messages | control, registry |
//! | [`agent`] | what a plain Pilot agent says on a stream | control |
//! | [`polo`] | the one rule by which reputation moves | registry |
//! | [`driver`] | what programs of the same host say to their node | control |
//! | [`identity`] | Ed25519 keys and the file they live in | everyone who signs |
//! | [`fault`] | the closed list of reasons for which something is dropped | everyone |

#![forbid(unsafe_code)]

pub mod addr;
pub mod agent;
pub mod driver;
pub mod engagement;
pub mod fault;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod market;
pub mod polo;
pub mod stream;
pub mod time;
pub mod tunnel;
pub mod wire;
