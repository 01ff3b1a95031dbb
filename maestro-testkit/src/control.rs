//! What can be done to a server itself, wherever it runs.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::docker::Container;
use crate::error::{Error, ErrorKind};
use crate::guard;
use crate::local::LocalServer;
use crate::process::ProcessId;
use crate::service::{Origin, Record};

/// Longest wait for a server to end after it was told to. RabbitMQ closes its queues one by one.
const END: Duration = Duration::from_mins(2);

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
    /// The handle on a server that another process started; `None` if it does not run any more. Not
    /// to know whether it does is an error: a server that others use would be replaced.
    pub(crate) async fn joined(record: &Record, directory: &Path) -> Result<Option<Self>, Error> {
        Ok(match record.origin {
            Origin::Local => guard::server_process(directory)
                .map(|_| Self::Local(LocalServer::joined(record.service, directory))),
            Origin::Docker => Container::joined(record).await?.map(Self::Container),
            Origin::Explicit => None,
        })
    }

    /// Stops the server in order, and kills it if that takes too long.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => {
                let process = server.process()?;
                server.stop()?;
                if until_gone(&[process]).await {
                    return Ok(());
                }
                server.kill().await?;
                Err(survived())
            }
            Self::Container(container) => container.stop(END).await,
        }
    }

    /// Kills the server with everything it started.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        match self {
            Self::None => Err(nobodys()),
            Self::Local(server) => {
                // With its children: PostgreSQL does not start again while one of them is left.
                let victims = server.kill().await?;
                if until_gone(&victims).await {
                    Ok(())
                } else {
                    Err(survived())
                }
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
            Self::Local(server) => server.pause().await,
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

/// Awaits the end of processes; false if one of them is still there after [`END`].
async fn until_gone(processes: &[ProcessId]) -> bool {
    let started = Instant::now();
    while processes.iter().any(ProcessId::is_alive) {
        if started.elapsed() > END {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

fn survived() -> Error {
    let what = format!("the server did not end within {} s", END.as_secs());
    Error::new(ErrorKind::Timeout, what)
}

fn nobodys() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this server was given by a MAESTRO_TEST_* variable: it is somebody else's",
    )
}
