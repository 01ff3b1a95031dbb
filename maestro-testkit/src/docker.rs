//! Servers in containers.
//!
//! A container belongs to a directory as a process does: a guard watches the directory's lock and
//! removes the container once nobody holds it. testcontainers' own clean-up is not used: it ends with
//! the process that made the container, and others may be using it.

mod engine;
pub(crate) mod image;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use testcontainers::bollard::models::PortBinding;
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerRequest, ImageExt};

use self::engine::{ANSWER, Engine, LABEL, PING, shares_loopback};
use self::image::Reference;
use self::plan::Plan;
use crate::config::{DevServicesConfig, Source};
use crate::control::Control;
use crate::error::{Error, ErrorKind};
use crate::guard::{self, Guarded};
use crate::port::Port;
use crate::provider::{Outcome, Request, await_ready, write_record};
use crate::report;
use crate::service::{Record, Service};

/// Making and starting a container; a loaded daemon needs seconds, one on a slow disk more.
const START: Duration = Duration::from_mins(2);

/// Longest wait for a killed container to be gone.
const KILL: Duration = Duration::from_mins(1);

/// Starts with other ports after a port turned out to be taken.
const ATTEMPTS: usize = 3;

/// A container of this clone or process.
#[derive(Debug)]
pub(crate) struct Container {
    engine: Engine,
    name: String,
    /// Nobody else takes them, also while the container is stopped.
    _ports: Vec<Port>,
}

impl Container {
    /// The container of a record that another process wrote; `None` if it does not run any more.
    pub(crate) async fn joined(record: &Record) -> Result<Option<Self>, Error> {
        let Some(name) = record.container.clone() else {
            return Ok(None);
        };
        // A daemon that is busy answers late; without one there are no containers.
        let Ok(engine) = Engine::reach(ANSWER).await else {
            return Ok(None);
        };
        let container = Self {
            engine,
            name,
            _ports: Vec::new(),
        };
        Ok(container.is_running().await?.then_some(container))
    }

    /// Starts the server again, on the same ports and data.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        self.engine.start(&self.name).await
    }

    /// Asks the server to end, and kills it when it has not after `limit`.
    pub(crate) async fn stop(&self, limit: Duration) -> Result<(), Error> {
        self.engine.stop(&self.name, limit).await
    }

    /// Kills the server with everything it started, and awaits that.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        self.engine.kill(&self.name).await?;
        let started = Instant::now();
        while self.is_running().await? {
            if started.elapsed() > KILL {
                let text = format!("container {} survives a kill", self.name);
                return Err(Error::new(ErrorKind::Timeout, text));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Freezes the server; its connections stay open.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.engine.pause(&self.name).await
    }

    /// Lets a paused server go on.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.engine.unpause(&self.name).await
    }

    /// True while the server runs, also when it is paused.
    async fn is_running(&self) -> Result<bool, Error> {
        let state = self.engine.state(&self.name).await?;
        Ok(state.is_some_and(|state| state.running))
    }

    /// Resolves when the server ended by itself, with what it wrote last.
    pub(crate) async fn ended(&self) -> String {
        loop {
            match self.engine.state(&self.name).await {
                Ok(Some(state)) if state.running => {}
                Ok(Some(state)) => {
                    let tail = self.engine.log_tail(&self.name).await;
                    return format!(" (status {}){tail}", state.exit_code);
                }
                Ok(None) => return " (somebody removed its container)".to_owned(),
                // Whoever waits has a deadline, also for a daemon that went away.
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Starts a server in a container, or says why that is not possible here.
pub(crate) async fn start(request: &Request<'_>) -> Result<Outcome, Error> {
    let service = request.service;
    let image = image(service, request.config)?;
    // Where there is no other way, even a slow daemon is worth waiting for.
    let patience = match request.config.source {
        Source::Docker => ANSWER,
        _ => PING,
    };
    let engine = match Engine::reach(patience).await {
        Ok(engine) => engine,
        Err(reason) => return Ok(Outcome::Unavailable(reason)),
    };
    if let Err(reason) = provide(&engine, &image).await {
        return Ok(Outcome::Unavailable(reason));
    }
    let label = label(request.directory);
    let mut attempt = 1;
    loop {
        remove_labelled(&engine, &label).await?;
        let starting = Box::pin(try_start(request, &engine, &image, &label));
        match report::with_progress(&format!("starting {service} in Docker"), starting).await {
            Ok(started) => return Ok(Outcome::Started(Box::new(started))),
            Err(e) => {
                guard::sweep(request.directory).await;
                remove_labelled(&engine, &label).await?;
                if attempt == ATTEMPTS || !is_port_taken(&e) {
                    return Err(e);
                }
                attempt += 1;
            }
        }
    }
}

async fn try_start(
    request: &Request<'_>,
    engine: &Engine,
    image: &Reference,
    label: &str,
) -> Result<(Record, Control), Error> {
    let plan = Plan::new(request)?;
    let mut record = plan.record;
    let home = request.directory.parent().and_then(Path::file_name);
    let name = format!(
        "{}-{}-{}",
        home.unwrap_or_default().to_string_lossy(),
        request.service.as_str(),
        record.port
    );
    record.reason = format!("Docker image {image}");
    record.container = Some(name.clone());
    // Written before anything runs: the name and the ports are known whatever happens next.
    write_record(request.directory, &record)?;
    // The guard comes first, too: from here on somebody removes the container in the end.
    let guarded = Guarded {
        directory: request.directory.to_owned(),
        grace: request.grace,
        stop_signal: "KILL",
        command: Vec::new(),
        companion: None,
        stop_command: Some(stop_command(
            label,
            &name,
            request.config.docker_host.as_deref(),
        )),
        environment: BTreeMap::new(),
        account: None,
    };
    guarded.launch().await?;

    let mut container = ContainerRequest::from(image.to_generic())
        .with_container_name(&name)
        .with_label(LABEL, label)
        .with_startup_timeout(START)
        .with_cmd(plan.command);
    for (variable, value) in plan.environment {
        container = container.with_env_var(variable, value);
    }
    for (path, text) in plan.files {
        container = container.with_copy_to(path, text.into_bytes());
    }
    let near = shares_loopback(request.config.docker_host.as_deref());
    let bindings: HashMap<_, _> = plan
        .ports
        .iter()
        .map(|(inside, outside)| {
            let binding = PortBinding {
                host_ip: near.then(|| "127.0.0.1".to_owned()),
                host_port: Some(outside.to_string()),
            };
            (inside.tcp().to_string(), Some(vec![binding]))
        })
        .collect();
    // Ports of our choice: the daemon would choose others whenever the container is started again.
    container = container.with_host_config_modifier(move |host| {
        host.publish_all_ports = Some(false);
        host.port_bindings = Some(bindings.clone());
    });
    // Boxed: the futures of testcontainers are large.
    let started = tokio::time::timeout(START, Box::pin(container.start()))
        .await
        .map_err(|_| {
            let seconds = START.as_secs();
            let text = format!("{}: no container within {seconds} s", request.service);
            Error::new(ErrorKind::Timeout, text)
        })?
        .map_err(|e| {
            let text = format!("starting {} from the image {image}", request.service);
            Error::new(ErrorKind::Unavailable, text).with(e)
        })?;
    // Its destructor would remove the container with this process, and panic outside a runtime. The
    // guard owns the container.
    let started = ManuallyDrop::new(started);
    if !near {
        let host = started.get_host().await.map_err(|e| {
            Error::new(ErrorKind::Unavailable, "finding the Docker host's address").with(e)
        })?;
        record.host = host.to_string();
    }
    let container = Container {
        engine: engine.clone(),
        name,
        _ports: plan.reserved,
    };
    let address = record.address();
    record.version =
        await_ready(request.service, &address, plan.deadline, container.ended()).await?;
    Ok((record, Control::Container(container)))
}

/// Makes sure that the image is there; else why it is not.
async fn provide(engine: &Engine, image: &Reference) -> Result<(), String> {
    // What a registry refused once it is not asked again: every dedicated stack would wait anew.
    static REFUSED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

    if engine.has(image).await? {
        return Ok(());
    }
    let refused = |refused: &BTreeMap<_, String>| refused.get(image.as_str()).cloned();
    if let Some(reason) = REFUSED.lock().ok().and_then(|known| refused(&known)) {
        return Err(reason);
    }
    let pulled = engine.pull(image).await;
    if let (Err(reason), Ok(mut known)) = (&pulled, REFUSED.lock()) {
        known.insert(image.to_string(), reason.clone());
    }
    pulled
}

/// The image that the settings name for a server.
fn image(service: Service, config: &DevServicesConfig) -> Result<Reference, Error> {
    let (variable, text) = match service {
        Service::Postgres => ("MAESTRO_TEST_POSTGRES_IMAGE", &config.postgres_image),
        Service::Redis => ("MAESTRO_TEST_CACHE_IMAGE", &config.cache_image),
        Service::Rabbitmq => ("MAESTRO_TEST_MESSAGING_IMAGE", &config.messaging_image),
    };
    Reference::parse(variable, text)
}

/// Removes what a dead run left in the place of `directory`.
pub(crate) async fn sweep(directory: &Path) -> Result<(), Error> {
    match Engine::reach(ANSWER).await {
        Ok(engine) => remove_labelled(&engine, &label(directory)).await,
        // Without a daemon there are no containers.
        Err(_) => Ok(()),
    }
}

async fn remove_labelled(engine: &Engine, label: &str) -> Result<(), Error> {
    for container in engine.labelled(label).await? {
        engine.remove(&container).await?;
    }
    Ok(())
}

/// Names one server of one clone on one machine: several machines may share a daemon.
fn label(directory: &Path) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", directory.display(), machine.trim())
}

/// What the guard runs at the end. By label, not by name: that also finds a container that was being
/// made when its maker was killed. A machine may have the daemon's socket without the command; and the
/// command, unless told, may be asking another daemon (`docker context`).
fn stop_command(label: &str, name: &str, docker_host: Option<&str>) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let filter = quoted(&format!("label={LABEL}={label}"));
    let socket = match docker_host {
        None => Some(STANDARD_SOCKET).filter(|socket| Path::new(socket).exists()),
        Some(host) => host.strip_prefix("unix://"),
    };
    let host = socket.map_or(String::new(), |socket| {
        format!(
            "export DOCKER_HOST={}; ",
            quoted(&format!("unix://{socket}"))
        )
    });
    let socket = quoted(socket.unwrap_or(STANDARD_SOCKET));
    format!(
        "{host}if command -v docker >/dev/null; then \
           containers=$(docker ps --all --quiet --filter {filter}) && \
           {{ [ -z \"$containers\" ] || docker rm --force --volumes $containers; }}; \
         else \
           curl --silent --show-error --max-time 60 --unix-socket {socket} \
             --request DELETE 'http://localhost/containers/{name}?force=true&v=true'; \
         fi"
    )
}

/// Where a daemon of this machine listens, and where testcontainers looks first.
const STANDARD_SOCKET: &str = "/var/run/docker.sock";

/// True for the daemon's words for a port that somebody else has.
fn is_port_taken(error: &Error) -> bool {
    let text = error.to_string();
    ["port is already allocated", "address already in use"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a shell does for the guard that is to remove container `c` of `d@m`.
    fn run(docker_host: Option<&str>, prelude: &str) -> String {
        let command = stop_command("d@m", "c", docker_host);
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &format!("{prelude}\n{command}")])
            // What the machine's own settings would say.
            .env("DOCKER_HOST", "tcp://192.0.2.1:2375")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_guard_removes_the_container_from_the_daemon_that_made_it() {
        let docker =
            r#"docker() { case $1 in ps) echo 1 2 ;; *) echo "$DOCKER_HOST $*" ;; esac; }"#;
        assert_eq!(
            run(Some("unix:///tmp/it's/docker.sock"), docker),
            "unix:///tmp/it's/docker.sock rm --force --volumes 1 2\n"
        );
        // One elsewhere is in the environment, which the guard has from this process.
        assert_eq!(
            run(Some("tcp://192.0.2.1:2375"), docker),
            "tcp://192.0.2.1:2375 rm --force --volumes 1 2\n"
        );
    }

    #[test]
    fn without_the_docker_command_the_socket_is_asked_that_was_used() {
        let curl = "command() { return 1; }; curl() { echo \"$*\"; }";
        let said = run(Some("unix:///tmp/docker.sock"), curl);
        assert!(said.contains("--unix-socket /tmp/docker.sock"), "{said}");
        assert!(said.contains("/containers/c?force=true"), "{said}");
    }
}
