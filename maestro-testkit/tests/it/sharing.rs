//! What happens between processes. Other processes are this test binary again, running
//! [`OTHER_PROCESS`] in a directory that stands for a clone of the project and says what to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maestro_testkit::{Service, Stack};

use crate::clients::{postgres, variable};

/// The grace of the servers these tests start: they watch them end.
const GRACE: Duration = Duration::from_secs(2);

/// The grace where the next process has to come before it is over, also on a machine that is busy.
const LONG_GRACE: Duration = Duration::from_secs(40);

/// Longest wait for something that takes seconds on an idle machine.
const DEADLINE: Duration = Duration::from_mins(2);

/// The test that is the other process of all of them, in a directory with this file.
const OTHER_PROCESS: &str =
    "sharing::two_processes_of_a_clone_share_its_servers_and_another_clone_has_its_own";
const SERVICES: &str = "services-of-another-process";

/// What the other process does: uses servers until it is killed.
async fn be_another_process(services: &str) {
    let services = Service::ALL
        .into_iter()
        .filter(|service| services.contains(service.as_str()));
    let grace = std::fs::read_to_string("grace").unwrap().parse().unwrap();
    let builder = Stack::builder()
        .only(services.clone())
        .grace(Duration::from_secs(grace));
    let builder = builder.never_given();
    let started = Instant::now();
    let dedicated = Path::new("dedicated").exists();
    let stack = if dedicated {
        builder.dedicated().await
    } else {
        builder.start().await
    };
    let stack = stack.unwrap();
    say(&format!("ready-after {}", started.elapsed().as_millis()));
    let sandbox = stack.sandbox("orders").await.unwrap();
    for service in services.clone() {
        say(&format!(
            "server {}",
            stack.server(service).unwrap().authority()
        ));
    }
    if dedicated {
        for service in services {
            stack.server(service).unwrap().pause().await.unwrap();
        }
    }
    say(&format!("sandbox {}", sandbox.id()));
    say("ready");
    // Until the test closes the pipe or kills this process.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap();
}

/// A line of its own, whatever the test harness has written before.
fn say(line: &str) {
    let line = format!("\n{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

struct OtherProcess {
    child: Child,
    servers: Vec<String>,
    sandbox: String,
    /// What `Stack::start` took there.
    ready_after: Duration,
}

impl OtherProcess {
    fn start(clone: &Clone) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([OTHER_PROCESS, "--exact", "--nocapture"])
            .current_dir(clone.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut servers = Vec::new();
        let mut sandbox = String::new();
        let mut ready_after = Duration::ZERO;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("server", authority)) => servers.push(authority.to_owned()),
                Some(("sandbox", id)) => id.clone_into(&mut sandbox),
                Some(("ready-after", millis)) => {
                    ready_after = Duration::from_millis(millis.parse().unwrap());
                }
                _ if line == "ready" => {
                    return Self {
                        child,
                        servers,
                        sandbox,
                        ready_after,
                    };
                }
                _ => {}
            }
        }
        panic!("the other process ended: {:?}", child.wait());
    }

    /// Ends it as a machine without memory would.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that stands for a clone of the project.
struct Clone(tempfile::TempDir);

impl Clone {
    fn with(services: &[Service], grace: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        write("Cargo.lock", String::new());
        let names: Vec<_> = services.iter().map(|service| service.as_str()).collect();
        write(SERVICES, names.join(" "));
        write("grace", grace.as_secs().to_string());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Processes with one of these in their arguments.
fn processes(of: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if of
            .iter()
            .any(|path| command.contains(path.to_str().unwrap()))
        {
            found.push(command);
        }
    }
    found
}

/// The servers of a clone, in a form in which a later one is not taken for them: ports are used again.
struct Servers {
    /// Pid and start time, as the guards wrote them down.
    processes: Vec<String>,
    /// Containers have a port alone.
    ports: Vec<String>,
}

impl Servers {
    fn of(process: &OtherProcess, homes: &[PathBuf]) -> Self {
        let files = homes
            .iter()
            .flat_map(|home| std::fs::read_dir(home).unwrap().flatten())
            .flat_map(|server| ["pid", "companion"].map(|name| server.path().join(name)));
        let processes: Vec<String> = files
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .collect();
        let ports = if processes.is_empty() {
            process.servers.clone()
        } else {
            Vec::new()
        };
        Self { processes, ports }
    }

    fn one_runs(&self) -> bool {
        self.processes.iter().any(|process| is_running(process))
            || self.ports.iter().any(|port| is_listening(port))
    }
}

/// Whether exactly this process runs: `<pid> <start time>`.
fn is_running(process: &str) -> bool {
    let (pid, start) = process.trim().split_once(' ').unwrap();
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    // Fields 3 and 22 of proc(5). The threads of a process hold its sockets until the last one ended.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    fields[19] == start && (fields[0] != "Z" || threads > 1)
}

/// The directories in which the servers of a clone live, dedicated ones included.
fn homes(clone: &Clone) -> Vec<PathBuf> {
    let home = Stack::builder()
        .never_given()
        .clone_at(clone.path())
        .home_directory()
        .unwrap();
    let name = home.file_name().unwrap().to_str().unwrap().to_owned();
    let entries = std::fs::read_dir(home.parent().unwrap()).unwrap().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .unwrap_or_default()
                .starts_with(&name)
        })
        .map(|entry| entry.path())
        .collect()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_listening(authority: &str) -> bool {
    std::net::TcpStream::connect(authority).is_ok()
}

#[tokio::test]
async fn two_processes_of_a_clone_share_its_servers_and_another_clone_has_its_own() {
    if let Ok(services) = std::fs::read_to_string(SERVICES) {
        return be_another_process(&services).await;
    }
    let clone = Clone::with(&[Service::Postgres, Service::Redis], GRACE);
    let first = OtherProcess::start(&clone);
    let second = OtherProcess::start(&clone);
    assert_eq!(first.servers, second.servers);
    assert_ne!(first.sandbox, second.sandbox);
    let elsewhere = OtherProcess::start(&Clone::with(&[Service::Redis], GRACE));
    assert!(!first.servers.contains(&elsewhere.servers[0]));
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_after_the_grace() {
    let clone = Clone::with(&Service::ALL, GRACE);
    let mut first = OtherProcess::start(&clone);
    let mut second = OtherProcess::start(&clone);
    let homes = homes(&clone);
    let servers = Servers::of(&second, &homes);
    first.kill();
    // Its lock is gone, the other one's is not: for longer than the grace nothing happens.
    tokio::time::sleep(GRACE * 2).await;
    assert!(second.servers.iter().all(|server| is_listening(server)));
    second.kill();
    until("no process", || processes(&homes).is_empty()).await;
    until("no server", || !servers.one_runs()).await;
    until("no directory", || !homes.iter().any(|home| home.exists())).await;
}

#[tokio::test]
async fn a_killed_process_takes_its_dedicated_servers_with_it_even_paused_ones() {
    let clone = Clone::with(&Service::ALL, GRACE);
    std::fs::write(clone.path().join("dedicated"), "").unwrap();
    let mut process = OtherProcess::start(&clone);
    let homes = homes(&clone);
    let servers = Servers::of(&process, &homes);
    assert!(process.servers.iter().all(|server| is_listening(server)));
    process.kill();
    until("no process", || processes(&homes).is_empty()).await;
    until("no server", || !servers.one_runs()).await;
    until("no directory", || !homes.iter().any(|home| home.exists())).await;
}

#[tokio::test]
async fn warm_servers_are_joined_within_two_seconds() {
    let clone = Clone::with(&Service::ALL, LONG_GRACE);
    let mut first = OtherProcess::start(&clone);
    // They outlive their last user for a while.
    first.kill();
    let started = Instant::now();
    loop {
        let second = OtherProcess::start(&clone);
        assert_eq!(first.servers, second.servers);
        if second.ready_after < Duration::from_secs(2) {
            break;
        }
        // A machine that is busy with something else may take a process its time now and then.
        let took = second.ready_after;
        assert!(started.elapsed() < DEADLINE, "still {took:?}");
    }
}

#[tokio::test]
async fn what_a_killed_process_left_on_the_servers_is_removed_by_the_next() {
    let clone = Clone::with(&[Service::Postgres], LONG_GRACE);
    let mut first = OtherProcess::start(&clone);
    first.kill();
    let only = Stack::builder().only([Service::Postgres]).grace(GRACE);
    let stack = only
        .never_given()
        .clone_at(clone.path())
        .start()
        .await
        .unwrap();
    let admin = postgres(stack.postgres().unwrap().admin_url().expose())
        .await
        .unwrap();
    let count = "SELECT count(*) FROM pg_database WHERE datname LIKE $1";
    let name = format!("%_t{}", first.sandbox);
    let started = Instant::now();
    loop {
        let left: i64 = admin.query_one(count, &[&name]).await.unwrap().get(0);
        if left == 0 {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Our own live process' sandboxes are not orphans.
    let mine = stack.sandbox("orders").await.unwrap();
    let _again = OtherProcess::start(&clone);
    postgres(&variable(&mine, "MAESTRO_POSTGRES_URL"))
        .await
        .unwrap();
}

/// As when a run is killed with everything around it.
async fn kill_guard(directory: &Path) {
    let guard = std::fs::read_to_string(directory.join("guard")).unwrap();
    let pid = guard.split(' ').next().unwrap();
    let killed = Command::new("kill").args(["-KILL", pid]).status().unwrap();
    assert!(killed.success());
    until("the guard's end", || !is_running(&guard)).await;
}

#[tokio::test]
async fn dedicated_servers_whose_guard_was_killed_are_gone_after_the_next_start_of_any_kind() {
    let clone = Clone::with(&[Service::Redis], GRACE);
    let dedicated = clone.path().join("dedicated");
    std::fs::write(&dedicated, "").unwrap();
    let mut first = OtherProcess::start(&clone);
    let homes = homes(&clone);
    let servers = Servers::of(&first, &homes);
    kill_guard(&homes[0].join("redis")).await;
    first.kill();
    assert!(servers.one_runs());

    std::fs::remove_file(dedicated).unwrap();
    let _second = OtherProcess::start(&clone);
    until("the old server's end", || !servers.one_runs()).await;
    until("no directory", || !homes[0].exists()).await;
}

#[tokio::test]
async fn a_server_whose_guard_was_killed_is_replaced_and_a_process_with_its_pid_is_not_touched() {
    let clone = Clone::with(&[Service::Redis], GRACE);
    let mut first = OtherProcess::start(&clone);
    let homes = homes(&clone);
    let servers = Servers::of(&first, &homes);
    let directory = homes[0].join("redis");
    // The guard is killed, and the pid it wrote down has become somebody else's. It goes first: after
    // the process it would stop the server.
    kill_guard(&directory).await;
    first.kill();
    let mut decoy = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(directory.join("companion"), format!("{} 1", decoy.id())).unwrap();
    assert!(is_listening(&first.servers[0]));

    let second = OtherProcess::start(&clone);
    // A container's port may be drawn again, by the new server or for a link of another test.
    let gone = || !servers.one_runs() || first.servers == second.servers;
    until("the old server's end", gone).await;
    assert!(is_listening(&second.servers[0]));
    assert_eq!(
        decoy.try_wait().unwrap(),
        None,
        "somebody else's process was killed"
    );
    decoy.kill().unwrap();
    decoy.wait().unwrap();
}
