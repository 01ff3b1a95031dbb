//! Rules of the platform about addresses and passwords. The strict ones hold in staging and
//! production.

use url::Url;

use crate::identity::Deployment;
use crate::parse::Wrong;

/// What else is known beside the URL.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside {
    /// A password stands in a variable of its own.
    pub(crate) password: bool,
    /// A client certificate proves who the service is.
    pub(crate) certificate: bool,
    /// A CA is given, which turns TLS on where the scheme does not say.
    pub(crate) ca: bool,
}

/// Ports under which the shared servers are reached from the host, beside the ones of the network.
const EXTERNAL_PORTS: [(u16, &str); 7] = [
    (25432, "5432"),
    (27379, "6379"),
    (27672, "5672"),
    (27673, "15672"),
    (29090, "9090"),
    (23000, "3000"),
    (26686, "4317 or 4318"),
];

/// Databases of the shared Redis are numbered from 0; sixteen is also what Redis has by default.
const LAST_DATABASE: u16 = 15;

/// Passwords of the platform's example files and of the servers' own documentation.
const KNOWN: [&str; 14] = [
    "admin",
    "changeme",
    "change_me",
    "change-me",
    "change_me_in_production",
    "from_infrastructure_env",
    "guest",
    "maestro",
    "password",
    "postgres",
    "rabbitmq",
    "redis",
    "root",
    "secret",
];
/// Ends of such passwords.
const ENDS: [&str; 3] = [
    "_secure_password",
    "secure_password_here",
    "_db_secure_2025",
];

/// Every rule that the URL breaks.
pub(crate) fn server(url: &Url, deployment: Option<Deployment>, beside: Beside) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    let strict = deployment.is_some_and(Deployment::is_strict);
    let host = url.host_str().unwrap_or_default();
    let shared_server = host.starts_with("maestro-") && !host.contains('.');
    let external = EXTERNAL_PORTS
        .iter()
        .find(|(port, _)| url.port() == Some(*port));
    if let Some((port, internal)) = external
        && (strict || shared_server)
    {
        wrongs.push(
            Wrong::new(format!(
                "uses {port}, the server's port on the host, inside the network"
            ))
            .fix(format!("inside the network the port is {internal}")),
        );
    }
    if (strict || shared_server) && database_number(url).is_some_and(|n| n > LAST_DATABASE) {
        wrongs.push(
            Wrong::new(format!(
                "names a database above {LAST_DATABASE}, which is the last one"
            ))
            .fix("end it with the number that the catalogue gives to the service"),
        );
    }
    if !strict {
        return wrongs;
    }
    wrongs.extend(credentials(url, beside));
    if !is_encrypted(url, beside) && !is_on_the_platform(host) {
        wrongs.push(
            Wrong::new("reaches a host outside the platform's network without TLS")
                .fix(tls_advice(url.scheme())),
        );
    }
    wrongs
}

/// The database that the URL of a Redis names.
fn database_number(url: &Url) -> Option<u16> {
    let is_redis = matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys");
    let path = url.path().strip_prefix('/').filter(|_| is_redis)?;
    path.parse().ok()
}

/// Why a password may not be used in staging and production.
pub(crate) fn password(text: &str) -> Option<Wrong> {
    let lower = text.trim().to_ascii_lowercase();
    let message = if lower.is_empty() {
        "has an empty password"
    } else if KNOWN.contains(&lower.as_str()) || ENDS.iter().any(|end| lower.ends_with(end)) {
        "has a well-known password"
    } else if lower.starts_with('<') && lower.ends_with('>') {
        // As the examples of reports have it: pasted and not filled in.
        "has a placeholder in place of a password"
    } else {
        return None;
    };
    Some(Wrong::new(message).fix(
        "generate one, such as with `openssl rand -base64 24`, give it to the server and to the \
         service, best as a mounted file named by the `_FILE` form",
    ))
}

fn credentials(url: &Url, beside: Beside) -> Vec<Wrong> {
    // Other servers (telemetry) may well take no password.
    let asks_for_password = matches!(
        url.scheme(),
        "postgres" | "postgresql" | "redis" | "rediss" | "valkey" | "valkeys" | "amqp" | "amqps"
    );
    let mut wrongs = Vec::new();
    if url.username().eq_ignore_ascii_case("guest") {
        wrongs.push(
            Wrong::new("uses the user `guest`")
                .fix("use the service's own user, named like its role"),
        );
    }
    match url.password() {
        _ if beside.password => {}
        Some(encoded) => wrongs.extend(password(&percent_decoded(encoded))),
        None if asks_for_password && !beside.certificate => {
            wrongs.push(Wrong::new("has no password").fix(
                "put it into the URL or, to let it rotate, into the `…_PASSWORD_FILE` beside it",
            ));
        }
        None => {}
    }
    wrongs
}

/// The text behind the `%XX` of a URL's component; what is no UTF-8 is replaced.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() {
            &after[2..]
        } else {
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_encrypted(url: &Url, beside: Beside) -> bool {
    match url.scheme() {
        "rediss" | "valkeys" | "amqps" | "https" => true,
        "postgres" | "postgresql" => {
            let mode = url
                .query_pairs()
                .find(|(name, _)| name == "sslmode")
                .map(|(_, mode)| mode.into_owned());
            match mode.as_deref() {
                Some(mode) => matches!(mode, "require" | "verify-ca" | "verify-full"),
                None => beside.ca,
            }
        }
        _ => false,
    }
}

fn tls_advice(scheme: &str) -> String {
    let change = match scheme {
        "postgres" | "postgresql" => "add ?sslmode=verify-full",
        "redis" | "valkey" => "write rediss://",
        "amqp" => "write amqps://",
        _ => "write https://",
    };
    format!("{change}; a host inside a cluster is written <service>.<namespace>.svc")
}

/// A name without a dot is resolved by the container network, `*.svc` by the cluster's DNS; the
/// loopback (a pooler or proxy in the same pod) leaves no machine.
fn is_on_the_platform(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<std::net::IpAddr>() {
        return address.is_loopback();
    }
    let labels: Vec<_> = host.trim_end_matches('.').rsplit('.').collect();
    matches!(
        labels.as_slice(),
        [_] | ["svc" | "maestro-network", ..] | ["local", "cluster", "svc", ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str, deployment: Deployment, beside: Beside) -> Vec<String> {
        server(&text.parse().unwrap(), Some(deployment), beside)
            .into_iter()
            .map(|wrong| wrong.message)
            .collect()
    }

    #[test]
    fn production_refuses_what_development_allows() {
        for (text, rules) in [
            ("postgresql://orders:zK3-9x@maestro-postgres:5432/orders", 0),
            ("postgresql://orders:zK3-9x@pg.default.svc:5432/orders", 0),
            ("postgresql://orders:zK3-9x@127.0.0.1:6432/orders", 0),
            ("postgresql://orders:zK3-9x@[::1]:6432/orders", 0),
            (
                "postgresql://orders:zK3-9x@db.example.org/orders?sslmode=verify-full",
                0,
            ),
            (
                "postgresql://orders:zK3-9x@db.example.org/orders?sslmode=prefer",
                1,
            ),
            ("postgresql://orders:zK3-9x@10.0.0.7/orders", 1),
            ("postgresql://orders:changeme@maestro-postgres/orders", 1),
            (
                "postgresql://orders:Change%5FMe_In_Production@maestro-postgres/orders",
                1,
            ),
            (
                "postgresql://orders:qf_secure_password@maestro-postgres/orders",
                1,
            ),
            ("postgresql://orders@maestro-postgres/orders", 1),
            ("postgresql://orders:@maestro-postgres/orders", 1),
            ("postgresql://orders:<password>@maestro-postgres/orders", 1),
            ("redis://orders:zK3-9x@cache.default.svc:6379/15", 0),
            ("redis://orders:zK3-9x@cache.default.svc:6379/16", 1),
            ("redis://maestro-redis:6379/1", 1),
            ("amqp://guest:guest@broker.example.org:27672/maestro", 4),
            ("http://maestro-jaeger:4318", 0),
            ("http://jaeger.example.org:4318", 1),
        ] {
            let strict = broken(text, Deployment::Production, Beside::default());
            assert_eq!(strict.len(), rules, "{text}: {strict:?}");
            let relaxed = broken(text, Deployment::Development, Beside::default());
            assert!(relaxed.is_empty(), "{text}: {relaxed:?}");
        }
    }

    #[test]
    fn a_password_or_certificate_beside_the_url_counts() {
        let password = Beside {
            password: true,
            ..Beside::default()
        };
        let certificate = Beside {
            certificate: true,
            ..Beside::default()
        };
        for beside in [password, certificate] {
            let text = "redis://orders@maestro-redis:6379/1";
            assert!(broken(text, Deployment::Staging, beside).is_empty());
        }
        let placeholder = "redis://orders:from_infrastructure_env@maestro-redis:6379/1";
        assert!(broken(placeholder, Deployment::Staging, password).is_empty());
    }

    #[test]
    fn a_shared_server_is_never_reached_by_its_port_on_the_host() {
        let inside = "postgresql://orders:pw@maestro-postgres:25432/orders";
        let outside = "postgresql://orders:pw@localhost:25432/orders";
        let beyond = "redis://orders:pw@maestro-redis:6379/16";
        let of_a_test = "redis://orders:pw@localhost:6379/63";
        assert_eq!(
            broken(inside, Deployment::Development, Beside::default()).len(),
            1
        );
        assert_eq!(
            broken(outside, Deployment::Development, Beside::default()).len(),
            0
        );
        assert_eq!(
            broken(beyond, Deployment::Development, Beside::default()),
            ["names a database above 15, which is the last one"]
        );
        assert!(broken(of_a_test, Deployment::Test, Beside::default()).is_empty());
    }

    #[test]
    fn decoding_survives_what_is_not_encoded() {
        assert_eq!(percent_decoded("a%40b%2fc%"), "a@b/c%");
        assert_eq!(percent_decoded("%é%4"), "%é%4");
    }
}
