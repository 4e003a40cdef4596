//! The whole system as its users run it: processes of the `ramjet` binary, on loopback.
//!
//! Every test has a market of its own: a registry on ports that the kernel chose, state in a
//! temporary folder, an empty environment. Tests wait for what a process prints or for what the
//! command line says of it, each wait with a bound, and end every process they started, also when
//! they fail.
//!
//! | module | shows |
//! |---|---|
//! | `lifecycle` | lines through registry, worker and requester; the gate; what polo becomes |
//! | `privacy` | what the registry and the wire see |
//! | `backend` | what moves datagrams |
//! | `crash` | kill -9 of each process in the middle of a run |
//! | `hostile` | garbage on both ports during a run |
//! | `metrics` | the pages for Prometheus, and that alerts and dashboard name what is on them |
//! | `mistakes` | wrong flags, settings, files, addresses |
//! | `local` | the socket of a running node |
//! | `agents` | skills that other programs run, in batches |
//! | `alone` | `demo` and `up` |
//! | `bench` | open loops: what is counted and written |
//! | `tunnels` | one worker and many requesters |
//! | `reach` | peers that only the beacon can reach, or place |
//! | `registry_load` | one registry and many nodes |
//! | `service` | what a service manager is told, kept sockets, settings read again |

mod agents;
mod alone;
mod backend;
mod bench;
mod crash;
mod doctor;
mod harness;
mod hostile;
mod lifecycle;
mod local;
mod metrics;
mod mistakes;
mod privacy;
mod reach;
mod registry_load;
mod service;
mod tunnels;
