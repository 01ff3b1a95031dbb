//! Programs that a test starts by itself.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// A command whose process ends when the thread that started it does, however that came about: also
/// when the test run is killed, which no destructor sees.
///
/// For servers and services that a test starts beside those of the testkit. Start it from the test's own
/// thread or from a task of its runtime, not from `spawn_blocking` or
/// `block_in_place`, whose threads come and go. On Linux
/// `setpriv` (of util-linux) asks the kernel for it and then becomes the program, under the same pid;
/// elsewhere this is the plain command. A program that changes its user afterwards takes the kernel's
/// promise back: give it the user with `Command::uid` instead.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let mut proxy = maestro_testkit::tied("pgbouncer").arg("pgbouncer.ini").spawn()?;
/// # proxy.kill()
/// # }
/// ```
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    let Some(setpriv) = SETPRIV.iter().find(|path| Path::new(path).exists()) else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// By path: a command that clears its environment has no `PATH` to look in.
const SETPRIV: [&str; 2] = ["/usr/bin/setpriv", "/bin/setpriv"];
