//! From settings to what starts: folders, sockets, threads, nodes, the registry.
//!
//! Everything that is wrong with a setting is found here, before anything is started.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::market::terms::is_skill_name;
use ramjet_proto::market::{AcceptFrom, Advertisement, Filter};
use ramjet_proto::wire::limits::{CHANNELS_PER_TUNNEL_MAX, SLOTS_PER_CHANNEL_MAX};

use super::agents::agents_of;
use super::exit::Failure;
use super::settings::{self as s, Settings};
use crate::handler::Skill;
use crate::node::{AgentsConfig, NodeConfig, ServiceConfig};
use crate::skills;
use crate::worker::{Idle, IoKind, IoOptions, Pages, Segmentation};

/// Where a registry listens unless it is told otherwise: the port of Pilot's.
pub const REGISTRY_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_000);
/// Where its beacon listens unless it is told otherwise: the port of Pilot's.
pub const BEACON_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_001);
/// Name of a node's socket in its state folder.
pub const SOCKET_FILE: &str = "ramjet.sock";
/// Name of the socket of the requester that `up` runs beside its worker.
pub const REQUESTER_SOCKET_FILE: &str = "requester.sock";
/// Folder of the registry's log in a state folder that it shares.
pub const REGISTRY_FOLDER: &str = "registry";
/// Longest path of a Unix socket: `sun_path` less its final zero, and less the dot and process number
/// under which it is bound before it is moved into its place.
const SOCKET_PATH_LEN_MAX: usize = 107 - 8;
/// Results that a worker sends without a signed receipt, unless told otherwise: about a second of
/// the shortest tasks, so that a receipt that takes its time stalls nothing.
const UNSIGNED_MAX_DEFAULT: u64 = 1 << 20;
/// Most worker threads of a node.
const WORKERS_MAX: usize = 64;

/// The state folder: what was set, else what systemd made, else the user's own.
///
/// # Errors
/// If none of them is known.
pub fn state_folder(settings: &Settings) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = settings.path(s::STATE) {
        return Ok(path);
    }
    if let Some(folders) = variable("STATE_DIRECTORY") {
        // systemd lists several with colons; the first is ours.
        if let Some(first) = std::env::split_paths(&folders).next() {
            return Ok(first);
        }
    }
    if let Some(folder) = variable("XDG_STATE_HOME") {
        return Ok(PathBuf::from(folder).join("ramjet"));
    }
    match variable("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".local/state/ramjet")),
        None => Err(Failure::usage(
            "state: there is no folder to keep the identity in: HOME is not set; name one with \
             --state",
        )),
    }
}

/// The local socket of a node: what was set, else `ramjet.sock` in its state folder.
///
/// # Errors
/// If its path is longer than the kernel takes.
pub fn socket_path(settings: &Settings) -> Result<PathBuf, Failure> {
    match settings.path(s::SOCKET) {
        Some(path) => checked_socket(s::SOCKET, path),
        None => checked_socket(s::SOCKET, state_folder(settings)?.join(SOCKET_FILE)),
    }
}

/// The socket of the requester beside a worker.
///
/// # Errors
/// As [`socket_path`].
pub fn requester_socket_path(settings: &Settings) -> Result<PathBuf, Failure> {
    let path = socket_path(settings)?.with_file_name(REQUESTER_SOCKET_FILE);
    checked_socket(s::SOCKET, path)
}

pub(super) fn checked_socket(setting: s::Setting, path: PathBuf) -> Result<PathBuf, Failure> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX {
        return Err(Failure::usage(format!(
            "{name}: {} has {len} bytes, a socket's path has at most {SOCKET_PATH_LEN_MAX}; name a \
             shorter one with --{name}",
            path.display(),
            name = setting.name
        )));
    }
    Ok(path)
}

/// How the workers of a node run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many.
    pub workers: usize,
    /// Cores to pin them to; empty to float.
    pub cores: Vec<usize>,
    /// Backend.
    pub io: IoKind,
    /// What of the kernel's help the workers take.
    pub io_options: IoOptions,
    /// Idle policy.
    pub idle: Idle,
}

/// Reads how workers run.
///
/// # Errors
/// A value out of range, or a core that this process may not use.
pub fn threads(settings: &Settings) -> Result<Threads, Failure> {
    let allowed = allowed_cores();
    let cores = settings.parsed(s::CORES, |text| match text.trim().parse() {
        Ok(core) if allowed.is_empty() || allowed.contains(&core) => Ok(core),
        _ => Err(format!(
            "is none of the cores that this process may use: {allowed:?}"
        )),
    })?;
    let io = [("uring", IoKind::Uring), ("mmsg", IoKind::Mmsg)];
    let segmentation = [("auto", Segmentation::Auto), ("off", Segmentation::Off)];
    let pages = [
        ("normal", Pages::Normal),
        ("transparent", Pages::Transparent),
        ("huge", Pages::Huge),
    ];
    let idle = [
        ("spin", Idle::Spin),
        ("adaptive", Idle::Adaptive),
        ("park", Idle::Park),
    ];
    Ok(Threads {
        workers: settings.number(s::WORKERS, 1..=WORKERS_MAX)?.unwrap_or(1),
        cores,
        io: settings.choice(s::IO, &io)?.unwrap_or_default(),
        io_options: IoOptions {
            segmentation: settings
                .choice(s::SEGMENTATION, &segmentation)?
                .unwrap_or_default(),
            pages: settings.choice(s::PAGES, &pages)?.unwrap_or_default(),
        },
        idle: settings.choice(s::IDLE, &idle)?.unwrap_or_default(),
    })
}

/// The cores that this process may use, in ascending order; empty if the kernel does not say.
pub fn allowed_cores() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .map(|list| core_list(list.trim()))
        .unwrap_or_default()
}

/// Reads the kernel's form of a list of cores: `0-3,8`.
fn core_list(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// The beacon that a node makes itself known to; `none` goes without, as in `ramjet registry`.
pub fn beacon(settings: &Settings) -> Result<Option<SocketAddr>, Failure> {
    match settings.text(s::BEACON).as_deref() {
        Some("none") => Ok(None),
        _ => settings.address(s::BEACON),
    }
}

/// The registry that a node registers at.
///
/// # Errors
/// If it is no address.
pub fn registry_address(settings: &Settings) -> Result<SocketAddr, Failure> {
    Ok(settings.address(s::REGISTRY)?.unwrap_or(REGISTRY_DEFAULT))
}

/// A node that offers nothing and keeps nothing, with these threads.
pub fn bare_node(registry: SocketAddr, identity: Identity, threads: Threads) -> NodeConfig {
    let owner = owner_of(&identity.public());
    NodeConfig {
        registry,
        registry_key: None,
        listen: listen_beside(registry),
        endpoint: None,
        beacon: None,
        identity: Arc::new(identity),
        owner,
        hostname: None,
        public: false,
        skills: Vec::new(),
        capabilities: BTreeMap::new(),
        task_ready: false,
        credits: 1_024,
        engagements_max: 64,
        unsigned_max: UNSIGNED_MAX_DEFAULT,
        workers: threads.workers,
        cores: threads.cores,
        io: threads.io,
        io_options: threads.io_options,
        idle: threads.idle,
        pool_threads: 1,
        tunnels_max: 1_024,
        frames_per_datagram_max: u16::MAX,
        datagram_len_max: usize::MAX,
        echo: true,
        state: None,
        socket: None,
        agents: AgentsConfig::none(),
        services: ServiceConfig::NONE,
        sockets: None,
        on_bound: None,
    }
}

/// Pilot wants an owner that is distinct for each node: the head of its public key.
fn owner_of(key: &PublicKey) -> String {
    let head: String = key.0[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("ramjet-{head}")
}

/// Where a tunnel listens unless it is told otherwise: on loopback if the registry is there, for
/// then all nodes are; else on every interface. The kernel chooses the port.
fn listen_beside(registry: SocketAddr) -> SocketAddr {
    let address = match registry.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(address, 0)
}

/// What a serving node does where nothing is set.
#[derive(Clone, Debug)]
pub struct ServeDefaults {
    /// Skills.
    pub skills: &'static [&'static str],
    /// Whom they serve.
    pub accept_from: AcceptFrom,
    /// Whether it wants tasks.
    pub task_ready: bool,
}

/// A node that serves, as its settings say.
///
/// # Errors
/// A setting that cannot be, or one that contradicts another.
pub fn serving_node(
    settings: &Settings,
    registry: SocketAddr,
    identity: Identity,
    defaults: &ServeDefaults,
) -> Result<NodeConfig, Failure> {
    let bare = bare_node(registry, identity, threads(settings)?);
    let (skills, agents) = skills_of(settings, defaults)?;
    let task_ready = settings.flag(s::TASK_READY)?.unwrap_or(defaults.task_ready);
    if task_ready && skills.is_empty() && !agents.is_used() {
        return Err(Failure::usage(
            "task-ready: a node without a skill can do no task; add --skill, one of echo, langid, \
             sha256, or --agent, or let agents attach",
        ));
    }
    let key = settings.parsed(s::REGISTRY_KEY, |text| {
        PublicKey::from_base64(text).ok_or_else(|| {
            "is not base64 of a 32-byte Ed25519 key; `ramjet registry` prints its key".to_owned()
        })
    })?;
    let config = NodeConfig {
        registry_key: key.last().copied(),
        listen: settings.address(s::LISTEN)?.unwrap_or(bare.listen),
        endpoint: settings.address(s::ENDPOINT)?,
        beacon: beacon(settings)?,
        owner: settings.text(s::OWNER).unwrap_or(bare.owner),
        hostname: settings.text(s::HOSTNAME),
        public: settings.flag(s::PUBLIC)?.unwrap_or(false),
        skills,
        capabilities: capabilities_of(settings)?,
        task_ready,
        credits: settings
            .number(
                s::CREDITS,
                1..=u32::try_from(SLOTS_PER_CHANNEL_MAX).unwrap_or(u32::MAX),
            )?
            .unwrap_or(bare.credits),
        engagements_max: settings
            .number(s::ENGAGEMENTS_MAX, 1..=65_536)?
            .unwrap_or(bare.engagements_max.max(CHANNELS_PER_TUNNEL_MAX)),
        unsigned_max: settings
            .number(s::UNSIGNED_MAX, 1..=1_u64 << 40)?
            .unwrap_or(bare.unsigned_max),
        pool_threads: settings
            .number(s::POOL_THREADS, 0..=256)?
            .unwrap_or(bare.pool_threads),
        tunnels_max: settings
            .number(s::TUNNELS_MAX, 1..=65_536)?
            .unwrap_or(bare.tunnels_max),
        echo: settings.flag(s::ECHO)?.unwrap_or(bare.echo),
        state: Some(state_folder(settings)?),
        socket: Some(socket_path(settings)?),
        agents,
        services: services_of(settings)?,
        ..bare
    };
    check_advertisement(&config)?;
    Ok(config)
}

fn services_of(settings: &Settings) -> Result<ServiceConfig, Failure> {
    let standard = ServiceConfig::default();
    let flag = |setting, otherwise: bool| -> Result<bool, Failure> {
        Ok(settings.flag(setting)?.unwrap_or(otherwise))
    };
    Ok(ServiceConfig {
        exchange: flag(s::EXCHANGE, standard.exchange)?,
        tasks: flag(s::TASKS, standard.tasks)?,
        auto_approve: flag(s::AUTO_APPROVE, standard.auto_approve)?,
    })
}

/// Looks for everything that [`serving_node`] would refuse, before an identity is made for it.
///
/// # Errors
/// As [`serving_node`].
pub fn check_serving(
    settings: &Settings,
    registry: SocketAddr,
    defaults: &ServeDefaults,
) -> Result<(), Failure> {
    checked_serving(settings, registry, defaults).map(drop)
}

/// What [`serving_node`] would make of the settings, with nobody's identity: to look at.
///
/// # Errors
/// As [`serving_node`].
pub fn checked_serving(
    settings: &Settings,
    registry: SocketAddr,
    defaults: &ServeDefaults,
) -> Result<NodeConfig, Failure> {
    serving_node(settings, registry, Identity::from_seed([0; 32]), defaults)
}

/// The built-in skills of a node, and its agents: whom each serves is said in one place for both.
fn skills_of(
    settings: &Settings,
    defaults: &ServeDefaults,
) -> Result<(Vec<Skill>, AgentsConfig), Failure> {
    let mut policies = BTreeMap::new();
    let mut everyone = defaults.accept_from;
    for (skill, policy) in settings.parsed(s::ACCEPT_FROM, accept_from)? {
        match skill {
            Some(skill) => {
                policies.insert(skill, policy);
            }
            None => everyone = policy,
        }
    }
    let mut names: Vec<String> = if settings.is_set(s::SKILL) {
        settings.parsed(s::SKILL, |name| match skills::handler(name) {
            Ok(_) => Ok(name.to_owned()),
            Err(error) => {
                let meant = s::suggestion(name, skills::NAMES.into_iter());
                Err(format!("cannot be offered: {error}{meant}"))
            }
        })?
    } else {
        defaults
            .skills
            .iter()
            .map(|name| (*name).to_owned())
            .collect()
    };
    names.sort();
    names.dedup();
    let offered = names
        .iter()
        .map(|name| {
            let policy = policies.remove(name).unwrap_or(everyone);
            skills::built_in(name, policy).map_err(|error| Failure::usage(error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    let agents = agents_of(settings, &names, everyone, policies)?;
    Ok((offered, agents))
}

/// Reads `POLICY` or `SKILL=POLICY`.
fn accept_from(text: &str) -> Result<(Option<String>, AcceptFrom), String> {
    if let Ok(policy) = text.parse() {
        return Ok((None, policy));
    }
    match text.split_once('=') {
        Some((skill, policy)) if is_skill_name(skill) && skill != "min-polo" => {
            Ok((Some(skill.to_owned()), policy.parse()?))
        }
        _ => {
            Err("is none of gate, trusted, min-polo=N, anyone, nor SKILL= and one of these".into())
        }
    }
}

fn capabilities_of(settings: &Settings) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = settings.parsed(s::CAPABILITY, |text| {
        let Filter { key, value } = text
            .parse()
            .map_err(|_| "is not key=value, as in model=llama-3-70b".to_owned())?;
        match key.as_str() {
            "skills" => Err("cannot be set: it follows from --skill".to_owned()),
            _ => Ok((key, value)),
        }
    })?;
    Ok(pairs.into_iter().collect())
}

/// What the registry would refuse of the advertisement is refused here, before the start.
fn check_advertisement(config: &NodeConfig) -> Result<(), Failure> {
    let names: Vec<&str> = config
        .skills
        .iter()
        .map(|skill| skill.name.as_str())
        .collect();
    let mut capabilities = config.capabilities.clone();
    capabilities.insert("skills".to_owned(), names.join(","));
    let advertisement = Advertisement {
        capabilities,
        ..Advertisement::default()
    };
    match advertisement.refusal() {
        Some(why) => Err(Failure::usage(format!("{why}; shorten it"))),
        None => Ok(()),
    }
}

/// What systemd passed as credentials, if anything.
pub fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::settings::Layer;
    use super::*;

    const DEFAULTS: ServeDefaults = ServeDefaults {
        skills: &[],
        accept_from: AcceptFrom::Gate,
        task_ready: false,
    };

    fn settings(file: &str) -> Settings {
        let file = format!("state = \"/tmp/s\"\n{file}");
        Settings::resolve(Layer::default(), [], Some((Path::new("t.toml"), &file))).expect("TOML")
    }

    fn node(file: &str) -> Result<NodeConfig, Failure> {
        let identity = Identity::from_seed([3; 32]);
        serving_node(&settings(file), REGISTRY_DEFAULT, identity, &DEFAULTS)
    }

    #[test]
    fn what_is_set_reaches_the_node() {
        let config = node(concat!(
            "skill = ['langid', 'echo']\naccept-from = ['trusted', 'echo=min-polo=5']\n",
            "task-ready = true\nworkers = 2\nio = 'mmsg'\nidle = 'park'\ncredits = 7\n",
            "hostname = 'gpu-1'\nlisten = '127.0.0.1:5'\n[capability]\nmodel = 'm'\n",
        ))
        .expect("valid");
        let skills: Vec<_> = config
            .skills
            .iter()
            .map(|s| (s.name.as_str(), s.accept_from))
            .collect();
        assert_eq!(
            skills,
            [
                ("echo", AcceptFrom::MinPolo(5)),
                ("langid", AcceptFrom::Trusted)
            ]
        );
        assert_eq!(
            (config.workers, config.io, config.idle),
            (2, IoKind::Mmsg, Idle::Park)
        );
        assert_eq!((config.credits, config.task_ready), (7, true));
        assert_eq!(config.listen, ([127, 0, 0, 1], 5).into());
        assert_eq!(config.capabilities["model"], "m");
        assert_eq!(
            config.socket.as_deref(),
            Some(Path::new("/tmp/s/ramjet.sock"))
        );
        assert_eq!(config.hostname.as_deref(), Some("gpu-1"));
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let table = [
            ("skill = 'langld'", "did you mean \"langid\"?"),
            (
                "task-ready = true\nagent-socket = 'none'",
                "task-ready: a node without a skill",
            ),
            (
                "skill = 'echo'\naccept-from = 'sha256=anyone'",
                "\"sha256\" is not offered",
            ),
            (
                "skill = 'echo'\naccept-from = 'friends'",
                "is none of gate, trusted",
            ),
            (
                "skill = 'echo'\naccept-from = 'min-polo=x'",
                "is none of gate, trusted",
            ),
            ("capability = 'skills=all'", "it follows from --skill"),
            ("capability = 'model'", "is not key=value"),
            ("credits = 4097", "from 1 to 4096"),
            ("workers = 65", "from 1 to 64"),
            ("cores = [100000]", "cores that this process may use"),
            ("registry-key = 'AAAA'", "not base64 of a 32-byte"),
            ("listen = 'here'", "no address with a port"),
        ];
        // Without a skill of its own it waits for agents.
        node("task-ready = true").expect("agents may attach");
        for (file, expected) in table {
            let error = node(file).expect_err(file);
            assert!(
                error.message.contains(expected),
                "{file}: {}",
                error.message
            );
        }
        let long = format!("capability = 'k={}'", "x".repeat(1_025));
        assert!(
            node(&long)
                .expect_err("too long")
                .message
                .contains("1025 bytes, at most 1024")
        );
    }

    #[test]
    fn a_socket_path_beyond_the_kernels_limit_is_refused() {
        let long = settings(&format!("socket = '/tmp/{}'", "x".repeat(95)));
        assert!(
            socket_path(&long)
                .expect_err("100 bytes")
                .message
                .contains("at most 99")
        );
        let fits = settings(&format!("socket = '/tmp/{}'", "x".repeat(94)));
        assert!(socket_path(&fits).is_ok());
        // Its requester's name may be too long even then.
        assert_eq!(
            requester_socket_path(&fits).expect("shorter name"),
            Path::new("/tmp/requester.sock")
        );
    }

    #[test]
    fn a_node_listens_where_its_registry_can_reach_it() {
        for (registry, listen) in [
            ("127.0.0.1:9000", "127.0.0.1:0"),
            ("[::1]:9000", "[::1]:0"),
            ("192.0.2.1:9000", "0.0.0.0:0"),
            ("[2001:db8::1]:9000", "[::]:0"),
        ] {
            let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
            assert_eq!(listen_beside(address(registry)), address(listen));
        }
    }

    #[test]
    fn core_lists_of_the_kernel_are_read() {
        assert_eq!(core_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(core_list("5"), [5]);
        assert!(core_list("").is_empty());
        assert!(
            !allowed_cores().is_empty(),
            "this process runs on some core"
        );
    }
}
