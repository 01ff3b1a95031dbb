//! Values shared with a plain Python client that knows the documented layout and nothing else.

use std::process::Stdio;

use maestro_cache::{Cache, Region};
use maestro_testkit::Sandbox;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::place::{Report, cache, eventually, report, sandbox};

/// Runs the client with what follows the address on its command line.
async fn python(sandbox: &Sandbox, what: &str, more: &[&str], payload: &str) -> String {
    let pairs = sandbox.environment();
    let (_, url) = pairs
        .iter()
        .find(|(name, _)| name == "MAESTRO_CACHE_URL")
        .unwrap();
    let url = url::Url::parse(url).unwrap();
    // Tests run in their package's folder.
    let script = "tests/python/plain_client.py";
    let mut client = Command::new("python3")
        .arg(script)
        .arg(what)
        .arg(url.host_str().unwrap())
        .arg(url.port().unwrap().to_string())
        .arg(url.username())
        .arg(url.path().trim_matches('/'))
        .arg(sandbox.resources().prefix())
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    let text = format!("{}\n{payload}", url.password().unwrap());
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let output = client.wait_with_output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn region(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_reads_what_is_written_here_and_sees_it_invalidated() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    let tag = "übung \"7\"\n";
    let read = async |id: &str| python(&sandbox, "read", &["report", id], "").await;
    assert_eq!(read("1").await, "nothing");
    reports.entry("1").tag(tag).put(report(1)).await.unwrap();
    let found: Report = serde_json::from_str(&read("1").await).unwrap();
    assert_eq!(found, report(1));
    cache.invalidate_tag(tag).await.unwrap();
    assert_eq!(read("1").await, "nothing");
    reports.put("2", report(2)).await.unwrap();
    reports.clear().await.unwrap();
    assert_eq!(read("2").await, "nothing");
    reports.put("3", report(3)).await.unwrap();
    reports.remove("3").await.unwrap();
    assert_eq!(read("3").await, "nothing");
    let load = || async { Ok::<_, std::io::Error>(report(4)) };
    reports.entry("4").tag("p").get_or_load(load).await.unwrap();
    eventually("what was loaded is stored", || async {
        let found = read("4").await;
        serde_json::from_str::<Report>(&found).is_ok_and(|found| found == report(4))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_python_writes_removes_and_invalidates_is_seen_here() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    let payload = serde_json::to_string(&report(1)).unwrap();
    let tags = serde_json::to_string(&["übung"]).unwrap();
    python(&sandbox, "write", &["report", "1", &tags], &payload).await;
    assert_eq!(reports.get("1").await.unwrap().as_deref(), Some(&report(1)));
    python(&sandbox, "invalidate", &["report", "1", &tags], "").await;
    eventually("the tag's invalidation is heard of", || async {
        reports.get("1").await.unwrap().is_none()
    })
    .await;
    python(&sandbox, "write", &["report", "1", &tags], &payload).await;
    eventually("what is written after it lives", || async {
        reports.get("1").await.unwrap().is_some()
    })
    .await;
    python(&sandbox, "remove", &["report", "1"], "").await;
    eventually("the removal is heard of", || async {
        reports.get("1").await.unwrap().is_none()
    })
    .await;
}
