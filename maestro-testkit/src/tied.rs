//! Programs that a test starts by itself.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A command whose process ends when the thread that started it does, however that came about: also
/// when the test run is killed, which no destructor sees.
///
/// For servers and services that a test starts beside those of the testkit. Start it from the test's own
/// thread or from a task of its runtime, not from `spawn_blocking` or
/// `block_in_place`, whose threads come and go. On Linux
/// `setpriv` (of util-linux) asks the kernel for it and then becomes the program, under the same pid;
/// elsewhere, and with a `setpriv` that cannot, this is the plain command. A program that changes its user
/// afterwards takes the kernel's promise back: give it the user with `Command::uid` instead.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let mut proxy = maestro_testkit::tied("pgbouncer").arg("pgbouncer.ini").spawn()?;
/// # proxy.kill()
/// # }
/// ```
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    static SETPRIV: OnceLock<Option<&str>> = OnceLock::new();

    let program = program.as_ref();
    let setpriv = SETPRIV.get_or_init(|| PLACES.into_iter().find(|place| can_tie(place)));
    let Some(setpriv) = setpriv else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(TIE).arg(program);
    command
}

/// Whether this is a `setpriv` that can do it: the one of Alpine's base system cannot.
fn can_tie(setpriv: &str) -> bool {
    let mut command = Command::new(setpriv);
    command.args(TIE).arg("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

const TIE: [&str; 3] = ["--pdeathsig", "KILL", "--"];

/// By path: a command that clears its environment has no `PATH` to look in.
const PLACES: [&str; 2] = ["/usr/bin/setpriv", "/bin/setpriv"];

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_setpriv_that_refuses_the_option_is_not_used() {
        // It ends with the status of one that does not know an option.
        assert!(!can_tie("/bin/false"));
        assert!(!can_tie("/nowhere/setpriv"));
    }
}
