//! A replica of the service: consumers and a relay, in a runtime of its own so that it can die.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use maestro_messaging::outbox::Inbox;
use maestro_messaging::{HandlerError, MessageContext, Messaging};
use sqlx::postgres::PgPool;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::ledger::Ledger;
use super::{Placed, Probed, World};

pub(super) const EACH: &str = "each";
pub(super) const ORDERED: &str = "ordered";
pub(super) const DELETED: &str = "deleted";
pub(super) const CONFLICTED: &str = "conflicted";

/// A running replica.
pub(super) struct Replica {
    end: oneshot::Sender<End>,
    thread: std::thread::JoinHandle<Result<()>>,
}

enum End {
    /// Everything stops where it is.
    Kill,
    Close,
}

impl Replica {
    pub(super) fn start(world: &Arc<World>) -> Result<Self> {
        let (end, ended) = oneshot::channel();
        let world = Arc::clone(world);
        let thread = std::thread::Builder::new()
            .name("replica".to_owned())
            .spawn(move || {
                let runtime = Runtime::new()?;
                let killed = runtime.block_on(live(&world, ended))?;
                if killed {
                    runtime.shutdown_background();
                }
                Ok(())
            })?;
        Ok(Self { end, thread })
    }

    /// The replica dies without a word.
    pub(super) async fn kill(self) -> Result<()> {
        self.end(End::Kill).await
    }

    pub(super) async fn close(self) -> Result<()> {
        self.end(End::Close).await
    }

    async fn end(self, how: End) -> Result<()> {
        // Fails when the replica has failed; joining it tells why.
        let _ = self.end.send(how);
        tokio::task::spawn_blocking(move || self.thread.join())
            .await?
            .map_err(|_| anyhow!("a replica panicked"))?
    }
}

/// True if it was killed.
async fn live(world: &Arc<World>, ended: oneshot::Receiver<End>) -> Result<bool> {
    let messaging = world.client().await?;
    let pool = world.pool().await?;
    let ledger = Arc::new(Ledger::connect(&world.variable("MAESTRO_POSTGRES_URL")?).await?);
    subscribe(world, &messaging, &pool, &ledger).await?;
    let relay = messaging
        .outbox()
        .relay(pool)
        .listen(world.variable("MAESTRO_POSTGRES_URL")?.parse()?)
        .lease_term(Duration::from_secs(3))
        .start();
    match ended.await.context("the campaign is gone")? {
        End::Kill => Ok(true),
        End::Close => {
            relay.drain().await;
            messaging.close().await;
            Ok(false)
        }
    }
}

async fn subscribe(
    world: &Arc<World>,
    messaging: &Messaging,
    pool: &PgPool,
    ledger: &Arc<Ledger>,
) -> Result<()> {
    let shared = (Arc::clone(world), pool.clone(), Arc::clone(ledger));
    messaging
        .subscription(EACH)
        .on("orders", move |_: Placed, context| {
            let (world, pool, ledger) = shared.clone();
            async move {
                misbehave(&world, &context).await?;
                effect(&pool, &context).await?;
                note(&world, &ledger, &context).await
            }
        })
        .start()
        .await?;
    let shared = (Arc::clone(world), Arc::clone(ledger));
    messaging
        .subscription(ORDERED)
        .ordered()
        .on("orders", move |_: Placed, context| {
            let (world, ledger) = shared.clone();
            async move {
                // Given up, it would come after those that follow it.
                if context.attempt() < 2 {
                    misbehave(&world, &context).await?;
                }
                note(&world, &ledger, &context).await
            }
        })
        .start()
        .await?;
    for (name, seen) in [(DELETED, &world.deleted), (CONFLICTED, &world.conflicted)] {
        let seen = Arc::clone(seen);
        messaging
            .subscription(name)
            .on("orders", move |event: Probed, _| {
                seen.fetch_max(event.number, Ordering::Relaxed);
                async { Ok(()) }
            })
            .on("orders", |_: Placed, _| async { Ok(()) })
            .start()
            .await?;
    }
    Ok(())
}

/// Fails now and then, in every way a handler can.
async fn misbehave(world: &World, context: &MessageContext) -> Result<(), HandlerError> {
    world.counts.deliveries.fetch_add(1, Ordering::Relaxed);
    if world.settling.load(Ordering::Relaxed) {
        return Ok(());
    }
    let (high, low) = context.message_id().as_u64_pair();
    let mut dice = world
        .plan
        .dice(high ^ low.rotate_left(17) ^ u64::from(context.attempt()));
    let fate = dice.u32(0..1_000);
    if fate < 75 {
        world.counts.failures.fetch_add(1, Ordering::Relaxed);
    }
    match fate {
        0..50 => Err("not now")?,
        50..60 => Err(HandlerError::retry_after(
            Duration::from_millis(150),
            "later",
        )),
        // Like a panic, without the hook that would print it.
        60..70 => std::panic::resume_unwind(Box::new("panicked")),
        70..72 => std::future::pending().await,
        72..75 if context.subscription() == EACH => Err(HandlerError::dead_letter("never")),
        75..80 => {
            tokio::time::sleep(Duration::from_millis(dice.u64(0..500))).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The message's identity and its effect in one transaction.
async fn effect(pool: &PgPool, context: &MessageContext) -> Result<(), HandlerError> {
    let mut transaction = pool.begin().await?;
    let id = context.message_id();
    if Inbox
        .once(&mut *transaction, context.subscription(), id)
        .await?
    {
        sqlx::query("INSERT INTO effects (id) VALUES ($1)")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn note(
    world: &World,
    ledger: &Ledger,
    context: &MessageContext,
) -> Result<(), HandlerError> {
    ledger
        .handled(context.subscription(), context.message_id())
        .await?;
    // A panic of the dice at the very end: done, noted, and not acknowledged.
    let mut dice = world.plan.dice(context.message_id().as_u64_pair().1);
    let settling = world.settling.load(Ordering::Relaxed);
    if !settling && context.attempt() == 0 && dice.u32(0..200) == 0 {
        Err("failed after its effect")?;
    }
    Ok(())
}
