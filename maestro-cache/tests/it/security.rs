//! Passwords that rotate, and TLS with an authority of one's own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Region};
use maestro_config::Environment;
use tokio::process::{Child, Command};

use crate::place::{Report, admin, config, eventually, healthy, report, sandbox};

/// Gives the service's user this password and hangs up on it.
async fn rotate(sandbox: &maestro_testkit::Sandbox, password: &str) {
    let mut admin = admin(sandbox).await;
    let user = sandbox.resources().redis_user();
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", user, "resetpass", &format!(">{password}")])
        .query_async(&mut admin)
        .await
        .unwrap();
    let () = redis::cmd("CLIENT")
        .arg(&["KILL", "USER", user])
        .query_async(&mut admin)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_rotated_on_disk_is_taken_up_under_load_without_a_failed_request() {
    let sandbox = sandbox().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let pairs = sandbox.environment();
    let (_, url) = pairs
        .iter()
        .find(|(name, _)| name == "MAESTRO_CACHE_URL")
        .unwrap();
    let mut url = url::Url::parse(url).unwrap();
    std::fs::write(&file, url.password().unwrap()).unwrap();
    url.set_password(None).unwrap();
    let changes = [
        ("MAESTRO_CACHE_URL", url.as_str()),
        ("MAESTRO_CACHE_PASSWORD_FILE", file.to_str().unwrap()),
    ];
    let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
    healthy(&cache).await;
    let reports: Region<Report> = cache.region("report").build().unwrap();
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8_u64 {
        let (reports, stop, done) = (reports.clone(), Arc::clone(&stop), Arc::clone(&done));
        clients.spawn(async move {
            let mut id = client;
            while !stop.load(Ordering::Relaxed) {
                id = (id * 31 + 7) % 500;
                let load = move || async move { Ok::<_, std::io::Error>(report(id)) };
                let value = reports.entry(id).get_or_load(load).await.unwrap();
                assert_eq!(*value, report(id));
                done.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    // Of the same length, and rewritten in place: the clock of the file system may not tell.
    for (round, disk_first) in [true, false, true].into_iter().enumerate() {
        let password = format!("rotated-{round}-{}", "x".repeat(20));
        if disk_first {
            std::fs::write(&file, &password).unwrap();
        }
        rotate(&sandbox, &password).await;
        if !disk_first {
            eventually("the old password is refused", || async {
                let status = cache.health_check().run().await;
                status.state() != maestro_metrics::HealthState::Healthy
            })
            .await;
            std::fs::write(&file, &password).unwrap();
        }
        let rotated = Instant::now();
        healthy(&cache).await;
        println!("well again {:?} after rotation {round}", rotated.elapsed());
        let before = done.load(Ordering::Relaxed);
        eventually("requests go on", || async {
            done.load(Ordering::Relaxed) > before + 100
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// A Redis that speaks TLS only, with an authority of its own.
struct Encrypted {
    directory: tempfile::TempDir,
    port: u16,
    _server: Child,
}

impl Encrypted {
    async fn start(client_certificates: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        authority(at, "ca").await;
        authority(at, "other").await;
        signed(at, "server", "subjectAltName=IP:127.0.0.1,DNS:localhost").await;
        signed(at, "client", "extendedKeyUsage=clientAuth").await;
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
        let server = Command::new("redis-server")
            .args(["--port", "0", "--bind", "127.0.0.1", "--save", ""])
            .args(["--tls-port", &port.to_string()])
            .args(["--tls-cert-file", &path("server.pem")])
            .args(["--tls-key-file", &path("server.key")])
            .args(["--tls-ca-cert-file", &path("ca.pem")])
            .args([
                "--tls-auth-clients",
                if client_certificates { "yes" } else { "no" },
            ])
            .args(["--requirepass", "canary", "--dir", at.to_str().unwrap()])
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the server listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
        })
        .await;
        Self {
            directory,
            port,
            _server: server,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn config(&self, host: &str, files: &[(&str, &str)]) -> CacheConfig {
        let mut pairs = vec![
            ("MAESTRO_SERVICE_NAME".to_owned(), "reports".to_owned()),
            (
                "MAESTRO_CACHE_URL".to_owned(),
                format!("rediss://:canary@{host}:{}/0", self.port),
            ),
        ];
        for (variable, file) in files {
            pairs.push((format!("MAESTRO_CACHE_TLS_{variable}"), self.path(file)));
        }
        Environment::from_pairs(pairs).read().unwrap()
    }
}

async fn openssl(at: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(at)
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
];

async fn authority(at: &Path, name: &str) {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
    let subject = format!("/CN={name}");
    let mut arguments = vec!["req", "-x509", "-days", "2", "-subj", &subject];
    arguments.extend(KEY);
    arguments.extend(["-keyout", &key, "-out", &certificate]);
    openssl(at, &arguments).await;
}

async fn signed(at: &Path, name: &str, extension: &str) {
    let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
    let (certificate, extensions) = (format!("{name}.pem"), format!("{name}.ext"));
    let subject = format!("/CN={name}");
    let mut arguments = vec!["req", "-subj", &subject];
    arguments.extend(KEY);
    arguments.extend(["-keyout", &key, "-out", &request]);
    openssl(at, &arguments).await;
    std::fs::write(at.join(&extensions), format!("{extension}\n")).unwrap();
    openssl(
        at,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ],
    )
    .await;
}

async fn round_trip(config: CacheConfig) -> Result<(), maestro_cache::Error> {
    let cache = Cache::connect(config).await?;
    let reports: Region<Report> = cache.region("report").build()?;
    // A put without Redis is deferred, so the read tells.
    reports.put(1_u64, report(1)).await?;
    let read = reports.get(1_u64).await?;
    assert_eq!(read.as_deref(), Some(&report(1)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_our_own_authority_and_by_no_other() {
    let server = Encrypted::start(false).await;
    let own = server.config("127.0.0.1", &[("CA", "ca.pem")]);
    round_trip(own).await.unwrap();
    let by_name = server.config("localhost", &[("CA", "ca.pem")]);
    round_trip(by_name).await.unwrap();
    let other = server.config("127.0.0.1", &[("CA", "other.pem")]);
    let error = round_trip(other).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(!format!("{error:?}").contains("canary"));
    // The system's authorities do not know it either.
    assert!(round_trip(server.config("127.0.0.1", &[])).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_proves_itself_by_its_certificate() {
    let server = Encrypted::start(true).await;
    let files = [
        ("CA", "ca.pem"),
        ("CERT", "client.pem"),
        ("KEY", "client.key"),
    ];
    round_trip(server.config("127.0.0.1", &files))
        .await
        .unwrap();
    let without = server.config("127.0.0.1", &[("CA", "ca.pem")]);
    assert!(round_trip(without).await.is_err());
}
