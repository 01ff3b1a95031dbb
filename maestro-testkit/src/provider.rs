//! Where a server comes from: a URL that was given, a container, a binary of this machine, or an
//! error that names the command that mends it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::administer::Administrator;
use crate::authority::Authority;
use crate::config::{DevServicesConfig, Source};
use crate::control::Control;
use crate::error::{Error, ErrorKind};
use crate::home::{Home, Lock, Mode};
use crate::report;
use crate::service::{Address, Origin, Record, Running, Service};
use crate::{docker, explicit, guard, install, local, wire};

/// Longest wait for another process that starts or stops the same server; RabbitMQ alone is given
/// 150 s to boot.
const WAIT_FOR_OTHERS: Duration = Duration::from_mins(4);

/// What a provider is asked for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) service: Service,
    /// Directory of this server, created, with its lock held by this process.
    pub(crate) directory: &'a Path,
    /// How long nobody may use the server before it is stopped.
    pub(crate) grace: Duration,
    /// Keep what was acknowledged over `kill -9` and a restart.
    pub(crate) durable: bool,
    /// Whose certificates it shows and asks for, if it is to speak TLS too.
    pub(crate) authority: Option<&'a Authority>,
    pub(crate) config: &'a DevServicesConfig,
}

/// What a provider answers.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The server answers as its administrator; the record is complete, version included.
    Started(Box<(Record, Control)>),
    /// This way is not open on this machine, and why: the next one is tried.
    Unavailable(String),
}

/// How a set of servers is to be had.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) home: Home,
    pub(crate) config: DevServicesConfig,
    pub(crate) grace: Duration,
    pub(crate) durable: bool,
    pub(crate) authority: Option<Authority>,
}

/// A server together with the lock that keeps it alive.
#[derive(Debug)]
pub(crate) struct Obtained {
    pub(crate) running: Running,
    /// None for somebody else's server.
    pub(crate) lock: Option<Lock>,
}

/// Joins the server if it runs, else starts it the first way that is open.
pub(crate) async fn obtain(service: Service, wanted: &Wanted) -> Result<Obtained, Error> {
    if let Some(running) = explicit::connect(service, &wanted.config).await? {
        announce(&running, "given");
        return Ok(Obtained {
            running,
            lock: None,
        });
    }
    let account = local::account_of_directory(service)?;
    let prepare = || {
        wanted
            .home
            .directory(service.as_str(), account)
            .map(|_: PathBuf| ())
    };
    let directory = wanted.home.path().join(service.as_str());
    let take = |name: &str, mode| {
        let path = directory.join(name);
        async move { Lock::take(&path, mode, WAIT_FOR_OTHERS, prepare).await }
    };
    let waiting = format!("waiting for another process that stops {service}");
    let lock = report::with_progress(&waiting, take("lock", Mode::Shared)).await?;
    if let Some(running) = join(&directory).await? {
        announce(&running, "joined");
        return Ok(Obtained {
            running,
            lock: Some(lock),
        });
    }
    let waiting = format!("waiting for another process that starts {service}");
    let starting = report::with_progress(&waiting, take("starting", Mode::Exclusive)).await?;
    // Another process may have started it while this one waited.
    if let Some(running) = join(&directory).await? {
        announce(&running, "joined");
        return Ok(Obtained {
            running,
            lock: Some(lock),
        });
    }
    sweep(&directory).await?;
    let request = Request {
        service,
        directory: &directory,
        grace: wanted.grace,
        durable: wanted.durable,
        authority: wanted.authority.as_ref(),
        config: &wanted.config,
    };
    let (record, control) = match start(&request).await {
        Ok(started) => started,
        Err(e) => {
            drop((starting, lock));
            // Unless there is a log to look at.
            if !directory.join("log").exists() {
                discard(&wanted.home, service).await;
            }
            return Err(e);
        }
    };
    // Once per server, and before anybody else may join.
    let administrator = Administrator::new(service, record.address(), true);
    administrator.close_server().await?;
    write_record(&directory, &record)?;
    let running = running(record, control);
    announce(&running, "started");
    Ok(Obtained {
        running,
        lock: Some(lock),
    })
}

async fn start(request: &Request<'_>) -> Result<(Record, Control), Error> {
    let service = request.service;
    let source = request.config.source;
    let mut reasons = Vec::new();
    if matches!(source, Source::Auto | Source::Docker) {
        match Box::pin(docker::start(request)).await? {
            Outcome::Started(started) => return Ok(*started),
            Outcome::Unavailable(reason) => reasons.push(format!("Docker: {reason}")),
        }
    }
    if matches!(source, Source::Auto | Source::Local) {
        match local::start(request, &reasons.join("; ")).await? {
            Outcome::Started(started) => return Ok(*started),
            Outcome::Unavailable(reason) => reasons.push(format!("local: {reason}")),
        }
    }
    if source == Source::Off {
        reasons.push("MAESTRO_DEV_SERVICES=off allows no other way".to_owned());
    }
    Err(Error::new(
        ErrorKind::Missing,
        format!(
            "no {service} for tests and demos: {} is not set; {}. To mend it: {}",
            explicit::variable(service),
            reasons.join("; "),
            install::remedy(service, source),
        ),
    ))
}

/// The server of a directory, if one runs there under its guard.
async fn join(directory: &Path) -> Result<Option<Running>, Error> {
    let Some(record) = read_record(directory) else {
        return Ok(None);
    };
    if record.version.is_empty() || !guard::is_guarded(directory) {
        return Ok(None);
    }
    let control = Control::joined(&record, directory).await?;
    Ok(control.map(|control| running(record, control)))
}

fn running(record: Record, control: Control) -> Running {
    Running {
        service: record.service,
        origin: record.origin,
        address: record.address(),
        version: record.version,
        reason: record.reason,
        control,
    }
}

/// Ends what a dead run left here, and removes its files.
async fn sweep(directory: &Path) -> Result<(), Error> {
    guard::sweep(directory).await;
    if read_record(directory).is_some_and(|record| record.origin == Origin::Docker) {
        docker::sweep(directory).await?;
    }
    let failed = |e| Error::io(format!("emptying {}", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(failed)?.flatten() {
        // The locks are held by this process.
        if ["lock", "starting"]
            .iter()
            .any(|name| entry.file_name() == *name)
        {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Removes a set of dedicated servers whose process is gone.
pub(crate) async fn sweep_dedicated(home: Home) {
    for service in Service::ALL {
        discard(&home, service).await;
    }
    // Its directories may have been removed by their guards.
    let _ = std::fs::remove_dir(home.path());
}

/// Ends and removes what is left of a server that nobody uses.
async fn discard(home: &Home, service: Service) {
    let directory = home.path().join(service.as_str());
    // Whoever uses it holds the lock for as long as it lives.
    if let Ok(Some(_lock)) = Lock::try_take(&directory.join("lock"), Mode::Exclusive)
        && sweep(&directory).await.is_ok()
    {
        // Another process may do the same at the same time.
        let _ = std::fs::remove_dir_all(&directory);
        let _ = std::fs::remove_dir(home.path());
    }
}

fn read_record(directory: &Path) -> Option<Record> {
    let text = std::fs::read_to_string(directory.join("record.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Writes the record in one step, readable by its owner alone.
pub(crate) fn write_record(directory: &Path, record: &Record) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let failed = |e| {
        Error::io(
            format!("writing {}", directory.join("record.json").display()),
            e,
        )
    };
    let new = directory.join("record.new");
    let text = serde_json::to_vec_pretty(record).map_err(|e| failed(e.into()))?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    std::fs::rename(&new, directory.join("record.json")).map_err(failed)
}

/// Awaits the first complete handshake as the administrator; the answer is the server's version.
/// `ended` resolves when the server ended by itself, with what it said last.
pub(crate) async fn await_ready(
    service: Service,
    address: &Address,
    deadline: Duration,
    ended: impl Future<Output = String>,
) -> Result<String, Error> {
    let started = Instant::now();
    let answers = async {
        let mut pause = Duration::from_millis(5);
        loop {
            match wire::handshake(service, address).await {
                Ok(version) => return Ok(version),
                Err(e) if started.elapsed() > deadline => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        format!("{service} was not ready within {} s", deadline.as_secs()),
                    )
                    .with(e));
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    };
    tokio::select! {
        answer = answers => answer,
        last_words = ended => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{service} ended while it started{last_words}"),
        )),
    }
}

fn announce(running: &Running, how: &str) {
    let Running {
        service,
        version,
        address,
        reason,
        ..
    } = running;
    report::line_once(format!(
        "{service} {version} at {}, {how}: {reason}",
        address.authority()
    ));
}
