//! `ramjet node`: a worker, until it is stopped.
//!
//! It starts without its registry and registers when it is there: on a host that boots, the two may
//! come up in any order. One line on standard error, and with `--json` one object on standard
//! output, says when it is ready: `event`, `node`, `address`, `listen`, `socket`, `metrics`.

use std::path::Path;
use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;
use serde_json::json;

use super::args::NodeArgs;
use super::exit::{Exit, Failure};
use super::host::{self, ServeDefaults};
use super::identity_file::{self, Source};
use super::metrics::{Metrics, Watched};
use super::notify::{self, Watchdog};
use super::output::Output;
use super::reload;
use super::settings::{self as s, Settings};
use super::signals::Signals;
use crate::events;
use crate::node::{Node, NodeConfig};
use crate::worker::plan::{PlanLimits, plan};

/// A node offers what it is told to offer, by the article's gate.
const DEFAULTS: ServeDefaults = ServeDefaults {
    skills: &[],
    accept_from: AcceptFrom::Gate,
    task_ready: false,
};

/// How long one look at the registration lasts before signals are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Looks without a registration until the operator, and then again and again the service manager, is
/// told what is being waited for: 3 s.
const LOOKS_IN_SILENCE: u32 = 15;
/// How much longer a start may take each time that the service manager is told: some silences.
const LONGER: Duration = Duration::from_secs(30);
/// How often a node that runs as a service is asked whether it still does.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) fn run(
    args: &NodeArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let signals = Signals::install_for_service()?;
    let registry = host::registry_address(settings)?;
    host::check_serving(settings, registry, &DEFAULTS)?;
    let state = host::state_folder(settings)?;
    let named = settings.path(s::IDENTITY);
    let credentials = host::credentials();
    let (identity, source) =
        identity_file::of_node(named.as_deref(), credentials.as_deref(), &state)?;
    tell_identity(&source, output);
    let mut config = host::serving_node(settings, registry, identity, &DEFAULTS)?;
    identity_file::create_folder(&state)?;
    tell_limits(&config, output);
    let socket = config.socket.clone();
    let metrics = Metrics::bind(settings)?;
    config.sockets = notify::left_sockets(config.listen, config.workers);
    config.on_bound = Some(notify::leave_sockets);
    let node = Node::start_waiting(config)?;
    let metrics = metrics.of_node(&node, output)?;
    if !wait_registered(&node, registry, &signals, output)? {
        return stop(&node, "a signal", output);
    }
    for trusted in &args.trust {
        node.trust(NodeId(*trusted))?;
    }
    tell_ready(&node, socket.as_deref(), &metrics, output)?;
    let status = format!("node {} serves on {}", node.node_id(), node.listen_addr());
    notify::ready(&status);
    let mut settings = settings.clone();
    let signal = watch(&[&node], &signals, || {
        reload::node(&node, &mut settings, &DEFAULTS, &status);
    })?;
    stop(&node, signal, output)
}

/// Runs beside nodes until a signal asks for the end: feeds the watchdog while every thread of them
/// moves, and calls `reload` when that is asked for.
///
/// # Errors
/// What ended in one of them: the process should end too, for its supervisor to start it anew.
pub(super) fn watch(
    nodes: &[&Node],
    signals: &Signals,
    mut reload: impl FnMut(),
) -> Result<&'static str, Failure> {
    let mut watchdog = Watchdog::from_env();
    loop {
        crossbeam::select! {
            recv(signals.received) -> name => return Ok(name.unwrap_or("a signal")),
            recv(signals.reloads) -> asked => {
                if asked.is_ok() {
                    reload();
                }
            }
            default(watchdog.pause(PAUSE)) => {}
        }
        if let Some(failure) = nodes.iter().find_map(|node| node.failure()) {
            return Err(Failure::environment(failure));
        }
        watchdog.look(|limit| {
            let mut signs = nodes.iter().map(|node| node.beat(limit));
            signs.try_for_each(|sign| sign.map_err(|error| error.0))
        });
    }
}

fn tell_ready(
    node: &Node,
    socket: Option<&Path>,
    metrics: &Watched,
    output: &Output,
) -> Result<(), Failure> {
    let (number, address, listen) = (node.node_id(), node.address(), node.listen_addr());
    if output.is_logged() {
        tracing::info!(
            message_id = events::NODE_READY,
            node = number.0,
            %address,
            %listen,
            "ready"
        );
    } else {
        output.say(&format!(
            "ready node={number} address={address} listen={listen}"
        ));
    }
    if !output.json {
        return Ok(());
    }
    output.object(&json!({
        "event": "ready",
        "node": number,
        "address": address,
        "listen": listen,
        "socket": socket,
        "metrics": metrics.url(),
    }))
}

/// Waits for the first registration; false if a signal came first.
fn wait_registered(
    node: &Node,
    registry: std::net::SocketAddr,
    signals: &Signals,
    output: &Output,
) -> Result<bool, Failure> {
    for look in 1_u32.. {
        let missing = match node.wait_registered(LOOK) {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        if !signals.received.is_empty() {
            break;
        }
        if let Some(failure) = node.failure() {
            return Err(Failure::environment(failure));
        }
        if look.is_multiple_of(LOOKS_IN_SILENCE) {
            let waiting = format!("waiting for the registry at {registry}: {missing}");
            notify::waiting(&waiting, LONGER);
            if look == LOOKS_IN_SILENCE {
                output.say(&waiting);
            }
        }
    }
    Ok(false)
}

/// Says what the node may take in memory: one line for each kind, and the sum.
pub(super) fn tell_limits(config: &NodeConfig, output: &Output) {
    const MIB: usize = 1 << 20;
    let (agent_tasks, agent_memory) = match config.agents.is_used() {
        true => (config.agents.tasks_max, config.agents.memory_max),
        false => (0, 0),
    };
    let lines = plan(&PlanLimits {
        workers: config.workers,
        tunnels: config.tunnels_max,
        engagements: config.engagements_max,
        credits: usize::try_from(config.credits).unwrap_or(usize::MAX),
        agent_tasks,
        agent_memory,
    });
    let mut sum = 0_usize;
    for line in lines.iter().filter(|line| line.count > 0) {
        sum = sum.saturating_add(line.bytes());
        let (count, what, mib) = (line.count, line.what, line.bytes().div_ceil(MIB));
        output.say(&format!("limit: {count} {what}, at most {mib} MiB"));
    }
    output.say(&format!(
        "limit: all of it at most {} MiB",
        sum.div_ceil(MIB)
    ));
}

/// Says where a new identity was put: it is what polo belongs to.
pub(super) fn tell_identity(source: &Source, output: &Output) {
    if let Source::Created(path) = source {
        output.say(&format!(
            "created the identity {}; its polo is yours, so keep it",
            path.display()
        ));
    }
}

/// Drains and stops a node.
pub(super) fn stop(node: &Node, signal: &str, output: &Output) -> Result<Exit, Failure> {
    tell_draining(signal, output);
    node.shutdown()?;
    Ok(Exit::Ok)
}

/// Says that what runs is finished, and nothing else.
pub(super) fn tell_draining(signal: &str, output: &Output) {
    notify::stopping();
    if output.is_logged() {
        tracing::info!(
            message_id = events::NODE_DRAINING,
            signal,
            "finishing what runs"
        );
    } else {
        output.say(&format!(
            "{signal}: finishing what runs; once more ends at once"
        ));
    }
}

/// Starts a node and waits until it is registered.
pub(super) fn start(config: NodeConfig) -> Result<Node, Failure> {
    Ok(Node::start(config)?)
}
