//! One check: it looks at what is known, and asks nobody.

use std::sync::Arc;

use maestro_metrics::{Criticality, DrainPhase, DrainStep, HealthCheck, HealthStatus, Leftover};

use crate::client::Messaging;
use crate::running::ConsumerState;
use crate::transport::Connectivity;

impl Messaging {
    /// The check for the service's health: degraded while disconnected, blocked, or with a consumer
    /// that does not consume. A broker outage must not take the HTTP side down with it; a service
    /// that cannot work without its broker makes it critical
    /// ([`HealthCheck::criticality`]).
    ///
    /// ```no_run
    /// # fn example(messaging: &maestro_messaging::Messaging, health: &maestro_metrics::HealthRegistry) {
    /// use maestro_metrics::Criticality;
    ///
    /// // This service does nothing but consume: no requests for it without its broker.
    /// health.register(messaging.health_check().criticality(Criticality::Critical));
    /// # }
    /// ```
    pub fn health_check(&self) -> HealthCheck {
        // Weak: a check that is still registered must not keep a closed client's tasks alive.
        let inner = Arc::downgrade(self.inner());
        HealthCheck::new("rabbitmq", Criticality::Degrading, move || {
            let inner = inner.upgrade();
            async move {
                let Some(inner) = inner else {
                    return HealthStatus::unhealthy("the messaging client is gone");
                };
                match inner.broker.connectivity() {
                    Connectivity::Down(reason) => {
                        return HealthStatus::unhealthy(format!("message broker: {reason}"));
                    }
                    Connectivity::Blocked => {
                        return HealthStatus::degraded(
                            "message broker: publishing is blocked by a memory or disk alarm",
                        );
                    }
                    Connectivity::Up => {}
                }
                for consumer in inner.consumers() {
                    // What is published before a queue is bound does not reach it: a consumer that
                    // is still starting is no healthy one.
                    let reason = match consumer.state() {
                        ConsumerState::Consuming | ConsumerState::Stopped => continue,
                        ConsumerState::Starting => "it does not consume yet".to_owned(),
                        ConsumerState::Interrupted(reason) | ConsumerState::Degraded(reason) => {
                            reason
                        }
                    };
                    let queue = consumer.queue();
                    return HealthStatus::degraded(format!("consumer of `{queue}`: {reason}"));
                }
                HealthStatus::healthy()
            }
        })
    }

    /// What to do at shutdown: drain the consumers, later close the connections.
    ///
    /// ```no_run
    /// # async fn example(messaging: &maestro_messaging::Messaging) {
    /// use std::time::{Duration, Instant};
    ///
    /// // Who has no `maestro::Service` to do it: the consumers, then the connections.
    /// let deadline = Instant::now() + Duration::from_secs(30);
    /// for step in messaging.drain_steps() {
    ///     let ended = step.run(deadline).await;
    ///     if !ended.left.is_none() {
    ///         eprintln!("{} left {}", ended.name, ended.left);
    ///     }
    /// }
    /// # }
    /// ```
    pub fn drain_steps(&self) -> Vec<DrainStep> {
        let consumers = self.clone();
        let connections = self.clone();
        vec![
            DrainStep::new(
                "messaging consumers",
                DrainPhase::Consumers,
                move |_| async move {
                    let drained = consumers.drain().await;
                    Leftover::of(drained.abandoned, "handlers that did not finish")
                },
            ),
            DrainStep::new(
                "messaging connections",
                DrainPhase::Pools,
                move |_| async move {
                    connections.close().await;
                    Leftover::none()
                },
            ),
        ]
    }
}
