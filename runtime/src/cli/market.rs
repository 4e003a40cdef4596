//! The registry inside this process, for `registry`, `up`, `demo` and `bench`.

use std::net::SocketAddr;

use ramjet_proto::polo::Policy;
use ramjet_registry::{Config, Registry, RegistryHandle};

use super::exit::Failure;
use super::host::{self, BEACON_DEFAULT, REGISTRY_DEFAULT};
use super::settings::{self as s, Settings};

/// A registry that forgets everything, on a port that the kernel chooses.
///
/// # Errors
/// If it cannot listen.
pub fn start_in_memory() -> Result<RegistryHandle, Failure> {
    let listen = SocketAddr::new(REGISTRY_DEFAULT.ip(), 0);
    start(Config { listen, beacon: None, ..Config::default() })
}

/// Where the registry of these settings listens.
///
/// # Errors
/// If it is no address.
pub fn listen_address(settings: &Settings) -> Result<SocketAddr, Failure> {
    Ok(settings.address(s::REGISTRY_LISTEN)?.unwrap_or(REGISTRY_DEFAULT))
}

/// The registry that the settings describe, its log in the state folder.
///
/// # Errors
/// A setting that cannot be, or an address that is taken.
pub fn start_from(settings: &Settings) -> Result<RegistryHandle, Failure> {
    let policies = [("article", Policy::Article), ("pilot-1.9", Policy::Pilot19)];
    let beacon = match settings.text(s::REGISTRY_BEACON).as_deref() {
        Some("none") => None,
        _ => Some(settings.address(s::REGISTRY_BEACON)?.unwrap_or(BEACON_DEFAULT)),
    };
    start(Config {
        listen: listen_address(settings)?,
        beacon,
        state_dir: Some(host::registry_folder(&host::state_folder(settings)?)?),
        allow_unsigned_polo: settings.flag(s::ALLOW_UNSIGNED_POLO)?.unwrap_or(false),
        polo_policy: settings.choice(s::POLO_POLICY, &policies)?.unwrap_or(Policy::Article),
        byte_log: settings.path(s::BYTE_LOG),
        ..Config::default()
    })
}

fn start(config: Config) -> Result<RegistryHandle, Failure> {
    Registry::start(config).map_err(|error| Failure::environment(error.to_string()))
}
