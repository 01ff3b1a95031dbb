//! Leader election by a row with a lease: one of the replicas, by the server's clock. Works through a
//! pooler, and gives a fencing token.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::client::Db;
use crate::error::Error;
use crate::pool::Task;
use crate::retry::Backoff;

/// A candidate for the leadership of one name; see [`Db::elect`].
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// use std::time::Duration;
///
/// // Every replica comes here at midnight; one does the work, the others go on.
/// let election = db.elect("nightly report", Duration::from_secs(10));
/// if let Some(leadership) = election.try_lead().await? {
///     // … the work …
///     leadership.resign().await?; // dropping it would let the lease run out instead
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    db: Db,
    name: Arc<str>,
    holder: Arc<str>,
    lease: Duration,
}

/// The leadership of one name, for as long as this lives and the server can be reached.
///
/// It renews its lease by itself. When the server cannot be reached for the length of the lease,
/// [`is_leader`](Self::is_leader) turns false before anybody else can become the leader.
///
/// ```no_run
/// # async fn schedule(token: i64) -> Result<(), maestro_db::Error> { Ok(()) }
/// # async fn example(election: maestro_db::Election) -> Result<(), maestro_db::Error> {
/// loop {
///     let leadership = election.lead().await?;
///     tokio::select! {
///         biased;
///         () = leadership.lost() => tracing::warn!("somebody else leads now"),
///         ended = schedule(leadership.token()) => return ended,
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the leadership is given up when this is dropped"]
pub struct Leadership {
    election: Election,
    token: i64,
    valid: watch::Receiver<Instant>,
    _renewal: Task,
}

/// Shorter, and a hiccup of the network or a pause of the process changes leaders.
const SHORTEST: Duration = Duration::from_secs(1);

/// Part of the lease by which we stop earlier than others may start: what the server's clock and
/// ours can drift apart within one lease, and the time between looking and acting.
const MARGIN: u32 = 5;

impl Db {
    /// Stands for election. One of the candidates of a name leads; when it is gone, another does
    /// after the length of the lease (at least a second) at the latest.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use std::time::Duration;
    ///
    /// let election = db.elect("scheduler", Duration::from_secs(10));
    /// let leadership = election.lead().await?; // waits for its turn
    /// while leadership.is_leader() {
    ///     // … one step of the work, with `leadership.token()` in what it writes …
    /// #   break;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The row is in `maestro.leases`, which [`Db::migrate`] makes when
    /// [`DbBuilder::leases`](crate::DbBuilder::leases) was asked for.
    pub fn elect(&self, name: &str, lease: Duration) -> Election {
        let instance = &self.config().application_name;
        Election {
            db: self.clone(),
            name: name.into(),
            // Also apart from another candidate of the same process.
            holder: format!("{instance} {:016x}", fastrand::u64(..)).into(),
            lease: lease.max(SHORTEST),
        }
    }
}

impl Election {
    /// Waits until this candidate leads. Errors of the server are waited out.
    ///
    /// # Errors
    /// What waiting cannot mend: the table is missing, or a right to it.
    ///
    /// # Cancellation
    /// Dropping the future gives the candidacy up. If it was won in that moment, its lease runs out
    /// by itself.
    pub async fn lead(&self) -> Result<Leadership, Error> {
        let mut backoff = Backoff::new(self.lease / 20, self.lease / 4);
        loop {
            match self.try_lead().await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => {}
                Err(error) if error.is_transient() => {
                    tracing::debug!(name = &*self.name, %error, "standing for election failed and is tried again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Takes the leadership if nobody has it.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, Error> {
        // Counted from before the question, so that our end is never later than the server's.
        let asked = Instant::now();
        let token: Option<i64> = sqlx::query_scalar(
            "insert into maestro.leases as l (name, holder, token, expires_at) \
             values ($1, $2, 1, clock_timestamp() + make_interval(secs => $3)) \
             on conflict (name) do update \
             set holder = excluded.holder, token = l.token + 1, expires_at = excluded.expires_at \
             where l.expires_at < clock_timestamp() or l.holder = excluded.holder \
             returning token",
        )
        .bind(&*self.name)
        .bind(&*self.holder)
        .bind(self.lease.as_secs_f64())
        .fetch_optional(&self.db)
        .await
        .map_err(|error| {
            Error::during(
                format!("standing for the election of `{}` failed", self.name),
                error,
            )
        })?;
        let Some(token) = token else { return Ok(None) };
        let (sender, valid) = watch::channel(self.until(asked));
        let renewal = Task::spawn(self.clone().renew(token, sender));
        Ok(Some(Leadership {
            election: self.clone(),
            token,
            valid,
            _renewal: renewal,
        }))
    }

    /// How long a lease asked for at that time can be relied upon.
    fn until(&self, asked: Instant) -> Instant {
        asked + self.lease.saturating_sub(self.lease / MARGIN)
    }

    async fn renew(self, token: i64, valid: watch::Sender<Instant>) {
        let mut pause = self.lease / 3;
        loop {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            let renewed = sqlx::query(
                "update maestro.leases set expires_at = clock_timestamp() + make_interval(secs => $3) \
                 where name = $1 and token = $2 and holder = $4 and expires_at > clock_timestamp()",
            )
            .bind(&*self.name)
            .bind(token)
            .bind(self.lease.as_secs_f64())
            .bind(&*self.holder)
            .execute(&self.db);
            match tokio::time::timeout(self.lease, renewed).await {
                Ok(Ok(done)) if done.rows_affected() == 1 => {
                    pause = self.lease / 3;
                    if valid.send(self.until(asked)).is_err() {
                        return;
                    }
                }
                // Somebody else's, or expired: nothing to renew.
                Ok(Ok(_)) => {
                    tracing::warn!(name = &*self.name, token, "the leadership was lost");
                    let _ = valid.send(asked);
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(name = &*self.name, %error, "renewing the leadership failed");
                    pause = self.lease / 20;
                }
                Err(_) => pause = Duration::ZERO,
            }
        }
    }
}

impl Leadership {
    /// Whether this replica still leads. No question is sent: the clock decides.
    pub fn is_leader(&self) -> bool {
        Instant::now() < *self.valid.borrow()
    }

    /// A number that grows with every change of the leader. Whoever writes it along can refuse what
    /// an earlier leader still sends.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// Waits until the leadership is lost.
    ///
    /// # Cancellation
    /// Dropping the future changes nothing.
    pub async fn lost(&self) {
        let mut valid = self.valid.clone();
        loop {
            let until = *valid.borrow_and_update();
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                changed = valid.changed() => if changed.is_err() {
                    // Nobody renews any more; the rest of the lease is left.
                    tokio::time::sleep_until(until.into()).await;
                    return;
                },
            }
        }
    }

    /// Gives the leadership to whoever stands next, at once. Dropping it lets the lease run out.
    pub async fn resign(self) -> Result<(), Error> {
        let Self {
            election,
            token,
            valid: _,
            _renewal: renewal,
        } = self;
        drop(renewal);
        sqlx::query("update maestro.leases set expires_at = '-infinity' where name = $1 and token = $2 and holder = $3")
            .bind(&*election.name)
            .bind(token)
            .bind(&*election.holder)
            .execute(&election.db)
            .await
            .map_err(|error| Error::during(format!("resigning from `{}` failed", election.name), error))?;
        Ok(())
    }
}

impl fmt::Display for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "leadership of `{}` with token {}",
            self.election.name, self.token
        )
    }
}
