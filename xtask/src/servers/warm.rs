//! The testkit's `servers` example: it starts the servers of this clone, or joins them, and keeps them
//! for as long as its standard input is open. One clear error before the first test is worth more than
//! a hundred after it, and the lines that say where each server came from are seen.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::MISSING;
use crate::failure::{Failure, Result};
use crate::process::announce;

/// Servers that stay warm until this is dropped.
#[derive(Debug)]
pub(crate) struct Warm {
    child: Child,
    /// Closed on drop, or by the end of this process, however it comes.
    stdin: Option<ChildStdin>,
}

/// How starting the servers ended.
pub(crate) enum Outcome {
    Warm(Warm),
    /// There is no way to have them on this machine as it is; the reason was printed.
    Missing,
}

impl Warm {
    /// Starts the servers with the program at `path`; its explanations go to the terminal.
    /// `environment` says which servers are wanted, beyond what this process' own says.
    pub(crate) fn start(path: &Path, environment: &[(&str, &str)]) -> Result<Outcome> {
        announce("starting the servers");
        let failed = |error| Failure::new(format!("could not run {}: {error}", path.display()));
        let mut command = Command::new(path);
        command.current_dir(crate::workspace::root());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(environment.iter().copied());
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut said)
                .map_err(failed)?;
        }
        if said.trim_end() == READY {
            return Ok(Outcome::Warm(Self { child, stdin }));
        }
        let status = child.wait().map_err(failed)?;
        if status.code() == Some(MISSING) {
            Ok(Outcome::Missing)
        } else {
            Err(Failure::new("the servers did not start, see above"))
        }
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It has nothing left to do, and a zombie would outlive the tests.
        if let Err(error) = self.child.wait() {
            announce(&format!("could not wait for the servers' program: {error}"));
        }
    }
}

/// What the program prints once every server answers.
const READY: &str = "ready";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A program of one script. Another process writes it: while this one has it open for writing, a
    /// child that another test starts at this moment holds it open as well, and it cannot be executed.
    fn program(name: &str, script: &str) -> std::path::PathBuf {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/tmp")
            .join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = Command::new("sh");
        writer.args([
            "-c",
            r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#,
        ]);
        writer.args(["sh", script]).arg(&path);
        assert!(writer.status().unwrap().success());
        path
    }

    #[test]
    fn the_program_is_told_to_end_when_the_servers_are_no_longer_needed() {
        let done = program("done", "");
        let script = format!("echo ready; cat >/dev/null; rm {}", done.display());
        let path = program("warm", &script);
        let Outcome::Warm(warm) = Warm::start(&path, &[]).unwrap() else {
            panic!("it said ready");
        };
        assert!(done.exists());
        drop(warm);
        assert!(!done.exists());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_missing_server_is_told_from_one_that_does_not_start() {
        let path = program("missing", "exit 3");
        assert!(matches!(Warm::start(&path, &[]).unwrap(), Outcome::Missing));
        fs::remove_file(path).unwrap();
        let path = program("broken", "exit 1");
        assert!(Warm::start(&path, &[]).is_err());
        fs::remove_file(path).unwrap();
    }
}
