//! TLS with a certificate authority of one's own, and a client certificate, against a real server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use maestro_config::Environment;
use maestro_db::{Db, DbConfig, ErrorKind};
use maestro_testkit::{Sandbox, Stack};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sqlx::{Connection as _, PgConnection};

use crate::support::{dedicated, eventually};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "tests");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key, PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A server that lets services in with a certificate alone, and the administrator as ever.
async fn server_with_tls(stack: &Stack, authority: &Authority) {
    let url = stack.postgres().unwrap().admin_url();
    let mut admin = PgConnection::connect(url.expose()).await.unwrap();
    let (certificate, key) = authority.issue("server", ExtendedKeyUsagePurpose::ServerAuth);
    let hba = "local all all trust\n\
         host all postgres all scram-sha-256\n\
         hostssl all all all scram-sha-256 clientcert=verify-full\n";
    for (file, text) in [
        ("server.crt", certificate.as_str()),
        ("server.key", key.as_str()),
        ("ca.crt", authority.pem.as_str()),
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
    eventually("TLS is on", Duration::from_secs(10), async || {
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
    let own = settings.iter().map(|(name, path)| {
        (
            format!("MAESTRO_POSTGRES_TLS_{name}"),
            path.display().to_string(),
        )
    });
    Environment::from_pairs(sandbox.environment().into_iter().chain(own))
        .read()
        .unwrap()
}

#[tokio::test]
async fn the_servers_certificate_is_verified_and_ours_is_shown() {
    let (stack, sandbox) = dedicated().await;
    let authority = Authority::new();
    server_with_tls(&stack, &authority).await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let role = config(&sandbox, &[]).role().to_owned();
    let ca = write("ca.pem", &authority.pem);
    let (certificate, key) = authority.issue(&role, ExtendedKeyUsagePurpose::ClientAuth);
    let (cert, key) = (write("client.pem", &certificate), write("client.key", &key));

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
    let (renewed, renewed_key) = authority.issue(&role, ExtendedKeyUsagePurpose::ClientAuth);
    write("client.pem", &renewed);
    write("client.key", &renewed_key);
    eventually(
        "the new one is shown",
        Duration::from_secs(10),
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
    let other = write("other.pem", &Authority::new().pem);
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
