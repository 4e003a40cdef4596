//! `--metrics` and `--metrics-push` of `node` and `registry`.

use ramjet_registry::RegistryHandle;

use super::exit::Failure;
use super::output::Output;
use super::settings::{self as s, Settings};
use crate::metrics::push::{Collector, Pusher};
use crate::metrics::server::{Bound, Server};
use crate::node::Node;

/// The address of the metrics and the collector they are pushed to, where they are wanted: bound and
/// read before anything else starts, so that one that is taken or wrong is told at once.
pub(super) struct Metrics {
    bound: Option<Bound>,
    collector: Option<Collector>,
}

/// What serves and pushes metrics, until it is dropped.
pub(super) struct Watched {
    server: Option<Server>,
    _pusher: Option<Pusher>,
}

impl Watched {
    /// Where the page is, if it is served.
    pub(super) fn url(&self) -> Option<String> {
        self.server.as_ref().map(Server::url)
    }
}

impl Metrics {
    /// # Errors
    /// If a setting is no address or no URL, or the address cannot be listened on.
    pub(super) fn bind(settings: &Settings) -> Result<Self, Failure> {
        let address = settings.address(s::METRICS)?;
        let bound = address.map(Bound::new).transpose();
        Ok(Metrics {
            bound: bound.map_err(Failure::environment)?,
            collector: settings.parsed(s::METRICS_PUSH, str::parse)?.pop(),
        })
    }

    pub(super) fn of_node(self, node: &Node, output: &Output) -> Result<Watched, Failure> {
        self.start(
            |bound| bound.serve_node(node),
            |collector| Pusher::of_node(collector, node),
            output,
        )
    }

    pub(super) fn of_registry(
        self,
        registry: &RegistryHandle,
        output: &Output,
    ) -> Result<Watched, Failure> {
        self.start(
            |bound| bound.serve_registry(registry),
            |collector| Pusher::of_registry(collector, registry),
            output,
        )
    }

    fn start(
        self,
        serve: impl FnOnce(Bound) -> Result<Server, String>,
        push: impl FnOnce(Collector) -> Result<Pusher, String>,
        output: &Output,
    ) -> Result<Watched, Failure> {
        let server = self.bound.map(serve).transpose();
        let server = server.map_err(Failure::environment)?;
        if let Some(server) = &server {
            if output.is_logged() {
                tracing::info!(url = server.url(), "metrics are served");
            } else {
                output.say(&format!("metrics {}", server.url()));
            }
        }
        let pusher = self.collector.map(push).transpose();
        Ok(Watched {
            server,
            _pusher: pusher.map_err(Failure::environment)?,
        })
    }
}
