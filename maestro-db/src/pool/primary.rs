//! Which of two servers takes writes, found out anew for every connection.
//!
//! With one URL a connection goes wherever its name leads. With a standby beside it, the standby may be
//! promoted: whoever is not in recovery is the primary, and the one that was it last is asked first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tokio::sync::OnceCell;

use super::SETTLE;
use crate::connect::Connector;
use crate::error::{Error, ErrorKind};
use crate::pooler;

/// Opens connections to the server that takes writes.
#[derive(Debug)]
pub(super) struct Primary {
    first: Candidate,
    second: Option<Candidate>,
    /// The second one was the primary when this was last found out.
    swapped: AtomicBool,
}

#[derive(Debug)]
struct Candidate {
    connector: Connector,
    /// What stands between was looked at.
    checked: OnceCell<()>,
}

/// A server that does not even refuse keeps the other one waiting for no longer than this.
const HEAD_START: Duration = Duration::from_secs(1);

impl Primary {
    pub(super) fn new(connector: Connector, successor: Option<Connector>) -> Self {
        Self {
            first: Candidate::new(connector),
            second: successor.map(Candidate::new),
            swapped: AtomicBool::new(false),
        }
    }

    /// The one that is asked first.
    pub(super) fn connector(&self) -> &Connector {
        match &self.second {
            Some(second) if self.swapped.load(Ordering::Relaxed) => &second.connector,
            _ => &self.first.connector,
        }
    }

    pub(super) async fn open(&self) -> Result<PgConnection, Error> {
        let Some(second) = &self.second else {
            return self.first.open().await;
        };
        let swapped = self.swapped.load(Ordering::Relaxed);
        let (one, other) = if swapped {
            (second, &self.first)
        } else {
            (&self.first, second)
        };
        let mut one = Box::pin(one.open_primary());
        let reason = match tokio::time::timeout(HEAD_START, &mut one).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let other = Box::pin(other.open_primary());
        let (connection, is_other) = match reason {
            Some(reason) => (other.await.map_err(|error| neither(&reason, error)), true),
            None => match select(one, other).await {
                Either::Left((Ok(connection), _)) => (Ok(connection), false),
                Either::Right((Ok(connection), _)) => (Ok(connection), true),
                Either::Left((Err(reason), other)) => {
                    (other.await.map_err(|error| neither(&reason, error)), true)
                }
                Either::Right((Err(error), one)) => {
                    (one.await.map_err(|reason| neither(&reason, error)), false)
                }
            },
        };
        if connection.is_ok() && is_other {
            self.swapped.store(!swapped, Ordering::Relaxed);
            tracing::warn!(primary = %self.connector().endpoint(), "the primary is another server now");
        }
        connection
    }
}

impl Candidate {
    fn new(connector: Connector) -> Self {
        Self {
            connector,
            checked: OnceCell::new(),
        }
    }

    async fn open(&self) -> Result<PgConnection, Error> {
        let mut looked_through = None;
        self.checked
            .get_or_try_init(|| async {
                looked_through = Some(pooler::check(&self.connector).await?);
                Ok::<_, Error>(())
            })
            .await?;
        match looked_through {
            Some(connection) => Ok(connection),
            None => self.connector.open().await,
        }
    }

    async fn open_primary(&self) -> Result<PgConnection, Error> {
        let mut connection = self.open().await?;
        if is_standby(&mut connection).await? {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} is a standby", self.connector.endpoint()),
            ));
        }
        Ok(connection)
    }
}

/// The first one's reason counts: it is the one that should have been the primary.
fn neither(reason: &Error, other: Error) -> Error {
    Error::new(
        reason.kind(),
        format!("no server takes writes: {reason}; and the other one"),
    )
    .with_source(other)
}

pub(super) async fn is_standby(connection: &mut PgConnection) -> Result<bool, Error> {
    use sqlx::Row as _;
    let what = "asking the server whether it is a standby";
    // In the simple protocol, which leaves no statement behind.
    let question =
        sqlx::raw_sql(AssertSqlSafe("select pg_catalog.pg_is_in_recovery()")).fetch_one(connection);
    match tokio::time::timeout(SETTLE, question).await {
        Ok(row) => row
            .and_then(|row| row.try_get_unchecked(0))
            .map_err(|error| Error::during(format!("{what} failed"), error)),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what} was not answered within {SETTLE:?}"),
        )),
    }
}
