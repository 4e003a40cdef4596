//! The tunnel, from outside: two peers on a virtual clock.

mod daemon;
mod interop;
mod pair;
mod scenarios;
