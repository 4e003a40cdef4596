//! What a requester sends, and what it does with the answers: see
//! [`ramjet_proto::engagement::job`], which holds the trait because the state table that calls it
//! knows nothing of threads or sockets.

pub use ramjet_proto::engagement::job::{Answer, Job, Next, Refused, Timing, Verdict};
