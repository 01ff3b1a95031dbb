//! What can be done to a server itself, wherever it runs.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::docker::Container;
use crate::error::{Error, ErrorKind};
use crate::guard;
use crate::local::LocalServer;
use crate::service::{Origin, Record};

/// Longest wait for a server to end after it was told to. RabbitMQ closes its queues one by one.
const END: Duration = Duration::from_mins(1);

/// A handle on the process or container of a server. Every method returns when it has taken effect.
#[derive(Debug)]
pub(crate) enum Control {
    /// Somebody else's server.
    None,
    /// A process under our guard.
    Local(LocalServer),
    /// A container under our guard.
    Container(Container),
}

impl Control {
    /// The handle on a server that another process started; `None` if it does not run any more.
    pub(crate) async fn joined(record: &Record, directory: &Path) -> Option<Self> {
        match record.origin {
            Origin::Local => {
                guard::server_process(directory)?;
                Some(Self::Local(LocalServer::joined(record.service, directory)))
            }
            Origin::Docker => Container::joined(record).await.map(Self::Container),
            Origin::Explicit => None,
        }
    }

    /// Stops the server in order, and kills it if that takes too long.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => {
                server.stop()?;
                until_gone(server).await
            }
            Self::Container(container) => container.stop(END).await,
        }
    }

    /// Kills the server with everything it started.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => {
                server.kill()?;
                until_gone(server).await
            }
            Self::Container(container) => container.kill().await,
        }
    }

    /// Starts the server again, on the same ports and data. Returns before it answers.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => server.start().await,
            Self::Container(container) => container.start().await,
        }
    }

    /// Freezes the server: connections stay open and nobody answers.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => server.pause(),
            Self::Container(container) => container.pause().await,
        }
    }

    /// Lets a frozen server go on.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => server.resume(),
            Self::Container(container) => container.resume().await,
        }
    }

    /// Resolves when the server ended by itself, with what it said last.
    pub(crate) async fn ended(&self) -> String {
        match self {
            Self::None => std::future::pending().await,
            Self::Local(server) => server.ended().await,
            Self::Container(container) => container.ended().await,
        }
    }
}

async fn until_gone(server: &LocalServer) -> Result<(), Error> {
    let started = Instant::now();
    while server.is_there() {
        if started.elapsed() > END {
            server.kill()?;
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("the server did not end within {} s", END.as_secs()),
            ));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn nobodys() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this server was given by a MAESTRO_TEST_* variable: it is somebody else's",
    )
}
