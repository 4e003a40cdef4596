//! Whom a question is put to: the local node by its socket, or a registry.
//!
//! A flag decides. Without one, a socket that is set or that lies in the state folder wins, then a
//! registry that is set; without either, the error names all ways.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ramjet_proto::market::message::{EngagementRow, Query, Standing, WorkerRow};

use super::exit::Failure;
use super::host;
use super::settings::{self as s, Settings};
use crate::control::local_client::LocalClient;
use crate::control::query::RegistryClient;

/// Where to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the local node that serves this socket.
    Socket(PathBuf),
    /// To this registry.
    Registry(SocketAddr),
}

/// Finds the way. `names` are the sockets to look for in the state folder, in order.
///
/// # Errors
/// If there is none, or a setting cannot be.
pub fn route(settings: &Settings, names: &[&str]) -> Result<Route, Failure> {
    let registry = settings.address(s::REGISTRY)?;
    match registry {
        Some(registry) if settings.is_flag(s::REGISTRY) => return Ok(Route::Registry(registry)),
        _ => {}
    }
    if settings.is_set(s::SOCKET) {
        return Ok(Route::Socket(host::socket_path(settings)?));
    }
    let state = host::state_folder(settings)?;
    let found = names
        .iter()
        .map(|name| state.join(name))
        .find(|path| path.exists());
    match (found, registry) {
        (Some(path), _) => Ok(Route::Socket(path)),
        (None, Some(registry)) => Ok(Route::Registry(registry)),
        (None, None) => Err(nobody(&state)),
    }
}

fn nobody(state: &Path) -> Failure {
    Failure::environment(format!(
        "no node serves a socket in {}, and no registry is named.\nStart a node (`ramjet up` or \
         `ramjet node`), name its socket with --socket or its state folder with --state, or do \
         without one: --registry ADDR",
        state.display()
    ))
}

/// A connection for questions.
pub enum Access {
    /// To the local node.
    Local(LocalClient),
    /// To a registry; questions need no identity.
    Registry(RegistryClient),
}

impl Access {
    /// Connects on the way that the settings describe.
    ///
    /// # Errors
    /// If there is no way, or nobody answers at its end.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        match route(settings, &[host::SOCKET_FILE])? {
            Route::Socket(path) => Ok(Access::Local(connect(&path)?)),
            Route::Registry(address) => Ok(Access::Registry(RegistryClient::connect(address)?)),
        }
    }

    /// Lists workers.
    ///
    /// # Errors
    /// If the question could not be answered.
    pub fn resolve(&mut self, query: Query) -> Result<Vec<WorkerRow>, Failure> {
        Ok(match self {
            Access::Local(client) => client.resolve(query)?,
            Access::Registry(client) => client.resolve(query)?,
        })
    }

    /// Standing of a node: number, address or hostname.
    ///
    /// # Errors
    /// If there is no such node, or the question could not be answered.
    pub fn standing(&mut self, who: &str) -> Result<Standing, Failure> {
        Ok(match self {
            Access::Local(client) => client.standing(who)?,
            Access::Registry(client) => client.standing(who)?,
        })
    }

    /// Engagements, newest first.
    ///
    /// # Errors
    /// As [`Self::standing`].
    pub fn engagements(
        &mut self,
        who: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EngagementRow>, Failure> {
        Ok(match self {
            Access::Local(client) => client.engagements(who, limit)?,
            Access::Registry(client) => client.engagements(who, limit)?,
        })
    }
}

/// Connects to a local node.
///
/// # Errors
/// If nobody serves the socket.
pub fn connect(path: &Path) -> Result<LocalClient, Failure> {
    LocalClient::connect(path).map_err(|error| {
        Failure::environment(format!(
            "{error}\nStart it with `ramjet up` or `ramjet node`, or do without: --registry ADDR"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::settings::Layer;
    use super::*;

    fn layer(pairs: &[(s::Setting, &str)]) -> Layer {
        pairs
            .iter()
            .fold(Layer::default(), |layer, (setting, value)| {
                layer.set(*setting, &Some((*value).to_owned()))
            })
    }

    fn settings(flags: &[(s::Setting, &str)], environment: &[(&str, &str)]) -> Settings {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::resolve(layer(flags), environment, None).expect("known names")
    }

    #[test]
    fn flags_then_sockets_then_the_registry_that_is_set() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let state = folder.path().to_str().expect("text");
        let names = ["requester.sock", "ramjet.sock"];
        let market = ("RAMJET_REGISTRY", "127.0.0.1:7");
        let registry = Route::Registry(([127, 0, 0, 1], 7).into());

        let nothing = settings(&[(s::STATE, state)], &[]);
        let error = route(&nothing, &names).expect_err("no way");
        assert!(
            error.message.contains("--registry ADDR"),
            "{}",
            error.message
        );

        let by_variable = settings(&[(s::STATE, state)], &[market]);
        assert_eq!(route(&by_variable, &names), Ok(registry.clone()));

        let socket = folder.path().join("ramjet.sock");
        std::fs::write(&socket, "").expect("written");
        assert_eq!(route(&by_variable, &names), Ok(Route::Socket(socket)));
        let requester = folder.path().join("requester.sock");
        std::fs::write(&requester, "").expect("written");
        assert_eq!(route(&by_variable, &names), Ok(Route::Socket(requester)));

        let by_flag = settings(&[(s::STATE, state), (s::REGISTRY, "127.0.0.1:7")], &[]);
        assert_eq!(route(&by_flag, &names), Ok(registry));
        let named = settings(&[(s::SOCKET, "/x.sock")], &[market]);
        assert_eq!(route(&named, &names), Ok(Route::Socket("/x.sock".into())));
    }
}
