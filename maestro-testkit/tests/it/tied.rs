//! Programs that a test starts by itself.
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maestro_testkit::tied;

/// The other process is this binary again, running this test in a directory with this file.
const OTHER_PROCESS: &str =
    "tied::a_program_ends_with_the_process_that_started_it_also_when_that_is_killed";
const MARK: &str = "the-other-process";

#[tokio::test]
async fn a_program_ends_with_the_process_that_started_it_also_when_that_is_killed() {
    if Path::new(MARK).exists() {
        let mut program = tied("sleep").arg("60").spawn().unwrap();
        println!("\npid {}", program.id());
        program.wait().unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(MARK), "").unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args([OTHER_PROCESS, "--exact", "--nocapture"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix("pid ")?.to_owned()))
        .unwrap();
    until("the program runs", || {
        state(&pid).is_some_and(|(name, _)| name == "sleep")
    })
    .await;
    other.kill().unwrap();
    other.wait().unwrap();
    // Whoever inherits it may leave it a zombie for a while.
    until("the program's end", || {
        state(&pid).is_none_or(|(_, state)| state == 'Z')
    })
    .await;
}

/// Name and state of a process.
fn state(pid: &str) -> Option<(String, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    Some((name.to_owned(), rest.chars().next()?))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "still not: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
