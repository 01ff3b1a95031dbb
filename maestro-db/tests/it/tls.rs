//! TLS with a certificate authority of one's own, and a client certificate, against a real server.

use std::path::Path;
use std::time::Duration;

use maestro_db::{Db, DbConfig, ErrorKind};
use maestro_testkit::{Authority, Sandbox, Stack};
use sqlx::{Connection as _, PgConnection};

use crate::support::{dedicated, eventually, read};

/// A server that lets services in with a certificate alone, and the administrator as ever.
async fn server_with_tls(stack: &Stack, authority: &Authority) {
    let url = stack.postgres().unwrap().admin_url();
    let mut admin = PgConnection::connect(url.expose()).await.unwrap();
    let server = authority.server().unwrap();
    let hba = "local all all trust\n\
         host all postgres all scram-sha-256\n\
         hostssl all all all scram-sha-256 clientcert=verify-full\n";
    for (file, text) in [
        ("server.crt", server.pem()),
        ("server.key", server.key()),
        ("ca.crt", authority.pem()),
        ("pg_hba.conf", hba),
    ] {
        // Written by the server, so that the files are its own wherever it runs.
        let sql = format!(
            "copy (select unnest(string_to_array('{}', E'\\n'))) to program 'umask 077; cat > {file}'",
            text.trim_end()
        );
        execute(&mut admin, &sql).await;
    }
    execute(&mut admin, "alter system set ssl_ca_file = 'ca.crt'").await;
    execute(&mut admin, "alter system set ssl = on").await;
    execute(&mut admin, "select pg_reload_conf()").await;
    admin.close().await.unwrap();
    eventually("TLS is on", Duration::from_mins(1), async || {
        let Ok(mut admin) = PgConnection::connect(url.expose()).await else {
            return false;
        };
        let on: bool =
            sqlx::query_scalar("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
                .fetch_one(&mut admin)
                .await
                .unwrap();
        on
    })
    .await;
}

async fn execute(admin: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(admin)
        .await
        .unwrap();
}

fn config(sandbox: &Sandbox, settings: &[(&str, &Path)]) -> DbConfig {
    let own = settings
        .iter()
        .map(|(name, path)| (format!("TLS_{name}"), path.display().to_string()));
    let own: Vec<_> = own.collect();
    let own: Vec<_> = own
        .iter()
        .map(|(name, path)| (name.as_str(), path.as_str()))
        .collect();
    read(sandbox.environment(), &own)
}

#[tokio::test]
async fn the_servers_certificate_is_verified_and_ours_is_shown() {
    let (stack, sandbox) = dedicated().await;
    let authority = Authority::new().unwrap();
    server_with_tls(&stack, &authority).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let role = config(&sandbox, &[]).role().to_owned();
    let ca = authority.write(directory, "ca").unwrap();
    let issue = || authority.client(&role).unwrap().write(directory, "client");
    let (cert, key) = issue().unwrap();

    let db = Db::connect(config(
        &sandbox,
        &[("CA", &ca), ("CERT", &cert), ("KEY", &key)],
    ))
    .await
    .unwrap();
    let (on, name): (bool, String) =
        sqlx::query_as("select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()")
            .fetch_one(&db)
            .await
            .unwrap();
    assert!(on);
    assert_eq!(name, format!("/CN={role}"));
    // Migrations and listeners show it too.
    db.migrate(&crate::support::migrator(&["create table t (id int)"]))
        .await
        .unwrap_err();
    db.listen(&["news"]).await.unwrap();

    // A renewed certificate is taken up by the next connection.
    let serial = "select client_serial::text from pg_stat_ssl where pid = pg_backend_pid()";
    let first: String = sqlx::query_scalar(serial).fetch_one(&db).await.unwrap();
    issue().unwrap();
    eventually(
        "the new one is shown",
        Duration::from_secs(30),
        async || {
            let mut tx = db.begin().await.unwrap();
            // Closes the connection afterwards.
            tx.connection().unwrap();
            tx.rollback().await.unwrap();
            let now: String = sqlx::query_scalar(serial).fetch_one(&db).await.unwrap();
            now != first
        },
    )
    .await;

    // Without a certificate the server refuses; with somebody else's authority we do.
    let error = Db::connect(config(&sandbox, &[("CA", &ca)]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let other = Authority::new().unwrap().write(directory, "other").unwrap();
    let error = Db::connect(config(
        &sandbox,
        &[("CA", &other), ("CERT", &cert), ("KEY", &key)],
    ))
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.to_string().contains("MAESTRO_POSTGRES_TLS_CA"),
        "{error}"
    );
}
