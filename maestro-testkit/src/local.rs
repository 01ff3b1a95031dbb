//! Servers as processes of this machine.

mod postgres;
mod rabbitmq;
mod redis;
mod tls;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::control::Control;
use crate::error::{Error, ErrorKind};
use crate::guard::{self, Guarded, log_tail};
use crate::port::Port;
use crate::process::ProcessId;
use crate::provider::{Outcome, Request, await_ready, write_record};
use crate::report;
use crate::service::{Record, Service};

/// Starts with other ports after a port turned out to be taken.
const ATTEMPTS: usize = 3;

/// A server process and how to start it again.
#[derive(Debug)]
pub(crate) struct LocalServer {
    service: Service,
    directory: PathBuf,
    /// None for a server that another process started.
    guarded: Option<Guarded>,
    /// Nobody else takes them, also while the server is down.
    _ports: Vec<Port>,
}

/// What differs between the three.
#[derive(Debug)]
struct Plan {
    record: Record,
    command: Vec<OsString>,
    environment: BTreeMap<String, OsString>,
    stop_signal: &'static str,
    companion: Option<String>,
    deadline: Duration,
    ports: Vec<Port>,
}

impl LocalServer {
    pub(crate) fn joined(service: Service, directory: &Path) -> Self {
        Self {
            service,
            directory: directory.to_owned(),
            guarded: None,
            _ports: Vec::new(),
        }
    }

    /// Starts the server again, on the same ports and data.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        let unsupported = |why: &str| {
            let what = format!("starting {}: {why}", self.service);
            Err(Error::new(ErrorKind::Unsupported, what))
        };
        let Some(guarded) = &self.guarded else {
            return unsupported("another process started it");
        };
        if self.is_there() {
            return unsupported("it runs already");
        }
        // The old guard looks once a second and may not have noticed yet.
        guard::sweep(&self.directory).await;
        guarded.launch().await
    }

    /// Tells the server to end in order.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        // PostgreSQL calls this a fast shutdown: without waiting for clients to leave.
        let postgres = self.service == Service::Postgres;
        let signal = if postgres { Signal::INT } else { Signal::TERM };
        self.process()?.signal(signal);
        Ok(())
    }

    /// Kills the server with its children; returns whom. The parent goes first: it would start others.
    pub(crate) async fn kill(&self) -> Result<Vec<ProcessId>, Error> {
        let server = self.freeze().await?;
        let children = server.descendants();
        let victims: Vec<ProcessId> = std::iter::once(server).chain(children).collect();
        for victim in &victims {
            victim.signal(Signal::KILL);
        }
        Ok(victims)
    }

    /// Stops the server and its children in their tracks.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        let children = self.freeze().await?.descendants();
        for child in &children {
            child.signal(Signal::STOP);
        }
        for child in &children {
            child.stopped().await;
        }
        Ok(())
    }

    /// Stops the server's own process, which then starts no others.
    async fn freeze(&self) -> Result<ProcessId, Error> {
        let server = self.process()?;
        server.signal(Signal::STOP);
        server.stopped().await;
        Ok(server)
    }

    /// Lets the server and its children go on.
    pub(crate) fn resume(&self) -> Result<(), Error> {
        let server = self.process()?;
        for child in server.descendants() {
            child.signal(Signal::CONT);
        }
        server.signal(Signal::CONT);
        Ok(())
    }

    /// Resolves when the server ended by itself, with the end of its log.
    pub(crate) async fn ended(&self) -> String {
        loop {
            if let Ok(status) = std::fs::read_to_string(self.directory.join("exited")) {
                let tail = log_tail(&self.directory);
                return format!(" (status {}){tail}", status.trim());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn process(&self) -> Result<ProcessId, Error> {
        guard::server_process(&self.directory).ok_or_else(|| {
            let what = format!("{} does not run", self.service);
            Error::new(ErrorKind::Unavailable, what)
        })
    }

    /// True while the server's process is there.
    pub(crate) fn is_there(&self) -> bool {
        guard::server_process(&self.directory).is_some()
    }
}

/// Starts a server from a binary of this machine. `passed_over` says why no earlier way was taken.
pub(crate) async fn start(request: &Request<'_>, passed_over: &str) -> Result<Outcome, Error> {
    let service = request.service;
    let Some(binary) = find(service) else {
        return Ok(Outcome::Unavailable(format!(
            "no {service} binary on this machine"
        )));
    };
    let mut reason = format!("local {}", binary.display());
    if !passed_over.is_empty() {
        reason = format!("{reason}, because of {passed_over}");
    }
    let account = account_of_directory(service)?;
    let mut attempt = 1;
    loop {
        let started = report::with_progress(
            &format!("starting {service}"),
            try_start(request, &binary, &reason, account),
        )
        .await;
        match started {
            Ok(started) => return Ok(Outcome::Started(Box::new(started))),
            // It ended by itself: most likely somebody took the port in between.
            Err(e) if e.kind() == ErrorKind::Unavailable && attempt < ATTEMPTS => {
                report::line(format_args!("{e}; trying again"));
                attempt += 1;
                guard::sweep(request.directory).await;
            }
            Err(e) => {
                guard::sweep(request.directory).await;
                return Err(e);
            }
        }
    }
}

async fn try_start(
    request: &Request<'_>,
    binary: &Path,
    reason: &str,
    account: Option<(u32, u32)>,
) -> Result<(Record, Control), Error> {
    let plan = match request.service {
        Service::Postgres => postgres::plan(request, binary, account).await?,
        Service::Redis => redis::plan(request, binary)?,
        Service::Rabbitmq => rabbitmq::plan(request, binary)?,
    };
    let mut record = plan.record;
    reason.clone_into(&mut record.reason);
    // Written before anything runs: the ports and the place are known whatever happens next.
    write_record(request.directory, &record)?;
    let guarded = Guarded {
        directory: request.directory.to_owned(),
        grace: request.grace,
        stop_signal: plan.stop_signal,
        command: plan.command,
        companion: plan.companion,
        stop_command: None,
        environment: plan.environment,
        account,
    };
    guarded.launch().await?;
    let server = LocalServer {
        service: request.service,
        directory: request.directory.to_owned(),
        guarded: Some(guarded),
        _ports: plan.ports,
    };
    let address = record.address();
    record.version = await_ready(request.service, &address, plan.deadline, server.ended()).await?;
    let control = Control::Local(server);
    Ok((record, control))
}

/// The binary that starts a server, if this machine has it.
pub(crate) fn find(service: Service) -> Option<PathBuf> {
    match service {
        Service::Postgres => postgres::find(),
        Service::Redis => redis::find(),
        Service::Rabbitmq => rabbitmq::find(),
    }
}

/// The account a server's directory must belong to, if that is not this process' own: PostgreSQL
/// refuses to run as root.
pub(crate) fn account_of_directory(service: Service) -> Result<Option<(u32, u32)>, Error> {
    if service != Service::Postgres || !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    // It has to exist in passwd: the server looks its own name up.
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| {
        Error::io(
            "reading /etc/passwd for an account PostgreSQL can run as",
            e,
        )
    })?;
    let account = |name: &str| {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    match account("postgres").or_else(|| account("nobody")) {
        Some(account) => Ok(Some(account)),
        None => Err(Error::new(
            ErrorKind::Missing,
            "PostgreSQL does not run as root, and neither `postgres` nor `nobody` is in /etc/passwd: useradd postgres",
        )),
    }
}

/// A password for a server that only this user reaches.
pub(crate) fn password() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(24)
        .collect()
}

/// The first executable of these paths.
fn first_executable(candidates: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    candidates.into_iter().find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Looks a program up in `PATH`, as the shell sees it.
fn in_path(program: &str) -> Option<PathBuf> {
    let output = Command::new("/bin/sh")
        .args(["-c", "command -v \"$1\"", "sh", program])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (path.is_absolute() && is_executable(&path)).then_some(path)
}

/// Writes a file that only its owner reads; `owner` when this process may give it away.
fn write_private(path: &Path, text: &str, owner: Option<(u32, u32)>) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let failed = |e| Error::io(format!("writing {}", path.display()), e);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(())
}
