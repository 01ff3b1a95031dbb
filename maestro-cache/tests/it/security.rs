//! Passwords that rotate, and TLS with an authority of one's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Region};
use maestro_config::Environment;
use maestro_testkit::{Authority, Sandbox, Service, Stack};

use crate::place::{PATIENT, Report, change_user, config, eventually, healthy, report, sandbox};

/// Gives the service's user this password and hangs up on it.
async fn rotate(sandbox: &Sandbox, password: &str) {
    change_user(sandbox, &["resetpass", &format!(">{password}")]).await;
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

/// A Redis that speaks TLS, and the files to talk to it with.
struct Encrypted {
    sandbox: Sandbox,
    directory: tempfile::TempDir,
}

impl Encrypted {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let stack = Stack::builder()
            .only([Service::Redis])
            .encrypted(&authority)
            .dedicated()
            .await
            .unwrap();
        let at = directory.path();
        authority.write(at, "ca").unwrap();
        authority
            .client("reports")
            .unwrap()
            .write(at, "client")
            .unwrap();
        Authority::new().unwrap().write(at, "other").unwrap();
        Self {
            sandbox: stack.sandbox("reports").await.unwrap(),
            directory,
        }
    }

    fn password(&self) -> String {
        let pairs = self.sandbox.environment();
        let url = pairs.iter().find(|(name, _)| name == "MAESTRO_CACHE_URL");
        let url: url::Url = url.unwrap().1.parse().unwrap();
        url.password().unwrap().to_owned()
    }

    fn config(&self, host: &str, files: &[(&str, &str)]) -> CacheConfig {
        let mut pairs = self.sandbox.encrypted_environment();
        for (name, value) in &mut pairs {
            if name == "MAESTRO_CACHE_URL" {
                let mut url: url::Url = value.parse().unwrap();
                url.set_host(Some(host)).unwrap();
                *value = url.into();
            }
        }
        let files = files.iter().map(|(variable, file)| {
            let path = self.directory.path().join(file);
            let variable = format!("MAESTRO_CACHE_TLS_{variable}");
            (variable, path.to_str().unwrap().to_owned())
        });
        let patient = PATIENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Environment::from_pairs(pairs.into_iter().chain(files).chain(patient))
            .read()
            .unwrap()
    }
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
async fn server_and_client_trust_each_other_by_our_own_authority_and_by_no_other() {
    let server = Encrypted::start().await;
    let files = |ca| [("CA", ca), ("CERT", "client.pem"), ("KEY", "client.key")];
    for host in ["127.0.0.1", "localhost"] {
        round_trip(server.config(host, &files("ca.pem")))
            .await
            .unwrap();
    }
    let other = server.config("127.0.0.1", &files("other.pem"));
    let error = round_trip(other).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(!format!("{error:?}").contains(&server.password()));
    // The system's authorities do not know it either.
    let system = server.config("127.0.0.1", &files("ca.pem")[1..]);
    assert!(round_trip(system).await.is_err());
    // A client without a certificate is nobody.
    let without = server.config("127.0.0.1", &files("ca.pem")[..1]);
    assert!(round_trip(without).await.is_err());
}
