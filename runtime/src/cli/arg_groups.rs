//! Flags that several commands share, by what they are about.

use clap::{Args, ValueHint};

use super::settings::{self as s, Layer};

/// How worker threads run.
#[derive(Debug, Default, Args)]
pub struct ThreadArgs {
    /// Worker threads of a node; a tunnel lives on one of them [default: 1]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Cores to pin them to, in order, as in 0,1 [default: none, they float]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<String>,
    /// What moves datagrams: uring or mmsg [default: uring]
    #[arg(long, value_name = "BACKEND")]
    pub io: Option<String>,
    /// Trains of datagrams, cut and gathered by the kernel: auto, as far as a trial at start shows
    /// that they work, or off [default: auto]
    #[arg(long, value_name = "WHETHER")]
    pub segmentation: Option<String>,
    /// Pages that buffers lie in: normal, transparent for large ones if there are some, or huge for
    /// those set aside (vm.nr_hugepages) [default: normal]
    #[arg(long, value_name = "KIND")]
    pub pages: Option<String>,
    /// What an idle worker does: spin, adaptive or park [default: adaptive]
    #[arg(long, value_name = "POLICY")]
    pub idle: Option<String>,
}

impl ThreadArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::WORKERS, &self.workers)
            .set_all(s::CORES, &self.cores)
            .set(s::IO, &self.io)
            .set(s::SEGMENTATION, &self.segmentation)
            .set(s::PAGES, &self.pages)
            .set(s::IDLE, &self.idle)
    }
}

/// What makes a worker.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// UDP address of the tunnel; port 0 lets the kernel choose [default: port 0, on loopback if
    /// the registry is there, else on every interface]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address that others send to, if the registry would see another one
    #[arg(long, value_name = "ADDR")]
    pub endpoint: Option<String>,
    /// Name at the registry
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Pilot's owner field [default: from the identity]
    #[arg(long, value_name = "TEXT")]
    pub owner: Option<String>,
    /// Let anyone look the node up
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub public: Option<String>,
    /// Built-in skill to offer: echo, langid, sha256; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub skill: Vec<String>,
    /// Skill that a command runs in batches, started and kept running by the node; COMMAND may begin
    /// with lines: or frames: if it knows nothing of ramjet, as in tr='lines:tr a-z A-Z'; may be
    /// repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    pub agent: Vec<String>,
    /// Socket where agents attach, or none [default: agents.sock in the state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub agent_socket: Option<String>,
    /// Memory shared with agents, of all of them, in MiB [default: 1024]
    #[arg(long, value_name = "MIB")]
    pub agent_memory: Option<String>,
    /// Tasks of one worker that wait for agents or run there [default: 8192]
    #[arg(long, value_name = "N")]
    pub agent_tasks_max: Option<String>,
    /// Further capability, as in model=llama-3-70b; may be repeated
    #[arg(long, value_name = "K=V")]
    pub capability: Vec<String>,
    /// Whom to serve beyond the polo gate: gate, trusted, min-polo=N or anyone, or for one skill
    /// SKILL=POLICY; may be repeated [default: gate]
    #[arg(long, value_name = "POLICY")]
    pub accept_from: Vec<String>,
    /// Ask for tasks
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub task_ready: Option<String>,
    /// What it offers to plain Pilot agents
    #[command(flatten)]
    pub services: ServicesArgs,
    /// Tasks that one engagement may have outstanding [default: 1024]
    #[arg(long, value_name = "N")]
    pub credits: Option<String>,
    /// Engagements served at a time [default: 64]
    #[arg(long, value_name = "N")]
    pub engagements_max: Option<String>,
    /// Results sent without a signed receipt, in one engagement [default: 1048576]
    #[arg(long, value_name = "N")]
    pub unsigned_max: Option<String>,
    /// Threads for skills that run beside the workers [default: 1]
    #[arg(long, value_name = "N")]
    pub pool_threads: Option<String>,
    /// Tunnels that one worker holds [default: 1024]
    #[arg(long, value_name = "N")]
    pub tunnels_max: Option<String>,
    /// Send streams to port 7 back as they come, as every Pilot daemon does [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub echo: Option<String>,
    /// How its workers run
    #[command(flatten)]
    pub threads: ThreadArgs,
}

impl ServeArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        let layer = layer
            .set(s::LISTEN, &self.listen)
            .set(s::ENDPOINT, &self.endpoint)
            .set(s::HOSTNAME, &self.hostname)
            .set(s::OWNER, &self.owner)
            .set(s::PUBLIC, &self.public)
            .set_all(s::SKILL, &self.skill)
            .set_all(s::AGENT, &self.agent)
            .set(s::AGENT_SOCKET, &self.agent_socket)
            .set(s::AGENT_MEMORY, &self.agent_memory)
            .set(s::AGENT_TASKS_MAX, &self.agent_tasks_max)
            .set_all(s::CAPABILITY, &self.capability)
            .set_all(s::ACCEPT_FROM, &self.accept_from)
            .set(s::TASK_READY, &self.task_ready)
            .set(s::CREDITS, &self.credits)
            .set(s::ENGAGEMENTS_MAX, &self.engagements_max)
            .set(s::UNSIGNED_MAX, &self.unsigned_max)
            .set(s::POOL_THREADS, &self.pool_threads)
            .set(s::TUNNELS_MAX, &self.tunnels_max)
            .set(s::ECHO, &self.echo);
        self.threads.layer(self.services.layer(layer))
    }
}

/// What a node offers to plain Pilot agents.
#[derive(Debug, Default, Args)]
pub struct ServicesArgs {
    /// Take messages, files and tasks on port 1001 [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub exchange: Option<String>,
    /// Take tasks on port 1003, as Pilot up to 1.9 submits them [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub tasks: Option<String>,
    /// Approve every request for trust
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub auto_approve: Option<String>,
}

impl ServicesArgs {
    fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::EXCHANGE, &self.exchange)
            .set(s::TASKS, &self.tasks)
            .set(s::AUTO_APPROVE, &self.auto_approve)
    }
}

/// Who a node is, and where it keeps what it must not lose.
#[derive(Debug, Default, Args)]
pub struct IdentityArgs {
    /// Folder for identity, receipts and the registry's log [default: $STATE_DIRECTORY, else
    /// ~/.local/state/ramjet]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,
    /// File with the Ed25519 identity, created if missing [default: identity.json in the state
    /// folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub identity: Option<String>,
}

impl IdentityArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::STATE, &self.state)
            .set(s::IDENTITY, &self.identity)
    }
}

/// Which market.
#[derive(Debug, Default, Args)]
pub struct MarketArgs {
    /// TCP address of the registry [default of a node: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    pub registry: Option<String>,
    /// Public key that the registry must have, in base64 [default: the first one seen is kept]
    #[arg(long, value_name = "KEY")]
    pub registry_key: Option<String>,
    /// UDP address of the beacon, to be found behind a NAT
    #[arg(long, value_name = "ADDR")]
    pub beacon: Option<String>,
}

impl MarketArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::REGISTRY, &self.registry)
            .set(s::REGISTRY_KEY, &self.registry_key)
            .set(s::BEACON, &self.beacon)
    }
}

/// Whom a question is put to: the local node, or a registry.
#[derive(Debug, Default, Args)]
pub struct AskArgs {
    /// Socket of the local node [default: ramjet.sock in the state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// TCP address of a registry, to do without a local node
    #[arg(long, value_name = "ADDR", conflicts_with = "socket")]
    pub registry: Option<String>,
    /// State folder of the local node [default: $STATE_DIRECTORY, else ~/.local/state/ramjet]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,
}

impl AskArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::SOCKET, &self.socket)
            .set(s::REGISTRY, &self.registry)
            .set(s::STATE, &self.state)
    }
}

/// How a registry runs, beside its addresses.
#[derive(Debug, Default, Args)]
pub struct RulesArgs {
    /// Rule by which polo moves: article or pilot-1.9 [default: article]
    #[arg(long, value_name = "RULE")]
    pub polo_policy: Option<String>,
    /// Take the unsigned polo messages of old Pilot: for closed test networks only
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    #[arg(require_equals = true, value_name = "BOOL")]
    pub allow_unsigned_polo: Option<String>,
    /// Write every byte received to this file, to show that no payload is among them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub byte_log: Option<String>,
}

impl RulesArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        layer
            .set(s::POLO_POLICY, &self.polo_policy)
            .set(s::ALLOW_UNSIGNED_POLO, &self.allow_unsigned_polo)
            .set(s::BYTE_LOG, &self.byte_log)
    }
}
