//! Every name the SDK derives from a service's name. Nothing else in the workspace builds one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The name of a service: lower-case kebab, `[a-z][a-z0-9-]*[a-z0-9]`, 3 to 40 characters.
///
/// Everything a service owns on the shared servers is named after it; the methods give those names.
///
/// ```
/// let service: maestro_config::ServiceName = "quality-fabric".parse()?;
/// assert_eq!(service.database(), "quality_fabric");
/// assert_eq!(service.events_exchange(), "quality-fabric.events");
/// # Ok::<(), maestro_config::InvalidName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(String);

impl ServiceName {
    /// The vhost of the platform, shared by all services.
    pub const VHOST: &'static str = "maestro";

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The service's database on the shared PostgreSQL: the name with `_` for `-`.
    pub fn database(&self) -> String {
        self.0.replace('-', "_")
    }

    /// The login role of the service (no DDL); also its Redis and RabbitMQ user.
    pub fn role(&self) -> String {
        self.database()
    }

    /// The NOLOGIN role that owns the database and everything in it.
    pub fn owner_role(&self) -> String {
        format!("{}_owner", self.database())
    }

    /// The login role that runs migrations: member of the owner, no statement timeout.
    pub fn migrator_role(&self) -> String {
        format!("{}_migrator", self.database())
    }

    /// The default prefix of every Redis key and channel of the service: `<service>:`.
    pub fn cache_prefix(&self) -> String {
        format!("{}:", self.0)
    }

    /// The topic exchange on which the service publishes its events: `<service>.events`.
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.0)
    }

    /// The direct exchange that brings retried and dead messages to the service's own queues.
    pub fn direct_exchange(&self) -> String {
        format!("{}.direct", self.0)
    }

    /// The queue of one subscription: `<service>.<subscription>`.
    pub fn queue(&self, subscription: &SubscriptionName) -> String {
        format!("{}.{}", self.0, subscription.0)
    }

    /// The dead-letter queue of one subscription: `<service>.<subscription>.dlq`.
    pub fn dead_letter_queue(&self, subscription: &SubscriptionName) -> String {
        format!("{}.{}.dlq", self.0, subscription.0)
    }

    /// The exchange and queue of one rung of the retry ladder: `<service>.retry.<delay>`,
    /// the delay in its largest whole unit (`500ms`, `10s`, `5m`, `2h`).
    pub fn retry_rung(&self, delay: Duration) -> String {
        let millis = delay.as_millis();
        let delay = match millis {
            m if m == 0 || m % 1_000 != 0 => format!("{m}ms"),
            m if m % 60_000 != 0 => format!("{}s", m / 1_000),
            m if m % 3_600_000 != 0 => format!("{}m", m / 60_000),
            m => format!("{}h", m / 3_600_000),
        };
        format!("{}.retry.{delay}", self.0)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        if !(3..=40).contains(&name.len()) || !is_kebab(name) {
            return Err(InvalidName::new(
                name,
                "lower-case kebab, 3 to 40 characters, such as `quality-fabric`",
            ));
        }
        if is_taken(name) {
            return Err(InvalidName::new(
                name,
                "a name whose role, user or exchange is not one of the servers' own or of another service",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a subscription: one kebab label; `events`, `direct`, `retry` and `dlq` are reserved,
/// because permissions of other services are written against those suffixes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionName(String);

impl SubscriptionName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SubscriptionName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let reserved = ["events", "direct", "retry", "dlq"].contains(&name);
        if !(2..=60).contains(&name.len()) || !is_kebab(name) || reserved {
            return Err(InvalidName::new(
                name,
                "one lower-case kebab label of 2 to 60 characters that is none of `events`, `direct`, `retry`, `dlq`",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for SubscriptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that breaks the convention it was checked against.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid name: expected {expected}")]
pub struct InvalidName {
    name: String,
    expected: &'static str,
}

impl InvalidName {
    pub(crate) fn new(name: &str, expected: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            expected,
        }
    }

    /// What a valid name looks like.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

/// Names whose derived names exist already: administrators and built-in users of the three servers,
/// RabbitMQ's `amq.` exchanges, and the owner and migrator roles of another service.
fn is_taken(name: &str) -> bool {
    const SERVERS: [&str; 11] = [
        "admin",
        "amq",
        "default",
        "guest",
        "maestro",
        "maestro-admin",
        "none",
        "postgres",
        "public",
        "template0",
        "template1",
    ];
    SERVERS.contains(&name)
        || name.starts_with("pg-")
        || name.ends_with("-owner")
        || name.ends_with("-migrator")
}

fn is_kebab(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes
            .last()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_follow_the_services_table() {
        let service: ServiceName = "maestro-v2".parse().unwrap();
        let billing: SubscriptionName = "billing".parse().unwrap();
        assert_eq!(service.database(), "maestro_v2");
        assert_eq!(service.owner_role(), "maestro_v2_owner");
        assert_eq!(service.migrator_role(), "maestro_v2_migrator");
        assert_eq!(service.cache_prefix(), "maestro-v2:");
        assert_eq!(service.queue(&billing), "maestro-v2.billing");
        assert_eq!(
            service.dead_letter_queue(&billing),
            "maestro-v2.billing.dlq"
        );
        assert_eq!(
            service.retry_rung(Duration::from_millis(1_500)),
            "maestro-v2.retry.1500ms"
        );
        assert_eq!(
            service.retry_rung(Duration::from_mins(1)),
            "maestro-v2.retry.1m"
        );
        assert_eq!(
            service.retry_rung(Duration::from_secs(61)),
            "maestro-v2.retry.61s"
        );
        assert_eq!(
            service.retry_rung(Duration::from_hours(2)),
            "maestro-v2.retry.2h"
        );
    }

    #[test]
    fn names_outside_the_convention_are_refused() {
        let long = "a".repeat(41);
        for name in [
            "",
            "ab",
            "Orders",
            "9lives",
            "orders-",
            "or ders",
            "ordérs",
            &long,
            "postgres",
            "amq",
            "guest",
            "pg-stat",
            "orders-owner",
            "orders-migrator",
        ] {
            assert!(name.parse::<ServiceName>().is_err(), "{name} was accepted");
        }
        for name in ["events", "direct", "retry", "dlq", "a.b", ""] {
            assert!(
                name.parse::<SubscriptionName>().is_err(),
                "{name} was accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_means_nothing_to_a_server(text in "[a-zA-Z0-9_. '\";:-]{0,44}|.{0,8}") {
            let harmless = |name: &str, more: &str| {
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
            };
            if let Ok(service) = text.parse::<ServiceName>() {
                prop_assert!((3..=40).contains(&text.len()));
                prop_assert!(harmless(service.as_str(), "-"));
                // PostgreSQL cuts names at 63 bytes.
                prop_assert!(service.migrator_role().len() <= 63);
                prop_assert!(harmless(&service.migrator_role(), "_"));
            }
            if let Ok(subscription) = text.parse::<SubscriptionName>() {
                prop_assert!(harmless(&subscription.to_string(), "-"));
            }
        }
    }
}
