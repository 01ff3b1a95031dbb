//! One server of a stack, as its administrator and, if it is dedicated, as its executioner.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_config::Secret;
use rustix::process::Signal;

use crate::error::{Error, ErrorKind};
use crate::local::LocalServer;
use crate::service::{Control, Origin, Service, authority};
use crate::stack::{Member, admin_url};
use crate::{background, wire};

/// Longest wait for a server to end after it was told to.
const END: Duration = Duration::from_secs(60);

/// Longest wait for a server to answer after it was started: RabbitMQ recovers its queues.
const READY: Duration = Duration::from_secs(90);

/// One server of a [`Stack`](crate::Stack).
///
/// `stop`, `start`, `kill`, `pause` and `resume` work on servers of
/// [`Stack::dedicated`](crate::Stack::dedicated) and return when they have taken effect; on shared
/// servers they fail with [`ErrorKind::Unsupported`]. Ports stay the same over a restart.
#[derive(Clone, Debug)]
pub struct Server {
    member: Arc<Member>,
}

impl Server {
    pub(crate) fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// Which server it is.
    pub fn service(&self) -> Service {
        self.member.running.service
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
        self.member.running.origin
    }

    /// What the server says it is: `15.18`, `7.0.15`, `3.10.8`.
    pub fn version(&self) -> &str {
        &self.member.running.version
    }

    /// `host:port` of the server itself, past every link.
    pub fn authority(&self) -> String {
        self.member.running.address.authority()
    }

    /// URL of the server's administrator.
    pub fn admin_url(&self) -> Secret<String> {
        admin_url(&self.member.running)
    }

    /// URL of RabbitMQ's management API, without credentials: they are the administrator's.
    pub fn management_url(&self) -> Option<String> {
        let (host, port) = self.member.running.address.management.as_ref()?;
        Some(format!("http://{}", authority(host, *port)))
    }

    /// Stops the server in order, as an operator would.
    pub async fn stop(&self) -> Result<(), Error> {
        let server = self.control("stopping")?;
        // PostgreSQL: fast shutdown, without waiting for clients to leave.
        let signal = match self.service() {
            Service::Postgres => Signal::INT,
            Service::Redis | Service::Rabbitmq => Signal::TERM,
        };
        server.signal(signal, false)?;
        self.await_end(server).await
    }

    /// Kills the server with everything it runs, without a word (`kill -9`).
    pub async fn kill(&self) -> Result<(), Error> {
        let server = self.control("killing")?;
        server.signal(Signal::KILL, true)?;
        self.await_end(server).await
    }

    /// Starts the server again, with its ports and its data, and awaits that it answers.
    pub async fn start(&self) -> Result<(), Error> {
        let server = self.control("starting")?;
        if server.is_there() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} runs already", self.service()),
            ));
        }
        let member = Arc::clone(&self.member);
        background::run(async move {
            let service = member.running.service;
            let Control::Local(server) = &member.running.control else {
                return Ok(());
            };
            server.start().await?;
            let started = Instant::now();
            loop {
                let answer = wire::handshake(service, &member.running.address).await;
                match answer {
                    Ok(_) => return Ok(()),
                    Err(e) if started.elapsed() > READY => return Err(e),
                    Err(e) => {
                        if let Some(why) = server.ended() {
                            let what = format!("{service} ended while it started again{why}");
                            return Err(Error::new(ErrorKind::Unavailable, what).with(e));
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Stops the server's processes in their tracks (`SIGSTOP`): connections stay open and nobody
    /// answers.
    pub async fn pause(&self) -> Result<(), Error> {
        self.control("pausing")?.signal(Signal::STOP, true)
    }

    /// Lets paused processes go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.control("resuming")?.signal(Signal::CONT, true)
    }

    fn control(&self, doing: &str) -> Result<&LocalServer, Error> {
        let service = self.service();
        if !self.member.dedicated {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{doing} a {service} that others share: ask for Stack::dedicated()"),
            ));
        }
        match &self.member.running.control {
            Control::Local(server) => Ok(server),
            Control::Container(_) | Control::None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{doing} {service} is not possible where it comes from"),
            )),
        }
    }

    async fn await_end(&self, server: &LocalServer) -> Result<(), Error> {
        let started = Instant::now();
        while server.is_there() {
            if started.elapsed() > END {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("{} did not end within {} s", self.service(), END.as_secs()),
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
