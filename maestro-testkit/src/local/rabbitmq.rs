//! RabbitMQ from the scripts of this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Plan, first_executable, in_path, password, tls, write_private};
use crate::error::Error;
use crate::port::Port;
use crate::provider::Request;
use crate::service::{Origin, Record, Service};
use crate::settings;

/// Boots in 4 s on an idle machine and in 17 s on a loaded one; a laptop on battery, or a machine
/// that builds something at the same time, takes longer.
const READY: Duration = Duration::from_secs(150);

/// Where Erlang looks names up. A node needs a name that it can look up, and a minimal system has no
/// `/etc/hosts` to find `localhost` in.
const LOCALHOST: &str = "{host, {127,0,0,1}, [\"localhost\"]}.\n{lookup, [file, native]}.\n";

/// Debian's script in `/usr/sbin` switches the user or refuses: the one it wraps does neither.
pub(super) fn find() -> Option<PathBuf> {
    let fixed = [
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "/opt/homebrew/sbin/rabbitmq-server",
        "/usr/local/sbin/rabbitmq-server",
    ]
    .map(PathBuf::from);
    first_executable(fixed).or_else(|| in_path("rabbitmq-server"))
}

pub(super) fn plan(request: &Request<'_>, binary: &Path) -> Result<Plan, Error> {
    let reserved = Port::several()?;
    let [port, tls_port, management, distribution, mapper] = reserved.each_ref().map(Port::number);
    let directory = request.directory;
    let password = password();
    let user = "maestro";
    let tls = match request.authority {
        None => String::new(),
        Some(authority) => {
            let files = tls::write(authority, directory, None)?;
            format!(
                "listeners.ssl.1 = 127.0.0.1:{tls_port}\n\
                 ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
                 ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
                files.ca.display(),
                files.certificate.display(),
                files.key.display(),
            )
        }
    };
    let settings = format!(
        "{}management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n{tls}",
        settings::rabbitmq(user, &password)
    );
    let file = directory.join("rabbitmq.conf");
    write_private(&file, &settings, None)?;
    let plugins = directory.join("enabled_plugins");
    write_private(&plugins, "[rabbitmq_management].\n", None)?;
    let addresses = directory.join("inetrc");
    write_private(&addresses, LOCALHOST, None)?;
    let path = |name: &str| directory.join(name).into_os_string();
    let environment: BTreeMap<String, OsString> = [
        ("HOME", directory.into()),
        ("LC_ALL", "C.UTF-8".into()),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
        ("RABBITMQ_NODENAME", format!("m{port}@localhost").into()),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", port.to_string().into()),
        ("RABBITMQ_DIST_PORT", distribution.to_string().into()),
        ("ERL_INETRC", addresses.into()),
        ("ERL_EPMD_PORT", mapper.to_string().into()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("logs")),
        ("RABBITMQ_CONFIG_FILE", file.into()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", plugins.into()),
        ("RABBITMQ_PID_FILE", path("rabbitmq.pid")),
        // With a socket to notify the script becomes the server, so its pid is the server's. Nobody
        // listens there: readiness is a handshake.
        ("NOTIFY_SOCKET", path("notify")),
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            settings::ERLANG_ARGUMENTS.into(),
        ),
    ]
    .into_iter()
    .map(|(name, value): (&str, OsString)| (name.to_owned(), value))
    .collect();
    Ok(Plan {
        record: Record {
            service: Service::Rabbitmq,
            origin: Origin::Local,
            host: "127.0.0.1".to_owned(),
            port,
            tls_port: request.authority.map(|_| tls_port),
            management_port: Some(management),
            socket: None,
            user: user.to_owned(),
            password,
            database: "/".to_owned(),
            reason: String::new(),
            container: None,
            version: String::new(),
        },
        command: vec![binary.into()],
        environment,
        // Its orderly shutdown takes seconds, for data that nobody needs.
        stop_signal: "KILL",
        // Erlang's port mapper would be started as a daemon that survives its node: one under the
        // guard is there already when the node looks for it.
        companion: Some(format!("epmd -port {mapper} -address 127.0.0.1")),
        deadline: READY,
        ports: reserved.into(),
    })
}
