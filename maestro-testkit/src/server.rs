//! One server of a stack, as its administrator and, if it is dedicated, as its executioner.

use std::sync::Arc;
use std::time::Duration;

use maestro_config::Secret;

use crate::background;
use crate::error::{Error, ErrorKind};
use crate::link::Link;
use crate::provider::await_ready;
use crate::service::{Origin, Running, Service, authority};
use crate::stack::{Member, admin_url};

/// Longest wait for a server to answer after it was started: RabbitMQ recovers its queues.
const READY: Duration = Duration::from_secs(150);

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

    pub(crate) fn address(&self) -> (String, u16) {
        let address = &self.member.running.address;
        (address.host.clone(), address.port)
    }

    /// Another network to this server, beside those of sandboxes: for one client of several.
    pub async fn link(&self) -> Result<Link, Error> {
        let (host, port) = self.address();
        Link::open(self.service(), &host, port).await
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
        self.owned("stopping")?;
        self.member.running.control.stop().await
    }

    /// Kills the server with everything it runs, without a word (`kill -9`).
    pub async fn kill(&self) -> Result<(), Error> {
        self.owned("killing")?;
        self.member.running.control.kill().await
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), with its ports
    /// and its data, and awaits that it answers. Dropping the future leaves it starting.
    pub async fn start(&self) -> Result<(), Error> {
        self.owned("starting")?;
        let member = Arc::clone(&self.member);
        background::run(async move {
            let Running {
                service,
                address,
                control,
                ..
            } = &member.running;
            control.start().await?;
            await_ready(*service, address, READY, control.ended()).await?;
            member.administrator.restore_users().await
        })
        .await
    }

    /// Stops the server's processes in their tracks (`SIGSTOP`): connections stay open and nobody
    /// answers.
    pub async fn pause(&self) -> Result<(), Error> {
        self.owned("pausing")?;
        self.member.running.control.pause().await
    }

    /// Lets paused processes go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.owned("resuming")?;
        self.member.running.control.resume().await
    }

    fn owned(&self, doing: &str) -> Result<(), Error> {
        if self.member.dedicated {
            return Ok(());
        }
        let service = self.service();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("{doing} a {service} that others share: ask for Stack::dedicated()"),
        ))
    }
}
