//! What was typed of the commands that speak to plain Pilot agents, through the local node.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::args::duration;
use super::settings::{self as s, Layer};

/// The local node.
#[derive(Debug, Default, Args)]
pub struct NodeSocketArgs {
    /// Socket of the local node [default: ramjet.sock in the state folder]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// State folder of the local node [default: $STATE_DIRECTORY, else ~/.local/state/ramjet]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,
}

impl NodeSocketArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::SOCKET, &self.socket)
            .set(s::STATE, &self.state)
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// UTF-8
    #[default]
    Text,
    /// JSON
    Json,
    /// Bytes
    Binary,
}

/// `ramjet message`.
#[derive(Debug, Args)]
pub struct MessageArgs {
    /// Node number, address or hostname
    pub to: String,
    /// What to say
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    pub data: Option<String>,
    /// A file with what to say; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "data")]
    pub file: Option<PathBuf>,
    /// What it is
    #[arg(long, value_enum, default_value_t)]
    pub kind: Kind,
    /// Id of a message that it answers
    #[arg(long, value_name = "ID")]
    pub reply_to: Option<String>,
    /// Which node sends
    #[command(flatten)]
    pub node: NodeSocketArgs,
}

/// `ramjet file`.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// Node number, address or hostname
    pub to: String,
    /// The file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// Its name there, if another
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Which node sends
    #[command(flatten)]
    pub node: NodeSocketArgs,
}

/// `ramjet trust`.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// What to do
    #[command(subcommand)]
    pub what: TrustCommand,
    /// Whose trust
    #[command(flatten)]
    pub node: NodeSocketArgs,
}

/// What to do about trust. Nodes are named by number, address or hostname.
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// List who is trusted
    List,
    /// List who asks for trust
    Pending,
    /// Ask a node for mutual trust
    Ask {
        /// Whom
        node: String,
        /// Why
        #[arg(default_value = "")]
        justification: String,
        /// How long to wait for its answer, as in 30s [default: not at all]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<Duration>,
    },
    /// Approve a request for trust
    Approve {
        /// Whose
        node: String,
    },
    /// Reject a request for trust
    Reject {
        /// Whose
        node: String,
        /// Why
        #[arg(default_value = "")]
        reason: String,
    },
    /// Take trust back
    Revoke {
        /// From whom
        node: String,
    },
}

/// `ramjet task`.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// What to do
    #[command(subcommand)]
    pub what: TaskCommand,
    /// Whose tasks
    #[command(flatten)]
    pub node: NodeSocketArgs,
}

/// What to do about tasks of plain Pilot agents.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Submit a task to the task service of an agent, as Pilot up to 1.9 has it
    Submit {
        /// Node number, address or hostname
        to: String,
        /// What to do
        #[arg(long, value_name = "TEXT")]
        task: String,
        /// How long to wait for its results
        #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
        wait: Duration,
    },
    /// Send a task request as a JSON message, and wait for its result
    Request {
        /// Node number, address or hostname
        to: String,
        /// Skill wanted
        #[arg(long, value_name = "NAME")]
        skill: String,
        /// What to send
        #[arg(long, value_name = "TEXT")]
        data: String,
        /// How long it may take
        #[arg(long, default_value = "1m", value_name = "TIME", value_parser = duration)]
        timeout: Duration,
    },
    /// Show a task that was submitted here
    Show {
        /// Its id
        task_id: String,
    },
    /// List tasks that were submitted or received
    List,
}
