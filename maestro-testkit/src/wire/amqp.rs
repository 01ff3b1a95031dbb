//! The opening of an AMQP 0-9-1 connection, up to `connection.open-ok`: RabbitMQ's listener answers
//! seconds before its databases do.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;
use crate::error::{Error, ErrorKind};
use crate::service::Address;

/// Class `connection` and the methods met on the way in.
const CONNECTION: u16 = 10;
pub(crate) const START: u16 = 10;
const START_OK: u16 = 11;
const TUNE: u16 = 30;
const TUNE_OK: u16 = 31;
const OPEN: u16 = 40;
const OPEN_OK: u16 = 41;
const CLOSE: u16 = 50;
const FRAME_END: u8 = 0xce;

/// Opens a connection to `vhost` and closes it.
pub(crate) async fn handshake(address: &Address, vhost: &str) -> Result<(), Error> {
    let what = format!(
        "opening vhost {vhost} of RabbitMQ at {} as {}",
        address.authority(),
        address.user
    );
    within(Duration::from_secs(15), &what, async {
        open(address, vhost)
            .await
            .map_err(|(kind, problem)| Error::new(kind, format!("{what}: {problem}")))
    })
    .await
}

pub(crate) type Failure = (ErrorKind, String);

async fn open(address: &Address, vhost: &str) -> Result<(), Failure> {
    let lost = |e: std::io::Error| (ErrorKind::Unavailable, e.to_string());
    let mut stream = TcpStream::connect((address.host.trim_matches(['[', ']']), address.port))
        .await
        .map_err(lost)?;
    stream.write_all(b"AMQP\0\0\x09\x01").await.map_err(lost)?;
    expect(&mut stream, START).await?;

    let mut start_ok = Vec::new();
    start_ok.extend(0u32.to_be_bytes()); // client-properties: an empty table
    short(&mut start_ok, "PLAIN");
    long(
        &mut start_ok,
        &format!("\0{}\0{}", address.user, address.password.expose()),
    );
    short(&mut start_ok, "en_US");
    send(&mut stream, START_OK, &start_ok).await.map_err(lost)?;

    // RabbitMQ hangs up on a client that it does not let in and that did not ask to be told why.
    if matches!(stream.peek(&mut [0]).await, Ok(0) | Err(_)) {
        let problem = "it hung up at the login: a wrong user or password, or `guest` from another \
                       machine; RabbitMQ's log says which";
        return Err((ErrorKind::Refused, problem.to_owned()));
    }
    // The server's own proposal is taken back to it: channel-max, frame-max, heartbeat.
    let tune = expect(&mut stream, TUNE).await?;
    send(&mut stream, TUNE_OK, &tune).await.map_err(lost)?;

    let mut open = Vec::new();
    short(&mut open, vhost);
    open.extend([0, 0]); // two fields that AMQP 0-9-1 no longer uses
    send(&mut stream, OPEN, &open).await.map_err(lost)?;
    expect(&mut stream, OPEN_OK).await?;

    let mut close = 200u16.to_be_bytes().to_vec();
    short(&mut close, "ready");
    close.extend([0; 4]); // no method to blame
    send(&mut stream, CLOSE, &close).await.map_err(lost)
}

async fn send(stream: &mut TcpStream, method: u16, arguments: &[u8]) -> std::io::Result<()> {
    let mut frame = vec![1, 0, 0]; // a method, on channel 0
    let size = u32::try_from(arguments.len() + 4).unwrap_or(u32::MAX);
    frame.extend(size.to_be_bytes());
    frame.extend(CONNECTION.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    stream.write_all(&frame).await
}

/// Reads the next method's arguments, and the server's reason if it closes instead.
pub(crate) async fn expect(
    stream: &mut (impl AsyncRead + Unpin),
    method: u16,
) -> Result<Vec<u8>, Failure> {
    let lost = |e: std::io::Error| (ErrorKind::Unavailable, e.to_string());
    let mut header = [0; 7];
    stream.read_exact(&mut header).await.map_err(lost)?;
    let [kind, _, _, size @ ..] = header;
    let size = u32::from_be_bytes(size) as usize;
    if kind != 1 || !(4..1 << 20).contains(&size) {
        return Err((ErrorKind::Unavailable, "not an AMQP server".to_owned()));
    }
    let mut frame = vec![0; size + 1];
    stream.read_exact(&mut frame).await.map_err(lost)?;
    frame.pop(); // the end marker
    let arguments = frame.split_off(4);
    match frame.as_slice() {
        [c1, c2, m1, m2] if u16::from_be_bytes([*c1, *c2]) == CONNECTION => {
            match u16::from_be_bytes([*m1, *m2]) {
                found if found == method => Ok(arguments),
                CLOSE => {
                    // Code, then the text as a short string.
                    let length = arguments.get(2).copied().map_or(0, usize::from);
                    let reason = arguments.get(3..3 + length).unwrap_or_default();
                    Err((
                        ErrorKind::Refused,
                        String::from_utf8_lossy(reason).into_owned(),
                    ))
                }
                found => Err((ErrorKind::Unavailable, format!("unexpected method {found}"))),
            }
        }
        _ => Err((ErrorKind::Unavailable, "unexpected frame".to_owned())),
    }
}

fn short(frame: &mut Vec<u8>, text: &str) {
    let text = text.as_bytes().get(..255).unwrap_or(text.as_bytes());
    frame.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    frame.extend(text);
}

fn long(frame: &mut Vec<u8>, text: &str) {
    frame.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use maestro_config::Secret;
    use tokio::net::TcpListener;

    use super::*;

    /// RabbitMQ closes the socket without a word when it refuses a login.
    #[tokio::test]
    async fn a_refused_login_is_called_that() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            tls_port: None,
            management: None,
            socket: None,
            user: "orders".to_owned(),
            password: Secret::new("canary".to_owned()),
            database: "/".to_owned(),
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            send(&mut stream, START, &[0; 10]).await.unwrap();
            let mut header = [0; 7];
            stream.read_exact(&mut header).await.unwrap();
            let [_, _, _, size @ ..] = header;
            let mut frame = vec![0; u32::from_be_bytes(size) as usize + 1];
            stream.read_exact(&mut frame).await.unwrap();
        });
        let error = handshake(&address, "/").await.unwrap_err();
        server.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("user or password"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}
