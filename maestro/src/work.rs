//! Messages: what a service consumes, and the outbox and inbox beside its database.

#[cfg(feature = "db")]
use maestro_messaging::outbox::{Inbox, Outbox};
use maestro_messaging::{Messaging, Subscription};

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::launch::Launched;
use crate::service::Service;

impl<D, C> Service<D, C, Messaging> {
    /// The service's RabbitMQ.
    pub fn messaging(&self) -> &Messaging {
        &self.messaging
    }
}

#[cfg(feature = "db")]
impl<C> Service<maestro_db::Db, C, Messaging> {
    /// Publishes events with the transaction that causes them: add them to a transaction of
    /// [`db`](Self::db). The relay runs as long as the service.
    pub fn outbox(&self) -> Outbox {
        self.messaging.outbox()
    }

    /// Remembers which messages were handled, in the transaction of their effects.
    ///
    /// ```no_run
    /// use maestro::Service;
    /// use maestro::db::Db;
    /// use maestro::messaging::{HandlerError, MessageContext, Messaging};
    ///
    /// # async fn handle(service: Service<Db, (), Messaging>, context: MessageContext) -> Result<(), HandlerError> {
    /// let mut tx = service.db().begin().await?;
    /// if service.inbox().once(&mut tx, context.subscription(), context.message_id()).await? {
    ///     sqlx::query("update stock set left = left - 1").execute(&mut tx).await?;
    /// }
    /// Ok(tx.commit().await?)
    /// # }
    /// ```
    pub fn inbox(&self) -> Inbox {
        Inbox
    }
}

impl<D: Client, C: Client> Service<D, C, Messaging> {
    /// Runs a subscription for the life of the service: started when the migrations are applied,
    /// drained when the service stops.
    ///
    /// A subscription that can never start (a name that is not valid, two handlers for one event)
    /// ends the service with [`ErrorKind::Start`]; a broker that is away is waited for.
    pub fn consume(&self, subscription: Subscription) {
        self.core
            .launcher
            .add(Box::new(move || Box::pin(start(subscription))));
    }
}

async fn start(subscription: Subscription) -> Result<Launched, Error> {
    let consumer = subscription.start().await.map_err(|error| {
        Error::new(ErrorKind::Start, "a subscription cannot be started").caused_by(error)
    })?;
    Ok(Launched {
        // The client drains all its consumers together.
        step: None,
        settled: Some(Box::pin(async move { consumer.ready().await })),
    })
}
