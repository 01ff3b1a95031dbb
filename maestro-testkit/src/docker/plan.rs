//! What each server is told when it runs in a container.

use std::time::Duration;

use crate::error::Error;
use crate::local::password;
use crate::port::Port;
use crate::provider::Request;
use crate::service::{Origin, Record, Service};
use crate::settings;

/// A container to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) record: Record,
    /// Ports inside and on the host.
    pub(super) ports: Vec<(u16, u16)>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// Files to be put into the container, by path.
    pub(super) files: Vec<(&'static str, String)>,
    pub(super) command: Vec<String>,
    /// Longest wait for the first handshake.
    pub(super) deadline: Duration,
    /// What keeps the ports on the host ours.
    pub(super) reserved: Vec<Port>,
}

impl Plan {
    pub(super) fn new(request: &Request<'_>) -> Result<Self, Error> {
        match request.service {
            Service::Postgres => postgres(request.durable),
            Service::Redis => redis(request.durable),
            Service::Rabbitmq => rabbitmq(),
        }
    }
}

fn postgres(durable: bool) -> Result<Plan, Error> {
    let reserved = Port::reserve()?;
    let port = reserved.number();
    let password = password();
    let options = settings::postgres(durable)
        .into_iter()
        .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    Ok(Plan {
        ports: vec![(5432, port)],
        environment: vec![
            ("POSTGRES_USER", "postgres".to_owned()),
            ("POSTGRES_PASSWORD", password.clone()),
            (
                "POSTGRES_INITDB_ARGS",
                "--no-sync --encoding=UTF8 --locale=C.UTF-8".to_owned(),
            ),
            ("TZ", "UTC".to_owned()),
        ],
        files: Vec::new(),
        command: std::iter::once("postgres".to_owned())
            .chain(options)
            .collect(),
        deadline: Duration::from_secs(150),
        reserved: vec![reserved],
        record: record(Service::Postgres, "postgres", "postgres", password, port),
    })
}

fn redis(durable: bool) -> Result<Plan, Error> {
    let reserved = Port::reserve()?;
    let port = reserved.number();
    let password = password();
    let file = "/maestro.conf";
    Ok(Plan {
        ports: vec![(6379, port)],
        environment: Vec::new(),
        files: vec![(file, settings::redis(durable, &password))],
        // The entry points of Redis and of Valkey put their server before a file.
        command: vec![file.to_owned()],
        deadline: Duration::from_mins(2),
        reserved: vec![reserved],
        record: record(Service::Redis, "default", "0", password, port),
    })
}

fn rabbitmq() -> Result<Plan, Error> {
    let reserved = Port::several()?;
    let [port, management] = reserved.each_ref().map(Port::number);
    let password = password();
    let user = "maestro";
    let mut record = record(Service::Rabbitmq, user, "/", password, port);
    record.management_port = Some(management);
    Ok(Plan {
        ports: vec![(5672, port), (15672, management)],
        environment: vec![(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            settings::ERLANG_ARGUMENTS.to_owned(),
        )],
        // Read after the image's own files.
        files: vec![(
            "/etc/rabbitmq/conf.d/90-maestro.conf",
            settings::rabbitmq(user, &record.password),
        )],
        command: Vec::new(),
        deadline: Duration::from_mins(3),
        reserved: reserved.into(),
        record,
    })
}

fn record(service: Service, user: &str, database: &str, password: String, port: u16) -> Record {
    Record {
        service,
        origin: Origin::Docker,
        host: "127.0.0.1".to_owned(),
        port,
        tls_port: None,
        management_port: None,
        socket: None,
        user: user.to_owned(),
        password,
        database: database.to_owned(),
        reason: String::new(),
        container: None,
        version: String::new(),
    }
}
