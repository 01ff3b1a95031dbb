//! RESP2, as much as administering users takes.

use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{ANSWER, within};
use crate::error::{Error, ErrorKind};
use crate::service::Address;

/// Longest reply taken: an `INFO` is a few kilobytes.
const LONGEST_REPLY: usize = 4 << 20;

/// A connection as the administrator.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    whom: String,
}

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Text(String),
    Integer(i64),
    List(Vec<Reply>),
    Nil,
}

impl Reply {
    /// The text of a simple or bulk string, or nothing.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Integer(number) => number.to_string(),
            Self::List(_) | Self::Nil => String::new(),
        }
    }
}

impl Reply {
    /// A page of `SCAN`: the next cursor and the keys.
    pub(crate) fn page(self) -> (String, Vec<String>) {
        let Self::List(parts) = self else {
            return ("0".to_owned(), Vec::new());
        };
        let mut parts = parts.into_iter();
        let cursor = parts.next().map_or_else(|| "0".to_owned(), Self::text);
        let keys = match parts.next() {
            Some(Self::List(keys)) => keys.into_iter().map(Self::text).collect(),
            _ => Vec::new(),
        };
        (cursor, keys)
    }
}

impl Client {
    pub(crate) async fn connect(address: &Address) -> Result<Self, Error> {
        let whom = format!("Redis at {}", address.authority());
        let connecting = async {
            let stream = TcpStream::connect((address.host.trim_matches(['[', ']']), address.port))
                .await
                .map_err(|e| {
                    Error::new(ErrorKind::Unavailable, format!("connecting to {whom}")).with(e)
                })?;
            // Best effort: without it a command may wait 40 ms for an acknowledgement.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        };
        let stream = within(Duration::from_secs(15), &whom, connecting).await?;
        let mut client = Self {
            stream: BufReader::new(stream),
            whom,
        };
        let password = address.password.expose();
        if !password.is_empty() {
            if address.user.is_empty() {
                client.call(&["AUTH", password]).await?;
            } else {
                client.call(&["AUTH", &address.user, password]).await?;
            }
        }
        // A server that loads its data answers everything but PING with LOADING.
        client.call(&["DBSIZE"]).await?;
        Ok(client)
    }

    /// Sends one command and awaits its reply. Errors name the command's first words only: the rest
    /// may be a password.
    pub(crate) async fn call(&mut self, arguments: &[&str]) -> Result<Reply, Error> {
        let shown = arguments
            .iter()
            .take_while(|word| word.bytes().all(|b| b.is_ascii_uppercase()))
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        let what = format!("{shown} on {}", self.whom);
        within(ANSWER, &what, async {
            let mut command = format!("*{}\r\n", arguments.len()).into_bytes();
            for argument in arguments {
                command.extend(format!("${}\r\n", argument.len()).into_bytes());
                command.extend(argument.as_bytes());
                command.extend(b"\r\n");
            }
            let lost = |e: std::io::Error| Error::new(ErrorKind::Unavailable, &what).with(e);
            self.stream.write_all(&command).await.map_err(lost)?;
            read(&mut self.stream, &what).await
        })
        .await
    }
}

/// Reads one reply to what was asked.
pub(crate) async fn read(
    stream: &mut (impl AsyncBufRead + Unpin),
    what: &str,
) -> Result<Reply, Error> {
    let lost = |e: std::io::Error| Error::new(ErrorKind::Unavailable, what).with(e);
    let broken = || Error::new(ErrorKind::Unavailable, format!("{what}: not a Redis reply"));
    // Arrays nest: what is still to be filled is kept here instead of on the call stack.
    let mut open: Vec<(usize, Vec<Reply>)> = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.map_err(lost)? == 0 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("{what}: the server closed the connection"),
            ));
        }
        let line = line.trim_end_matches(['\r', '\n']);
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err(broken());
        };
        let length = || rest.parse::<i64>().map_err(|_| broken());
        let mut value = match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => return Err(Error::new(ErrorKind::Refused, format!("{what}: {rest}"))),
            ":" => Reply::Integer(length()?),
            "$" => match usize::try_from(length()?) {
                Err(_) => Reply::Nil,
                Ok(length) if length > LONGEST_REPLY => return Err(broken()),
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    stream.read_exact(&mut bytes).await.map_err(lost)?;
                    bytes.truncate(length);
                    Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
                }
            },
            "*" => match usize::try_from(length()?) {
                Err(_) => Reply::Nil,
                Ok(0) => Reply::List(Vec::new()),
                Ok(length) if length > LONGEST_REPLY => return Err(broken()),
                Ok(length) => {
                    open.push((length, Vec::new()));
                    continue;
                }
            },
            _ => return Err(broken()),
        };
        // Close every array this value completes.
        loop {
            let Some((length, items)) = open.last_mut() else {
                return Ok(value);
            };
            items.push(value);
            if items.len() < *length {
                break;
            }
            match open.pop() {
                Some((_, items)) => value = Reply::List(items),
                None => return Err(broken()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    /// Any reply but an error.
    fn replies() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            ".*".prop_map(Reply::Text),
            any::<i64>().prop_map(Reply::Integer),
            Just(Reply::Nil),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Reply::List)
        })
    }

    fn write(reply: &Reply, bytes: &mut Vec<u8>) {
        match reply {
            Reply::Text(text) => {
                bytes.extend(format!("${}\r\n{text}\r\n", text.len()).into_bytes());
            }
            Reply::Integer(number) => bytes.extend(format!(":{number}\r\n").into_bytes()),
            Reply::Nil => bytes.extend(b"$-1\r\n"),
            Reply::List(items) => {
                bytes.extend(format!("*{}\r\n", items.len()).into_bytes());
                for item in items {
                    write(item, bytes);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn replies_are_read_one_by_one_as_they_were_written(sent in prop::collection::vec(replies(), 1..4)) {
            let mut bytes = Vec::new();
            for reply in &sent {
                write(reply, &mut bytes);
            }
            let mut rest = bytes.as_slice();
            for reply in &sent {
                let found = read(&mut rest, "a test").now_or_never().unwrap();
                prop_assert_eq!(&found.unwrap(), reply);
            }
            prop_assert!(rest.is_empty());
        }
    }
}
