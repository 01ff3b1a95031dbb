//! cargo-deny, of one version, built into `target/tools` when it is missing.

use crate::failure::Result;
use crate::process::{self, announce};
use crate::workspace::Workspace;

/// Checks `deny.toml`. Advisories are left out: they need a database from the network and would make
/// the same commit pass today and fail tomorrow.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let tools = workspace.target.join("tools");
    let program = tools.join("bin/cargo-deny");
    let wanted = format!("cargo-deny {VERSION}");
    let is_wanted = |program: &std::path::Path| {
        process::output(std::process::Command::new(program).arg("--version"))
            .is_ok_and(|version| version.trim() == wanted)
    };
    let program = if is_wanted("cargo-deny".as_ref()) {
        "cargo-deny".into()
    } else {
        if !is_wanted(&program) {
            announce(&format!("building {wanted} (once, one to three minutes)"));
            let build = tools.join("build");
            process::run(
                process::cargo()
                    .args(["install", "cargo-deny", "--locked", "--force"])
                    // It runs for a second: a quick build matters more than a quick program.
                    .args(["--debug", "--version", VERSION, "--root"])
                    .arg(&tools)
                    .env("CARGO_TARGET_DIR", &build),
            )?;
            // Several hundred megabytes nobody needs again.
            if let Err(error) = std::fs::remove_dir_all(&build) {
                announce(&format!("could not remove {}: {error}", build.display()));
            }
        }
        program
    };
    process::run(
        std::process::Command::new(program)
            .current_dir(crate::workspace::root())
            .args(["check", "bans", "licenses", "sources"]),
    )
}

/// Pinned, so that a new release with new rules breaks nobody's afternoon.
const VERSION: &str = "0.20.2";
