//! The registry over real sockets on loopback, and its laws as properties.

mod client;
mod daemons;
mod durability;
mod garbage;
mod market;
mod pilot;
mod properties;
mod race;
