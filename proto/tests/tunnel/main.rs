//! The tunnel, from outside: two peers on a virtual clock.

mod pair;
mod scenarios;
