//! A real streaming standby: reads within the lag bound, failover under load.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use maestro_db::{Db, DbConfig, Error, ErrorKind};
use maestro_testkit::{Sandbox, Stack, tied};
use parking_lot::Mutex;
use sqlx::{Connection as _, PgConnection};
use url::Url;

use crate::support::{eventually, migrator, on_this_machine, read, spare_port};

/// A standby of a stack's server, killed when dropped.
pub(crate) struct Standby {
    process: Child,
    programs: PathBuf,
    data: tempfile::TempDir,
    pub(crate) port: u16,
    admin: Url,
}

impl Standby {
    pub(crate) async fn of(stack: &Stack) -> Self {
        let primary = stack.postgres().unwrap();
        let admin: Url = primary.admin_url().expose().parse().unwrap();
        let hba = "copy (select 'host replication all 127.0.0.1/32 scram-sha-256') to program 'cat >> pg_hba.conf'; select pg_reload_conf()";
        execute(&admin, hba).await;
        let version = "select (current_setting('server_version_num')::int / 10000)::text";
        let mut asked = PgConnection::connect(admin.as_str()).await.unwrap();
        let major: String = sqlx::query_scalar(version)
            .fetch_one(&mut asked)
            .await
            .unwrap();
        asked.close().await.unwrap();
        let programs = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let data = tempfile::tempdir().unwrap();
        if let Some((user, group)) = account() {
            std::os::unix::fs::chown(data.path(), Some(user), Some(group)).unwrap();
        }
        let host = admin.host_str().unwrap();
        let connection = format!(
            "host={host} port={} user={}",
            admin.port().unwrap(),
            admin.username()
        );
        let mut copy = command(&programs, "pg_basebackup");
        // Arguments are seen by everybody. `-R` writes it to the standby's own settings.
        copy.env("PGPASSWORD", admin.password().unwrap());
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .args(["-d", &connection, "-D"])
            .arg(data.path().join("data"));
        let done = tokio::task::spawn_blocking(move || copy.output())
            .await
            .unwrap();
        let done = done.expect("pg_basebackup of the server's version is needed");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let mut admin = admin;
        let (process, port) = loop {
            let port = spare_port();
            admin.set_port(Some(port)).unwrap();
            let mut process = start(&programs, &data, port);
            if answers(&mut process, &admin).await {
                break (process, port);
            }
        };
        Self {
            process,
            programs,
            data,
            port,
            admin,
        }
    }

    fn kill(&mut self) {
        // Immediate shutdown: it takes its children along.
        let quit = Command::new("kill")
            .args(["-QUIT", &self.process.id().to_string()])
            .status();
        assert!(quit.unwrap().success());
        self.process.wait().unwrap();
    }

    async fn start(&mut self) {
        self.process = start(&self.programs, &self.data, self.port);
        assert!(
            answers(&mut self.process, &self.admin).await,
            "the standby did not start again"
        );
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.kill();
        }
    }
}

/// False when it ended instead: somebody else had taken its port.
async fn answers(process: &mut Child, url: &Url) -> bool {
    let mut lives = true;
    eventually("the standby answers", SOON, async || {
        lives = process.try_wait().unwrap().is_none();
        !lives || PgConnection::connect(url.as_str()).await.is_ok()
    })
    .await;
    lives
}

fn start(programs: &std::path::Path, data: &tempfile::TempDir, port: u16) -> Child {
    let mut server = command(programs, "postgres");
    server.arg("-D").arg(data.path().join("data"));
    for setting in [
        &format!("port={port}"),
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        // At least the primary's, or it does not start.
        "max_connections=400",
        "dynamic_shared_memory_type=mmap",
    ] {
        server.args(["-c", setting]);
    }
    server.spawn().unwrap()
}

fn command(programs: &std::path::Path, name: &str) -> Command {
    let mut command = tied(programs.join(name));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/");
    if let Some((user, group)) = account() {
        command.uid(user).gid(group);
    }
    command
}

/// PostgreSQL refuses to run as root: as whom it runs then.
fn account() -> Option<(u32, u32)> {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    root.then(|| (fields.next().unwrap(), fields.next().unwrap()))
}

async fn execute(url: &Url, sql: &str) {
    let mut admin = PgConnection::connect(url.as_str()).await.unwrap();
    let sql = sqlx::AssertSqlSafe(sql);
    sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
}

/// Past the sandbox's link, whose port would hide the server's.
pub(crate) fn config(
    sandbox: &Sandbox,
    main: u16,
    standby: Option<u16>,
    settings: &[(&str, &str)],
) -> DbConfig {
    let mut pairs = sandbox.direct_environment();
    let at = |name: &str, port: u16| {
        let found = pairs.iter().find(|(key, _)| key == name).unwrap();
        let mut url: Url = found.1.parse().unwrap();
        url.set_port(Some(port)).unwrap();
        url.to_string()
    };
    let mut own = vec![(
        "MAESTRO_POSTGRES_URL".to_owned(),
        at("MAESTRO_POSTGRES_URL", main),
    )];
    if let Some(standby) = standby {
        own.push((
            "MAESTRO_POSTGRES_READ_URL".to_owned(),
            at("MAESTRO_POSTGRES_URL", standby),
        ));
    }
    pairs.extend(own);
    read(pairs, settings)
}

/// Until the standby has the table, a read there does not.
async fn has_ticks(standby: &Standby, sandbox: &Sandbox) {
    let mut url = standby.admin.clone();
    url.set_path(sandbox.resources().database());
    eventually("the table is there", SOON, async || {
        let mut admin = PgConnection::connect(url.as_str()).await.unwrap();
        let ticks = sqlx::query("select from ticks").execute(&mut admin).await;
        ticks.is_ok()
    })
    .await;
}

async fn port_of(db: &Db) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select inet_server_port()")
        .fetch_one(&db.read())
        .await
}

pub(crate) async fn reads_go_to(db: &Db, port: u16, when: &str) {
    eventually(when, SOON, async || {
        port_of(db)
            .await
            .is_ok_and(|found| found == i32::from(port))
    })
    .await;
}

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_mins(1);

const LAG: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_answered_by_the_standby_and_never_older_than_the_bound() {
    let (stack, sandbox) = on_this_machine().await;
    let primary = Url::parse(stack.postgres().unwrap().admin_url().expose())
        .unwrap()
        .port()
        .unwrap();
    let mut standby = Standby::of(&stack).await;
    let settings = [("READ_MAX_LAG", "1s")];
    let db = Db::connect(config(&sandbox, primary, Some(standby.port), &settings))
        .await
        .unwrap();
    db.migrate(&migrator(&["create table ticks (n bigint primary key)"]))
        .await
        .unwrap();

    has_ticks(&standby, &sandbox).await;

    // A writer, and a reader that remembers what was committed when.
    let over = Arc::new(AtomicBool::new(false));
    let committed: Arc<Mutex<Vec<(Instant, i64)>>> = Arc::default();
    let writer = tokio::spawn({
        let (db, over, committed) = (db.clone(), Arc::clone(&over), Arc::clone(&committed));
        async move {
            for n in 1.. {
                sqlx::query("insert into ticks values ($1)")
                    .bind(n)
                    .execute(&db)
                    .await
                    .unwrap();
                committed.lock().push((Instant::now(), n));
                if over.load(Ordering::Relaxed) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let reader = tokio::spawn({
        let (db, over, committed) = (db.clone(), Arc::clone(&over), Arc::clone(&committed));
        async move {
            while !over.load(Ordering::Relaxed) {
                let due = Instant::now().checked_sub(LAG);
                let must_be_there = committed
                    .lock()
                    .iter()
                    .rev()
                    .find(|(at, _)| due.is_some_and(|due| *at < due))
                    .map_or(0, |(_, n)| *n);
                let seen: i64 = sqlx::query_scalar("select coalesce(max(n), 0) from ticks")
                    .fetch_one(&db.read())
                    .await
                    .unwrap();
                assert!(
                    seen >= must_be_there,
                    "{seen} was read where {must_be_there} was due"
                );
            }
        }
    });
    reads_go_to(&db, standby.port, "reads go to the standby").await;

    // It falls behind, and catches up.
    execute(&standby.admin, "select pg_wal_replay_pause()").await;
    reads_go_to(
        &db,
        primary,
        "reads go to the primary when the standby lags",
    )
    .await;
    execute(&standby.admin, "select pg_wal_replay_resume()").await;
    reads_go_to(
        &db,
        standby.port,
        "reads go to the standby once it has caught up",
    )
    .await;

    // It stops, in the middle of everything, and no read fails.
    standby.kill();
    reads_go_to(
        &db,
        primary,
        "reads go to the primary when the standby is gone",
    )
    .await;
    standby.start().await;
    reads_go_to(&db, standby.port, "reads go to the standby once it is back").await;

    // So do transactions; not each of them on a busy machine, on which it may lag at any moment.
    eventually("a transaction reads on the standby", SOON, async || {
        let mut tx = db.read().begin().await.unwrap();
        let port: i32 = sqlx::query_scalar("select inet_server_port()")
            .fetch_one(&mut tx)
            .await
            .unwrap();
        tx.rollback().await.unwrap();
        port == i32::from(standby.port)
    })
    .await;
    let error = sqlx::query("delete from ticks")
        .execute(&db.read())
        .await
        .unwrap_err();
    assert_eq!(Error::from(error).kind(), ErrorKind::Rejected);

    over.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_promoted_under_load_is_followed_and_no_acknowledged_row_is_missing() {
    let (stack, sandbox) = on_this_machine().await;
    let server = stack.postgres().unwrap();
    let admin = Url::parse(server.admin_url().expose()).unwrap();
    let standby = Standby::of(&stack).await;
    // What is acknowledged is on the standby too.
    execute(&admin, "alter system set synchronous_standby_names = '*'").await;
    execute(&admin, "select pg_reload_conf()").await;
    eventually("the standby is waited for", SOON, async || {
        let mut admin = PgConnection::connect(admin.as_str()).await.unwrap();
        let states = "select sync_state from pg_stat_replication";
        let states: Vec<String> = sqlx::query_scalar(states)
            .fetch_all(&mut admin)
            .await
            .unwrap();
        states == ["sync"]
    })
    .await;
    // A statement that reaches its limit while it waits for the standby is acknowledged without it.
    let settings = [("ACQUIRE_TIMEOUT", "2s"), ("STATEMENT_TIMEOUT", "2m")];
    let config = config(
        &sandbox,
        admin.port().unwrap(),
        Some(standby.port),
        &settings,
    );
    let db = Db::builder(config)
        .wait_for_server(SOON)
        .connect()
        .await
        .unwrap();
    db.migrate(&migrator(&["create table ticks (n bigint primary key)"]))
        .await
        .unwrap();

    has_ticks(&standby, &sandbox).await;

    let over = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicI64::new(1));
    let acknowledged: Arc<Mutex<Vec<i64>>> = Arc::default();
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (db, over, next, acknowledged) = (
            db.clone(),
            Arc::clone(&over),
            Arc::clone(&next),
            Arc::clone(&acknowledged),
        );
        load.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let write = sqlx::query("insert into ticks values ($1)")
                    .bind(n)
                    .execute(&db)
                    .await;
                match write.map_err(Error::from) {
                    Ok(_) => acknowledged.lock().push(n),
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
                let read = sqlx::query("select max(n) from ticks")
                    .execute(&db.read())
                    .await;
                if let Err(error) = read.map_err(Error::from) {
                    assert!(error.is_transient(), "{error}");
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let more = async |when: &str| {
        let before = acknowledged.lock().len();
        eventually(when, SOON, async || acknowledged.lock().len() > before + 50).await;
    };
    more("rows are written").await;
    server.kill().await.unwrap();
    let promoted = Instant::now();
    execute(&standby.admin, "select pg_promote()").await;
    more("rows are written to the promoted standby").await;
    eprintln!(
        "50 more rows {:?} after the promotion began",
        promoted.elapsed()
    );
    // Those that wait for the dead server are over.
    more("work goes on").await;
    over.store(true, Ordering::Relaxed);
    while let Some(result) = load.join_next().await {
        result.unwrap();
    }
    let stored: Vec<i64> = sqlx::query_scalar("select n from ticks")
        .fetch_all(&db)
        .await
        .unwrap();
    let stored: std::collections::HashSet<i64> = stored.into_iter().collect();
    let missing: Vec<i64> = acknowledged
        .lock()
        .iter()
        .filter(|n| !stored.contains(n))
        .copied()
        .collect();
    assert_eq!(missing, [] as [i64; 0]);
    assert_eq!(port_of(&db).await.unwrap(), i32::from(standby.port));
}

#[tokio::test]
async fn writes_find_the_primary_when_the_two_urls_are_swapped_or_a_name_leads_elsewhere() {
    let (stack, sandbox) = on_this_machine().await;
    let primary = Url::parse(stack.postgres().unwrap().admin_url().expose())
        .unwrap()
        .port()
        .unwrap();
    let standby = Standby::of(&stack).await;
    let direct = Db::connect(config(&sandbox, primary, None, &[]))
        .await
        .unwrap();
    direct
        .migrate(&migrator(&["create table ticks (n bigint)"]))
        .await
        .unwrap();
    has_ticks(&standby, &sandbox).await;

    let write = async |db: &Db| {
        sqlx::query("insert into ticks values (1)")
            .execute(db)
            .await
    };
    let swapped = Db::connect(config(&sandbox, standby.port, Some(primary), &[]))
        .await
        .unwrap();
    write(&swapped).await.unwrap();

    // One URL, behind which another server answers from some moment on; connections stay open.
    let target = Arc::new(std::sync::atomic::AtomicU16::new(standby.port));
    let name = forward(Arc::clone(&target)).await;
    let db = Db::connect(config(&sandbox, name, None, &[("POOL_MAX", "2")]))
        .await
        .unwrap();
    let error = Error::from(write(&db).await.unwrap_err());
    assert_eq!(
        (error.kind(), error.sqlstate().as_deref()),
        (ErrorKind::Unavailable, Some("25006"))
    );
    target.store(primary, Ordering::Relaxed);
    write(&db).await.unwrap();
}

/// A port that leads to another one, which can be changed for new connections.
async fn forward(target: Arc<std::sync::atomic::AtomicU16>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = ("127.0.0.1", target.load(Ordering::Relaxed));
            tokio::spawn(async move {
                if let Ok(mut server) = tokio::net::TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    port
}
