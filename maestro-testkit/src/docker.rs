//! Servers in containers.

use crate::error::Error;
use crate::provider::{Outcome, Request};
use crate::service::Record;

/// A container that was started for this clone or process.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
}

/// Starts a server in a container, or says why that is not possible here.
pub(crate) async fn start(_request: &Request<'_>) -> Result<Outcome, Error> {
    Ok(Outcome::Unavailable(
        "containers are not supported yet".to_owned(),
    ))
}

/// True if the container of a record still runs.
pub(crate) async fn is_running(_record: &Record) -> bool {
    false
}
