//! Messages: what a service consumes, and the outbox and inbox beside its database.

use maestro_messaging::{Messaging, Subscription};

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::service::Service;

impl<D, C> Service<D, C, Messaging> {
    /// The service's RabbitMQ.
    pub fn messaging(&self) -> &Messaging {
        &self.messaging
    }
}

impl<D: Client, C: Client> Service<D, C, Messaging> {
    /// Runs a subscription for the life of the service: started when the migrations are applied,
    /// drained when the service stops.
    ///
    /// A subscription that can never start (a name that is not valid, two handlers for one event)
    /// ends the service with [`ErrorKind::Start`]; a broker that is away is waited for.
    pub fn consume(&self, subscription: Subscription) {
        self.core.launcher.add(Box::new(move || {
            Box::pin(async move {
                subscription.start().await.map(drop).map_err(|error| {
                    Error::new(ErrorKind::Start, "a subscription cannot be started")
                        .caused_by(error)
                })
            })
        }));
    }
}
