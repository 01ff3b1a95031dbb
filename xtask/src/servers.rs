//! Servers for the tests: programs that are missing on a machine without Docker, and how to get them.
//! Starting servers is the testkit's work; [`warm`] is its program that does so ahead of the tests.

pub(crate) mod images;
mod install;
pub(crate) mod warm;

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
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

    #[arg(long, env = "MAESTRO_TEST_POSTGRES_URL_FILE", hide = true)]
    postgres_url_file: Option<String>,

    #[arg(long, env = "MAESTRO_TEST_CACHE_URL_FILE", hide = true)]
    cache_url_file: Option<String>,

    #[arg(long, env = "MAESTRO_TEST_MESSAGING_URL_FILE", hide = true)]
    messaging_url_file: Option<String>,

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

    /// Without the servers that somebody else gave: for what breaks its servers on purpose.
    pub(crate) fn own(self) -> Self {
        Self {
            docker: self.docker,
            local: self.local,
            dev_services: self.dev_services,
            docker_host: self.docker_host,
            ..Self::default()
        }
    }

    /// Whether a program of this machine will not do.
    pub(crate) fn in_containers_only(&self) -> bool {
        self.mode() == "docker"
    }

    fn mode(&self) -> &str {
        self.dev_services()
            .or(self.dev_services.as_deref())
            .unwrap_or("auto")
    }

    fn is_given(&self, program: &Program) -> bool {
        let places = match program.name {
            "PostgreSQL" => [&self.postgres_url, &self.postgres_url_file],
            "Redis" => [&self.cache_url, &self.cache_url_file],
            "RabbitMQ" => [&self.messaging_url, &self.messaging_url_file],
            _ => return false,
        };
        // An empty variable is none, as everywhere in the workspace.
        let is_set = |text: &String| !text.trim().is_empty();
        places
            .iter()
            .any(|place| place.as_ref().is_some_and(is_set))
    }
}

/// Who needs programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Tests: everything, also where containers or somebody else bring the shared servers.
    Tests,
    /// Whatever only runs on servers.
    Servers,
}

/// A program the tests need, and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Program {
    name: &'static str,
    package: &'static str,
    /// Any one of these is enough; `*` stands for a version.
    files: &'static [&'static str],
    /// Found on the `PATH` under this name as well, if it has one there.
    command: Option<&'static str>,
    /// One of the three servers of the platform: a container does as well, for all but the tests that
    /// start one of their own with other settings (a standby, a cluster, TLS).
    is_server: bool,
}

const PROGRAMS: [Program; 8] = [
    Program {
        name: "PostgreSQL",
        package: "postgresql",
        files: &["/usr/lib/postgresql/*/bin/initdb"],
        command: Some("initdb"),
        is_server: true,
    },
    Program {
        name: "Redis",
        package: "redis-server",
        files: &["/usr/bin/redis-server"],
        command: Some("redis-server"),
        is_server: true,
    },
    Program {
        name: "RabbitMQ",
        package: "rabbitmq-server",
        // Not the one in /usr/sbin: it switches user or refuses.
        files: &["/usr/lib/rabbitmq/bin/rabbitmq-server"],
        command: None,
        is_server: true,
    },
    // `promtool` judges what the SDK exposes; Prometheus itself scrapes it.
    Program {
        name: "Prometheus",
        package: "prometheus",
        files: &["/usr/bin/promtool"],
        command: Some("promtool"),
        is_server: false,
    },
    // Stands between a test and its PostgreSQL, wherever that one runs.
    Program {
        name: "PgBouncer",
        package: "pgbouncer",
        files: &["/usr/sbin/pgbouncer"],
        command: Some("pgbouncer"),
        is_server: false,
    },
    // The stranger that exchanges messages with ours.
    Program {
        name: "pika for Python",
        package: "python3-pika",
        files: &["/usr/lib/python3/dist-packages/pika/__init__.py"],
        command: None,
        is_server: false,
    },
    // Brings a collector of somebody else's, which takes our spans.
    Program {
        name: "pip for Python",
        package: "python3-pip",
        files: &["/usr/bin/pip3"],
        command: Some("pip3"),
        is_server: false,
    },
    // That collector is linked against Python's own library.
    Program {
        name: "Python's library",
        package: "libpython3-dev",
        files: &["/usr/lib/*/pkgconfig/python3.pc"],
        command: None,
        is_server: false,
    },
];

/// Sees to it that the tests will find what they need, or says what to do.
pub(crate) fn make_available(options: &Options, whom: For) -> Result<()> {
    // Where containers are asked for, a daemon that is busy is waited for.
    let patience = if options.in_containers_only() {
        Duration::from_secs(30)
    } else {
        Duration::from_secs(1)
    };
    let docker = match options.mode() {
        "local" => Err(String::new()),
        _ => ask_docker(options, patience),
    };
    if let (true, Err(why)) = (options.in_containers_only(), &docker) {
        return Err(Failure::new(format!(
            "servers are wanted in containers, but no Docker daemon answers ({why}): start it, or leave \
             the choice to the machine (no `--docker`, no `MAESTRO_DEV_SERVICES`)"
        )));
    }
    // Whether Docker has or can pull the images is the testkit's to find out (`warm`).
    let needed = |program: &Program| match whom {
        For::Tests => true,
        For::Servers => {
            program.is_server
                && !(docker.is_ok() || options.mode() == "off" || options.is_given(program))
        }
    };
    provide(&PROGRAMS.into_iter().filter(needed).collect::<Vec<_>>())
}

/// Brings what servers are made of here, after a program said that there is no way to have them: images
/// where only containers are wanted, else programs.
pub(crate) fn provide_some(options: &Options) -> Result<()> {
    if options.in_containers_only() {
        return images::build("bookworm");
    }
    if options.mode() == "off" {
        return Err(Failure::new(
            "`MAESTRO_DEV_SERVICES=off` allows no other servers than those that are given, see above",
        ));
    }
    let servers = PROGRAMS.into_iter().filter(|program| program.is_server);
    provide(&servers.collect::<Vec<_>>())
}

/// Runs a program that brings its own servers, and once more if it ended with [`MISSING`]: Docker may
/// answer, but have no images and be able to pull none.
pub(crate) fn providing_some(
    options: &Options,
    mut run: impl FnMut() -> Result<ExitStatus>,
) -> Result<ExitStatus> {
    let status = run()?;
    if status.code() != Some(MISSING) {
        return Ok(status);
    }
    provide_some(options)?;
    run()
}

/// The exit code of a program of this workspace when a server cannot be had on this machine as it is; it
/// has printed why.
pub(crate) const MISSING: i32 = 3;

fn provide(needed: &[Program]) -> Result<()> {
    let missing = missing_of(needed);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|program| program.name);
    let names = names.collect::<Vec<_>>().join(", ");
    if !install::is_possible() {
        return Err(Failure::new(format!(
            "not installed on this machine: {names}. One command mends it:\n\n    {}\n",
            install::command(&missing)
        )));
    }
    announce(&format!("installing what is missing: {names}"));
    let started = Instant::now();
    install::install(needed)?;
    let missing = missing_of(needed);
    if missing.is_empty() {
        let took = process::elapsed(started.elapsed());
        announce(&format!("installed in {took}"));
        return Ok(());
    }
    let files = missing.iter().map(|program| program.files.join(" or "));
    Err(Failure::new(format!(
        "the packages are installed, but their programs are not where they are looked for: {}",
        files.collect::<Vec<_>>().join(", ")
    )))
}

/// Whether a Docker daemon answers in time, else why not. Asked over its socket: the `docker` program need
/// not be installed, and it waits much longer for a daemon that hangs.
pub(crate) fn ask_docker(options: &Options, patience: Duration) -> std::result::Result<(), String> {
    let socket = match options.docker_host.as_deref() {
        None | Some("") => "/var/run/docker.sock",
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => path,
            // A remote daemon: the testkit finds out by itself.
            None => return Ok(()),
        },
    };
    let ask = || -> std::io::Result<[u8; 12]> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut status)?;
        Ok(status)
    };
    let why = match ask() {
        Ok(status) if status.starts_with(b"HTTP/1.") && status.ends_with(b" 200") => return Ok(()),
        Ok(status) => format!("it answers {:?}", String::from_utf8_lossy(&status)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("no answer within {} s", patience.as_secs())
            }
            ErrorKind::PermissionDenied => {
                format!("{error}: this user is not in the group that may use it")
            }
            _ => error.to_string(),
        },
    };
    Err(format!("{socket}: {why}"))
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

/// Sees to it that there is a compiler for C++, or says what to do.
pub(crate) fn provide_compiler() -> Result<()> {
    provide(&[COMPILER])
}

const COMPILER: Program = Program {
    name: "a compiler for C++",
    package: "g++",
    files: &["/usr/bin/c++"],
    command: Some("c++"),
    is_server: false,
};

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        servers: Options,
    }

    fn options<const N: usize>(words: [&str; N]) -> Options {
        let words = std::iter::once("test").chain(words);
        Line::try_parse_from(words).unwrap().servers
    }

    #[test]
    fn containers_that_the_environment_asks_for_are_those_of_the_option() {
        // What `MAESTRO_DEV_SERVICES` sets.
        assert!(options(["--dev-services=docker"]).in_containers_only());
        assert!(options(["--docker", "--dev-services=local"]).in_containers_only());
        assert!(!options(["--local", "--dev-services=docker"]).in_containers_only());
        assert!(!options(["--dev-services="]).in_containers_only());
    }

    #[test]
    fn an_empty_variable_gives_no_server() {
        let [postgres, redis, ..] = PROGRAMS;
        let options = options(["--postgres-url=", "--cache-url=redis://127.0.0.1"]);
        assert!(!options.is_given(&postgres));
        assert!(options.is_given(&redis));
    }

    #[test]
    fn where_only_given_servers_are_allowed_nothing_is_installed() {
        let refused = provide_some(&options(["--dev-services=off"])).unwrap_err();
        assert!(refused.to_string().contains("off"), "{refused}");
    }

    #[test]
    fn a_docker_daemon_that_does_not_answer_is_said_to_be_absent_silent_or_wrong() {
        let folder = scratch("docker");
        let socket = folder.join("docker.sock");
        let host = format!("--docker-host=unix://{}", socket.display());
        let options = options([&host]);
        let ask = || ask_docker(&options, Duration::from_secs(1));
        let absent = ask().unwrap_err();
        assert!(absent.contains("docker.sock"), "{absent}");
        assert!(absent.contains("No such file"), "{absent}");

        let listener = UnixListener::bind(&socket).unwrap();
        assert!(ask().unwrap_err().contains("no answer within 1 s"));
        // The one that was not answered is still in the queue.
        drop(listener.accept().unwrap());
        let answer = |text: &'static str| {
            let listener = listener.try_clone().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 23]).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
            })
        };
        let daemon = answer("HTTP/1.0 500 Internal Server Error\r\n\r\n");
        assert!(ask().unwrap_err().contains("500"));
        daemon.join().unwrap();
        let daemon = answer("HTTP/1.0 200 OK\r\n\r\nOK");
        assert_eq!(ask(), Ok(()));
        daemon.join().unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

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
}
