//! The dead-letter queue of a subscription: count, list, replay, purge.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use maestro_config::SubscriptionName;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::client::Messaging;
use crate::error::{Error, ErrorKind};
use crate::headers;
use crate::retry::{self, DeadReason};
use crate::transport::{Deliveries, Incoming, Outgoing};

/// A message that could not be handled, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The message's identity; absent if its sender set none or not a UUID.
    pub message_id: Option<Uuid>,
    /// The event's type; absent if its sender set none.
    pub event_type: Option<String>,
    /// Why it is here.
    pub reason: DeadReason,
    /// The type of the error the handler returned (`panic`, `timeout`), or the broker's word
    /// (`delivery_limit`, `expired`, `maxlen`, `rejected`).
    pub error_type: Option<String>,
    /// The error's message, cut at 2 KiB.
    pub error_message: Option<String>,
    /// The error's causes, cut at 5 KiB.
    pub error_chain: Option<String>,
    /// How often handling failed.
    pub attempts: u32,
    /// When handling failed first.
    pub first_failed_at: Option<SystemTime>,
    /// When handling failed last.
    pub last_failed_at: Option<SystemTime>,
    /// The service version that failed.
    pub version: Option<String>,
    /// The instance that failed.
    pub instance: Option<String>,
    /// The exchange it was published to.
    pub exchange: Option<String>,
    /// The routing key it was published with.
    pub routing_key: Option<String>,
    /// The correlation id it belongs to.
    pub correlation_id: Option<String>,
    /// The tenant it is about.
    pub tenant: Option<String>,
    /// How often it was replayed before.
    pub replays: u32,
    /// The body as it was published. It can hold personal data.
    pub body: Bytes,
}

/// Which dead letters: all conditions together. The default, like [`Filter::all`], is every one.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use maestro_messaging::{DeadReason, Filter};
///
/// let filter = Filter::all().event_type("order.placed.v1").reason(DeadReason::Exhausted).limit(100);
/// // What an outage between nine and ten did to one tenant:
/// # let nine = SystemTime::UNIX_EPOCH;
/// let outage = Filter::all().tenant("acme").since(nine).until(nine + Duration::from_hours(1));
/// # let _ = (filter, outage);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a filter does nothing by itself"]
pub struct Filter {
    message_id: Option<Uuid>,
    event_type: Option<String>,
    reason: Option<DeadReason>,
    error_type: Option<String>,
    tenant: Option<String>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    limit: Option<u64>,
}

impl Filter {
    /// Every dead letter.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only this message.
    pub fn message_id(mut self, id: Uuid) -> Self {
        self.message_id = Some(id);
        self
    }

    /// Only events of this type.
    pub fn event_type(mut self, event_type: impl Into<String>) -> Self {
        self.event_type = Some(event_type.into());
        self
    }

    /// Only those that died of this.
    pub fn reason(mut self, reason: DeadReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Only those whose error type contains this text.
    pub fn error_type(mut self, part: impl Into<String>) -> Self {
        self.error_type = Some(part.into());
        self
    }

    /// Only this tenant's.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Only those that failed last at this time or later.
    pub fn since(mut self, at: SystemTime) -> Self {
        self.since = Some(at);
        self
    }

    /// Only those that failed last before this time.
    pub fn until(mut self, at: SystemTime) -> Self {
        self.until = Some(at);
        self
    }

    /// At most so many.
    pub fn limit(mut self, messages: u64) -> Self {
        self.limit = Some(messages);
        self
    }

    /// Whether a dead letter fits (the limit aside).
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let text =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        self.message_id
            .is_none_or(|id| letter.message_id == Some(id))
            && text(&self.event_type, &letter.event_type)
            && self.reason.is_none_or(|reason| letter.reason == reason)
            && self.error_type.as_ref().is_none_or(|part| {
                letter
                    .error_type
                    .as_ref()
                    .is_some_and(|found| found.contains(part.as_str()))
            })
            && text(&self.tenant, &letter.tenant)
            && self
                .since
                .is_none_or(|since| letter.last_failed_at.is_some_and(|at| at >= since))
            && self
                .until
                .is_none_or(|until| letter.last_failed_at.is_some_and(|at| at < until))
    }
}

/// What a replay or a purge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sorted {
    /// Dead letters that fitted the filter and were replayed or deleted; in a dry run, would be.
    pub taken: u64,
    /// Dead letters that did not fit and stay.
    pub left: u64,
    /// Dead letters that fitted and could not be moved; they stay.
    pub failed: u64,
    /// Dead letters that were not looked at, because 10,000 that did not fit were held already.
    pub unseen: u64,
}

/// The dead letters of one subscription.
///
/// ```no_run
/// # async fn example(messaging: maestro_messaging::Messaging) -> Result<(), maestro_messaging::Error> {
/// use maestro_messaging::Filter;
///
/// let letters = messaging.dead_letters("billing");
/// let numbers = Filter::all().error_type("ParseIntError");
/// for letter in letters.list(100).await?.iter().filter(|letter| numbers.matches(letter)) {
///     println!("{:?} failed {} times: {:?}", letter.message_id, letter.attempts, letter.error_message);
/// }
/// // Mended; all of them once more.
/// let sorted = letters.replay(numbers).await?;
/// println!("{} replayed, {} left", sorted.taken, letters.count().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeadLetters {
    messaging: Messaging,
    subscription: String,
}

impl DeadLetters {
    pub(crate) fn new(messaging: &Messaging, subscription: &str) -> Self {
        Self {
            messaging: messaging.clone(),
            subscription: subscription.to_owned(),
        }
    }

    /// How many there are. Those being listed or replayed at the moment are not counted.
    pub async fn count(&self) -> Result<u64, Error> {
        let (_, dead) = self.queues()?;
        Ok(self.messaging.inner().broker.count(&dead).await?.0)
    }

    /// The first of them, at most `limit` (10,000 are the most held at a time); they stay where they
    /// are.
    pub async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let (_, dead) = self.queues()?;
        let broker = self.messaging.inner().broker.as_ref();
        let (ready, _) = broker.count(&dead).await?;
        let wanted = ready.min(limit as u64).min(HELD);
        let mut letters = Vec::new();
        if wanted == 0 {
            return Ok(letters);
        }
        let mut deliveries = broker.browse(&dead, held(wanted)).await?;
        let listed = loop {
            if letters.len() as u64 >= wanted {
                break Ok(());
            }
            match timeout(NEXT_DEADLINE, deliveries.next()).await {
                Ok(Some(Ok(incoming))) => letters.push(read(&incoming.properties, &incoming.body)),
                Ok(Some(Err(error))) => break Err(error),
                Ok(None) => break Err(interrupted(&dead)),
                // Somebody else has taken the rest.
                Err(_) => break Ok(()),
            }
        };
        self.put_back(deliveries, &dead, ready).await;
        listed.map(|()| letters)
    }

    /// Sends dead letters back to this subscription's own queue, and to no other subscriber: each is
    /// confirmed there before it leaves the dead-letter queue. Attempts start over.
    pub async fn replay(&self, filter: Filter) -> Result<Sorted, Error> {
        let (queue, _) = self.queues()?;
        self.sort(&filter, Some(&Action::Replay { queue })).await
    }

    /// What a replay or a purge with this filter would take.
    pub async fn dry_run(&self, filter: Filter) -> Result<Sorted, Error> {
        self.sort(&filter, None).await
    }

    /// Deletes dead letters for good. `confirmation` is the name of the dead-letter queue,
    /// `<service>.<subscription>.dlq`, so that nobody purges by accident.
    pub async fn purge(&self, filter: Filter, confirmation: &str) -> Result<Sorted, Error> {
        let (_, dead) = self.queues()?;
        if confirmation != dead {
            return Err(Error::new(
                ErrorKind::Config,
                format!("purging `{dead}`: not confirmed; repeat the queue's name to confirm"),
            ));
        }
        self.sort(&filter, Some(&Action::Delete)).await
    }

    /// Goes once through what is in the queue now.
    async fn sort(&self, filter: &Filter, action: Option<&Action>) -> Result<Sorted, Error> {
        let (_, dead) = self.queues()?;
        let inner = self.messaging.inner();
        let (total, _) = inner.broker.count(&dead).await?;
        let started = SystemTime::now();
        let mut sorted = Sorted::default();
        if total == 0 {
            return Ok(sorted);
        }
        let mut deliveries = inner.broker.browse(&dead, held(total)).await?;
        let mut moving = FuturesUnordered::new();
        let limit = filter.limit.unwrap_or(u64::MAX);
        let mut begun = 0;
        let mut outcome = Ok(());
        for seen in 0..total {
            if begun >= limit {
                break;
            }
            if sorted.left >= HELD {
                // Those that stay are held until the end, and no more are sent.
                sorted.unseen = total - seen;
                break;
            }
            let incoming = match timeout(NEXT_DEADLINE, deliveries.next()).await {
                Ok(Some(Ok(incoming))) => incoming,
                Ok(Some(Err(error))) => {
                    outcome = Err(error);
                    break;
                }
                Ok(None) => {
                    outcome = Err(interrupted(&dead));
                    break;
                }
                // Somebody else has taken the rest.
                Err(_) => break,
            };
            let letter = read(&incoming.properties, &incoming.body);
            // What died again since this began is not replayed in a circle.
            let fresh = letter.last_failed_at.is_some_and(|at| at >= started) && letter.replays > 0;
            if fresh || !filter.matches(&letter) {
                sorted.left += 1;
                continue;
            }
            begun += 1;
            let Some(action) = action else {
                sorted.taken += 1;
                continue;
            };
            moving.push(self.take(action, incoming));
            if moving.len() >= IN_FLIGHT
                && let Some(moved) = moving.next().await
            {
                sorted.note(moved);
            }
        }
        while let Some(moved) = moving.next().await {
            sorted.note(moved);
        }
        drop(moving);
        let moved = if action.is_some() { sorted.taken } else { 0 };
        self.put_back(deliveries, &dead, total.saturating_sub(moved))
            .await;
        outcome.map(|()| sorted)
    }

    /// Unsettled messages return to the queue with their channel, and a moment after it: waits until
    /// so many are there, or whoever lists and then replays would miss some.
    async fn put_back(&self, deliveries: Box<dyn Deliveries>, dead: &str, expected: u64) {
        deliveries.close().await;
        let broker = self.messaging.inner().broker.as_ref();
        let deadline = Instant::now() + RETURN_DEADLINE;
        while let Ok((ready, _)) = broker.count(dead).await
            && ready < expected
            && Instant::now() < deadline
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn take(&self, action: &Action, incoming: Incoming) -> Result<(), Error> {
        let inner = self.messaging.inner();
        if let Action::Replay { queue } = action {
            let copy = Outgoing {
                exchange: inner.service().direct_exchange().as_str().into(),
                routing_key: queue.as_str().into(),
                properties: retry::replayed(&incoming.properties, SystemTime::now()),
                body: incoming.body.clone(),
            };
            let deadline = Instant::now() + inner.config.confirm_timeout;
            let stored = inner.broker.send(Arc::new(copy), deadline).await?.await?;
            if !stored.routed {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "replaying to `{queue}`: the queue does not exist; start the subscription once"
                    ),
                ));
            }
        }
        incoming.settle.ack().await
    }

    fn queues(&self) -> Result<(String, String), Error> {
        let name: SubscriptionName = self.subscription.parse().map_err(|error| {
            Error::new(ErrorKind::Config, format!("reading dead letters: {error}"))
        })?;
        let service = self.messaging.inner().service();
        Ok((service.queue(&name), service.dead_letter_queue(&name)))
    }
}

enum Action {
    Replay { queue: String },
    Delete,
}

impl Sorted {
    fn note(&mut self, moved: Result<(), Error>) {
        match moved {
            Ok(()) => self.taken += 1,
            Err(error) => {
                tracing::warn!(error = %error, "a dead letter stays where it is");
                self.failed += 1;
            }
        }
    }
}

/// A message in a dead-letter queue, whoever put it there.
pub(crate) fn read(properties: &BasicProperties, body: &Bytes) -> DeadLetter {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let text = |name| headers::text(table, name);
    let death = first_death(table);
    let broker = |name| death.and_then(|death| headers::text(death, name));
    let reason = text(headers::DEAD_REASON).and_then(|word| DeadReason::parse(&word));
    DeadLetter {
        message_id: properties
            .message_id()
            .as_ref()
            .and_then(|id| Uuid::try_parse(id.as_str()).ok()),
        event_type: properties.kind().as_ref().map(ToString::to_string),
        reason: reason.unwrap_or(DeadReason::Broker),
        error_type: text(headers::ERROR_TYPE).or_else(|| broker("reason")),
        error_message: text(headers::ERROR_MESSAGE),
        error_chain: text(headers::ERROR_CHAIN).filter(|chain| !chain.is_empty()),
        attempts: headers::count(table, headers::ATTEMPT).unwrap_or_default(),
        first_failed_at: millis(table, headers::FIRST_FAILED_AT),
        last_failed_at: millis(table, headers::LAST_FAILED_AT).or_else(|| died_at(death?)),
        version: text(headers::FAILED_VERSION),
        instance: text(headers::FAILED_INSTANCE),
        exchange: text(headers::EXCHANGE).or_else(|| broker("exchange")),
        routing_key: text(headers::ROUTING_KEY).or_else(|| first_key(death?)),
        correlation_id: properties
            .correlation_id()
            .as_ref()
            .map(ToString::to_string),
        tenant: text(headers::TENANT),
        replays: headers::count(table, headers::REPLAYS).unwrap_or_default(),
        body: body.clone(),
    }
}

/// The broker's own account of its last dead-lettering of this message.
fn first_death(table: &FieldTable) -> Option<&FieldTable> {
    match table.inner().get("x-death")? {
        AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

fn first_key(death: &FieldTable) -> Option<String> {
    match death.inner().get("routing-keys")? {
        AMQPValue::FieldArray(keys) => match keys.as_slice().first()? {
            AMQPValue::LongString(key) => Some(key.to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn died_at(death: &FieldTable) -> Option<SystemTime> {
    match death.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(*seconds)),
        _ => None,
    }
}

fn millis(table: &FieldTable, name: &str) -> Option<SystemTime> {
    let millis = u64::try_from(headers::integer(table, name)?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn interrupted(queue: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "reading `{queue}`: the connection was lost on the way; what was not reported stays"
        ),
    )
}

fn held(messages: u64) -> u16 {
    u16::try_from(messages.min(HELD)).unwrap_or(u16::MAX)
}

/// Dead letters held unsettled at a time.
const HELD: u64 = 10_000;
/// The broker sends what it has at once; after this nothing more comes. As long as it is given for any
/// answer: what a busy broker sends late would else be reported as taken by somebody else.
const NEXT_DEADLINE: Duration = Duration::from_secs(10);
/// Beyond this somebody else has taken what does not return.
const RETURN_DEADLINE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Replays confirmed at a time: the window is shared with the service's own publishes.
const IN_FLIGHT: usize = 64;
