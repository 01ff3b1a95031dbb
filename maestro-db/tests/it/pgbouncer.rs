//! Behind PgBouncer in transaction mode: of the version this machine has, used or refused.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use maestro_db::{Db, DbConfig, Error, ErrorKind, TenantModel};
use maestro_testkit::{Sandbox, tied};

use crate::coordination::{next, text};
use crate::observe::{OWN_TEXT, TAGS};
use crate::support::{eventually, migrator, read, sandbox, spare_port};

/// A PgBouncer before one sandbox, killed when dropped.
struct PgBouncer {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl PgBouncer {
    /// `[pgbouncer]` settings beyond the necessary.
    async fn start(sandbox: &Sandbox, sessions: usize, settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // It refuses to run as root, and then reads its files as somebody else.
        let as_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let direct = direct_url(sandbox, "MAESTRO_POSTGRES_URL");
        let (host, to) = (direct.host_str().unwrap(), direct.port().unwrap());
        let users = directory.path().join("users.txt");
        write(
            &users,
            &format!(
                "\"{}\" \"{}\"\n",
                direct.username(),
                direct.password().unwrap()
            ),
        );
        let prepared = if version() >= (1, 21) {
            "max_prepared_statements = 200"
        } else {
            ""
        };
        let ini = directory.path().join("pgbouncer.ini");
        let (process, port) = loop {
            let port = spare_port();
            write(
                &ini,
                &format!(
                    "[databases]\n* = host={host} port={to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                     unix_socket_dir =\nauth_type = plain\nauth_file = {}\npool_mode = transaction\n\
                     default_pool_size = {sessions}\nmax_client_conn = 2000\n{prepared}\n{settings}\n",
                    users.display()
                ),
            );
            let mut process = start(&ini, as_root);
            if listens(&mut process, port).await {
                break (process, port);
            }
        };
        Self {
            process,
            port,
            _directory: directory,
        }
    }

    /// The sandbox's settings through it.
    fn config(&self, sandbox: &Sandbox, pooler: &str, settings: &[(&str, &str)]) -> DbConfig {
        let mut url = direct_url(sandbox, "MAESTRO_POSTGRES_URL");
        url.set_port(Some(self.port)).unwrap();
        let pairs = sandbox.environment().into_iter().chain([
            ("MAESTRO_POSTGRES_URL".to_owned(), url.to_string()),
            ("MAESTRO_POSTGRES_POOLER".to_owned(), pooler.to_owned()),
        ]);
        read(pairs.collect(), settings)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(ini: &Path, as_root: bool) -> Child {
    let mut command = tied("pgbouncer");
    if as_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .arg(ini)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("PgBouncer is needed: apt-get install pgbouncer")
}

/// The id of the user and of the group that own nothing.
const NOBODY: u32 = 65_534;

/// False when it ended instead: somebody else had taken its port.
async fn listens(process: &mut Child, port: u16) -> bool {
    let mut lives = true;
    eventually("PgBouncer listens", Duration::from_mins(1), async || {
        let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        lives = process.try_wait().unwrap().is_none();
        !lives || connected.is_ok()
    })
    .await;
    lives
}

fn direct_url(sandbox: &Sandbox, name: &str) -> url::Url {
    let pairs = sandbox.direct_environment();
    pairs
        .iter()
        .find(|(key, _)| key == name)
        .unwrap()
        .1
        .parse()
        .unwrap()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
}

fn version() -> (u32, u32) {
    let output = Command::new("pgbouncer")
        .arg("-V")
        .output()
        .expect("PgBouncer is needed: apt-get install pgbouncer");
    let text = String::from_utf8(output.stdout).unwrap();
    let number = text.split_whitespace().nth(1).unwrap();
    let mut parts = number.split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

#[tokio::test]
async fn a_pgbouncer_that_nobody_mentioned_is_refused_with_the_setting_that_mends_it() {
    let sandbox = sandbox().await;
    for ignored in ["", "ignore_startup_parameters = extra_float_digits,options"] {
        let bouncer = PgBouncer::start(&sandbox, 5, ignored).await;
        let error = Db::connect(bouncer.config(&sandbox, "none", &[]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(
            error
                .to_string()
                .contains("MAESTRO_POSTGRES_POOLER=pgbouncer"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_pgbouncer_is_used_from_1_21_on_and_refused_with_the_reason_before() {
    let sandbox = sandbox().await;
    let bouncer = PgBouncer::start(&sandbox, 5, "").await;
    let connected = Db::connect(bouncer.config(&sandbox, "pgbouncer", &[])).await;
    if version() >= (1, 21) {
        let db = connected.unwrap();
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(&db).await.unwrap();
        assert_eq!(one, 1);
        // Past PgBouncer, by the direct URL.
        let mut listener = db.listen(&["orders"]).await.unwrap();
        sqlx::query("select pg_notify('orders', 'placed')")
            .execute(&db)
            .await
            .unwrap();
        assert_eq!(text(next(&mut listener).await).1, "placed");
    } else {
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("1.21"), "{error}");
        assert!(
            error.to_string().contains("max_prepared_statements"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_pgbouncer_without_prepared_statements_is_refused_whatever_its_version() {
    let sandbox = sandbox().await;
    let off = if version() >= (1, 21) {
        "max_prepared_statements = 0"
    } else {
        ""
    };
    let bouncer = PgBouncer::start(&sandbox, 5, off).await;
    let error = Db::connect(bouncer.config(&sandbox, "pgbouncer", &[]))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("max_prepared_statements"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pgbouncer_in_session_mode_is_used_and_one_in_statement_mode_refused() {
    let sandbox = sandbox().await;
    let bouncer = PgBouncer::start(&sandbox, 5, "pool_mode = session").await;
    let db = Db::connect(bouncer.config(&sandbox, "pgbouncer", &[]))
        .await
        .unwrap();
    sqlx::query("select 1").execute(&db).await.unwrap();
    let bouncer = PgBouncer::start(&sandbox, 5, "pool_mode = statement").await;
    let error = Db::connect(bouncer.config(&sandbox, "pgbouncer", &[]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("statement mode"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_shall_not_be_kept_get_their_own_rows_all_the_same() {
    let sandbox = sandbox().await;
    let bouncer = PgBouncer::start(&sandbox, 3, "").await;
    let connected = Db::connect(bouncer.config(&sandbox, "pgbouncer", &[])).await;
    if version() < (1, 21) {
        connected.unwrap_err();
        return;
    }
    let db = connected.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..10_i32 {
        let db = db.clone();
        clients.spawn(async move {
            for n in 0..100_i32 {
                let sql = format!("select {client} * 1000 + $1");
                let found: i32 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                    .bind(n)
                    .persistent(false)
                    .fetch_one(&db)
                    .await
                    .unwrap();
                assert_eq!(found, client * 1000 + n);
            }
        });
    }
    clients.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_named_behind_a_pgbouncer_and_its_statements_are_kept() {
    let sandbox = sandbox().await;
    let bouncer = PgBouncer::start(&sandbox, 2, "").await;
    let settings = [("STATEMENT_TAGS", "service"), ("POOL_MAX", "8")];
    let connected = Db::connect(bouncer.config(&sandbox, "pgbouncer", &settings)).await;
    if version() < (1, 21) {
        connected.unwrap_err();
        return;
    }
    let db = connected.unwrap();
    let own = || sqlx::query_scalar::<_, String>(OWN_TEXT).fetch_one(&db);
    for _ in 0..20 {
        for own in futures_util::future::join_all((0..8).map(|_| own())).await {
            assert_eq!(own.unwrap(), format!("{OWN_TEXT} {TAGS}"));
        }
    }
    // PgBouncer gives a text one name, whichever client prepares it.
    let prepared: i64 = sqlx::query_scalar(
        "select count(*) from pg_prepared_statements where statement like 'select query from%'",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!(prepared, 1);
    let name: String = sqlx::query_scalar("select current_setting('application_name')")
        .fetch_one(&db)
        .await
        .unwrap();
    assert!(name.starts_with("orders/0.0.0/"), "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_on_two_sessions_of_a_pgbouncer_never_see_each_others_rows() {
    let (sandbox, _direct) = crate::tenants::tenants(&[]).await;
    on_two_sessions(&sandbox, TenantModel::Rows, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_with_schemas_on_two_sessions_of_a_pgbouncer_never_see_each_others_rows() {
    let (sandbox, _direct) = crate::schemas::tenants(&[]).await;
    on_two_sessions(&sandbox, TenantModel::Schemas, "tenant_acme.orders").await;
}

async fn on_two_sessions(sandbox: &Sandbox, model: TenantModel, table: &'static str) {
    let bouncer = PgBouncer::start(sandbox, 2, "").await;
    let settings = [("POOL_MAX", "8")];
    let connected = Db::builder(bouncer.config(sandbox, "pgbouncer", &settings))
        .tenants(model)
        .connect()
        .await;
    if version() < (1, 21) {
        connected.unwrap_err();
        return;
    }
    crate::leaks::campaign(&connected.unwrap(), table).await;
}

/// Of the version that can: a thousand clients, each a connection of its own, on 25 sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_share_twenty_five_sessions() {
    let sandbox = sandbox().await;
    let bouncer = PgBouncer::start(&sandbox, 25, "").await;
    let settings = [
        ("POOL_MAX", "1000"),
        ("POOL_MIN", "1000"),
        ("ACQUIRE_TIMEOUT", "120s"),
        ("CONNECT_TIMEOUT", "120s"),
    ];
    let connected = Db::connect(bouncer.config(&sandbox, "pgbouncer", &settings)).await;
    if version() < (1, 21) {
        let error = connected.unwrap_err();
        assert!(error.to_string().contains("1.21"), "{error}");
        return;
    }
    let db = connected.unwrap();
    db.migrate(&migrator(&["create table notes (client int, n int)"]))
        .await
        .unwrap();
    eventually(
        "a thousand clients are connected",
        Duration::from_mins(2),
        || async { db.pool_report().total() == 1_000 },
    )
    .await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..1_000 {
        let db = db.clone();
        clients.spawn(async move {
            for n in 0..3 {
                let mut tx = db.begin().await?;
                sqlx::query("insert into notes values ($1, $2)")
                    .bind(client)
                    .bind(n)
                    .execute(&mut tx)
                    .await?;
                let mine: i64 = sqlx::query_scalar("select count(*) from notes where client = $1")
                    .bind(client)
                    .fetch_one(&mut tx)
                    .await?;
                assert_eq!(mine, i64::from(n) + 1);
                tx.commit().await?;
            }
            Ok::<_, Error>(())
        });
    }
    for result in clients.join_all().await {
        result.unwrap();
    }
    let all: i64 = sqlx::query_scalar("select count(*) from notes")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(all, 3_000);
    let sessions: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and usename = current_user",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert!(sessions <= 25, "{sessions}");
}
