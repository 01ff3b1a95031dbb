//! The servers the benches of clients run on.

use maestro_config::Environment;
use maestro_testkit::{Sandbox, Service, Stack};

use crate::harness::Result;

/// A place on the shared servers, and what a service is told about it. Connections go to the servers
/// themselves, not through the sandbox's links: those cost a hop.
pub struct Place {
    pairs: Vec<(String, String)>,
    _sandbox: Sandbox,
    stack: Stack,
}

impl Place {
    /// A new one.
    pub async fn new() -> Result<Self> {
        let stack = Stack::start().await?;
        let sandbox = stack.sandbox("orders").await?;
        Ok(Self {
            pairs: sandbox.direct_environment(),
            _sandbox: sandbox,
            stack,
        })
    }

    /// The environment of a service there, with `more` set.
    pub fn environment(&self, more: &[(&str, &str)]) -> Environment {
        let more = more
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Environment::from_pairs(self.pairs.iter().cloned().chain(more))
    }

    /// The administrator's URL of a server.
    pub fn administrator(&self, service: Service) -> Result<String> {
        Ok(self.stack.server(service)?.admin_url().expose().to_string())
    }

    /// One of its variables.
    pub fn variable(&self, wanted: &str) -> Result<&str> {
        self.pairs
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| format!("the sandbox has no {wanted}").into())
    }
}
