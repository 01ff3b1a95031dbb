//! PostgreSQL from the binaries of this machine.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Plan, first_executable, in_path, is_executable, password, tls, write_private};
use crate::error::{Error, ErrorKind};
use crate::port::Port;
use crate::provider::Request;
use crate::service::{Origin, Record, Service};
use crate::settings;

/// Sockets are for this user and root alone: no password is asked there. Everybody else comes by
/// TCP and shows one.
const HBA: &str = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";

/// The same for clients without TLS; with it they show a certificate too.
const HBA_WITH_TLS: &str = "local all all trust\n\
     hostnossl all all 127.0.0.1/32 scram-sha-256\n\
     hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n";

/// The newest version installed, by Debian's layout, else the one in `PATH`.
pub(super) fn find() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin/postgres")))
        })
        .collect();
    versions.sort_unstable();
    first_executable(versions.into_iter().rev().map(|(_, path)| path))
        .or_else(|| in_path("postgres"))
        .filter(|postgres| is_executable(&postgres.with_file_name("initdb")))
}

pub(super) async fn plan(
    request: &Request<'_>,
    binary: &Path,
    account: Option<(u32, u32)>,
) -> Result<Plan, Error> {
    let reserved = Port::reserve()?;
    let port = reserved.number();
    let directory = request.directory;
    let data = directory.join("data");
    let password = password();
    initdb(directory, binary, &data, &password, account).await?;
    let encrypted = request.authority.is_some();
    let hba = if encrypted { HBA_WITH_TLS } else { HBA };
    write_private(&data.join("pg_hba.conf"), hba, account)?;
    let mut settings = vec![
        ("port", port.to_string()),
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", directory.display().to_string()),
        ("unix_socket_permissions", "0700".to_owned()),
    ];
    if let Some(authority) = request.authority {
        let files = tls::write(authority, &data, account)?;
        settings.extend([
            ("ssl", "on".to_owned()),
            ("ssl_ca_file", files.ca.display().to_string()),
            ("ssl_cert_file", files.certificate.display().to_string()),
            ("ssl_key_file", files.key.display().to_string()),
        ]);
    }
    let everywhere = settings::postgres(request.durable);
    settings.extend(
        everywhere
            .into_iter()
            .map(|(name, value)| (name, value.to_owned())),
    );
    let mut command = vec![binary.into(), "-D".into(), data.into()];
    for (name, value) in settings {
        command.push("-c".into());
        command.push(format!("{name}={value}").into());
    }
    Ok(Plan {
        record: Record {
            service: Service::Postgres,
            origin: Origin::Local,
            host: "127.0.0.1".to_owned(),
            port,
            tls_port: encrypted.then_some(port),
            management_port: None,
            socket: Some(directory.to_owned()),
            user: "postgres".to_owned(),
            password,
            database: "postgres".to_owned(),
            reason: String::new(),
            container: None,
            version: String::new(),
        },
        command,
        environment: [
            ("LC_ALL".to_owned(), "C.UTF-8".into()),
            ("TZ".to_owned(), "UTC".into()),
        ]
        .into(),
        // Immediate shutdown: it frees its shared memory, and nobody needs the data.
        stop_signal: "QUIT",
        companion: None,
        deadline: Duration::from_mins(2),
        ports: vec![reserved],
    })
}

/// Creates the data directory; 0.4 s on an idle machine.
async fn initdb(
    directory: &Path,
    binary: &Path,
    data: &Path,
    password: &str,
    account: Option<(u32, u32)>,
) -> Result<(), Error> {
    if data.exists() {
        std::fs::remove_dir_all(data)
            .map_err(|e| Error::io(format!("removing {}", data.display()), e))?;
    }
    let password_file = directory.join("password");
    write_private(&password_file, password, account)?;
    let mut command = Command::new(binary.with_file_name("initdb"));
    command
        .arg("-D")
        .arg(data)
        .arg("--pwfile")
        .arg(&password_file)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .args(["--locale=C.UTF-8", "--no-sync", "--no-instructions"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir(directory)
        .stdin(Stdio::null());
    if let Some((uid, gid)) = account {
        command.uid(uid).gid(gid);
    }
    let failed = |e: std::io::Error| Error::io("running initdb", e);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .map_err(|e| failed(e.into()))?
        .map_err(failed)?;
    if !output.status.success() {
        return Err(Error::new(
            ErrorKind::Io,
            format!(
                "initdb failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        ));
    }
    std::fs::remove_file(&password_file).map_err(|e| Error::io("removing a file", e))
}
