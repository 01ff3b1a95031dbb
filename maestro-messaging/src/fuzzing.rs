//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use lapin::protocol::basic::parse_properties;
use lapin::types::FieldTable;

use crate::address::Address;
use crate::amqp::{Greeting, Sanitizer, read_difference};
use crate::envelope::Envelope;
use crate::topology::{Difference, Values};
use crate::{dead_letters, headers, retry};

/// Properties and headers as a stranger may send them: reading ends, as an event and as a dead letter,
/// what is read survives its encoding, and copies for a rung or a replay keep the identity and fit a frame.
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
    let letter = dead_letters::read(&properties, &Bytes::new());
    if let Ok(envelope) = &envelope {
        assert_eq!(letter.message_id, Some(envelope.message_id));
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

/// The URL of a broker, and what may follow a password in one: one that is accepted names a host, and neither it nor what is wrong with
/// another shows the password.
pub fn address(text: &str) {
    const CANARY: &str = "canary-17";
    for text in [text.to_owned(), format!("amqp://user:{CANARY}@{text}")] {
        match Address::parse(&text) {
            Ok(address) => {
                assert!(!address.host.is_empty());
                assert!(!format!("{address} {address:?}").contains(CANARY));
            }
            Err(problem) => assert!(!problem.contains(CANARY), "{problem}"),
        }
    }
}

/// What the broker says of an argument that differs: a sentence of anybody's is read to its end, and
/// of the broker's own, wherever it is cut, never another argument or value than it names.
pub fn difference(text: &str) {
    let _ = read_difference(text);

    let mut parts = text.split('\n');
    let mut part = || parts.next().unwrap_or_default().replace([' ', '\''], "");
    let (argument, type_name) = (part(), part());
    let (there, here) = (part(), part());
    let cut = part().len();
    let spoken = |value: &str| match (value, type_name.as_str()) {
        ("", _) => "none".to_owned(),
        (value, "") => format!("'{value}'"),
        (value, type_name) => format!("the value '{value}' of type '{type_name}'"),
    };
    let set = |value: String| Some(value).filter(|value| !value.is_empty());
    let mut said = format!(
        "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/': received {} but \
         current is {}",
        spoken(&here),
        spoken(&there),
    );
    let values = Values {
        there: set(there),
        here: set(here),
    };
    let of = |values: Option<Values>| {
        Some(Difference {
            argument: argument.clone(),
            values,
        })
    };
    assert_eq!(read_difference(&said), of(Some(values.clone())));
    said.truncate(said.floor_char_boundary(said.len().saturating_sub(cut)));
    // As an error and its cause say it.
    let read = read_difference(&format!("{said}: {said}"));
    assert!(
        read.is_none() || read == of(None) || read == of(Some(values)),
        "{said}: {read:?}"
    );
}

/// Our own headers, beside what is carried along.
const SLACK: usize = 1_024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn properties_of_anybody_are_read(flags in any::<[u8; 2]>(), bytes in any::<Vec<u8>>()) {
            super::envelope(&[&flags[..], &bytes].concat());
        }

        #[test]
        fn a_stream_is_the_same_however_it_is_cut(
            cut in 0..9_u8,
            frames in proptest::collection::vec((1..4_u8, any::<Vec<u8>>()), 0..4),
        ) {
            let mut bytes = vec![cut];
            for (kind, payload) in frames {
                bytes.extend([kind, 0, 1]);
                bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
                bytes.extend(payload);
                bytes.push(0xCE);
            }
            super::stream(&bytes);
        }

        #[test]
        fn the_brokers_words_are_read_as_they_are_or_not(
            words in "(inequivalent arg '|: received |none|the value '|' of type '| but current is |'|.){0,12}",
            parts in "[^\n]{0,4}\n(long|)\n[^\n]{0,4}\n[^\n]{0,4}\n[a-z]{0,99}",
        ) {
            super::difference(&words);
            super::difference(&parts);
        }

        #[test]
        fn no_url_shows_its_password(
            url in "((amqps?|http)://)?([a-zA-Z0-9%]{0,4}@)?[a-z0-9.\\[\\]:]{0,8}(/[a-z%0-9/]{0,6})?",
        ) {
            super::address(&url);
        }
    }
}
