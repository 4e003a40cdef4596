//! Every interval and time-out of the control thread, in one place with its reason.

use std::time::Duration;

/// How long control waits for what. The defaults are what a node runs with; tests shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlTimings {
    /// For how long [`crate::node::Node::start`] waits to be registered.
    pub start: Duration,
    /// One attempt to connect to the registry.
    pub connect: Duration,
    /// First pause before another attempt; it doubles from there.
    pub backoff_min: Duration,
    /// Longest pause before another attempt.
    pub backoff_max: Duration,
    /// Between heartbeats. Registries forget a node after 3 to 5 minutes of silence.
    pub heartbeat: Duration,
    /// An unanswered request older than this ends the connection: what hangs is as good as gone.
    pub request: Duration,
    /// How long an advertisement holds, in seconds; it is renewed after a third of that, so that
    /// two may be lost.
    pub lease_s: u32,
    /// A requester signs a receipt at least this often while its engagement moves.
    pub receipt: Duration,
    /// A worker settles one engagement at most this often before its end.
    pub settle: Duration,
    /// How long an engagement that is over waits for its last settlement, and before that for its
    /// last countersignature, until it is reported as spooled or lost.
    pub grace: Duration,
    /// How long a worker keeps a place for a requester that holds a grant but does not open it.
    pub open: Duration,
    /// How long a shutdown waits for running engagements.
    pub drain: Duration,
    /// How long a caller waits for the answer to a question.
    pub ask: Duration,
    /// How long a driver client may leave what waits for it unread: it holds the windows of its
    /// streams closed meanwhile.
    pub client_stall: Duration,
    /// How long the streams and answers of a driver client that left may take.
    pub client_linger: Duration,
}

impl Default for ControlTimings {
    fn default() -> Self {
        ControlTimings {
            start: Duration::from_secs(5),
            connect: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            heartbeat: Duration::from_secs(60),
            request: Duration::from_secs(10),
            lease_s: 60,
            receipt: Duration::from_secs(1),
            settle: Duration::from_secs(1),
            grace: Duration::from_secs(10),
            open: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            ask: Duration::from_secs(10),
            client_stall: Duration::from_secs(30),
            client_linger: Duration::from_secs(10),
        }
    }
}
