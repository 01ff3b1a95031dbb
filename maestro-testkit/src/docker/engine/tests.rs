//! Against daemons that answer in ways a real one cannot be made to.

use std::path::PathBuf;
use std::time::Instant;

use testcontainers::bollard::API_DEFAULT_VERSION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::*;

/// What a daemon answers to a request.
type Answers = fn(&str) -> Option<(u16, &'static str)>;

/// A daemon that answers by a table; a request that is not in it is never answered.
struct FakeDaemon {
    directory: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl FakeDaemon {
    fn start(answers: Answers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let request = head.lines().next().unwrap();
                match answers(request.trim_end_matches(" HTTP/1.1")) {
                    None => held.push(stream),
                    Some((status, body)) => {
                        let length = body.len();
                        let answer = format!(
                            "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\
                             Content-Type: application/json\r\nConnection: close\r\n\r\n{body}"
                        );
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            }
        });
        Self { directory, task }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn client(&self) -> Docker {
        let socket = self.socket();
        Docker::connect_with_unix(socket.to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap()
    }

    /// Patient, as a test on a loaded machine has to be.
    async fn engine(&self) -> Engine {
        let mut engine = Engine::ping(self.client(), ANSWER).await.unwrap();
        engine.patience = ANSWER;
        engine
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn image() -> Reference {
    Reference::parse("MAESTRO_TEST_POSTGRES_IMAGE", "postgres:15").unwrap()
}

#[tokio::test]
async fn a_daemon_that_says_nothing_costs_one_second() {
    let daemon = FakeDaemon::start(|_| None);
    let started = Instant::now();
    let reason = Engine::ping(daemon.client(), PING).await.unwrap_err();
    assert_eq!(reason, "the daemon does not answer within 1 s");
    assert!(started.elapsed() < 10 * PING);
}

#[tokio::test]
async fn a_socket_behind_which_nobody_listens_is_no_daemon() {
    let daemon = FakeDaemon::start(|_| None);
    let client = daemon.client();
    daemon.task.abort();
    // The listener goes with the task.
    while tokio::net::UnixStream::connect(daemon.socket())
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
    let reason = Engine::ping(client, ANSWER).await.unwrap_err();
    assert!(
        reason.starts_with("the daemon does not answer: "),
        "{reason}"
    );
    // Why: a socket that is not ours to open is told from a daemon that is not there.
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn an_image_that_is_there_is_found_by_its_name() {
    let daemon = FakeDaemon::start(|request| match request {
        "GET /_ping" => Some((200, "OK")),
        "GET /images/postgres:15/json" => Some((200, "{}")),
        _ => None,
    });
    assert_eq!(daemon.engine().await.has(&image()).await, Ok(true));
}

#[tokio::test]
async fn an_image_that_is_not_there_is_pulled() {
    let daemon = FakeDaemon::start(|request| match request {
        "GET /_ping" => Some((200, "OK")),
        "GET /images/postgres:15/json" => Some((404, r#"{"message":"no such image"}"#)),
        pull if pull.starts_with("POST /images/create?fromImage=postgres%3A15") => Some((
            200,
            "{\"status\":\"Pulling from library/postgres\"}\r\n{\"status\":\"Done\"}\r\n",
        )),
        _ => None,
    });
    let engine = daemon.engine().await;
    assert_eq!(engine.has(&image()).await, Ok(false));
    assert_eq!(engine.pull(&image()).await, Ok(()));
}

#[tokio::test]
async fn a_registry_that_hangs_is_given_up_before_the_daemon_gives_it_up() {
    let daemon = FakeDaemon::start(|request| match request {
        "GET /_ping" => Some((200, "OK")),
        _ => None,
    });
    let mut engine = daemon.engine().await;
    engine.patience = Duration::from_millis(200);
    let reason = engine.pull(&image()).await.unwrap_err();
    assert_eq!(
        reason,
        "the image postgres:15 is not here and cannot be pulled (nothing from the registry for 0.2 s)"
    );
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_named_in_the_reason() {
    let daemon = FakeDaemon::start(|request| match request {
        "GET /_ping" => Some((200, "OK")),
        _ => Some((
            500,
            r#"{"message":"Get https://registry.example/v2/: dial tcp: lookup registry.example: no such host"}"#,
        )),
    });
    let reason = daemon.engine().await.pull(&image()).await.unwrap_err();
    assert!(reason.contains("postgres:15"), "{reason}");
    assert!(
        reason.contains("registry.example: no such host"),
        "{reason}"
    );
}

#[tokio::test]
async fn an_error_that_comes_in_the_middle_of_a_pull_is_no_success() {
    let daemon = FakeDaemon::start(|request| match request {
        "GET /_ping" => Some((200, "OK")),
        _ => Some((
            200,
            "{\"status\":\"Pulling\"}\r\n{\"errorDetail\":{\"message\":\"disk full\"},\"error\":\"disk full\"}\r\n",
        )),
    });
    let reason = daemon.engine().await.pull(&image()).await.unwrap_err();
    assert!(reason.contains("disk full"), "{reason}");
}

#[test]
fn a_daemon_behind_tcp_does_not_share_our_loopback() {
    assert!(!shares_loopback(Some("tcp://192.0.2.1:2375")));
    assert!(!shares_loopback(Some("ssh://build.example")));
}
