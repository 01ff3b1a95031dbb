//! One task owns the channel that publishes.
//!
//! The driver takes the delivery tag and queues the frames under different locks, so several tasks
//! on one channel mix up their confirms; one task cannot, and is faster. It keeps a window of
//! publishes in flight, polls only those that made progress, and matches returns to their messages
//! (see `attribution`). A message whose answer is lost is published again under the same message id
//! while its deadline lasts (see `again`).

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, timeout};

use crate::amqp::again::{Again, Loss};
use crate::amqp::attribution::{Attribution, Sequence, Verdict};
use crate::amqp::link::{self, LinkState, Live};
use crate::amqp::slots::Slots;
use crate::amqp::{declare, failure};
use crate::backoff::Backoff;
use crate::config::MessagingConfig;
use crate::error::{Error, ErrorKind};
use crate::topology::Topology;
use crate::transport::{Request, Stored, refused};

/// The task's state between channels.
pub(crate) struct Publisher {
    config: Arc<MessagingConfig>,
    topology: Topology,
    requests: mpsc::Receiver<Request>,
    again: Again,
    /// How old a channel becomes on which something was refused.
    renew_after: Duration,
}

/// Why a channel is no longer used.
enum End {
    /// Nobody can publish any more and nothing is in flight.
    Finished,
    /// What was refused may be taken on another channel; nothing is in flight.
    Renew,
    /// Others were confirmed, and what is in flight was not: its queues stand still.
    Standstill,
    /// The channel or the connection failed.
    Failed(String),
}

impl Publisher {
    pub(crate) fn new(config: Arc<MessagingConfig>, requests: mpsc::Receiver<Request>) -> Self {
        let topology = Topology::publisher(config.identity.service());
        Self {
            config,
            topology,
            requests,
            again: Again::default(),
            renew_after: RENEW_AFTER,
        }
    }

    /// Runs until every handle is gone and the window is empty, or the client is closed.
    pub(crate) async fn run(mut self, mut state: watch::Receiver<LinkState>) {
        let mut backoff = Backoff::reconnect();
        loop {
            let Some(live) = self.wait_for_link(&mut state).await else {
                break;
            };
            let channel = match self.open(&live).await {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::warn!(error = %error, cause = %failure::chain(&error), "cannot open the publishing channel; trying on");
                    let delay = backoff.next();
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = live.down().cancelled() => {}
                    }
                    continue;
                }
            };
            let since = Instant::now();
            let end = self.serve(&live, &channel).await;
            match end {
                End::Finished => {
                    let _ = timeout(CLOSE_DEADLINE, channel.close(200, "done".into())).await;
                    break;
                }
                End::Renew => {
                    let _ = timeout(CLOSE_DEADLINE, channel.close(200, "done".into())).await;
                    self.renew_after = self.renew_after.saturating_mul(2).min(RENEW_AT_LEAST);
                }
                End::Standstill => {
                    let _ = timeout(CLOSE_DEADLINE, channel.close(200, "done".into())).await;
                    tracing::warn!(
                        unconfirmed = self.again.len(),
                        "some events are not confirmed while others are: a queue they go to has no leader or no process (`rabbitmqctl list_queues name state`); they are published again after a pause"
                    );
                }
                End::Failed(reason) => {
                    self.renew_after = RENEW_AFTER;
                    tracing::warn!(
                        reason,
                        unconfirmed = self.again.len(),
                        "the publishing channel is gone; what was unconfirmed is published again"
                    );
                    if since.elapsed() > STABLE {
                        backoff.reset();
                    }
                    if !live.down().is_cancelled() {
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            }
        }
        self.requests.close();
        self.again.close();
        while let Ok(request) = self.requests.try_recv() {
            request.give_up("the client was closed");
        }
    }

    /// Waits for the link while callers' deadlines pass by themselves; `None` when it is closed.
    async fn wait_for_link(&mut self, state: &mut watch::Receiver<LinkState>) -> Option<Arc<Live>> {
        let live = link::up(state).await?;
        self.again.refresh(Instant::now());
        Some(live)
    }

    async fn open(&self, live: &Live) -> Result<Channel, Error> {
        declare::declare(live, &self.topology).await?;
        let channel = live.channel().await?;
        match timeout(
            CONFIRM_SELECT_DEADLINE,
            channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await
        {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(error)) => Err(failure::of(&error, "switching publisher confirms on")),
            Err(_) => {
                live.fail();
                Err(Error::new(
                    ErrorKind::Timeout,
                    "switching publisher confirms on: no answer",
                ))
            }
        }
    }

    /// Publishes on one channel until it ends; what is unanswered then waits in `again`.
    async fn serve(&mut self, live: &Live, channel: &Channel) -> End {
        let window = self.config.publish_window;
        let mut session = Session {
            channel,
            attribution: Attribution::new(),
            slots: Slots::new(window),
            early: Vec::new(),
            lost: Vec::new(),
            broken: None,
            finished: false,
            confirm_timeout: self.config.confirm_timeout,
            last_answer: None,
            standstill: false,
            refused: false,
            renew_at: Instant::now() + self.renew_after,
        };
        let mut blocked = live.blocked();
        let mut check = tokio::time::interval(CHECK_EVERY);
        let end = loop {
            let is_blocked = *blocked.borrow_and_update();
            tokio::select! {
                // The window first: answers that are there settle before anything else is decided.
                biased;
                end = session.drive(&mut self.again, &mut self.requests, &mut check, is_blocked) => break end,
                () = live.down().cancelled() => {
                    break End::Failed("the connection is gone".to_owned());
                }
                _ = blocked.changed() => {}
            }
        };
        let loss = if session.standstill || session.is_stuck() {
            Loss::Standstill
        } else {
            Loss::Channel
        };
        // The driver rejects what is in flight when it notices; whatever it rejected or not, none
        // of it can be answered any more. Oldest first, before what was waiting already.
        let Session {
            attribution,
            mut lost,
            ..
        } = session;
        lost.extend(attribution.into_lost());
        lost.sort_unstable_by_key(|(sequence, _)| *sequence);
        let lost = lost.into_iter().map(|(_, request)| request);
        self.again.lost(lost, loss, Instant::now());
        end
    }
}

/// The window on one channel.
struct Session<'c> {
    channel: &'c Channel,
    attribution: Attribution<Request>,
    slots: Slots<'c>,
    /// Answers that were there at the first poll; they belong to the next pass.
    early: Vec<(usize, lapin::Result<Confirmation>)>,
    lost: Vec<(Sequence, Request)>,
    broken: Option<String>,
    finished: bool,
    confirm_timeout: Duration,
    last_answer: Option<Instant>,
    /// Nothing more is published until the last answers are there.
    standstill: bool,
    /// Whether anything was.
    refused: bool,
    /// From here on a channel on which something was refused gives way to a new one.
    renew_at: Instant,
}

impl Session<'_> {
    /// Resolves when the channel is of no more use.
    async fn drive(
        &mut self,
        again: &mut Again,
        requests: &mut mpsc::Receiver<Request>,
        check: &mut Interval,
        blocked: bool,
    ) -> End {
        poll_fn(|cx| self.poll(cx, again, requests, check, blocked)).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        again: &mut Again,
        requests: &mut mpsc::Receiver<Request>,
        check: &mut Interval,
        blocked: bool,
    ) -> Poll<End> {
        self.slots.register(cx.waker());
        loop {
            let collected = self.collect();
            if self.broken.is_some() {
                return Poll::Ready(End::Failed(self.broken.take().unwrap_or_default()));
            }
            // A channel that first meets a quorum queue while its leader is down asks a dead node
            // for it, and RabbitMQ 3.10 refuses everything on that channel from then on, whoever
            // leads the queue: only another channel asks again. A full queue refuses there as well.
            let renewing = self.refused && Instant::now() >= self.renew_at;
            if renewing && self.attribution.span() == 0 {
                return Poll::Ready(End::Renew);
            }
            self.standstill &= self.attribution.span() > 0;
            let paused = blocked || renewing || self.standstill;
            let published = !paused && self.fill(cx, again, requests);
            if self.finished && self.attribution.span() == 0 && again.len() == 0 {
                return Poll::Ready(End::Finished);
            }
            if !collected && !published {
                break;
            }
        }
        while check.poll_tick(cx).is_ready() {
            if self.standstill {
                let answers = self
                    .last_answer
                    .is_some_and(|at| at.elapsed() < LAST_ANSWERS);
                if !answers {
                    return Poll::Ready(End::Standstill);
                }
                check.reset_after(LAST_ANSWERS);
                continue;
            }
            if !blocked && self.is_stuck() {
                if !self.moves() {
                    return Poll::Ready(End::Failed(format!(
                        "the oldest publish is unconfirmed for more than {:?}",
                        self.confirm_timeout
                    )));
                }
                // What is on its way to other queues is confirmed first: published again it would come twice.
                self.standstill = true;
                check.reset_after(LAST_ANSWERS);
            }
            // A due one is published with the next turn.
            again.refresh(Instant::now());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// One pass over everything that made progress. True if there was anything.
    fn collect(&mut self) -> bool {
        let ready = self.slots.take_ready();
        let early = std::mem::take(&mut self.early);
        if ready.is_empty() && early.is_empty() {
            return false;
        }
        for (slot, result) in early {
            self.report(slot, result);
        }
        for slot in ready {
            if let Poll::Ready(result) = self.slots.poll(slot) {
                self.report(slot, result);
            }
        }
        let (lost, any_refused) = (&mut self.lost, &mut self.refused);
        let mut any_answered = false;
        self.attribution.settle(|sequence, request, verdict| {
            any_answered |= verdict != Verdict::Lost;
            match verdict {
                Verdict::Routed => request.answer(Ok(Stored { routed: true })),
                Verdict::Unrouted => request.answer(Ok(Stored { routed: false })),
                Verdict::Refused => {
                    *any_refused = true;
                    let error = refused(&request.outgoing);
                    request.answer(Err(error));
                }
                Verdict::Lost => lost.push((sequence, request)),
            }
        });
        if any_answered {
            self.last_answer = Some(Instant::now());
        }
        true
    }

    fn report(&mut self, slot: usize, result: lapin::Result<Confirmation>) {
        let Some(sequence) = self.slots.free(slot) else {
            return;
        };
        match result {
            Ok(Confirmation::Ack(returned)) => {
                self.attribution.ack(sequence, returned.map(matcher));
            }
            Ok(Confirmation::Nack(returned)) => {
                self.attribution.nack(sequence, returned.map(matcher));
            }
            // Confirms are on; without them nothing is known about the message.
            Ok(Confirmation::NotRequested) => self.attribution.lost(sequence),
            Err(error) => {
                self.attribution.lost(sequence);
                self.broken.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// Publishes while the window has room. True if anything was published.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        again: &mut Again,
        requests: &mut mpsc::Receiver<Request>,
    ) -> bool {
        let mut published = false;
        // Holes behind an old unconfirmed publish are cheap, but not without end.
        let span_limit = self.slots.len().saturating_mul(SPAN_FACTOR);
        while self.slots.has_room() && self.attribution.span() < span_limit {
            let request = match again.pop() {
                Some(request) => request,
                None if self.finished => break,
                None => match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => request,
                    Poll::Ready(None) => {
                        self.finished = true;
                        break;
                    }
                    Poll::Pending => break,
                },
            };
            let now = Instant::now();
            if request.is_over(now) {
                request.give_up("the deadline has passed");
                published = true;
                continue;
            }
            self.publish(request, now);
            published = true;
        }
        published
    }

    fn publish(&mut self, mut request: Request, now: Instant) {
        request.sent_at = Some(now);
        request.sent.store(true, Ordering::Relaxed);
        let outgoing = Arc::clone(&request.outgoing);
        let channel = self.channel;
        let sequence = self.attribution.published(request);
        let future = Box::pin(async move {
            let options = BasicPublishOptions {
                mandatory: true,
                immediate: false,
            };
            channel
                .basic_publish(
                    outgoing.exchange.clone(),
                    outgoing.routing_key.clone(),
                    options,
                    &outgoing.body,
                    outgoing.properties.clone(),
                )
                .await?
                .await
        });
        // The first poll takes the delivery tag and queues the frames: in order, by one task.
        if let Some((slot, Poll::Ready(result))) = self.slots.start(sequence, future) {
            self.early.push((slot, result));
        }
    }

    /// Whether the broker answers anything.
    fn moves(&self) -> bool {
        self.last_answer
            .is_some_and(|at| at.elapsed() < self.confirm_timeout / 2)
    }

    fn is_stuck(&self) -> bool {
        self.attribution
            .oldest()
            .and_then(|request| request.sent_at)
            .is_some_and(|at| at.elapsed() > self.confirm_timeout)
    }
}

fn matcher(returned: lapin::message::BasicReturnMessage) -> impl Fn(&Request) -> bool {
    move |request| {
        let outgoing = &request.outgoing;
        outgoing.properties.message_id() == returned.properties.message_id()
            && outgoing.exchange == returned.exchange
            && outgoing.routing_key == returned.routing_key
    }
}

/// The oldest publish can be this many windows behind the newest before publishing pauses.
const SPAN_FACTOR: usize = 16;
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// When none came for so long, none will.
const LAST_ANSWERS: Duration = Duration::from_millis(250);
const CONFIRM_SELECT_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
const STABLE: Duration = Duration::from_secs(10);
/// An election takes less; after every renewal it is doubled, because a full queue stays full.
const RENEW_AFTER: Duration = Duration::from_secs(1);
const RENEW_AT_LEAST: Duration = Duration::from_mins(1);
