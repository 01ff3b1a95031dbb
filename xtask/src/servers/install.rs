//! Installing Debian packages, without questions and without starting the services they bring.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Program, missing_of};
use crate::failure::{Failure, Result};
use crate::process::{self, announce};

/// Whether packages can be installed without asking anybody.
pub(super) fn is_possible() -> bool {
    is_debian() && is_root()
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && process::is_on_path("apt-get")
}

fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// The one command that installs them on this machine.
pub(super) fn command(missing: &[Program]) -> String {
    let packages = |name: fn(&'static str) -> &'static str| {
        let packages = missing.iter().map(|program| name(program.package));
        packages.collect::<Vec<_>>().join(" ")
    };
    if is_debian() {
        let packages = packages(|debian| debian);
        format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}")
    } else if process::is_on_path("brew") {
        format!("brew install {}", packages(homebrews))
    } else if process::is_on_path("dnf") {
        format!("sudo dnf install -y {}", packages(fedoras))
    } else if process::is_on_path("docker") {
        "sudo systemctl start docker".to_owned()
    } else {
        let packages = packages(|debian| debian);
        format!("install what Debian calls {packages}, with this system's package manager")
    }
}

/// Homebrew's name of a Debian package.
fn homebrews(debian: &'static str) -> &'static str {
    match debian {
        "redis-server" => "redis",
        "rabbitmq-server" => "rabbitmq",
        "python3-pip" | "libpython3-dev" => "python",
        "g++" => "gcc",
        other => other,
    }
}

/// Fedora's name of a Debian package.
fn fedoras(debian: &'static str) -> &'static str {
    match debian {
        "postgresql" => "postgresql-server",
        "redis-server" => "redis",
        "prometheus" => "golang-github-prometheus",
        "libpython3-dev" => "python3-devel",
        "g++" => "gcc-c++",
        other => other,
    }
}

/// Installs the packages of those of `needed` that are missing, one clone of the project at a time.
pub(super) fn install(needed: &[Program]) -> Result<()> {
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
    if !update(apt_get().arg("update"), PAUSE)? {
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

/// Fetches the lists of packages; whether that worked. Unlike installing, this does not wait for whoever
/// else does so (a machine that has just booted does by itself): it is tried again as long as the lists
/// are locked.
fn update(command: &mut Command, pause: Duration) -> Result<bool> {
    let mut attempt = 1;
    loop {
        let mut locked = false;
        let status = process::tee_errors(command, |line| {
            // The path, since the words around it are in the language of the machine.
            locked |= line.starts_with("E:") && line.contains("lists/lock");
        })?;
        if status.success() || !locked || attempt == ATTEMPTS {
            return Ok(status.success());
        }
        attempt += 1;
        announce("somebody else fetches the lists of packages: trying again in a moment");
        #[expect(
            clippy::disallowed_methods,
            reason = "this program does nothing else meanwhile, and apt has no way to wait"
        )]
        std::thread::sleep(pause);
    }
}

/// Until somebody else's update is over, and how often that is looked at: ten minutes, as for an
/// installation.
const PAUSE: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 60;

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
        let policy = policy(std::process::id(), started().as_deref());
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

/// A policy that says "no" only while this process lives: left behind by a kill, it is harmless, also when
/// the process id has become somebody else's.
fn policy(process: u32, started: Option<&str>) -> String {
    let lives = match started {
        Some(started) => {
            format!("[ \"$(cut -d ' ' -f 22 /proc/{process}/stat 2>/dev/null)\" = {started} ]")
        }
        None => format!("kill -0 {process} 2>/dev/null"),
    };
    format!(
        "#!/bin/sh\n# Written by `cargo xtask`, for the time of one installation.\n\
         {lives} && exit 101\nexit 0\n"
    )
}

/// When this process started: field 22 of proc(5), where there is a `/proc`.
fn started() -> Option<String> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.split(' ').nth(21).map(str::to_owned)
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

    /// What the policy says. The shell reads it: to execute a file that was just written fails while
    /// a process that another test starts still holds it open.
    fn answer(policy: &Path) -> Option<i32> {
        Command::new("sh").arg(policy).status().unwrap().code()
    }

    #[test]
    fn the_policy_against_service_starts_goes_away_and_leaves_somebody_elses_alone() {
        let folder = scratch("policy");
        let path = folder.join("policy-rc.d");

        let ours = NoServiceStarts::at(&path).unwrap();
        assert_eq!(answer(&path), Some(101));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o111,
            0o111,
            "Debian runs it only if it may be executed"
        );
        drop(ours);
        assert!(!path.exists());

        fs::write(&path, "#!/bin/sh\nexit 104\n").unwrap();
        drop(NoServiceStarts::at(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 104\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_policy_whose_process_id_has_become_somebody_elses_refuses_nothing() {
        let folder = scratch("recycled");
        let path = folder.join("policy-rc.d");
        let own = std::process::id();
        fs::write(&path, policy(own, Some("1"))).unwrap();
        assert_eq!(answer(&path), Some(0));
        fs::write(&path, policy(own, started().as_deref())).unwrap();
        assert_eq!(answer(&path), Some(101));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn lists_that_somebody_else_fetches_are_waited_for_and_other_trouble_is_not() {
        let folder = scratch("update");
        let count = folder.join("count");
        let update = |fails: &str| {
            let script = format!(
                "echo . >>\"$1\"; [ $(wc -l <\"$1\") -ge 3 ] && exit 0; echo \"{fails}\" >&2; exit 100"
            );
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(&count);
            let done = update(&mut command, Duration::ZERO).unwrap();
            let tries = fs::read_to_string(&count).unwrap().lines().count();
            fs::remove_file(&count).unwrap();
            (done, tries)
        };
        // The words are those of a German machine.
        let locked = "E: Sperre /var/lib/apt/lists/lock konnte nicht bekommen werden.";
        assert_eq!(update(locked), (true, 3));
        assert_eq!(update("E: Failed to fetch http://192.0.2.1/"), (false, 1));
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
        assert_eq!(answer(&path), Some(0));
        drop(NoServiceStarts::at(&path).unwrap());
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
