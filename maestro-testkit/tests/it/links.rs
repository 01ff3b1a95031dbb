use std::io::ErrorKind;
use std::time::{Duration, Instant};

use maestro_testkit::{Sandbox, Service, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::clients::{postgres, redis, variable};

/// Long enough for a loaded machine, short enough for a test of silence.
const SILENCE: Duration = Duration::from_millis(300);

/// Longest wait for what takes milliseconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(30);

async fn sandbox() -> Sandbox {
    let stack = Stack::builder()
        .only([Service::Redis, Service::Postgres])
        .start()
        .await
        .unwrap();
    stack.sandbox("orders").await.unwrap()
}

async fn ping(connection: &mut redis::aio::MultiplexedConnection) -> redis::RedisResult<String> {
    redis::cmd("PING").query_async(connection).await
}

#[tokio::test]
async fn a_cut_link_resets_what_is_open_refuses_what_is_new_and_leaves_the_others_alone() {
    let sandbox = sandbox().await;
    let url = variable(&sandbox, "MAESTRO_CACHE_URL");
    let mut open = redis(&url).await.unwrap();
    ping(&mut open).await.unwrap();
    sandbox.cache_link().cut().await.unwrap();
    assert!(ping(&mut open).await.is_err());
    let address = url::Url::parse(&url)
        .unwrap()
        .socket_addrs(|| None)
        .unwrap()[0];
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(sandbox.cache_link().connections(), 0);
    // Another server's link, and another way to the same server.
    postgres(&variable(&sandbox, "MAESTRO_POSTGRES_URL"))
        .await
        .unwrap();
    let direct = sandbox.direct_environment();
    let direct = direct.iter().find(|(name, _)| name == "MAESTRO_CACHE_URL");
    redis(&direct.unwrap().1).await.unwrap();

    sandbox.cache_link().restore().await.unwrap();
    ping(&mut redis(&url).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_reset_ends_open_connections_and_new_ones_work_at_once() {
    let sandbox = sandbox().await;
    let url = variable(&sandbox, "MAESTRO_POSTGRES_URL");
    let open = postgres(&url).await.unwrap();
    sandbox.postgres_link().reset().await.unwrap();
    assert!(open.simple_query("SELECT 1").await.is_err());
    postgres(&url).await.unwrap();
}

#[tokio::test]
async fn a_delayed_link_takes_longer_both_ways_and_loses_nothing() {
    let sandbox = sandbox().await;
    let mut cache = redis(&variable(&sandbox, "MAESTRO_CACHE_URL"))
        .await
        .unwrap();
    sandbox
        .cache_link()
        .delay(Duration::from_millis(100))
        .await
        .unwrap();
    let started = Instant::now();
    ping(&mut cache).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    // Latency, not bandwidth: a hundred commands in flight take about as long as one.
    let key = format!("{}n", variable(&sandbox, "MAESTRO_CACHE_PREFIX"));
    let mut pipeline = redis::pipe();
    for _ in 0..100 {
        pipeline.cmd("INCR").arg(&key);
    }
    let counted: Vec<u32> = pipeline.query_async(&mut cache).await.unwrap();
    assert_eq!(counted, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_blackhole_is_silent_and_what_was_sent_arrives_after_it() {
    let sandbox = sandbox().await;
    let mut client = TcpStream::connect(address(&sandbox)).await.unwrap();
    authenticate(&mut client, &sandbox).await;
    sandbox.cache_link().blackhole().await.unwrap();
    client.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    assert!(
        timeout(SILENCE, client.read_exact(&mut answer))
            .await
            .is_err()
    );
    // A new connection is accepted, as by a firewall that drops, and gets no answer.
    let mut late = TcpStream::connect(address(&sandbox)).await.unwrap();
    late.write_all(b"PING\r\n").await.unwrap();
    assert!(timeout(SILENCE, late.read_u8()).await.is_err());
    sandbox.cache_link().restore().await.unwrap();
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    assert_eq!(late.read_u8().await.unwrap(), b'-');
}

#[tokio::test]
async fn with_replies_in_a_blackhole_the_server_still_does_what_it_is_told() {
    let sandbox = sandbox().await;
    let mut client = TcpStream::connect(address(&sandbox)).await.unwrap();
    authenticate(&mut client, &sandbox).await;
    let key = format!("{}told", variable(&sandbox, "MAESTRO_CACHE_PREFIX"));
    sandbox.cache_link().blackhole_replies().await.unwrap();
    let number = variable(&sandbox, "MAESTRO_CACHE_URL");
    let (_, number) = number.rsplit_once('/').unwrap();
    let command = format!("SELECT {number}\r\nSET {key} done\r\n");
    client.write_all(command.as_bytes()).await.unwrap();
    assert!(timeout(SILENCE, client.read_u8()).await.is_err());
    let direct = sandbox.direct_environment();
    let direct = direct.iter().find(|(name, _)| name == "MAESTRO_CACHE_URL");
    let mut other = redis(&direct.unwrap().1).await.unwrap();
    // The server has heard it, and does it when it comes to it.
    let told = async {
        loop {
            let mut get = redis::cmd("GET");
            let value: Option<String> = get.arg(&key).query_async(&mut other).await.unwrap();
            match value {
                Some(value) => return value,
                None => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(timeout(DEADLINE, told).await.unwrap(), "done");
}

#[tokio::test]
async fn megabytes_pass_unchanged_and_the_end_of_a_stream_takes_no_bytes_with_it() {
    let sandbox = sandbox().await;
    let mut client = TcpStream::connect(address(&sandbox)).await.unwrap();
    authenticate(&mut client, &sandbox).await;
    let key = format!("{}large", variable(&sandbox, "MAESTRO_CACHE_PREFIX"));
    let value = "0123456789abcdef".repeat(1 << 18);
    let command = format!(
        "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\nGET {key}\r\nQUIT\r\n",
        key.len(),
        value.len()
    );
    client.write_all(command.as_bytes()).await.unwrap();
    // Redis closes after QUIT; the reader is slower than that.
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let expected = format!("+OK\r\n${}\r\n{value}\r\n+OK\r\n", value.len());
    assert!(answer == expected.as_bytes(), "{} bytes", answer.len());
}

fn address(sandbox: &Sandbox) -> std::net::SocketAddr {
    let url = url::Url::parse(&variable(sandbox, "MAESTRO_CACHE_URL")).unwrap();
    url.socket_addrs(|| None).unwrap()[0]
}

async fn authenticate(client: &mut TcpStream, sandbox: &Sandbox) {
    let resources = sandbox.resources();
    let command = format!(
        "AUTH {} {}\r\n",
        resources.redis_user(),
        resources.passwords().cache.expose()
    );
    client.write_all(command.as_bytes()).await.unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}
