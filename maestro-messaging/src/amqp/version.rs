//! The broker's version, out of the first frame it sends. Pure.

use std::task::Poll;

use lapin::types::AMQPValue;
use lapin::types::parsing::parse_field_table;

/// Version of the broker; behaviour that differs between versions is decided from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u16,
    pub(crate) minor: u16,
}

impl Version {
    /// RabbitMQ 4 limits deliveries of a quorum queue to 20 unless told otherwise, and -1 tells it
    /// otherwise. Older ones have no limit, and 3.10 accepts -1 and then *deletes* every message
    /// that is given back once (seen on 3.10.8).
    pub(crate) fn switches_delivery_limit_off(self) -> bool {
        self.major >= 4
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+']);
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

/// Collects the first frame: `Connection.Start` with the server's properties.
#[derive(Debug, Default)]
pub(crate) struct Greeting(Vec<u8>);

impl Greeting {
    /// More bytes. Ready once the frame is complete or is none that is understood.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Poll<Option<Version>> {
        self.0.extend_from_slice(bytes);
        let Some(header) = self.0.first_chunk::<7>() else {
            return Poll::Pending;
        };
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if header[0] != METHOD || size > LARGEST {
            return Poll::Ready(None);
        }
        match self.0.get(7..7 + size) {
            Some(payload) => Poll::Ready(version(payload)),
            None => Poll::Pending,
        }
    }
}

fn version(payload: &[u8]) -> Option<Version> {
    // Class 10, method 10, two bytes of protocol version, then the properties.
    let properties = payload.strip_prefix(&[0, 10, 0, 10])?.get(2..)?;
    let (_, table) = parse_field_table(properties).ok()?;
    match table.inner().get("version")? {
        AMQPValue::LongString(text) => Version::parse(std::str::from_utf8(text.as_bytes()).ok()?),
        _ => None,
    }
}

const METHOD: u8 = 1;
/// A greeting is some hundred bytes; larger is something else.
const LARGEST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(version: &str) -> Vec<u8> {
        let mut table = vec![7];
        table.extend_from_slice(b"version");
        table.push(b'S');
        table.extend_from_slice(&u32::try_from(version.len()).unwrap().to_be_bytes());
        table.extend_from_slice(version.as_bytes());
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend_from_slice(&u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(&table);
        payload.extend_from_slice(&[0, 0, 0, 5]);
        payload.extend_from_slice(b"PLAIN");
        payload.extend_from_slice(&[0, 0, 0, 5]);
        payload.extend_from_slice(b"en_US");
        let mut frame = vec![METHOD, 0, 0];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&payload);
        frame.push(0xce);
        frame
    }

    #[test]
    fn the_version_is_read_however_the_bytes_come() {
        for (text, major, minor) in [("3.10.8", 3, 10), ("4.0.5", 4, 0), ("4.3.0-rc.1", 4, 3)] {
            let frame = greeting(text);
            for step in [1, 3, 7, frame.len()] {
                let mut greeting = Greeting::default();
                let read = frame
                    .chunks(step)
                    .map(|chunk| greeting.feed(chunk))
                    .find(Poll::is_ready);
                assert_eq!(
                    read,
                    Some(Poll::Ready(Some(Version { major, minor }))),
                    "{text} by {step}"
                );
            }
        }
        assert!(
            !Version {
                major: 3,
                minor: 13
            }
            .switches_delivery_limit_off()
        );
        assert!(Version { major: 4, minor: 0 }.switches_delivery_limit_off());
    }

    #[test]
    fn anything_else_is_an_unknown_version_and_not_waited_for() {
        assert_eq!(
            Greeting::default().feed(b"HTTP/1.1 400 Bad Request"),
            Poll::Ready(None)
        );
        assert_eq!(
            Greeting::default().feed(b"AMQP\x00\x00\x09\x01"),
            Poll::Ready(None)
        );
        assert_eq!(
            Greeting::default().feed(&greeting("unreleased")),
            Poll::Ready(None)
        );
        assert_eq!(Greeting::default().feed(&[METHOD, 0, 0]), Poll::Pending);
    }
}
