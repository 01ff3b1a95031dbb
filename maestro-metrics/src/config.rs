//! Settings of metrics.

use std::net::SocketAddr;

use maestro_config::{FromEnvironment, Kind, Reader, Secret, Table, Variable};

/// Settings of metrics.
#[derive(Debug)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// The base URL of the platform's Prometheus; who pushes needs it. Can hold a password.
    pub endpoint: Option<Secret<String>>,
    /// An own listener for `/metrics` and `/health*`; without one they are routes of the service.
    pub listen: Option<SocketAddr>,
}

const ENDPOINT: Variable = Variable::new(
    "MAESTRO_METRICS_ENDPOINT",
    Kind::Url {
        schemes: &["http", "https"],
    },
)
.doc(
    "Base URL of the shared Prometheus, to which batch jobs push before they end. It must run with \
     `--web.enable-remote-write-receiver`.",
)
.example("http://maestro-prometheus:9090");
const LISTEN: Variable = Variable::new("MAESTRO_METRICS_LISTEN", Kind::Address)
    .doc("Own listener for `/metrics` and `/health*`; without one they are routes of the service.")
    .example("0.0.0.0:9100");

static TABLE: Table = Table {
    owner: "maestro-metrics",
    areas: &["MAESTRO_METRICS_"],
    variables: &[ENDPOINT, LISTEN],
};

impl FromEnvironment for MetricsConfig {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let endpoint = reader.optional(&ENDPOINT, Reader::url);
        let listen = reader.optional(&LISTEN, Reader::address);
        Some(Self {
            endpoint: endpoint?,
            listen: listen?,
        })
    }
}

#[cfg(test)]
mod tests {
    use maestro_config::Environment;

    use super::*;

    #[test]
    fn both_settings_may_be_absent_and_the_endpoint_is_not_shown() {
        let none = Environment::from_pairs::<&str, &str>([])
            .read::<MetricsConfig>()
            .unwrap();
        assert!(none.endpoint.is_none() && none.listen.is_none());
        let set = Environment::from_pairs([
            (
                "MAESTRO_METRICS_ENDPOINT",
                "http://user:canary@prometheus:9090",
            ),
            ("MAESTRO_METRICS_LISTEN", "0.0.0.0:9100"),
        ])
        .read::<MetricsConfig>()
        .unwrap();
        assert!(!format!("{set:?}").contains("canary"));
        assert_eq!(set.listen.unwrap().port(), 9_100);
    }
}
