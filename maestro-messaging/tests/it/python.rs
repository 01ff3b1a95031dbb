//! Services in another language: the snippets of the wire format's page, run as they stand there.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use maestro_messaging::{DeadReason, Event};
use maestro_testkit::Sandbox;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use crate::support::{Placed, Raw, client, consuming, dead, eventually, placed, sandbox};

const PAGE: &str = include_str!("../../../docs/wire-format.md");
const PIKA: &str = "pika==1.3.2";

#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    report: String,
    pages: u32,
}

impl Event for Finished {
    const TYPE: &'static str = "report.finished.v1";
}

fn snippets() -> Vec<&'static str> {
    PAGE.split("```python\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// An interpreter with pika: the machine's, if it has Debian's `python3-pika`, else one made once under
/// `target/`.
async fn interpreter() -> PathBuf {
    let has_pika = Command::new("python3")
        .args(["-c", "import pika"])
        .output()
        .await;
    if has_pika.is_ok_and(|output| output.status.success()) {
        return "python3".into();
    }
    // Tests run in their package's folder.
    let home = std::path::absolute("../target/python").unwrap();
    let python = home.join("bin/python");
    let ready = home.join(PIKA);
    std::fs::create_dir_all(&home).unwrap();
    // Held until this returns: tests of other processes wait for the first one's installation.
    let lock = std::fs::File::create(home.join("lock")).unwrap();
    tokio::task::block_in_place(|| lock.lock().unwrap());
    if !ready.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home)).await;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PIKA])).await;
        std::fs::write(ready, "").unwrap();
    }
    python
}

async fn run(command: &mut Command) {
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

async fn start(script: &str, arguments: &[&str], sandbox: &Sandbox) -> Child {
    let url = sandbox
        .direct_environment()
        .into_iter()
        .find(|(name, _)| name == "MAESTRO_MESSAGING_URL")
        .unwrap()
        .1;
    Command::new(interpreter().await)
        .arg("-c")
        .arg(script)
        .args(arguments)
        .env("MAESTRO_MESSAGING_URL", url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn finish(child: Child) -> String {
    let output = child.wait_with_output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Publishes with properties that no well-behaved client sends: `type` and header bytes as given.
const STRANGER: &str = r#"
import os, struct, sys, uuid
import pika

class Raw(pika.BasicProperties):
    def __init__(self, kind, headers):
        super().__init__()
        self.raw = (kind, headers)
    def encode(self):
        kind, headers = self.raw
        name = str(uuid.uuid4()).encode()
        flags = (1 << 13) | (1 << 7) | (1 << 5)
        return [struct.pack(">H", flags), struct.pack(">I", len(headers)), headers,
                bytes([len(name)]), name, bytes([len(kind)]), kind]

def nested(depth, head):
    inner = b""
    for _ in range(depth):
        inner = head + struct.pack(">I", len(inner)) + inner
    return inner

good = b"order.placed.v1"
messages = [
    (b"caf\xe9.placed.v1", b"", "order.placed.v1"),
    (good, b"\x04caf\xe9S\x00\x00\x00\x01x", "order.placed.v1"),
    (good, b"", "order.caf\xe9.v1"),
    (good, nested(10, b"\x00F"), "order.placed.v1"),
    (good, nested(18000, b"\x00F"), "order.placed.v1"),
    (good, b"\x00" + nested(18000, b"A"), "order.placed.v1"),
]
connection = pika.BlockingConnection(pika.URLParameters(os.environ["MAESTRO_MESSAGING_URL"]))
channel = connection.channel()
channel.confirm_delivery()
for kind, headers, key in messages:
    channel.basic_publish("orders.events", key, b'{"number":1,"key":"k"}', Raw(kind, headers))
connection.close()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_python_client_publishes_and_handles_events() {
    let orders = sandbox().await;
    let reporting = orders.neighbour("reporting").await.unwrap();
    let snippets = snippets();
    let [publish, handle] = snippets.as_slice() else {
        panic!("the page has {} snippets", snippets.len());
    };
    let messaging = client(&orders, &[]).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let consumer = messaging
        .subscription("reports")
        .on("reporting", move |event: Finished, context| {
            let noted = Arc::clone(&noted);
            async move {
                noted.lock().push((event, context.envelope().clone()));
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    // Python first declares the exchange that the subscription waits for.
    let raw = Raw::connect(&reporting).await;
    raw.declare_events("reporting.events").await;
    consumer.ready().await;
    finish(start(publish, &[], &reporting).await).await;
    eventually("the event from Python is handled", || async {
        !seen.lock().is_empty()
    })
    .await;
    {
        let seen = seen.lock();
        let (event, envelope) = &seen[0];
        assert_eq!((event.report.as_str(), event.pages), ("r-7", 12));
        assert_eq!(envelope.publisher.as_deref(), Some("reporting"));
        assert_eq!(envelope.correlation_id.as_deref(), Some("request-42"));
        assert_eq!(envelope.tenant.as_deref(), Some("acme"));
        assert_eq!(envelope.key.as_deref(), Some("r-7"));
    }

    let handling = start(handle, &[], &reporting).await;
    eventually("Python has bound its queue", || async {
        let receipt = messaging.publish(&placed(7)).await;
        receipt.is_ok_and(|receipt| receipt.routed())
    })
    .await;
    let printed = finish(handling).await;
    assert!(
        printed.contains("order.placed.v1 key-7 {'number': 7, 'key': 'key-7'}"),
        "{printed}"
    );
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_another_encoding_takes_no_consumer_down() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, &[]).await;
    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let consumer = messaging
        .subscription("strange")
        .on("orders", move |_: Placed, _| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    let raw = Raw::connect(&sandbox).await;
    raw.bind("orders.strange", "orders.events", "#").await;
    finish(start(STRANGER, &[], &sandbox).await).await;
    eventually("what can be handled is handled", || async {
        handled.load(Ordering::Relaxed) >= 5
    })
    .await;
    let letters = messaging.dead_letters("strange");
    dead(&letters, 1).await;
    let letters = letters.list(10).await.unwrap();
    let reasons: Vec<_> = letters
        .iter()
        .map(|l| (l.reason, l.event_type.as_deref()))
        .collect();
    assert_eq!(reasons, [(DeadReason::UnknownType, Some("caf?.placed.v1"))]);
    consuming(&consumer).await;
    messaging.close().await;
}
