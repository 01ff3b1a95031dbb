//! What a pool holds at one moment.

use std::fmt;
use std::time::Duration;

use super::roster::Roster;

/// What a pool holds at one moment; on the error of a caller that got no connection.
///
/// ```no_run
/// # fn example(db: &maestro_db::Db) {
/// let pool = db.pool_report();
/// println!("{} open of {}: {} active, {} idle", pool.total(), pool.max(), pool.active(), pool.idle());
/// if pool.waiting() > 0
///     && let Some((held, holder)) = pool.longest_holder()
/// {
///     println!("{} wait; {holder} has had one for {held:?}", pool.waiting());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PoolReport {
    max: usize,
    total: usize,
    active: usize,
    waiting: usize,
    longest: Option<(Duration, String)>,
}

impl PoolReport {
    pub(super) fn new(max: usize, total: usize, waiting: usize, roster: &Roster) -> Self {
        // The counts are read one after the other while the pool moves; they are made to agree.
        let active = roster.active().min(max);
        Self {
            max,
            total: total.max(active),
            active,
            waiting,
            longest: roster
                .longest()
                .map(|(held, holder)| (held, holder.to_string())),
        }
    }

    /// Largest number of connections.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Connections that are open.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Connections in use.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Connections that are open and free.
    pub fn idle(&self) -> usize {
        self.total - self.active
    }

    /// Callers that wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Who has had a connection for the longest time: how long, and which statement or where the
    /// transaction was begun.
    pub fn longest_holder(&self) -> Option<(Duration, &str)> {
        self.longest
            .as_ref()
            .map(|(held, holder)| (*held, holder.as_str()))
    }
}

impl fmt::Display for PoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            max,
            total,
            active,
            waiting,
            ..
        } = self;
        write!(
            f,
            "pool: {total} of {max} open, {active} active, {} idle, {waiting} waiting",
            self.idle()
        )?;
        if let Some((held, holder)) = &self.longest {
            write!(f, ", longest held for {held:.1?} by {holder}")?;
        }
        Ok(())
    }
}
