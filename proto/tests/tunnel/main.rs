//! The tunnel, from outside: two peers on a virtual clock.

mod beacon;
mod daemon;
mod hostile;
mod interop;
mod pair;
mod relay;
mod scenarios;
