//! The server programs the tests need on a machine without Docker: which are missing, and how to
//! get them. Starting them is the testkit's work.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use crate::failure::{Failure, Result};
use crate::process::{self, announce};

/// Where the servers come from.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Servers in containers only
    #[arg(long, conflicts_with = "local")]
    docker: bool,

    /// Servers from programs on this machine only; missing Debian packages are installed when root
    #[arg(long)]
    local: bool,

    #[arg(long, env = "MAESTRO_DEV_SERVICES", hide = true)]
    dev_services: Option<String>,

    #[arg(long, env = "MAESTRO_TEST_POSTGRES_URL", hide = true)]
    postgres_url: Option<String>,

    #[arg(long, env = "MAESTRO_TEST_CACHE_URL", hide = true)]
    cache_url: Option<String>,

    #[arg(long, env = "MAESTRO_TEST_MESSAGING_URL", hide = true)]
    messaging_url: Option<String>,

    #[arg(long, env = "DOCKER_HOST", hide = true)]
    docker_host: Option<String>,
}

impl Options {
    /// The value of `MAESTRO_DEV_SERVICES` for the tests; `None` leaves it as it is.
    pub(crate) fn dev_services(&self) -> Option<&'static str> {
        match (self.docker, self.local) {
            (true, _) => Some("docker"),
            (_, true) => Some("local"),
            _ => None,
        }
    }

    /// Containers, whatever the environment says.
    pub(crate) fn in_docker() -> Self {
        Self {
            docker: true,
            ..Self::default()
        }
    }

    /// Programs of this machine, unless somebody chose already.
    pub(crate) fn or_local(mut self) -> Self {
        self.local = !self.docker && self.dev_services.is_none();
        self
    }

    fn mode(&self) -> &str {
        self.dev_services()
            .or(self.dev_services.as_deref())
            .unwrap_or("auto")
    }

    fn is_given(&self, program: &Program) -> bool {
        match program.name {
            "PostgreSQL" => self.postgres_url.is_some(),
            "Redis" => self.cache_url.is_some(),
            "RabbitMQ" => self.messaging_url.is_some(),
            _ => false,
        }
    }
}

/// A server program and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Program {
    name: &'static str,
    package: &'static str,
    /// Any one of these is enough; `*` stands for a version.
    files: &'static [&'static str],
    /// Found on the `PATH` under this name as well, if it has one there.
    command: Option<&'static str>,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "PostgreSQL",
        package: "postgresql",
        files: &["/usr/lib/postgresql/*/bin/initdb"],
        command: Some("initdb"),
    },
    Program {
        name: "Redis",
        package: "redis-server",
        files: &["/usr/bin/redis-server"],
        command: Some("redis-server"),
    },
    Program {
        name: "RabbitMQ",
        package: "rabbitmq-server",
        // Not the one in /usr/sbin: it switches user or refuses.
        files: &["/usr/lib/rabbitmq/bin/rabbitmq-server"],
        command: None,
    },
];

/// Sees to it that the testkit will find a server of each kind, or says what to do.
pub(crate) fn make_available(options: &Options) -> Result<()> {
    match options.mode() {
        "off" => return Ok(()),
        "docker" if docker_answers(options) => return Ok(()),
        "docker" => {
            return Err(Failure::new(
                "servers are wanted in containers, but no Docker daemon answers: start it, or \
                 leave the choice to the machine (no `--docker`, no `MAESTRO_DEV_SERVICES`)",
            ));
        }
        _ => {}
    }
    let needed: Vec<Program> = PROGRAMS
        .into_iter()
        .filter(|program| !options.is_given(program))
        .collect();
    let missing = missing_of(&needed);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|program| program.name);
    let names = names.collect::<Vec<_>>().join(", ");
    if !can_install() {
        if options.mode() == "auto" && docker_answers(options) {
            announce(&format!(
                "not installed on this machine: {names}; Docker answers, so containers are used"
            ));
            return Ok(());
        }
        return Err(Failure::new(format!(
            "not installed on this machine: {names}. One command mends it:\n\n    {}\n",
            mending_command(&missing)
        )));
    }
    announce(&format!("installing what is missing: {names}"));
    let started = Instant::now();
    install(&needed)?;
    let missing = missing_of(&needed);
    if missing.is_empty() {
        let took = process::elapsed(started.elapsed());
        announce(&format!("installed in {took}"));
        Ok(())
    } else {
        Err(Failure::new(format!(
            "the packages are installed, but their programs are not where they are looked for: {}",
            missing
                .iter()
                .map(|program| program.files.join(" or "))
                .collect::<Vec<_>>()
                .join(", ")
        )))
    }
}

/// Whether a Docker daemon answers within a second. Asked over its socket: the `docker` program
/// need not be installed, and it waits much longer for a daemon that hangs.
pub(crate) fn docker_answers(options: &Options) -> bool {
    let socket = match options.docker_host.as_deref() {
        None | Some("") => "/var/run/docker.sock",
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => path,
            // A remote daemon: the testkit finds out by itself.
            None => return true,
        },
    };
    let ask = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut status)?;
        Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn missing_of(programs: &[Program]) -> Vec<Program> {
    let found = |program: &Program| {
        program.files.iter().any(|pattern| exists(pattern))
            || program.command.is_some_and(process::is_on_path)
    };
    programs.iter().copied().filter(|p| !found(p)).collect()
}

/// Whether a file of this name exists, where one path component may be `*`.
fn exists(pattern: &str) -> bool {
    let Some((folder, rest)) = pattern.split_once("/*/") else {
        return Path::new(pattern).exists();
    };
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join(rest).exists())
}

fn can_install() -> bool {
    is_debian() && is_root()
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && process::is_on_path("apt-get")
}

fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn mending_command(missing: &[Program]) -> String {
    let packages = missing.iter().map(|program| program.package);
    let packages = packages.collect::<Vec<_>>().join(" ");
    if is_debian() {
        format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}")
    } else if process::is_on_path("brew") {
        "brew install postgresql redis rabbitmq".to_owned()
    } else if process::is_on_path("dnf") {
        "sudo dnf install -y postgresql-server redis rabbitmq-server".to_owned()
    } else if process::is_on_path("docker") {
        "sudo systemctl start docker".to_owned()
    } else {
        format!("install Docker, or the servers {packages}, with this system's package manager")
    }
}

/// Installs the packages of those of `needed` that are missing, one clone of the project at a time.
fn install(needed: &[Program]) -> Result<()> {
    let lock = fs::File::create("/run/lock/maestro-apt-install")
        .or_else(|_| fs::File::create("/tmp/maestro-apt-install.lock"))
        .map_err(|error| Failure::new(format!("could not open a lock file: {error}")))?;
    if lock.try_lock().is_err() {
        announce("another clone is installing packages: waiting for it");
        lock.lock()
            .map_err(|error| Failure::new(format!("could not wait for that lock: {error}")))?;
    }
    let missing = missing_of(needed);
    if missing.is_empty() {
        return Ok(());
    }
    // The lists may be old or absent, and one broken source among several must not be the end:
    // whether the packages can be had is what the next step finds out.
    if !process::status(apt_get().arg("update"))?.success() {
        announce("`apt-get update` had trouble; trying with the lists there are");
    }
    let _quiet = NoServiceStarts::begin()?;
    let packages = missing.iter().map(|program| program.package);
    process::run(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Somebody else may be installing something; a mirror may hang.
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(["-o", "Acquire::Retries=3"])
        .args(["-o", "Acquire::http::Timeout=30"])
        .args(["-o", "Acquire::https::Timeout=30"]);
    command
}

/// While it lives, packages do not start the servers they install: the tests start their own, on
/// ports of their own, and a developer's machine gets no daemon nobody asked for.
#[derive(Debug)]
struct NoServiceStarts {
    /// Our policy file, if there was none before.
    policy: Option<PathBuf>,
}

impl NoServiceStarts {
    fn begin() -> Result<Self> {
        Self::at(Path::new("/usr/sbin/policy-rc.d"))
    }

    fn at(path: &Path) -> Result<Self> {
        // The policy says "no" only while this process lives: left behind by a kill, it is harmless.
        let policy = format!(
            "#!/bin/sh\n# Written by `cargo xtask`, for the time of one installation.\n\
             kill -0 {} 2>/dev/null && exit 101\nexit 0\n",
            std::process::id()
        );
        let ours = fs::read_to_string(path).is_ok_and(|text| text.contains("`cargo xtask`"));
        let file = if ours {
            fs::File::create(path)
        } else {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o755)
                .open(path)
        };
        match file {
            Ok(mut file) => {
                file.write_all(policy.as_bytes())
                    .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
                    .map_err(|error| {
                        Failure::new(format!("could not write {}: {error}", path.display()))
                    })?;
                Ok(Self {
                    policy: Some(path.to_owned()),
                })
            }
            // Somebody has a policy already (container images do): theirs stands.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(Self { policy: None })
            }
            Err(error) => Err(Failure::new(format!(
                "could not write {}: {error}",
                path.display()
            ))),
        }
    }
}

impl Drop for NoServiceStarts {
    fn drop(&mut self) {
        if let Some(path) = &self.policy
            && let Err(error) = fs::remove_file(path)
        {
            announce(&format!("could not remove {}: {error}", path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/tmp")
            .join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_star_in_a_path_stands_for_any_version() {
        let folder = scratch("star");
        fs::create_dir_all(folder.join("17/bin")).unwrap();
        fs::write(folder.join("17/bin/initdb"), "").unwrap();
        let pattern = |tail: &str| format!("{}/*/{tail}", folder.display());
        assert!(exists(&pattern("bin/initdb")));
        assert!(!exists(&pattern("bin/postgres")));
        assert!(!exists(&format!("{}-gone/*/bin", folder.display())));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_policy_against_service_starts_goes_away_and_leaves_somebody_elses_alone() {
        let folder = scratch("policy");
        let path = folder.join("policy-rc.d");

        let ours = NoServiceStarts::at(&path).unwrap();
        let refused = Command::new(&path).status().unwrap();
        assert_eq!(refused.code(), Some(101));
        drop(ours);
        assert!(!path.exists());

        fs::write(&path, "#!/bin/sh\nexit 104\n").unwrap();
        drop(NoServiceStarts::at(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 104\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_policy_left_behind_by_a_killed_run_refuses_nothing_and_is_taken_over() {
        let folder = scratch("stale");
        let path = folder.join("policy-rc.d");
        // No process has this id: it is above what Linux hands out.
        fs::write(
            &path,
            "#!/bin/sh\n# Written by `cargo xtask`\nkill -0 4194305 2>/dev/null && exit 101\nexit 0\n",
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Command::new(&path).status().unwrap().code(), Some(0));
        drop(NoServiceStarts::at(&path).unwrap());
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
