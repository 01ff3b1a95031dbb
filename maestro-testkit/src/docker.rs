//! Servers in containers.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::provider::{Outcome, Request};
use crate::service::Record;

/// A container that was started for this clone or process.
#[derive(Debug)]
pub(crate) struct Container {}

impl Container {
    /// The container of a record that another process wrote.
    pub(crate) async fn joined(_record: &Record) -> Option<Self> {
        None
    }

    pub(crate) async fn start(&self) -> Result<(), Error> {
        Err(unsupported())
    }

    pub(crate) async fn stop(&self, _limit: Duration) -> Result<(), Error> {
        Err(unsupported())
    }

    pub(crate) async fn kill(&self) -> Result<(), Error> {
        Err(unsupported())
    }

    pub(crate) async fn pause(&self) -> Result<(), Error> {
        Err(unsupported())
    }

    pub(crate) async fn resume(&self) -> Result<(), Error> {
        Err(unsupported())
    }

    pub(crate) async fn ended(&self) -> String {
        std::future::pending().await
    }
}

fn unsupported() -> Error {
    Error::new(ErrorKind::Unsupported, "containers are not supported yet")
}

/// Starts a server in a container, or says why that is not possible here.
pub(crate) async fn start(_request: &Request<'_>) -> Result<Outcome, Error> {
    Ok(Outcome::Unavailable(
        "containers are not supported yet".to_owned(),
    ))
}
