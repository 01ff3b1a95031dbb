//! What the fuzz targets call (`maestro-messaging/fuzz`); compiled with `--cfg fuzzing` alone.

use std::time::UNIX_EPOCH;

use lapin::protocol::basic::parse_properties;
use lapin::types::FieldTable;

use crate::amqp::{Greeting, Sanitizer};
use crate::envelope::Envelope;
use crate::{headers, retry};

/// Properties and headers as a stranger may send them: reading ends, what is read survives its
/// encoding, and copies for a rung or a replay keep the identity and fit a frame.
pub fn envelope(bytes: &[u8]) {
    let Ok((_, properties)) = parse_properties(bytes) else {
        return;
    };
    let envelope = Envelope::decode(&properties);
    if let Ok(envelope) = &envelope {
        drop(envelope.context());
        if let Ok(encoded) = envelope.encode() {
            assert_eq!(Envelope::decode(&encoded).as_ref(), Ok(envelope));
        }
    }
    let origin = retry::origin(
        &properties,
        &"orders.events".into(),
        &"order.placed.v1".into(),
    );
    let retried = retry::retried(&properties, &origin, 3, UNIX_EPOCH);
    let replayed = retry::replayed(&retried, UNIX_EPOCH);
    for (copy, attempt) in [(retried, 3), (replayed, 0)] {
        let empty = FieldTable::default();
        let table = copy.headers().as_ref().unwrap_or(&empty);
        assert!(headers::size(table) <= headers::MAX_HEADER_BYTES + SLACK);
        assert_eq!(copy.message_id(), properties.message_id());
        assert_eq!(copy.kind(), properties.kind());
        if let (Ok(before), Ok(after)) = (&envelope, Envelope::decode(&copy)) {
            assert_eq!(after.message_id, before.message_id);
            assert_eq!(after.attempt, attempt);
        }
    }
}

/// The bytes of a connection: however they are cut, the same is passed on, and no byte is added or
/// lost.
pub fn stream(bytes: &[u8]) {
    let (Some(cut), bytes) = (bytes.first(), bytes.get(1..).unwrap_or_default()) else {
        return;
    };
    let mut whole = bytes.to_vec();
    let passed = Sanitizer::default().pass(&mut whole);
    assert!(passed <= bytes.len());

    let mut sanitizer = Sanitizer::default();
    let mut waiting = Vec::new();
    let mut out = Vec::new();
    for chunk in bytes.chunks(usize::from(*cut).max(1)) {
        waiting.extend_from_slice(chunk);
        let count = sanitizer.pass(&mut waiting);
        out.extend(waiting.drain(..count));
    }
    assert_eq!(out, whole.get(..passed).unwrap_or_default());
    let _ = Greeting::default().feed(bytes);
}

/// Our own headers, beside what is carried along.
const SLACK: usize = 1_024;
