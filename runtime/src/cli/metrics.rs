//! `--metrics` of `node` and `registry`.

use ramjet_registry::RegistryHandle;

use super::exit::Failure;
use super::output::Output;
use super::settings::{self as s, Settings};
use crate::metrics::server::{Bound, Server};
use crate::node::Node;

/// The address of the metrics, if they are wanted: bound before anything else starts, so that one
/// that is taken is told at once.
pub(super) struct Metrics(Option<Bound>);

impl Metrics {
    /// # Errors
    /// If the setting is no address, or cannot be listened on.
    pub(super) fn bind(settings: &Settings) -> Result<Self, Failure> {
        let Some(address) = settings.address(s::METRICS)? else {
            return Ok(Metrics(None));
        };
        let bound = Bound::new(address).map_err(Failure::environment)?;
        Ok(Metrics(Some(bound)))
    }

    pub(super) fn of_node(self, node: &Node, output: &Output) -> Result<Option<Server>, Failure> {
        self.serve(|bound| bound.serve_node(node), output)
    }

    pub(super) fn of_registry(
        self,
        registry: &RegistryHandle,
        output: &Output,
    ) -> Result<Option<Server>, Failure> {
        self.serve(|bound| bound.serve_registry(registry), output)
    }

    fn serve(
        self,
        serve: impl FnOnce(Bound) -> Result<Server, String>,
        output: &Output,
    ) -> Result<Option<Server>, Failure> {
        let server = self.0.map(serve).transpose();
        let server = server.map_err(Failure::environment)?;
        if let Some(server) = &server {
            if output.is_logged() {
                tracing::info!(url = server.url(), "metrics are served");
            } else {
                output.say(&format!("metrics {}", server.url()));
            }
        }
        Ok(server)
    }
}
