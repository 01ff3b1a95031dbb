//! Processes of this machine, named so that a recycled pid is never mistaken for the old process.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a process to stand still: one that waits for its disk does not hear of it.
const STOP: Duration = Duration::from_secs(10);

/// A process by pid *and* start time, as the guard script writes it: `<pid> <start time>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    started: String,
}

impl ProcessId {
    /// This process.
    pub(crate) fn own() -> Option<Self> {
        let pid = i32::try_from(std::process::id()).ok()?;
        Some(Self {
            pid,
            started: started(pid)?,
        })
    }

    /// Reads what the guard wrote; `None` when the file is missing or half written.
    pub(crate) fn from_file(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok().filter(|pid| *pid > 1)?,
            started: started.to_owned(),
        })
    }

    /// True while exactly this process runs (a zombie does not run).
    pub(crate) fn is_alive(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// Returns once the process stands still after a `SIGSTOP`, or is gone: the signal takes effect when
    /// the process is next scheduled, and until then it may start another one.
    pub(crate) async fn stopped(&self) {
        let started = Instant::now();
        while self.is_alive() && !is_stopped(self.pid) && started.elapsed() < STOP {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends a signal if exactly this process still runs. Between the look and the signal the pid
    /// could in theory be recycled; pids wrap after thousands of forks, the gap is microseconds.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // The process may have ended meanwhile: that is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }

    /// This process' children, grandchildren and so on: PostgreSQL's backends are sessions of their
    /// own, so no process group holds them all.
    pub(crate) fn descendants(&self) -> Vec<Self> {
        let table = process_table();
        let mut found = vec![self.pid];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            next += 1;
            found.extend(
                table
                    .iter()
                    .filter(|(_, of)| *of == parent)
                    .map(|(pid, _)| *pid),
            );
        }
        found
            .into_iter()
            .skip(1)
            .filter_map(|pid| {
                Some(Self {
                    pid,
                    started: started(pid)?,
                })
            })
            .collect()
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

/// When a process started, in a form that only has to be compared; `None` when it does not run.
fn started(pid: i32) -> Option<String> {
    if Path::new("/proc/self/stat").exists() {
        let fields = stat_fields(pid)?;
        // Fields 3 (state) and 22 (start time in clock ticks since boot) of proc(5). A process whose
        // first thread ended is a zombie while its other threads still hold its sockets.
        let ended = fields.first()? == "Z" && threads(pid) <= 1;
        return (!ended).then(|| fields.get(19).cloned())?;
    }
    let output = ps(pid).output().ok()?;
    let text = one_line(&String::from_utf8(output.stdout).ok()?);
    (!text.is_empty()).then_some(text)
}

/// What to ask where there is no `/proc`. The guard's `by_ps` has to come to the same words, whatever
/// language and time zone either of them was started with.
fn ps(pid: i32) -> Command {
    let mut command = Command::new("ps");
    command.args(["-o", "lstart=", "-p", &pid.to_string()]);
    command.env("LC_ALL", "C").env("TZ", "UTC0");
    command
}

/// The words of a line with one space between them.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// True if the process was stopped by a signal.
fn is_stopped(pid: i32) -> bool {
    let state = if Path::new("/proc/self/stat").exists() {
        stat_fields(pid).and_then(|fields| fields.into_iter().next())
    } else {
        let arguments = ["-o", "state=", "-p", &pid.to_string()];
        let output = Command::new("ps").args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    state.is_some_and(|state| state.starts_with(['T', 't']))
}

/// The fields of `/proc/<pid>/stat` from the third on: the second, the command, may hold anything.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Threads of a process that have not ended.
fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Every process with its parent.
fn process_table() -> Vec<(i32, i32)> {
    if Path::new("/proc/self/stat").exists() {
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        return entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, stat_fields(pid)?.get(1)?.parse().ok()?)))
            .collect();
    }
    let Ok(output) = Command::new("ps").args(["-axo", "pid=,ppid="]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let (pid, parent) = line.trim().split_once(char::is_whitespace)?;
            Some((pid.parse().ok()?, parent.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_was_waited_for_and_never_under_another_start_time() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let id = ProcessId {
            pid,
            started: started(pid).unwrap(),
        };
        assert!(id.is_alive());
        assert!(ProcessId::own().unwrap().descendants().contains(&id));
        let recycled = ProcessId {
            started: "1".to_owned(),
            ..id.clone()
        };
        assert!(!recycled.is_alive());
        recycled.signal(Signal::KILL);
        assert!(id.is_alive(), "a process of the same pid was killed");
        id.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn where_there_is_no_proc_the_guard_and_this_process_ask_and_read_alike() {
        let ours = ps(42);
        let ours = ours
            .get_envs()
            .map(|(_, value)| value.unwrap())
            .chain(ours.get_args())
            .map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>();
        // Words apart, as in the date of a month's first days.
        let script = format!(
            "ps() {{ echo \"$LC_ALL   $TZ  $*   \"; }}\n{}\nby_ps 42",
            function("by_ps")
        );
        let guard = Command::new("/bin/sh")
            .args(["-c", &script])
            .env("LC_ALL", "de_DE.UTF-8")
            .env("TZ", "Asia/Tokyo")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(guard.stdout).unwrap().trim_end(),
            ours.join(" ")
        );
        assert_eq!(
            one_line("Sun Nov  1 09:00:00 2026   \n"),
            "Sun Nov 1 09:00:00 2026"
        );
    }

    /// One function of the guard's script.
    fn function(name: &str) -> &'static str {
        let script = include_str!("guard.sh");
        let start = script.find(&format!("\n{name}() {{")).unwrap();
        let length = script[start..].find("\n}\n").unwrap();
        &script[start..start + length + 3]
    }

    #[test]
    fn pids_that_would_address_init_or_a_group_are_refused() {
        for text in ["", "1 5", "0 5", "-1 5", "77", "x 5"] {
            assert_eq!(ProcessId::parse(text), None, "{text}");
        }
    }
}
