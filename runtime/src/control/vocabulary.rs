//! Everything that control may say to a worker, and everything that a worker may report.
//!
//! The two enums below are the only words between the threads. Each travels in a bounded queue of
//! its own per worker; a full queue is counted (`control_busy`) and never blocks a worker. A tunnel
//! to node `n` lives on worker `n mod workers`, so control always knows whom to tell.

mod streams;

use std::net::SocketAddr;

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{ChannelId, EngagementId, NodeId};
use ramjet_proto::market::RECEIPT_LEN;

pub use ramjet_proto::engagement::Totals;
pub use ramjet_proto::frame::kind::CloseReason;
pub use streams::{
    ConnectionRow, DatagramFault, DialFault, Line, LineRest, PeerRow, Reach, StreamCommand,
    StreamEnd, StreamId, StreamReport,
};

use crate::job::Job;
use crate::latency::Histograms;

/// Which end of an engagement this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// It sends tasks.
    Requester,
    /// It runs them.
    Worker,
}

/// What control has decided about a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelTerms {
    /// The engagement.
    pub engagement: EngagementId,
    /// Index of the skill in the node's list; meaningless to a requester.
    pub skill: usize,
    /// Slots.
    pub credits: u32,
    /// Tasks it may carry.
    pub tasks: u64,
    /// When it ends, on the worker's clock ([`crate::worker::clock`]), in nanoseconds.
    pub expires_at: ramjet_proto::time::Time,
    /// Results that may be sent without a signed receipt for them.
    pub unsigned_max: u64,
}

/// Control to worker.
pub enum Command {
    /// The registry's word on a node: its key and, if known, where it listens. Legal at any time;
    /// the answer to [`Report::PeerWanted`] and the prologue to [`Command::Engage`].
    Peer {
        /// The node.
        node: NodeId,
        /// Its key; `None` if the registry has none, and waiting key exchanges are dropped.
        key: Option<PublicKey>,
        /// Where to send first.
        endpoint: Option<SocketAddr>,
    },
    /// Admits a channel. Legal once for each [`Report::OpenWanted`].
    Admit {
        /// The requester.
        peer: NodeId,
        /// Its channel.
        channel: ChannelId,
        /// On these terms.
        terms: ChannelTerms,
    },
    /// Refuses a channel. Legal once for each [`Report::OpenWanted`].
    Refuse {
        /// The requester.
        peer: NodeId,
        /// Its channel.
        channel: ChannelId,
        /// Why.
        reason: CloseReason,
    },
    /// Opens a channel to a worker and runs a job over it. Answered by [`Report::Opened`] or
    /// [`Report::Closed`], and in the end always by [`Report::Closed`].
    Engage {
        /// The worker; [`Command::Peer`] for it came before.
        peer: NodeId,
        /// On these terms.
        terms: ChannelTerms,
        /// The registry's signed grant, for the OPEN frame.
        grant: Box<[u8]>,
        /// What to send.
        job: Box<dyn Job>,
    },
    /// Sends a receipt signed by this requester. It is repeated until the countersigned one comes
    /// back, or a later receipt replaces it.
    Receipt {
        /// The engagement.
        engagement: EngagementId,
        /// [`ramjet_proto::market::SignedReceipt::encode`].
        receipt: Box<[u8; RECEIPT_LEN]>,
    },
    /// Sends a receipt back with this worker's signature, and credits its results as signed for.
    Countersign {
        /// The engagement.
        engagement: EngagementId,
        /// With both signatures.
        receipt: Box<[u8; RECEIPT_LEN]>,
        /// Accepted, rejected, failed and expired tasks it covers: the sum.
        covered: u64,
    },
    /// New limits for a running engagement after a renewal, on either side.
    Extend {
        /// The engagement.
        engagement: EngagementId,
        /// Tasks it may carry in all.
        tasks: u64,
        /// When it ends.
        expires_at: ramjet_proto::time::Time,
    },
    /// Ends an engagement: a requester's outstanding tasks are answered `Cancelled`, a worker drops
    /// the channel and what still runs on it. Answered by [`Report::Closed`].
    Close {
        /// The engagement.
        engagement: EngagementId,
        /// Why.
        reason: CloseReason,
    },
    /// Takes no new channel and no new task; answered by [`Report::Drained`] once nothing runs.
    Drain,
    /// Swaps the worker's histograms for these empty ones and reports the full ones.
    TakeHistograms(Box<Histograms>),
    /// Answered by [`Report::Beat`] in the turn that reads it: whoever answers still turns.
    Beat,
    /// About Pilot streams and datagrams.
    Stream(StreamCommand),
    /// Ends the thread after the current turn.
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Peer { .. } => "Peer",
            Command::Admit { .. } => "Admit",
            Command::Refuse { .. } => "Refuse",
            Command::Engage { .. } => "Engage",
            Command::Receipt { .. } => "Receipt",
            Command::Countersign { .. } => "Countersign",
            Command::Extend { .. } => "Extend",
            Command::Close { .. } => "Close",
            Command::Drain => "Drain",
            Command::TakeHistograms(_) => "TakeHistograms",
            Command::Beat => "Beat",
            Command::Stream(_) => "Stream",
            Command::Stop => "Stop",
        })
    }
}

/// Worker to control.
pub enum Report {
    /// A key exchange came from, or is due to, a node whose key is not known. Answered by
    /// [`Command::Peer`]; asked again at most once a second for each node.
    PeerWanted {
        /// The node.
        node: NodeId,
    },
    /// A requester presents a grant. Answered by [`Command::Admit`] or [`Command::Refuse`].
    OpenWanted {
        /// The requester, authenticated by its tunnel.
        peer: NodeId,
        /// The channel it proposes.
        channel: ChannelId,
        /// The grant as it came, unverified.
        grant: Box<[u8]>,
    },
    /// The worker admitted a channel of ours; tasks flow.
    Opened {
        /// The engagement.
        engagement: EngagementId,
        /// Slots granted.
        credits: u32,
    },
    /// The first result of an engagement of ours arrived.
    FirstResult {
        /// The engagement.
        engagement: EngagementId,
    },
    /// How a running engagement stands: about every 200 ms while it moves, and whenever a receipt
    /// is due.
    Progress {
        /// The engagement.
        engagement: EngagementId,
        /// Which end we are.
        side: Side,
        /// So far.
        totals: Totals,
        /// The requester's side: enough unsigned work has gathered that a receipt should follow now.
        receipt_due: bool,
    },
    /// A receipt arrived: from the requester to be countersigned, or countersigned from the worker.
    Receipt {
        /// The engagement.
        engagement: EngagementId,
        /// Which end we are.
        side: Side,
        /// As it came, unverified.
        receipt: Box<[u8; RECEIPT_LEN]>,
        /// How we stand as it arrives.
        totals: Totals,
    },
    /// All tasks of a job are answered. Its channel stays open for the last receipt until control
    /// says [`Command::Close`].
    JobDone {
        /// The engagement.
        engagement: EngagementId,
        /// Final on the requester's side.
        totals: Totals,
        /// The job, for the caller to have back.
        job: Box<dyn Job>,
    },
    /// A channel has closed, or could not be opened. The last report of an engagement.
    Closed {
        /// The engagement.
        engagement: EngagementId,
        /// Which end we are.
        side: Side,
        /// Why.
        reason: CloseReason,
        /// What it came to.
        totals: Totals,
        /// The job, unless [`Report::JobDone`] has returned it.
        job: Option<Box<dyn Job>>,
    },
    /// Nothing runs any more, after [`Command::Drain`].
    Drained {
        /// Which worker.
        worker: usize,
    },
    /// The histograms since the last time, after [`Command::TakeHistograms`].
    Histograms {
        /// Which worker.
        worker: usize,
        /// Full.
        histograms: Box<Histograms>,
    },
    /// It turns, after [`Command::Beat`].
    Beat {
        /// Which worker.
        worker: usize,
    },
    /// About Pilot streams and datagrams.
    Stream(StreamReport),
    /// The thread has ended: told to, or by an environment error that is named.
    Stopped {
        /// Which worker.
        worker: usize,
        /// What went wrong, if something did.
        error: Option<String>,
    },
}
