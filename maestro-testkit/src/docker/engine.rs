//! The Docker daemon: is it there, has it the image, and what can be done to a container.
//!
//! Containers are made by testcontainers. Everything after that is asked of the daemon by name,
//! through the client that testcontainers configured: a container is joined, paused and removed by
//! processes that did not make it.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use testcontainers::bollard::Docker;
use testcontainers::bollard::container::LogOutput;
use testcontainers::bollard::errors::Error as DockerError;
use testcontainers::bollard::query_parameters::{
    CreateImageOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use testcontainers::runners::AsyncRunner;

use super::image::Reference;
use crate::error::{Error, ErrorKind, sentence};
use crate::report;

/// A daemon on this machine answers in a millisecond; one that needs longer is not worth waiting for
/// at every test run, where there are other ways to have a server.
pub(crate) const PING: Duration = Duration::from_secs(1);
/// Longest wait for one answer about what is there already: a daemon that makes containers for several
/// tests at once takes its time.
pub(crate) const ANSWER: Duration = Duration::from_mins(1);
/// Until the registry has said what the image is made of. A registry that cannot be reached is
/// refused in milliseconds, one behind a silent firewall would hold the daemon for two minutes.
const REGISTRY: Duration = Duration::from_secs(5);
/// Longest silence while an image comes in.
const STALL: Duration = Duration::from_mins(1);
/// The whole of it, on a slow line.
const PULL: Duration = Duration::from_mins(15);

/// The label that says which server of which clone a container is.
pub(crate) const LABEL: &str = "io.maestro.testkit";

/// A Docker daemon that answered.
#[derive(Clone)]
pub(crate) struct Engine {
    docker: Docker,
    /// [`REGISTRY`], but in tests.
    patience: Duration,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// The daemon that `DOCKER_HOST` names, or the one of this machine; else why there is none. It is
    /// given `patience` for its first answer.
    pub(crate) async fn reach(patience: Duration) -> Result<Self, String> {
        let docker = testcontainers::core::client::docker_client_instance()
            .await
            .map_err(|e| format!("no daemon: {}", sentence(&e)))?;
        Self::ping(docker, patience).await
    }

    async fn ping(docker: Docker, patience: Duration) -> Result<Self, String> {
        match tokio::time::timeout(patience, docker.ping()).await {
            Ok(Ok(_)) => Ok(Self {
                docker,
                patience: REGISTRY,
            }),
            Ok(Err(e)) => Err(format!("the daemon does not answer: {}", sentence(&e))),
            Err(_) => Err(format!(
                "the daemon does not answer within {} s",
                patience.as_secs()
            )),
        }
    }

    /// Whether the image is there; an error when the daemon does not say.
    pub(crate) async fn has(&self, image: &Reference) -> Result<bool, String> {
        match tokio::time::timeout(ANSWER, self.docker.inspect_image(image.as_str())).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(DockerError::DockerResponseServerError {
                status_code: 404, ..
            })) => Ok(false),
            Ok(Err(e)) => Err(format!("looking for the image {image}: {}", sentence(&e))),
            Err(_) => Err(format!(
                "looking for the image {image}: no answer within {} s",
                ANSWER.as_secs()
            )),
        }
    }

    /// Fetches an image that is not there; else why it cannot be had.
    pub(crate) async fn pull(&self, image: &Reference) -> Result<(), String> {
        let pulling = tokio::time::timeout(PULL, self.pull_anonymously(image));
        let pulled = report::with_progress(&format!("pulling the image {image}"), pulling).await;
        let reason = match pulled {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Refusal::Final(reason))) => reason,
            Ok(Err(Refusal::Conditional(reason))) => {
                // testcontainers knows the credentials of `docker login`, and tries another
                // architecture that the daemon may emulate.
                let again = Box::pin(image.to_generic().pull_image());
                match tokio::time::timeout(PULL, again).await {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(_)) | Err(_) => reason,
                }
            }
            Err(_) => format!("not finished within {} s", PULL.as_secs()),
        };
        Err(format!(
            "the image {image} is not here and cannot be pulled ({reason})"
        ))
    }

    async fn pull_anonymously(&self, image: &Reference) -> Result<(), Refusal> {
        let options = CreateImageOptionsBuilder::new()
            .from_image(image.as_str())
            .build();
        let mut progress = self.docker.create_image(Some(options), None, None);
        let mut silence = self.patience;
        loop {
            match tokio::time::timeout(silence, progress.next()).await {
                Ok(Some(Ok(_))) => silence = STALL,
                Ok(Some(Err(e))) => {
                    let reason = sentence(&e);
                    return Err(if may_be_had_otherwise(&reason) {
                        Refusal::Conditional(reason)
                    } else {
                        Refusal::Final(reason)
                    });
                }
                Ok(None) => return Ok(()),
                Err(_) => {
                    return Err(Refusal::Final(format!(
                        "nothing from the registry for {} s",
                        silence.as_secs_f32()
                    )));
                }
            }
        }
    }

    /// The containers of one server, running or not.
    pub(crate) async fn labelled(&self, value: &str) -> Result<Vec<String>, Error> {
        let filters = HashMap::from([("label", vec![format!("{LABEL}={value}")])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let found = ask(
            "listing containers",
            ANSWER,
            self.docker.list_containers(Some(options)),
        )
        .await?;
        Ok(found
            .into_iter()
            .filter_map(|container| container.id)
            .collect())
    }

    /// Removes a container with its volumes, running or not. One that is gone already is no error.
    pub(crate) async fn remove(&self, container: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let removing = async {
            match self.docker.remove_container(container, Some(options)).await {
                // 404: gone; 409: somebody else is removing it at this moment.
                Err(DockerError::DockerResponseServerError {
                    status_code: 404 | 409,
                    ..
                }) => Ok(()),
                other => other,
            }
        };
        ask(&format!("removing container {container}"), ANSWER, removing).await
    }

    /// How a container is; `None` when there is none of that name.
    pub(crate) async fn state(&self, container: &str) -> Result<Option<State>, Error> {
        let looking = async {
            match self.docker.inspect_container(container, None).await {
                Ok(found) => Ok(Some(found)),
                Err(DockerError::DockerResponseServerError {
                    status_code: 404, ..
                }) => Ok(None),
                Err(e) => Err(e),
            }
        };
        let found = ask(
            &format!("looking at container {container}"),
            ANSWER,
            looking,
        )
        .await?;
        Ok(found.map(|found| {
            let state = found.state.unwrap_or_default();
            State {
                running: state.running.unwrap_or_default(),
                exit_code: state.exit_code.unwrap_or_default(),
            }
        }))
    }

    /// The last lines a container wrote, to be appended to an error.
    pub(crate) async fn log_tail(&self, container: &str) -> String {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail("8")
            .build();
        let reading = self
            .docker
            .logs(container, Some(options))
            .filter_map(|chunk| async { chunk.ok() })
            .map(LogOutput::into_bytes)
            .collect::<Vec<_>>();
        let Ok(chunks) = tokio::time::timeout(Duration::from_secs(5), reading).await else {
            return String::new();
        };
        let log = chunks.concat();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        format!("; the end of its log:\n    {}", lines.join("\n    "))
    }

    /// Starts a container that ended.
    pub(crate) async fn start(&self, container: &str) -> Result<(), Error> {
        let what = format!("starting container {container}");
        ask(&what, ANSWER, self.docker.start_container(container, None)).await
    }

    /// Asks the server to end, and kills it when it has not after `limit`.
    pub(crate) async fn stop(&self, container: &str, limit: Duration) -> Result<(), Error> {
        let seconds = i32::try_from(limit.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let what = format!("stopping container {container}");
        let stopping = self.docker.stop_container(container, Some(options));
        ask(&what, limit + ANSWER, stopping).await
    }

    /// Kills the server and whatever runs beside it.
    pub(crate) async fn kill(&self, container: &str) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        let what = format!("killing container {container}");
        ask(
            &what,
            ANSWER,
            self.docker.kill_container(container, Some(options)),
        )
        .await
    }

    /// Freezes every process of the container; its sockets stay open.
    pub(crate) async fn pause(&self, container: &str) -> Result<(), Error> {
        let what = format!("pausing container {container}");
        ask(&what, ANSWER, self.docker.pause_container(container)).await
    }

    /// Lets a paused container go on.
    pub(crate) async fn unpause(&self, container: &str) -> Result<(), Error> {
        let what = format!("resuming container {container}");
        ask(&what, ANSWER, self.docker.unpause_container(container)).await
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) running: bool,
    pub(crate) exit_code: i64,
}

/// Why an image did not come.
enum Refusal {
    /// Trying again would cost the same time for the same answer.
    Final(String),
    /// The registry answered, and may give the image to another request.
    Conditional(String),
}

/// True for a refusal that credentials or another architecture may turn.
fn may_be_had_otherwise(reason: &str) -> bool {
    [
        "denied",
        "unauthorized",
        "authentication",
        "credentials",
        "no matching manifest",
    ]
    .iter()
    .any(|words| reason.contains(words))
}

/// Whether ports published on the loopback interface can be reached from here: not when the daemon
/// is on another machine, nor when this process itself runs in a container beside the servers'.
pub(crate) fn shares_loopback(docker_host: Option<&str>) -> bool {
    let there = |path: &str| Path::new(path).exists();
    // The daemon's bridge among our interfaces: it runs in this very container.
    docker_host.is_none_or(|host| host.starts_with("unix:"))
        && (!there("/.dockerenv") || there("/sys/class/net/docker0"))
}

async fn ask<T>(
    what: &str,
    limit: Duration,
    answer: impl Future<Output = Result<T, DockerError>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Unavailable, what).with(e)),
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "{what}: the Docker daemon did not answer within {} s",
                limit.as_secs()
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
