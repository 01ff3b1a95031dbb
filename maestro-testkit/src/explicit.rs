//! Servers that somebody else runs, given by `MAESTRO_TEST_*_URL`.

use maestro_config::Secret;
use url::Url;

use crate::config::DevServicesConfig;
use crate::control::Control;
use crate::error::{Error, ErrorKind};
use crate::service::{Address, Origin, Running, Service};
use crate::wire;

/// The variable that gives a server.
pub(crate) fn variable(service: Service) -> &'static str {
    match service {
        Service::Postgres => "MAESTRO_TEST_POSTGRES_URL",
        Service::Redis => "MAESTRO_TEST_CACHE_URL",
        Service::Rabbitmq => "MAESTRO_TEST_MESSAGING_URL",
    }
}

fn url(service: Service, config: &DevServicesConfig) -> Option<&Secret<String>> {
    match service {
        Service::Postgres => config.postgres_url.as_ref(),
        Service::Redis => config.cache_url.as_ref(),
        Service::Rabbitmq => config.messaging_url.as_ref(),
    }
}

/// Connects to the server that was given; `None` if none was. A server that was given and does not
/// answer is an error: another one in its place would test something else than was asked for.
pub(crate) async fn connect(
    service: Service,
    config: &DevServicesConfig,
) -> Result<Option<Running>, Error> {
    let Some(url) = url(service, config) else {
        return Ok(None);
    };
    let mut address = address(service, url)?;
    if service == Service::Rabbitmq {
        if let Some(url) = &config.messaging_management_url {
            let url = parse("MAESTRO_TEST_MESSAGING_MANAGEMENT_URL", url)?;
            let host = url.host_str().unwrap_or("127.0.0.1").to_owned();
            address.management = Some((host, url.port_or_known_default().unwrap_or(15672)));
        } else {
            address.management = Some((address.host.clone(), 15672));
        }
    }
    let version = wire::handshake(service, &address).await.map_err(|e| {
        let what = format!("the server of {} is not usable", variable(service));
        Error::new(e.kind(), what).with(e)
    })?;
    check_rights(service, &address).await?;
    Ok(Some(Running {
        service,
        origin: Origin::Explicit,
        address,
        version,
        reason: format!("{} is set", variable(service)),
        control: Control::None,
    }))
}

/// Refuses a user that could make no sandbox: once, here, and not in every test.
async fn check_rights(service: Service, address: &Address) -> Result<(), Error> {
    let needs = match service {
        Service::Postgres => {
            "makes databases and roles: it has to have CREATEDB and CREATEROLE, or to be a superuser"
        }
        Service::Redis => "makes users: it has to be allowed the ACL commands, of Redis 6 or later",
        Service::Rabbitmq => "makes vhosts and users: it has to have the tag `administrator`",
    };
    let lacks = || {
        let what = format!("the user of {} {needs}", variable(service));
        Error::new(ErrorKind::Refused, what)
    };
    match wire::may_administer(service, address).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(lacks()),
        Err(e) if e.kind() == ErrorKind::Refused => Err(lacks().with(e)),
        Err(e) => Err(e),
    }
}

pub(crate) fn address(service: Service, url: &Secret<String>) -> Result<Address, Error> {
    let name = variable(service);
    let url = parse(name, url)?;
    let part = |text: &str| decode(name, text);
    let path = part(url.path().trim_start_matches('/'))?;
    let (port, user, database) = match service {
        Service::Postgres => (5432, "postgres", "postgres"),
        Service::Redis => (6379, "", "0"),
        Service::Rabbitmq => (5672, "guest", "/"),
    };
    let or = |text: String, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text
        }
    };
    Ok(Address {
        tls_port: None,
        host: url.host_str().unwrap_or("127.0.0.1").to_owned(),
        port: url.port().unwrap_or(port),
        management: None,
        socket: None,
        user: or(part(url.username())?, user),
        password: Secret::new(part(url.password().unwrap_or_default())?),
        database: or(path, database),
    })
}

fn parse(name: &str, url: &Secret<String>) -> Result<Url, Error> {
    // The parser's error does not quote its input.
    Url::parse(url.expose())
        .map_err(|e| Error::new(ErrorKind::Config, format!("reading {name}")).with(e))
}

/// Decodes `%40` and the like.
fn decode(name: &str, text: &str) -> Result<String, Error> {
    let wrong = || {
        Error::new(
            ErrorKind::Config,
            format!("{name} holds a broken percent escape"),
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(rest.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        bytes.push(high << 4 | low);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Redis that knows no `ACL`, as those before 6 did not.
    async fn old_redis() -> (u16, tokio::task::JoinHandle<()>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    let request = String::from_utf8_lossy(&request[..length]);
                    let answer = if request.contains("DBSIZE") {
                        ":0\r\n"
                    } else if request.contains("INFO") {
                        "+redis_version:5.0.14\r\n"
                    } else {
                        "-ERR unknown command\r\n"
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        (port, task)
    }

    #[tokio::test]
    async fn a_server_on_which_no_user_can_be_made_is_refused_with_what_it_takes() {
        let (port, server) = old_redis().await;
        let config = DevServicesConfig {
            cache_url: Some(Secret::new(format!("redis://127.0.0.1:{port}"))),
            ..DevServicesConfig::default()
        };
        let refused = connect(Service::Redis, &config).await;
        server.abort();
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("MAESTRO_TEST_CACHE_URL"), "{text}");
        assert!(text.contains("Redis 6"), "{text}");
    }

    #[test]
    fn an_administrators_url_may_hold_escaped_characters_and_leave_parts_out() {
        let full = Secret::new("amqp://ad%40min:p%2Fw%3A@[::1]:5673/%2F".to_owned());
        let found = address(Service::Rabbitmq, &full).unwrap();
        assert_eq!(found.user, "ad@min");
        assert_eq!(found.password.expose(), "p/w:");
        assert_eq!(found.authority(), "[::1]:5673");
        assert_eq!(found.database, "/");
        let bare = Secret::new("redis://localhost".to_owned());
        let found = address(Service::Redis, &bare).unwrap();
        assert_eq!((found.user.as_str(), found.port), ("", 6379));
        let broken = Secret::new("redis://:canary%4@localhost".to_owned());
        let error = address(Service::Redis, &broken).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
