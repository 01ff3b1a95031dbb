//! What the server refuses, and what is stored there that is not ours.

use std::time::Duration;

use maestro_cache::{Cache, ErrorKind, Outcome, Region};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::place::{
    Report, admin, cache, config, dedicated, eventually, healthy, report, sandbox, says,
};

async fn failed_put(cache: &Cache) -> maestro_cache::Error {
    let reports: Region<Report> = cache.region("report").build().unwrap();
    reports.put(1_u64, report(1)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_prefix_is_refused_by_the_server_as_denied() {
    let sandbox = sandbox().await;
    let changes = [("MAESTRO_CACHE_PREFIX", "somebody-else:")];
    let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
    let error = failed_put(&cache).await;
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("~somebody-else:*"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_not_shown() {
    let sandbox = sandbox().await;
    let changes = [("MAESTRO_CACHE_PASSWORD", "canary")];
    let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
    let error = failed_put_or_get(&cache).await;
    let mut chain = vec![error.to_string()];
    let mut next = std::error::Error::source(&error);
    let mut kinds = vec![error.kind()];
    while let Some(source) = next {
        chain.push(source.to_string());
        kinds.extend(
            source
                .downcast_ref::<maestro_cache::Error>()
                .map(maestro_cache::Error::kind),
        );
        next = source.source();
    }
    assert!(kinds.contains(&ErrorKind::Credentials), "{chain:?}");
    assert!(
        chain
            .iter()
            .any(|text| text.contains("MAESTRO_CACHE_PASSWORD")),
        "{chain:?}"
    );
    assert!(!format!("{error:?} {chain:?}").contains("canary"));
}

async fn failed_put_or_get(cache: &Cache) -> maestro_cache::Error {
    let reports: Region<Report> = cache.region("report").build().unwrap();
    reports.get(1_u64).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_still_invalidates() {
    let place = dedicated().await;
    let cache = cache(&place.sandbox).await;
    let reports: Region<Report> = cache.region("report").build().unwrap();
    reports.put(1_u64, report(1)).await.unwrap();
    reports.entry(2_u64).tag("p").put(report(2)).await.unwrap();
    let mut admin = place.admin().await;
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1", "maxmemory-policy", "noeviction"])
        .query_async(&mut admin)
        .await
        .unwrap();
    // The old value is gone with the refused write: what the caller put is what counts.
    assert_eq!(
        reports.put(1_u64, report(3)).await.unwrap(),
        Outcome::Deferred
    );
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    assert_eq!(
        cache.invalidate_tag("p").await.unwrap(),
        Outcome::Acknowledged
    );
    assert_eq!(reports.get(2_u64).await.unwrap(), None);
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "0"])
        .query_async(&mut admin)
        .await
        .unwrap();
    eventually("the removal is acknowledged", || async {
        cache
            .registry()
            .text()
            .contains("maestro_cache_deferred_invalidations 0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_named_as_such_and_left_when_it_is_promoted() {
    let place = dedicated().await;
    let cache = cache(&place.sandbox).await;
    let reports: Region<Report> = cache.region("report").build().unwrap();
    reports.put(1_u64, report(1)).await.unwrap();
    let mut admin = place.admin().await;
    let () = redis::cmd("REPLICAOF")
        .arg(&["127.0.0.1", "1"])
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(reports.remove(1_u64).await.unwrap(), Outcome::Deferred);
    // Neither read: it lags behind its primary, nobody knows how far.
    says(&cache, "the server is a replica").await;
    assert!(reports.get(1_u64).await.unwrap_err().is_transient());
    let () = redis::cmd("REPLICAOF")
        .arg(&["NO", "ONE"])
        .query_async(&mut admin)
        .await
        .unwrap();
    healthy(&cache).await;
    eventually("the removal is acknowledged", || async {
        cache
            .registry()
            .text()
            .contains("maestro_cache_deferred_invalidations 0")
    })
    .await;
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    let stored: String = redis::cmd("GET")
        .arg(format!("{}e:report:1", cache.config().prefix()))
        .query_async(&mut admin)
        .await
        .unwrap_or_default();
    assert!(stored.is_empty() || stored.starts_with("m1 x-"), "{stored}");
}

/// A server that greets and then answers everything with one error.
async fn refusing(answer: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                loop {
                    let Ok(length @ 1..) = socket.read(&mut buffer).await else {
                        return;
                    };
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    // One answer for each command; `*` begins one.
                    for command in text.split('*').skip(1) {
                        let greeting = command.contains("HELLO") || command.contains("SETINFO");
                        let line = if greeting || command.contains("SELECT") {
                            "+OK"
                        } else {
                            answer
                        };
                        if socket
                            .write_all(format!("{line}\r\n").as_bytes())
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_server_have_kinds_of_their_own() {
    let sandbox = sandbox().await;
    for (answer, kind, advice) in [
        (
            "-LOADING Redis is loading the dataset in memory",
            ErrorKind::Loading,
            "loaded",
        ),
        (
            "-READONLY You can't write against a read only replica.",
            ErrorKind::ReadOnly,
            "primary",
        ),
        (
            "-OOM command not allowed when used memory > 'maxmemory'.",
            ErrorKind::OutOfMemory,
            "maxmemory",
        ),
        (
            "-NOPERM this user has no permissions",
            ErrorKind::Denied,
            "rules",
        ),
        (
            "-NOAUTH Authentication required.",
            ErrorKind::Credentials,
            "MAESTRO_CACHE_PASSWORD",
        ),
        ("-ERR something else", ErrorKind::Server, "ERR"),
    ] {
        let address = refusing(answer).await;
        let url = format!("redis://{address}/0");
        let changes = [("MAESTRO_CACHE_URL", url.as_str())];
        let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
        let reports: Region<Report> = cache.region("report").build().unwrap();
        let error = reports.get(1_u64).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_damaged_and_mistyped_values_are_a_miss_that_heals() {
    let sandbox = sandbox().await;
    let mut admin = admin(&sandbox).await;
    let cache = cache(&sandbox).await;
    let reports: Region<Report> = cache.region("report").build().unwrap();
    let whole = format!(
        "m1 j- {:016} {:016} []\n{{\"id\":7,\"title\":\"report 7\"}}",
        1_u64, 9_999_999_999_999_999_u64
    );
    reports.put(0_u64, report(0)).await.unwrap();
    for (case, bytes) in [
        b"not ours".to_vec(),
        Vec::new(),
        vec![0xff; 100],
        b"m1 j- 1795000000000000 9795000300000000 []\n{\"id\":\"text\"}".to_vec(),
        b"m1 j- 1795000000000000 9795000300000000 []\n{\"id\":7,\"ti".to_vec(),
        b"m1 j- 1795000000000000 9795000300000000 [".to_vec(),
        b"m2 j- 1795000000000000 9795000300000000 []\n{}".to_vec(),
        whole.into_bytes()[..60].to_vec(),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("{}e:report:{case}", cache.config().prefix());
        let () = redis::cmd("SET")
            .arg(&key)
            .arg(bytes)
            .query_async(&mut admin)
            .await
            .unwrap();
        assert_eq!(reports.get(case).await.unwrap(), None, "case {case}");
        let load = move || async move { Ok::<_, std::io::Error>(report(case as u64)) };
        reports.entry(case).get_or_load(load).await.unwrap();
        eventually("the loaded value is stored", || async {
            reports.get(case).await.unwrap().is_some()
        })
        .await;
    }
    for (id, command) in [("list", "LPUSH"), ("set", "SADD"), ("log", "PFADD")] {
        let key = format!("{}e:report:{id}", cache.config().prefix());
        let () = redis::cmd("DEL")
            .arg(&key)
            .query_async(&mut admin)
            .await
            .unwrap();
        let () = redis::cmd(command)
            .arg(&key)
            .arg("x")
            .query_async(&mut admin)
            .await
            .unwrap();
        assert_eq!(reports.get(id).await.unwrap(), None, "{id}");
        reports.put(id, report(1)).await.unwrap();
        assert_eq!(
            reports.get(id).await.unwrap().as_deref(),
            Some(&report(1)),
            "{id}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_too_large_is_refused_with_its_size() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let texts = cache.region::<String>("text").max_value_bytes(1_000);
    let texts = texts.build().unwrap();
    let error = texts.put("1", "x".repeat(1_000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("1002 bytes"), "{error}");
    // Loaded, it is served, and not stored.
    let load = || async { Ok::<_, std::io::Error>("x".repeat(1_000)) };
    assert_eq!(
        texts.entry("1").get_or_load(load).await.unwrap().len(),
        1_000
    );
    let id = "x".repeat(1_048_576);
    assert_eq!(
        texts.get(&id).await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    assert_eq!(texts.get("").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_fails_or_hangs_gives_its_own_error_or_a_stale_value() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let region = cache.region::<Report>("report");
    let region = region
        .ttl(Duration::from_millis(200))
        .jitter(0.0)
        .stale_for(Duration::from_mins(1))
        .load_timeout(Duration::from_millis(300));
    let reports = region.build().unwrap();
    let fail = || async { Err::<Report, _>(std::io::Error::other("origin down")) };
    let error = reports.entry(1_u64).get_or_load(fail).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    let origin = error.load_error::<std::io::Error>().unwrap();
    assert_eq!(origin.to_string(), "origin down");
    let hang = std::future::pending::<Result<Report, std::io::Error>>;
    let error = reports.entry(1_u64).get_or_load(hang).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let panicking = || async {
        let ids: [u64; 0] = [];
        Ok::<_, std::io::Error>(report(ids.into_iter().next().unwrap()))
    };
    let error = reports
        .entry(1_u64)
        .get_or_load(panicking)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);

    reports.put(1_u64, report(1)).await.unwrap();
    eventually("the value is past its lifetime", || async {
        reports.get(1_u64).await.unwrap().is_none()
    })
    .await;
    let stale = reports.entry(1_u64).get_or_load(fail).await.unwrap();
    assert_eq!(*stale, report(1));
    let text = cache.registry().text();
    assert!(
        text.contains("maestro_cache_stale_served_total{region=\"report\"} 1"),
        "{text}"
    );
}
