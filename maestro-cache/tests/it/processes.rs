//! One cold entry, twenty processes. The others are this test binary again, running the same test in a
//! directory that says what to do.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use maestro_cache::{Cache, CacheConfig, Region, RegionBuilder};
use maestro_config::Environment;
use maestro_testkit::tied;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::place::{Report, healthy, report, sandbox};

const PROCESSES: usize = 20;
/// Longest wait for twenty processes that take a second on an idle machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// In the working directory of a reader: its variables.
const VARIABLES: &str = "reader.env";
/// In the same: a line for each load.
const LOADS: &str = "loads";

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_load_once_when_they_are_told_to() {
    let build = |region: RegionBuilder<Report>| region.one_load(PATIENCE);
    let test = "processes::twenty_processes_load_once_when_they_are_told_to";
    if let Some(loads) = loads_of_one(test, build).await {
        assert_eq!(loads, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_load_at_most_once_each_otherwise() {
    let test = "processes::twenty_processes_load_at_most_once_each_otherwise";
    if let Some(loads) = loads_of_one(test, |region| region).await {
        assert!((1..=PROCESSES).contains(&loads), "{loads}");
    }
}

/// Reads one cold entry from all processes at once and says how often it was loaded; `None` in a process
/// that is one of the twenty.
async fn loads_of_one(
    test: &str,
    build: fn(RegionBuilder<Report>) -> RegionBuilder<Report>,
) -> Option<usize> {
    if Path::new(VARIABLES).exists() {
        read_when_told(build).await;
        return None;
    }
    let sandbox = sandbox().await;
    let directory = tempfile::tempdir().unwrap();
    let environment = sandbox.environment();
    let lines = environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let lines: Vec<String> = lines.collect();
    std::fs::write(directory.path().join(VARIABLES), lines.join("\n")).unwrap();
    let mut readers: Vec<Reader> = (0..PROCESSES)
        .map(|_| Reader::start(test, directory.path()))
        .collect();
    let all = async {
        for reader in &mut readers {
            reader.hears("ready").await;
        }
        for reader in &mut readers {
            reader.input.write_all(b"go\n").await.unwrap();
        }
        for reader in &mut readers {
            reader.hears("read").await;
            assert!(reader.process.wait().await.unwrap().success());
        }
    };
    timeout(PATIENCE, all).await.unwrap();
    let loads = std::fs::read_to_string(directory.path().join(LOADS)).unwrap();
    Some(loads.lines().count())
}

/// One of the twenty, killed when dropped.
struct Reader {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(test: &str, directory: &Path) -> Self {
        let mut process = Command::from(tied(std::env::current_exe().unwrap()))
            .args([test, "--exact", "--nocapture"])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            input: process.stdin.take().unwrap(),
            output: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
        }
    }

    async fn hears(&mut self, word: &str) {
        loop {
            let line = self.output.next_line().await.unwrap();
            assert_ne!(line, None, "a process ended before it said `{word}`");
            if line.as_deref() == Some(word) {
                return;
            }
        }
    }
}

/// What each of the twenty does.
async fn read_when_told(build: fn(RegionBuilder<Report>) -> RegionBuilder<Report>) {
    let variables = std::fs::read_to_string(VARIABLES).unwrap();
    let pairs = variables.lines().filter_map(|line| line.split_once('='));
    // A machine that is busy with twenty processes is no outage.
    let patient = [
        ("MAESTRO_CACHE_COMMAND_TIMEOUT", "1m"),
        ("MAESTRO_CACHE_CONNECT_TIMEOUT", "1m"),
    ];
    let environment = Environment::from_pairs(pairs.chain(patient));
    let cache = Cache::connect(environment.read::<CacheConfig>().unwrap());
    let cache = cache.await.unwrap();
    healthy(&cache).await;
    let region: Region<Report> = build(cache.region("report")).build().unwrap();
    println!("\nready");
    let told = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(told).await.unwrap().unwrap();
    let load = || async {
        let mut loads = std::fs::OpenOptions::new();
        let loads = loads.create(true).append(true).open(LOADS);
        loads.and_then(|mut file| file.write_all(b"a load\n"))?;
        // As long as a query takes, so that the processes meet.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok::<_, std::io::Error>(report(1))
    };
    let value = region.entry(1_u64).get_or_load(load).await.unwrap();
    assert_eq!(*value, report(1));
    // The value is there before it is stored: a process that ended now would take it along.
    cache.close(PATIENCE).await;
    println!("\nread");
}
