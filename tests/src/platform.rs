//! Both example services, provisioned and running.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use maestro_config::Environment;
use maestro_messaging::{Messaging, MessagingConfig};
use maestro_testkit::{Sandbox, Stack};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::canary;
use crate::process::{Process, until};

/// Where the two services' programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Quality Fabric.
    pub fabric: PathBuf,
    /// Conductor.
    pub conductor: PathBuf,
}

/// Both example services: their places on the servers, and their processes.
#[derive(Debug)]
pub struct Platform {
    /// Quality Fabric's place.
    pub fabric_box: Sandbox,
    /// Conductor's place, in the same vhost.
    pub conductor_box: Sandbox,
    /// Quality Fabric.
    pub fabric: Process,
    /// Conductor.
    pub conductor: Process,
    environments: Environments,
    logs: PathBuf,
}

/// What each service is started with.
#[derive(Debug)]
struct Environments {
    fabric: canary::Environment,
    conductor: canary::Environment,
}

/// Places for both services on the servers, before anything runs.
#[derive(Debug)]
pub struct Provisioned {
    fabric: Sandbox,
    conductor: Sandbox,
    environments: Environments,
}

impl Provisioned {
    /// Sets every secret variable there is, each to a secret of its own.
    pub fn with_canaries(mut self) -> Result<Self> {
        self.environments = Environments {
            fabric: canary::armed(self.environments.fabric)?,
            conductor: canary::armed(self.environments.conductor)?,
        };
        Ok(self)
    }

    /// Starts both services; they may not be ready yet.
    pub fn start(self, binaries: &Binaries, extra: &[(&str, &str)]) -> Result<Platform> {
        let name = format!(
            "maestro-scenario-{}-{}",
            std::process::id(),
            self.fabric.id()
        );
        let logs = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&logs)?;
        Ok(Platform {
            fabric: fabric(binaries, &self.environments.fabric, extra, &logs)?,
            conductor: conductor(binaries, &self.environments.conductor, extra, &logs)?,
            fabric_box: self.fabric,
            conductor_box: self.conductor,
            environments: self.environments,
            logs,
        })
    }
}

impl Platform {
    /// Creates databases, users and permissions for both services, in one vhost.
    pub async fn provision(stack: &Stack) -> Result<Provisioned> {
        let fabric = stack.sandbox("quality-fabric").await?;
        let conductor = fabric.neighbour("conductor").await?;
        let environments = Environments {
            fabric: fabric.environment(),
            conductor: conductor.environment(),
        };
        Ok(Provisioned {
            fabric,
            conductor,
            environments,
        })
    }

    /// Provisions both services and starts them; they may not be ready yet.
    pub async fn start(stack: &Stack, binaries: &Binaries, extra: &[(&str, &str)]) -> Result<Self> {
        Self::provision(stack).await?.start(binaries, extra)
    }

    /// Starts both services again in the same places, after they ended.
    pub fn restart(&mut self, binaries: &Binaries, extra: &[(&str, &str)]) -> Result<()> {
        self.restart_fabric(binaries, extra)?;
        self.restart_conductor(binaries, extra)
    }

    /// Starts Quality Fabric again in the same place, after it ended.
    pub fn restart_fabric(&mut self, binaries: &Binaries, extra: &[(&str, &str)]) -> Result<()> {
        self.fabric = fabric(binaries, &self.environments.fabric, extra, &self.logs)?;
        Ok(())
    }

    /// Starts the Conductor again in the same place, after it ended.
    pub fn restart_conductor(&mut self, binaries: &Binaries, extra: &[(&str, &str)]) -> Result<()> {
        self.conductor = conductor(binaries, &self.environments.conductor, extra, &self.logs)?;
        Ok(())
    }

    /// Waits until both are healthy: ready, and bound to each other's events (an event that is
    /// published before somebody is bound to it reaches nobody). How long each took.
    pub async fn healthy(&mut self, within: Duration) -> Result<(Duration, Duration)> {
        tokio::try_join!(self.fabric.healthy(within), self.conductor.healthy(within))
    }

    /// Defines a suite on the conductor.
    pub async fn define(&self, suite: &str, fails_first: u32) -> Result<()> {
        let (status, body) = self
            .conductor
            .put(
                &format!("/suites/{suite}"),
                &json!({"fails_first": fails_first}),
            )
            .await?;
        ensure!(
            status == StatusCode::NO_CONTENT,
            "defining {suite}: {status} {body}"
        );
        Ok(())
    }

    /// Submits a run; its id.
    pub async fn submit(&self, suite: &str) -> Result<String> {
        let (status, body) = self
            .fabric
            .post("/runs", &json!({"project": "demo", "suite": suite}))
            .await?;
        ensure!(
            status == StatusCode::ACCEPTED,
            "submitting a run: {status} {body}"
        );
        Ok(body["id"].as_str().context("a run without id")?.to_owned())
    }

    /// Waits until a run is completed; the run.
    pub async fn completed(&self, id: &str, within: Duration) -> Result<Value> {
        until(within, &format!("completion of run {id}"), async || {
            let (status, run) = self.fabric.get(&format!("/runs/{id}")).await?;
            Ok((status == StatusCode::OK && run["state"] == "completed").then_some(run))
        })
        .await
    }

    /// The conductor's messaging as an operator would open it.
    pub async fn operator(&self) -> Result<Messaging> {
        Self::operator_of(&self.conductor_box).await
    }

    /// A service's messaging as an operator would open it.
    pub async fn operator_of(service: &Sandbox) -> Result<Messaging> {
        let config =
            Environment::from_pairs(service.direct_environment()).read::<MessagingConfig>()?;
        Ok(Messaging::connect(config).await?)
    }

    /// Every secret of either service, by variable; an error unless it was started
    /// [with canaries](Provisioned::with_canaries).
    pub fn secrets(&self) -> Result<canary::Environment> {
        let fabric = canary::secrets(&self.environments.fabric)?;
        Ok([fabric, canary::secrets(&self.environments.conductor)?].concat())
    }

    /// Where the services' output is.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // The logs explain a failure and are of no use after a success.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.logs);
        }
    }
}

fn fabric(
    binaries: &Binaries,
    environment: &canary::Environment,
    extra: &[(&str, &str)],
    logs: &Path,
) -> Result<Process> {
    let settings = settings(environment, extra);
    Process::start("quality-fabric", &binaries.fabric, &settings, logs)
}

fn conductor(
    binaries: &Binaries,
    environment: &canary::Environment,
    extra: &[(&str, &str)],
    logs: &Path,
) -> Result<Process> {
    let settings = settings(environment, extra);
    Process::start("conductor", &binaries.conductor, &settings, logs)
}

fn settings(environment: &canary::Environment, extra: &[(&str, &str)]) -> canary::Environment {
    let extra = extra
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    environment.iter().cloned().chain(extra).collect()
}
