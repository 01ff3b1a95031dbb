use std::time::Duration;

use maestro_testkit::{ErrorKind, Service, Stack};

#[tokio::test]
async fn a_shared_server_is_not_killed() {
    let stack = Stack::builder()
        .only([Service::Redis])
        .start()
        .await
        .unwrap();
    let error = stack.redis().unwrap().kill().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn dedicated_servers_are_killed_and_started_on_the_same_port() {
    let stack = Stack::builder().dedicated().await.unwrap();
    for service in Service::ALL {
        let server = stack.server(service).unwrap();
        let authority = server.authority();
        server.kill().await.unwrap();
        let refused = tokio::net::TcpStream::connect(&authority)
            .await
            .unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{service}"
        );
        server.start().await.unwrap();
        stack.sandbox("orders").await.unwrap();
        server.pause().await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(300), stack.sandbox("orders"));
        assert!(
            silent.await.is_err(),
            "{service} answered while it was paused"
        );
        server.resume().await.unwrap();
        stack.sandbox("orders").await.unwrap();
        server.stop().await.unwrap();
        server.start().await.unwrap();
    }
}
