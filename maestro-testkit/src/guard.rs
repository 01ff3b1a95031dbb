//! Starting a server under its guard, a `/bin/sh` script that outlives this process and stops the
//! server once nobody uses it (ADR 0003).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{Error, ErrorKind};
use crate::process::ProcessId;

const SCRIPT: &str = include_str!("guard.sh");

/// Where programs are looked for by servers and the guard: the caller's environment is not handed on,
/// since a `PGDATA` or `RABBITMQ_*` of the machine would end up in the servers.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/sbin:/opt/homebrew/bin";

/// Longest wait for a shell to start a program.
const LAUNCH: Duration = Duration::from_mins(1);

/// Longest wait for killed processes to be gone: one that writes to a slow disk ends late.
const GONE: Duration = Duration::from_secs(30);

/// What to run under a guard.
#[derive(Clone, Debug)]
pub(crate) struct Guarded {
    /// Directory of the server: its lock, its log and what the guard writes. Emptied at the end.
    pub(crate) directory: PathBuf,
    /// How long nobody may use the server before it is stopped.
    pub(crate) grace: Duration,
    /// What the guard sends to stop it: `QUIT`, `KILL`, …
    pub(crate) stop_signal: &'static str,
    /// Program and arguments; empty for a container, which runs without us.
    pub(crate) command: Vec<OsString>,
    /// A command line to run beside the server.
    pub(crate) companion: Option<String>,
    /// A command line to run at the end.
    pub(crate) stop_command: Option<String>,
    /// Environment of the server.
    pub(crate) environment: BTreeMap<String, OsString>,
    /// Account the server runs as, when this process is root and the server refuses to be.
    pub(crate) account: Option<(u32, u32)>,
}

impl Guarded {
    /// Starts the guard, and with it the server. Returns once the guard has written who it is.
    ///
    /// The guard is started through an intermediate shell that ends at once: neither a signal to
    /// this process' group nor a walk down its process tree reaches the servers, and none of our
    /// children is left to wait for.
    pub(crate) async fn launch(&self) -> Result<(), Error> {
        let script = self.directory.join("guard.sh");
        let failed = |e| Error::io(format!("starting {}", script.display()), e);
        for stale in ["guard", "pid", "companion", "exited"] {
            match std::fs::remove_file(self.directory.join(stale)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
                _ => {}
            }
        }
        std::fs::write(&script, SCRIPT).map_err(failed)?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "/bin/sh \"$@\" &", "sh"])
            .arg(&script)
            .arg(&self.directory)
            .arg(self.grace.as_secs().to_string())
            .arg(self.stop_signal)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // A container's guard runs `docker`, which has to find the same daemon as this process.
        if !self.command.is_empty() {
            command
                .env_clear()
                .env("PATH", PATH)
                .envs(&self.environment);
        }
        if let Some(companion) = &self.companion {
            command.env("GUARD_COMPANION", companion);
        }
        if let Some(stop) = &self.stop_command {
            command.env("GUARD_STOP", stop);
        }
        if let Some((uid, gid)) = self.account {
            // The guard stays root where it can, to remove the directories at the end. `setpriv`
            // becomes its command, so the pid is the server's.
            let drop = [
                "setpriv".to_owned(),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                "--clear-groups".to_owned(),
            ];
            let tried = drop.clone();
            let works = tokio::task::spawn_blocking(move || works(&tried)).await;
            if works.unwrap_or(false) {
                command.args(drop);
            } else {
                command.uid(uid).gid(gid);
            }
        }
        command.args(&self.command);
        // The background thread carries every link of this process: it does not wait for a shell.
        tokio::task::spawn_blocking(move || command.status())
            .await
            .map_err(|e| failed(e.into()))?
            .map_err(failed)?;
        let last = if self.command.is_empty() {
            "guard"
        } else {
            "pid"
        };
        let started = Instant::now();
        while ProcessId::from_file(&self.directory.join(last)).is_none() {
            if started.elapsed() > LAUNCH || self.exited().is_some() {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "{} did not start{}",
                        script.display(),
                        log_tail(&self.directory)
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// The exit status of a server that ended by itself.
    pub(crate) fn exited(&self) -> Option<String> {
        let status = std::fs::read_to_string(self.directory.join("exited")).ok()?;
        Some(status.trim().to_owned())
    }
}

/// True if this machine has a `setpriv` that knows these options (another one does not).
fn works(drop: &[String; 4]) -> bool {
    let [program, options @ ..] = drop;
    let mut command = Command::new(program);
    command.args(options).arg("true").env("PATH", PATH);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The process of the server under a guard, if it runs.
pub(crate) fn server_process(directory: &Path) -> Option<ProcessId> {
    ProcessId::from_file(&directory.join("pid")).filter(ProcessId::is_alive)
}

/// True while the guard runs.
pub(crate) fn is_guarded(directory: &Path) -> bool {
    ProcessId::from_file(&directory.join("guard")).is_some_and(|guard| guard.is_alive())
}

/// Kills what a run left: guard, companion, server and the server's children, each only if it is
/// still the process that was written down.
pub(crate) async fn sweep(directory: &Path) {
    let mut victims = Vec::new();
    for name in ["guard", "companion", "pid"] {
        if let Some(process) = ProcessId::from_file(&directory.join(name))
            && process.is_alive()
        {
            victims.extend(process.descendants());
            victims.push(process);
        }
    }
    for victim in &victims {
        victim.signal(Signal::KILL);
    }
    let started = Instant::now();
    while victims.iter().any(ProcessId::is_alive) && started.elapsed() < GONE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The last lines of a server's log, to be appended to an error.
pub(crate) fn log_tail(directory: &Path) -> String {
    let path = directory.join("log");
    let Ok(log) = std::fs::read(&path) else {
        return String::new();
    };
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines
        .get(lines.len().saturating_sub(8)..)
        .unwrap_or_default();
    format!(
        "; the end of {}:\n    {}",
        path.display(),
        tail.join("\n    ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{Lock, Mode};

    #[tokio::test]
    async fn a_program_that_ends_at_once_is_noticed_however_soon_that_is() {
        for _ in 0..5 {
            let scratch = tempfile::tempdir().unwrap();
            let lock = Lock::try_take(&scratch.path().join("lock"), Mode::Shared).unwrap();
            assert!(lock.is_some());
            let guarded = Guarded {
                directory: scratch.path().to_owned(),
                grace: Duration::ZERO,
                stop_signal: "KILL",
                command: vec!["/nowhere/at/all".into()],
                companion: None,
                stop_command: None,
                environment: BTreeMap::new(),
                account: None,
            };
            // Whether it was seen alive is a matter of luck.
            let _ = guarded.launch().await;
            let started = Instant::now();
            while guarded.exited().is_none() {
                assert!(started.elapsed() < GONE, "the guard still waits for it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(guarded.exited().as_deref(), Some("127"));
        }
    }
}
