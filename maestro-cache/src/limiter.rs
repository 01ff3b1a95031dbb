//! Rate limits that all processes of a service share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as Recent;
use redis::Value;

use crate::client::Cache;
use crate::error::{Error, ErrorKind};
use crate::gcra::{self, Arrival, Quota, Verdict};
use crate::key::{self, EntryId, check_name};
use crate::scripts;

/// What a limiter does while Redis cannot decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitWhenDown {
    /// Let everything pass: the limit is a courtesy.
    Allow,
    /// Each process applies the quota to what it sees itself: `n` processes let up to `n` times as
    /// much pass.
    #[default]
    Local,
    /// Let nothing pass: better no service than too much of it.
    Deny,
}

/// Limits how often callers may do something; made by [`Cache::limiter`]. Cheap to clone.
///
/// ```no_run
/// # async fn example(cache: &maestro_cache::Cache, user: &str) -> Result<(), maestro_cache::Error> {
/// use maestro_cache::{LimitWhenDown, Quota};
///
/// // Sending costs money: better none than too much of it.
/// let mails = cache.limiter("mails", Quota::per_hour(100).burst(20)).when_down(LimitWhenDown::Deny);
///
/// let left = mails.peek(user).await?.remaining; // counts nothing
/// println!("{left} of {} at `{}`", mails.quota().count(), mails.name());
///
/// let verdict = mails.check_cost(user, 5).await?; // five, or none
/// if !verdict.allowed {
///     println!("come back in {:?}", verdict.retry_after);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Limiter(Arc<Inner>);

struct Inner {
    cache: Cache,
    name: String,
    quota: Quota,
    when_down: LimitWhenDown,
    problem: Option<Error>,
    /// What this process knows of callers, for [`LimitWhenDown::Local`].
    local: Recent<String, Arrival>,
}

/// Callers remembered in process memory while Redis is away; of more, those who come least.
const REMEMBERED: usize = 10_000;

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("name", &self.0.name)
            .field("quota", &self.0.quota)
            .field("when_down", &self.0.when_down)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// A limiter under a name, with a quota for each of its callers. Build it once: what it knows of
    /// callers while Redis is away is its own.
    ///
    /// ```no_run
    /// # async fn check(cache: &maestro_cache::Cache, user: &str) -> Result<(), maestro_cache::Error> {
    /// use maestro_cache::Quota;
    ///
    /// let api = cache.limiter("api", Quota::per_hour(1_000));
    /// let verdict = api.check(user).await?;
    /// if !verdict.allowed {
    ///     println!("come back in {:?}", verdict.retry_after);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A name that is no lower-case label, or a quota that means nothing, fails at the first check.
    pub fn limiter(&self, name: &str, quota: Quota) -> Limiter {
        let quota_problem = quota.check().err().map(|problem| {
            Error::new(
                ErrorKind::Config,
                format!("limiter `{name}` cannot be used: {problem}"),
            )
        });
        Limiter(Arc::new(Inner {
            problem: key::check_label("limiter", name).err().or(quota_problem),
            cache: self.clone(),
            name: name.to_owned(),
            quota,
            when_down: LimitWhenDown::default(),
            local: Recent::new(REMEMBERED),
        }))
    }
}

impl Limiter {
    /// What to do while Redis cannot decide; [`LimitWhenDown::Local`] unless told. A limiter of its
    /// own from here on.
    pub fn when_down(self, when_down: LimitWhenDown) -> Self {
        Self(Arc::new(Inner {
            cache: self.0.cache.clone(),
            name: self.0.name.clone(),
            quota: self.0.quota,
            when_down,
            problem: self.0.problem.clone(),
            local: Recent::new(REMEMBERED),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its quota.
    pub fn quota(&self) -> Quota {
        self.0.quota
    }

    /// Decides one request of a caller.
    ///
    /// Dropping the future leaves it open whether the request was counted.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a limiter that means nothing, [`ErrorKind::TooLarge`] for a caller's
    /// id above 1,024 bytes. A server that is away is no error: see [`LimitWhenDown`].
    pub async fn check<'a>(&self, caller: impl Into<EntryId<'a>>) -> Result<Verdict, Error> {
        self.decide(caller.into().as_str(), 1, false).await
    }

    /// Decides a request that counts for several; it passes as a whole or not at all.
    ///
    /// # Errors
    /// As [`Limiter::check`]; [`ErrorKind::TooLarge`] for more than may ever come at once.
    pub async fn check_cost<'a>(
        &self,
        caller: impl Into<EntryId<'a>>,
        cost: u32,
    ) -> Result<Verdict, Error> {
        self.decide(caller.into().as_str(), cost, false).await
    }

    /// What [`Limiter::check`] would say, without counting anything.
    pub async fn peek<'a>(&self, caller: impl Into<EntryId<'a>>) -> Result<Verdict, Error> {
        self.decide(caller.into().as_str(), 1, true).await
    }

    async fn decide(&self, caller: &str, cost: u32, peek: bool) -> Result<Verdict, Error> {
        let limiter = &*self.0;
        if let Some(problem) = &limiter.problem {
            return Err(problem.clone());
        }
        check_name("a caller's id", caller)?;
        limiter.quota.check_cost(cost)?;
        let verdict = match self.ask(caller, cost, peek).await {
            Ok(verdict) => verdict,
            Err(error) => {
                if !error.kind().is_outage() {
                    tracing::warn!(limiter = limiter.name, %error, "Redis did not decide a rate limit");
                }
                self.decide_alone(caller, cost, peek)
            }
        };
        if !peek {
            let result = match (verdict.allowed, verdict.shared) {
                (true, true) => "allowed",
                (false, true) => "refused",
                (true, false) => "allowed_without_redis",
                (false, false) => "refused_without_redis",
            };
            limiter.cache.inner().metrics.limit(&limiter.name, result);
        }
        Ok(verdict)
    }

    async fn ask(&self, caller: &str, cost: u32, peek: bool) -> Result<Verdict, Error> {
        let limiter = &*self.0;
        let inner = limiter.cache.inner();
        let server = &inner.server;
        let key = inner.keys.limit(&limiter.name, caller);
        let interval = format!("{:.6}", limiter.quota.interval_micros());
        let burst = limiter.quota.at_once().to_string();
        let cost = cost.to_string();
        let arguments = [
            interval.as_bytes(),
            burst.as_bytes(),
            cost.as_bytes(),
            if peek { b"1" } else { b"0" },
        ];
        // Not repeatable: a request must not be counted twice.
        let hash = &server.scripts.limit;
        let answer = server
            .run(&scripts::LIMIT, hash, [&key], &arguments, peek)
            .await?;
        let Value::Array(parts) = &answer else {
            return Err(server.misunderstood("limit", &answer));
        };
        let [
            Value::Int(allowed),
            Value::Int(left),
            Value::Int(wait),
            Value::Int(reset),
        ] = parts.as_slice()
        else {
            return Err(server.misunderstood("limit", &answer));
        };
        let micros = |number: i64| Duration::from_micros(u64::try_from(number).unwrap_or(0));
        Ok(Verdict {
            allowed: *allowed == 1,
            limit: limiter.quota.at_once(),
            remaining: u32::try_from(*left).unwrap_or(0),
            retry_after: micros(*wait),
            reset_after: micros(*reset),
            shared: true,
        })
    }

    fn decide_alone(&self, caller: &str, cost: u32, peek: bool) -> Verdict {
        let limiter = &*self.0;
        let now = limiter.cache.inner().clock.now();
        let quota = limiter.quota;
        let fixed = |allowed| Verdict {
            allowed,
            limit: quota.at_once(),
            remaining: if allowed { quota.at_once() } else { 0 },
            // What the breaker's first probe takes; nobody knows better.
            retry_after: Duration::from_secs(u64::from(!allowed)),
            reset_after: Duration::from_secs(u64::from(!allowed)),
            shared: false,
        };
        match limiter.when_down {
            LimitWhenDown::Allow => fixed(true),
            LimitWhenDown::Deny => fixed(false),
            LimitWhenDown::Local => {
                // Two tasks may read the same arrival here and both pass: an exact count would need a
                // lock around every check, for the time Redis is away.
                let known = limiter.local.get(caller);
                let (verdict, next) = gcra::decide(quota, known, now, cost);
                if verdict.allowed && !peek {
                    limiter.local.insert(caller.to_owned(), next);
                }
                verdict
            }
        }
    }
}
