use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const SOON: Duration = Duration::from_mins(1);

fn soon() -> std::time::Instant {
    std::time::Instant::now() + SOON
}

async fn start(app: Router) -> Server {
    Server::spawn(TcpListener::bind("127.0.0.1:0").await.unwrap(), app).unwrap()
}

/// How one keep-alive client fared: answers it got, and whether it was ever cut off mid-request.
#[derive(Debug, Default)]
struct Fate {
    answered: usize,
    reset: Option<String>,
}

/// Sends requests one after the other, `think` apart, reconnecting when told to, until the listener
/// is gone.
async fn press(address: SocketAddr, think: Duration) -> Fate {
    let mut fate = Fate::default();
    'connection: loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            return fate;
        };
        loop {
            if let Err(error) = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await {
                fate.reset = Some(format!("while sending: {error}"));
                return fate;
            }
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nok") {
                let mut chunk = [0; 1024];
                match stream.read(&mut chunk).await {
                    Ok(0) => fate.reset = Some("closed before the answer".to_owned()),
                    Ok(n) => {
                        answer.extend_from_slice(&chunk[..n]);
                        continue;
                    }
                    Err(error) => fate.reset = Some(format!("while reading: {error}")),
                }
                return fate;
            }
            fate.answered += 1;
            if String::from_utf8_lossy(&answer).contains("connection: close") {
                continue 'connection;
            }
            tokio::time::sleep(think).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_resets_no_request() {
    let handled = Arc::new(AtomicUsize::new(0));
    let counter = handled.clone();
    let app = Router::new().route(
        "/",
        get(async move || {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
            "ok"
        }),
    );
    let server = start(app).await;
    let clients: Vec<_> = (0..50)
        .map(|n| tokio::spawn(press(server.address(), Duration::from_millis(n % 10))))
        .collect();
    while handled.load(Ordering::Relaxed) < 500 {
        tokio::task::yield_now().await;
    }
    let left = server.close(soon()).await;
    assert!(left.is_none(), "{left}");
    let mut answered = 0;
    for client in clients {
        let fate = client.await.unwrap();
        assert_eq!(fate.reset, None, "after {} answers", fate.answered);
        answered += fate.answered;
    }
    assert_eq!(
        answered,
        handled.load(Ordering::Relaxed),
        "every request that was handled was answered"
    );
}

/// Clients that were asked to leave come back on new connections, so that some are always being made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_being_made_while_the_listener_closes_is_not_reset() {
    let round = async |moment: u64| {
        let server = start(Router::new().route("/", get(async || "ok"))).await;
        server.leave();
        let clients: Vec<_> = (0..100)
            .map(|_| tokio::spawn(press(server.address(), Duration::ZERO)))
            .collect();
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let left = server.close(soon()).await;
        assert!(left.is_none(), "{left}");
        for client in clients {
            let fate = client.await.unwrap();
            assert_eq!(fate.reset, None, "after {} answers", fate.answered);
        }
    };
    futures_util::future::join_all((0..20).map(|n| round(5 * n))).await;
}

#[tokio::test]
async fn a_request_in_flight_is_answered_after_the_listener_closed() {
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let (release, released) = watch::channel(false);
    let app = Router::new().route(
        "/",
        get(move || {
            let (entered, mut released) = (entered.clone(), released.clone());
            async move {
                let _ = entered.send(()).await;
                let _ = released.wait_for(|open| *open).await;
                "ok"
            }
        }),
    );
    let server = start(app).await;
    let address = server.address();
    let client = tokio::spawn(press(address, Duration::ZERO));
    inside.recv().await.expect("the request arrived");
    let closing = tokio::spawn(server.close(soon()));
    let refused = async {
        while TcpStream::connect(address)
            .await
            .map_err(|error| error.kind())
            .err()
            != Some(ErrorKind::ConnectionRefused)
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, refused)
        .await
        .expect("the listener closes at once");
    assert!(!closing.is_finished(), "the server waits for the request");
    release.send_replace(true);
    assert!(closing.await.unwrap().is_none());
    let fate = client.await.unwrap();
    assert_eq!((fate.answered, fate.reset), (1, None));
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_at_the_deadline_and_counted() {
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let app = Router::new().route(
        "/",
        get(move || {
            let entered = entered.clone();
            async move {
                let _ = entered.send(()).await;
                std::future::pending::<()>().await;
            }
        }),
    );
    let server = start(app).await;
    let client = tokio::spawn(press(server.address(), Duration::ZERO));
    inside.recv().await.expect("the request arrived");
    let left = server
        .close(std::time::Instant::now() + Duration::from_millis(100))
        .await;
    assert_eq!(
        left.to_string(),
        "1 connections cut off with an unfinished request"
    );
    assert!(client.await.unwrap().reset.is_some());
}

#[tokio::test]
async fn a_silent_keep_alive_connection_does_not_hold_the_stop_up() {
    let server = start(Router::new().route("/", get(async || "ok"))).await;
    let mut idle = TcpStream::connect(server.address()).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 1024];
    assert!(idle.read(&mut answer).await.unwrap() > 0);
    let began = Instant::now();
    assert!(server.close(soon()).await.is_none());
    assert!(
        began.elapsed() >= LINGER,
        "it was given time to send a request"
    );
    assert_eq!(
        idle.read(&mut answer).await.unwrap(),
        0,
        "closed in order, not reset"
    );
}
