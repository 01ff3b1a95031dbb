//! Redis (or Valkey) from a binary of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Plan, first_executable, in_path, password, tls, write_private};
use crate::error::Error;
use crate::port::Port;
use crate::provider::Request;
use crate::service::{Origin, Record, Service};
use crate::settings;

pub(super) fn find() -> Option<PathBuf> {
    let fixed = ["/usr/bin/redis-server", "/usr/bin/valkey-server"].map(PathBuf::from);
    first_executable(fixed)
        .or_else(|| in_path("redis-server"))
        .or_else(|| in_path("valkey-server"))
}

pub(super) fn plan(request: &Request<'_>, binary: &Path) -> Result<Plan, Error> {
    let reserved = Port::several()?;
    let [port, tls_port] = reserved.each_ref().map(Port::number);
    let directory = request.directory;
    let password = password();
    let tls = match request.authority {
        None => String::new(),
        Some(authority) => {
            let files = tls::write(authority, directory, None)?;
            format!(
                "tls-port {tls_port}\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
                files.ca.display(),
                files.certificate.display(),
                files.key.display(),
            )
        }
    };
    let settings = format!(
        "bind 127.0.0.1\nport {port}\ndir {}\n{}{tls}",
        directory.display(),
        settings::redis(request.durable, &password)
    );
    let file = directory.join("redis.conf");
    write_private(&file, &settings, None)?;
    Ok(Plan {
        record: Record {
            service: Service::Redis,
            origin: Origin::Local,
            host: "127.0.0.1".to_owned(),
            port,
            tls_port: request.authority.map(|_| tls_port),
            management_port: None,
            socket: None,
            user: "default".to_owned(),
            password,
            database: "0".to_owned(),
            reason: String::new(),
            container: None,
            version: String::new(),
        },
        command: vec![binary.into(), file.into()],
        environment: BTreeMap::new(),
        stop_signal: if request.durable { "TERM" } else { "KILL" },
        companion: None,
        deadline: Duration::from_mins(1),
        ports: reserved.into(),
    })
}
