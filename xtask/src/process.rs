//! Running other programs: always without stdin, always said aloud before.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::failure::{Failure, Result};

/// The cargo that built this program, in the root of the workspace, with a clean environment.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(crate::workspace::root());
    for name in SET_BY_CARGO_RUN {
        command.env_remove(name);
    }
    command
}

/// Says what is about to happen. Progress goes to stderr, results to stdout.
pub(crate) fn announce(what: &str) {
    eprintln!("==> {what}");
}

/// Runs `command` with its output on the terminal and returns how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    eprintln!("  $ {}", shown(command));
    command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| not_started(command, &error))
}

/// Runs `command` with its output on the terminal; a failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "`{}` failed ({status})",
            shown(command)
        )))
    }
}

/// Runs `command`, prints its stdout as it comes and hands every line of it to `line`.
pub(crate) fn tee(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    each_line(child.stdout.take(), |text| {
        println!("{text}");
        line(text);
    });
    child.wait().map_err(|error| not_started(command, &error))
}

/// The same with its stderr.
pub(crate) fn tee_errors(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = spawn(command.stderr(Stdio::piped()))?;
    each_line(child.stderr.take(), |text| {
        eprintln!("{text}");
        line(text);
    });
    child.wait().map_err(|error| not_started(command, &error))
}

fn spawn(command: &mut Command) -> Result<Child> {
    eprintln!("  $ {}", shown(command));
    command
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| not_started(command, &error))
}

/// Bytes, not `lines()`: a test may print anything, and one bad byte must not end the run.
fn each_line(output: Option<impl Read>, mut line: impl FnMut(&str)) {
    for chunk in output
        .into_iter()
        .flat_map(|output| BufReader::new(output).split(b'\n'))
    {
        let Ok(bytes) = chunk else { break };
        line(&String::from_utf8_lossy(&bytes));
    }
}

/// Runs `command` silently and returns its stdout; a failure is an error that holds its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Failure::new(format!(
            "`{}` failed ({}):\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )))
    }
}

/// Whether `command` starts and succeeds; silent.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether `program` can be found by the shell.
pub(crate) fn is_on_path(program: &str) -> bool {
    succeeds(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]))
}

/// `12.3 s` or `4 min 05 s`.
pub(crate) fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// The command as one would type it, with the variables it sets.
fn shown(command: &Command) -> String {
    let program = if command.get_program() == env!("CARGO") {
        OsStr::new("cargo")
    } else {
        command.get_program()
    };
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.display(), quoted(value)))
    });
    let words = std::iter::once(program)
        .chain(command.get_args())
        .map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("could not run `{}`: {error}", shown(command)))
}

/// `cargo run` describes xtask to xtask in these. Handed on, they look like a changed environment
/// to build scripts that watch them (ring's does), and everything above those is built again.
const SET_BY_CARGO_RUN: [&str; 19] = [
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("apt-get");
        command
            .env("RUSTDOCFLAGS", "-D warnings")
            .args(["install", "it's", "-y", ""]);
        assert_eq!(
            shown(&command),
            r"RUSTDOCFLAGS='-D warnings' apt-get install 'it'\''s' -y ''"
        );
    }

    #[test]
    fn every_line_of_the_output_is_handed_on_and_the_status_is_kept() {
        let mut lines = Vec::new();
        let status = tee(
            Command::new("sh").args(["-c", r"printf 'one\n\377two\nthree'; exit 3"]),
            |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert_eq!(lines, ["one", "\u{fffd}two", "three"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_failed_silent_command_says_what_it_printed_to_stderr() {
        let failure =
            output(Command::new("sh").args(["-c", "echo broken >&2; exit 1"])).unwrap_err();
        assert!(failure.to_string().contains("broken"), "{failure}");
    }

    #[test]
    fn durations_read_like_a_clock_from_a_minute_on() {
        assert_eq!(elapsed(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(elapsed(Duration::from_secs(245)), "4 min 05 s");
    }
}
