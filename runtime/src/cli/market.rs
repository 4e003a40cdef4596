//! The registry inside this process, for `registry`, `up`, `demo` and `bench`.

use std::net::SocketAddr;
use std::path::PathBuf;

use ramjet_proto::polo::Policy;
use ramjet_registry::{Config, Registry, RegistryHandle};

use super::descriptors;
use super::exit::Failure;
use super::host::{BEACON_DEFAULT, REGISTRY_DEFAULT};
use super::identity_file::create_folder;
use super::output::Output;
use super::settings::{self as s, Setting, Settings};

/// A registry that forgets everything, on a port that the kernel chooses.
///
/// # Errors
/// If it cannot listen.
pub fn start_in_memory() -> Result<RegistryHandle, Failure> {
    let listen = SocketAddr::new(REGISTRY_DEFAULT.ip(), 0);
    start(Config {
        listen,
        beacon: None,
        ..Config::default()
    })
}

/// The names under which the addresses of a registry are set: `up` runs a tunnel beside it, so its
/// own are longer.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Of its TCP address.
    pub listen: Setting,
    /// Of its beacon's UDP address.
    pub beacon: Setting,
}

/// For `ramjet registry`.
pub const ALONE: Names = Names {
    listen: s::LISTEN,
    beacon: s::BEACON,
};
/// For `ramjet up`.
pub const BESIDE_A_NODE: Names = Names {
    listen: s::REGISTRY_LISTEN,
    beacon: s::REGISTRY_BEACON,
};

/// Where the registry of these settings listens.
///
/// # Errors
/// If it is no address.
pub fn listen_address(settings: &Settings, names: Names) -> Result<SocketAddr, Failure> {
    Ok(settings.address(names.listen)?.unwrap_or(REGISTRY_DEFAULT))
}

/// The registry that the settings describe, its log in `folder`, which is created if missing.
///
/// # Errors
/// A setting that cannot be, or an address that is taken.
pub fn start_from(
    settings: &Settings,
    names: Names,
    folder: PathBuf,
) -> Result<RegistryHandle, Failure> {
    let policies = [("article", Policy::Article), ("pilot-1.9", Policy::Pilot19)];
    let beacon = match settings.text(names.beacon).as_deref() {
        Some("none") => None,
        _ => Some(settings.address(names.beacon)?.unwrap_or(BEACON_DEFAULT)),
    };
    let config = Config {
        listen: listen_address(settings, names)?,
        beacon,
        allow_unsigned_polo: settings.flag(s::ALLOW_UNSIGNED_POLO)?.unwrap_or(false),
        polo_policy: settings
            .choice(s::POLO_POLICY, &policies)?
            .unwrap_or(Policy::Article),
        byte_log: settings.path(s::BYTE_LOG),
        state_dir: Some(folder.clone()),
        ..Config::default()
    };
    create_folder(&folder)?;
    start(config)
}

/// Stops a registry that served others and tells what it has counted: one line for people, for
/// programs an object with `event` and `counters`.
///
/// # Errors
/// If standard output is closed.
pub fn stop(registry: RegistryHandle, output: &Output) -> Result<(), Failure> {
    let counters = registry.counters();
    registry.shutdown();
    let counted: Vec<String> = counters
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    output.say(&format!("registry stopped {}", counted.join(" ")));
    if output.json {
        output.object(&serde_json::json!({ "event": "stopped", "counters": counters }))?;
    }
    Ok(())
}

fn start(mut config: Config) -> Result<RegistryHandle, Failure> {
    // A connection that was accepted and has no descriptor left for its work would only wait.
    let places = &mut config.limits.connections_max;
    *places = (*places).min(descriptors::for_connections());
    Registry::start(config).map_err(|error| Failure::environment(error.to_string()))
}

/// Where a registry that listens on `address` is reached from its own host.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn a_registry_on_every_interface_is_reached_by_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:9000", "127.0.0.1:9000"),
            ("[::]:9000", "[::1]:9000"),
            ("192.0.2.7:9000", "192.0.2.7:9000"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(reachable(listen).to_string(), reached);
        }
    }
}
