//! Locks with a lease, a fencing token, and notice before the lease runs out.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::Cache;
use crate::clock::{millis, nanos};
use crate::error::{Error, ErrorKind};
use crate::key::{EntryId, check_name};
use crate::lease::Term;
use crate::scripts;

/// A lock that is not taken yet; made by [`Cache::lock`].
///
/// ```no_run
/// # async fn example(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
/// use std::time::Duration;
/// use maestro_cache::ErrorKind;
///
/// // One replica is enough:
/// if let Some(lease) = cache.lock("nightly").try_acquire().await? {
///     // … the work …
///     lease.release().await?;
/// }
///
/// // Each must, one after the other:
/// match cache.lock("ledger").wait(Duration::from_secs(2)).acquire().await {
///     Ok(lease) => println!("ours, with token {}", lease.fencing_token()),
///     Err(error) if error.kind() == ErrorKind::Conflict => println!("still taken after two seconds"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is locked until `acquire` is called"]
pub struct Lock {
    cache: Cache,
    name: String,
    lease: Duration,
    wait: Duration,
}

/// A lock that is held. It renews itself until it is [released](Lease::release) or dropped.
///
/// The server may give the lock to another process while this one is paused or cut off: a lease is
/// an *efficiency* lock, it keeps work from being done twice most of the time. Two things make it
/// safe: [`Lease::guard`] (or [`Lease::lost`]) tells the holder before the lease can have run out on
/// the server, and the resource refuses a [fencing token](Lease::fencing_token) older than the newest
/// it has seen.
///
/// ```no_run
/// # async fn rebuild(part: u64, fence: u64) -> Result<(), maestro_cache::Error> { Ok(()) }
/// # async fn example(lease: maestro_cache::Lease) -> Result<(), maestro_cache::Error> {
/// for part in 0..100 {
///     if lease.is_lost() {
///         break; // the parts that are left are the next holder's
///     }
///     tokio::select! {
///         biased;
///         () = lease.lost() => break,
///         done = rebuild(part, lease.fencing_token()) => done?,
///     }
/// }
/// lease.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lease {
    held: Arc<Held>,
    renewal: Option<JoinHandle<Result<bool, Error>>>,
}

#[derive(Debug)]
struct Held {
    cache: Cache,
    name: String,
    holder: String,
    fence: u64,
    lease: Duration,
    term: Term,
    changed: Notify,
    /// Ends the renewal, which then releases the lock.
    stop: CancellationToken,
}

/// Shortest lease: shorter ones would spend their time on renewals.
const MIN_LEASE: Duration = Duration::from_millis(100);
/// Longest lease: what everybody waits for when a holder dies.
const MAX_LEASE: Duration = Duration::from_hours(1);
/// Renewals in a lease: two may fail before it is lost.
const RENEWALS: u32 = 3;
/// How long the last fencing token is remembered. Later the server's clock is ahead of it anyway.
const FENCE_LIFE: Duration = Duration::from_hours(24);
/// Pauses between attempts while another process holds the lock.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

impl Cache {
    /// A lock under a name, among all processes of the service.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn rebuild() -> Result<(), maestro_cache::Error> { Ok(()) }
    /// # async fn example(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
    /// let lease = cache.lock("rebuild").lease(Duration::from_secs(30)).acquire().await?;
    /// lease.guard(rebuild()).await??;
    /// lease.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock<'a>(&self, name: impl Into<EntryId<'a>>) -> Lock {
        Lock {
            cache: self.clone(),
            name: name.into().as_str().to_owned(),
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(10),
        }
    }
}

impl Lock {
    /// How long others wait when the holder dies: 100 ms to 1 h, 30 s unless told. Renewed three times
    /// as often, so it says nothing about how long the work may take.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long [`Lock::acquire`] waits for another holder, 10 s unless told.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Takes the lock, waiting for another holder to give it up. Who waits longest has no precedence.
    ///
    /// Dropping the future may leave the lock taken until its lease is over.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when it is still held after the wait; [`ErrorKind::Config`] for a lease
    /// out of bounds; what the server said when it did not answer: nothing is locked then.
    pub async fn acquire(self) -> Result<Lease, Error> {
        let clock = Arc::clone(&self.cache.inner().clock);
        let deadline = clock.now().saturating_add(nanos(self.wait));
        let mut pause = RETRY.0;
        loop {
            let left = match self.attempt().await? {
                Ok(lease) => return Ok(lease),
                Err(left) => left,
            };
            let now = clock.now();
            if now >= deadline {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "lock `{}` was still held after {:?}; its lease ends in {left:?} if its holder is gone",
                        self.name, self.wait
                    ),
                ));
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            let until_deadline = Duration::from_nanos(deadline - now);
            sleep(jittered.min(left.max(MIN_PAUSE)).min(until_deadline)).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Takes the lock if nobody holds it.
    ///
    /// Errors and cancellation as for [`Lock::acquire`].
    pub async fn try_acquire(self) -> Result<Option<Lease>, Error> {
        Ok(self.attempt().await?.ok())
    }

    /// The lease, or how long another holder's still lasts.
    async fn attempt(&self) -> Result<Result<Lease, Duration>, Error> {
        let inner = self.cache.inner();
        let result = self.ask().await;
        inner.metrics.lock(match &result {
            Ok(Ok(_)) => "acquired",
            Ok(Err(_)) => "held",
            Err(error) => error.kind().as_str(),
        });
        result
    }

    async fn ask(&self) -> Result<Result<Lease, Duration>, Error> {
        check_name("a lock's name", &self.name)?;
        if !(MIN_LEASE..=MAX_LEASE).contains(&self.lease) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "lock `{}` was not taken: a lease is {MIN_LEASE:?} to {MAX_LEASE:?}",
                    self.name
                ),
            ));
        }
        let inner = self.cache.inner();
        let holder = Uuid::new_v4().simple().to_string();
        let keys = [inner.keys.lock(&self.name), inner.keys.fence(&self.name)];
        let lease = millis(self.lease).to_string();
        let life = millis(FENCE_LIFE).to_string();
        let arguments = [holder.as_bytes(), lease.as_bytes(), life.as_bytes()];
        let server = &inner.server;
        // Before it is sent: the server's lease begins later than that.
        let sent = inner.clock.now();
        let hash = &server.scripts.lock;
        let answer = server
            .run(&scripts::LOCK, hash, &keys, &arguments, true)
            .await?;
        let Value::Array(parts) = &answer else {
            return Err(server.misunderstood("lock", &answer));
        };
        match parts.as_slice() {
            [Value::Int(0), Value::Int(left)] => Ok(Err(Duration::from_millis(
                u64::try_from(*left).unwrap_or(0),
            ))),
            [Value::Int(1), Value::BulkString(fence)] => {
                let fence = crate::server::parse_number(fence)
                    .ok_or_else(|| server.misunderstood("lock", &answer))?;
                Ok(Ok(Lease::start(self, holder, fence, sent)))
            }
            _ => Err(server.misunderstood("lock", &answer)),
        }
    }
}

/// A lease that ends any moment now is not asked for in a loop.
const MIN_PAUSE: Duration = Duration::from_millis(5);

impl Lease {
    fn start(lock: &Lock, holder: String, fence: u64, sent: crate::clock::Nanos) -> Self {
        let inner = lock.cache.inner();
        let held = Arc::new(Held {
            cache: lock.cache.clone(),
            name: lock.name.clone(),
            holder,
            fence,
            lease: lock.lease,
            term: Term::new(lock.lease, sent),
            changed: Notify::new(),
            stop: inner.stop.child_token(),
        });
        let renewal = inner.tasks.spawn(Arc::clone(&held).renew());
        Self {
            held,
            renewal: Some(renewal),
        }
    }

    /// A number that grows with every acquisition of this lock, also over a Redis that lost its data.
    /// Send it along with what is done under the lock: a resource that remembers the largest it has
    /// seen can refuse a holder that was paused beyond its lease.
    pub fn fencing_token(&self) -> u64 {
        self.held.fence
    }

    /// True once the lease can no longer be relied on; it never turns false again.
    pub fn is_lost(&self) -> bool {
        self.held.left().is_none()
    }

    /// Resolves when the lease can no longer be relied on: a tenth of it before it can run out on the
    /// server, or at once when the server says that another process holds the lock.
    ///
    /// Looks at the clock each time it is polled, so that after a pause of the whole process it
    /// resolves at once: put it first in a `biased` `select!`, or use [`Lease::guard`].
    ///
    /// Safe to cancel.
    pub async fn lost(&self) {
        loop {
            let changed = self.held.changed.notified();
            let Some(left) = self.held.left() else { return };
            let mut wait = pin!(async {
                tokio::select! {
                    () = changed => {}
                    () = sleep(left) => {}
                }
            });
            poll_fn(|context| match self.held.left() {
                None => Poll::Ready(()),
                Some(_) => wait.as_mut().poll(context),
            })
            .await;
        }
    }

    /// Does something as long as the lease holds. Each time the work is about to go on, the lease is
    /// looked at first: work that was paused beyond it goes no further and is dropped at its await.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the lease was lost before the work was done.
    pub async fn guard<F: Future>(&self, work: F) -> Result<F::Output, Error> {
        let mut work = pin!(work);
        let mut lost = pin!(self.lost());
        poll_fn(|context| self.poll_guarded(work.as_mut(), lost.as_mut(), context)).await
    }

    fn poll_guarded<F: Future>(
        &self,
        work: Pin<&mut F>,
        lost: Pin<&mut impl Future<Output = ()>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<F::Output, Error>> {
        if lost.poll(context).is_ready() {
            return Poll::Ready(Err(self.held.gone()));
        }
        match work.poll(context) {
            Poll::Pending => Poll::Pending,
            // What took the rest of the lease in one go is not known to have been done under it.
            Poll::Ready(_) if self.is_lost() => Poll::Ready(Err(self.held.gone())),
            Poll::Ready(output) => Poll::Ready(Ok(output)),
        }
    }

    /// Gives the lock up and waits until the server knows; false when another process held it
    /// already. Dropping a lease gives it up as well, in the background.
    ///
    /// # Errors
    /// What the server said when it did not answer; the lock is free when the lease is over.
    pub async fn release(mut self) -> Result<bool, Error> {
        self.held.stop.cancel();
        let Some(renewal) = self.renewal.take() else {
            return Ok(false);
        };
        match renewal.await {
            Ok(released) => released,
            Err(stopped) => Err(Error::with_source(
                ErrorKind::Unavailable,
                format!(
                    "lock `{}` was not released: the runtime is shutting down",
                    self.held.name
                ),
                stopped,
            )),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.stop.cancel();
    }
}

impl Held {
    fn left(&self) -> Option<Duration> {
        self.term.left(self.cache.inner().clock.now())
    }

    fn gone(&self) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!(
                "the lease of lock `{}` was lost: this process was paused or cut off for longer than {:?}; another one may hold the lock",
                self.name, self.lease
            ),
        )
    }

    /// Renews the lease until it is lost or given up, then releases the lock.
    async fn renew(self: Arc<Self>) -> Result<bool, Error> {
        let mut pause = self.lease / RENEWALS;
        while let Some(left) = self.left() {
            tokio::select! {
                () = self.stop.cancelled() => {
                    self.term.lose();
                    self.changed.notify_waiters();
                    return self.release().await;
                }
                () = sleep(pause.min(left)) => {}
            }
            let clock = &self.cache.inner().clock;
            let sent = clock.now();
            match self.ask_for_more().await {
                Ok(true) => {
                    if !self.term.renew(sent, clock.now()) {
                        break;
                    }
                    pause = self.lease / RENEWALS;
                    self.changed.notify_waiters();
                }
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(lock = self.name, %error, "a lease was not renewed; trying again");
                    pause = self.lease / 20;
                }
            }
        }
        self.term.lose();
        self.changed.notify_waiters();
        self.cache.inner().metrics.leases_lost.increment();
        tracing::warn!(lock = self.name, "the lease of a lock was lost");
        // It may still be ours on the server: nobody else should have to wait for it.
        self.release().await
    }

    async fn ask_for_more(&self) -> Result<bool, Error> {
        let lease = millis(self.lease).to_string();
        let server = &self.cache.inner().server;
        self.ask(&scripts::RENEW, &server.scripts.renew, &[lease.as_bytes()])
            .await
    }

    async fn release(&self) -> Result<bool, Error> {
        let server = &self.cache.inner().server;
        self.ask(&scripts::RELEASE, &server.scripts.release, &[])
            .await
    }

    async fn ask(
        &self,
        script: &scripts::Script,
        hash: &str,
        more: &[&[u8]],
    ) -> Result<bool, Error> {
        let inner = self.cache.inner();
        let key = inner.keys.lock(&self.name);
        let arguments: Vec<&[u8]> = std::iter::once(self.holder.as_bytes())
            .chain(more.iter().copied())
            .collect();
        let answer = inner
            .server
            .run(script, hash, [&key], &arguments, true)
            .await?;
        Ok(answer == Value::Int(1))
    }
}
