//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use serde_json::Value;

use crate::codec;
use crate::config::parse_location;
use crate::envelope::{self, Envelope};
use crate::key::{Invalidated, Keyspace};

/// Largest value the region of [`stored`] reads.
const LIMIT: usize = 65_536;

/// Bytes under a key, as a stranger may have written them: reading ends, within the limit of the
/// region, and what is read is read again from what the scripts would write of it.
pub fn stored(bytes: &[u8]) {
    let Ok(read) = Envelope::parse(bytes) else {
        return;
    };
    let tags = envelope::tags_field(&read.tags);
    let written = envelope::write(
        read.encoding,
        read.compression,
        read.created,
        read.expires,
        &tags,
        read.payload,
    );
    assert_eq!(Envelope::parse(&written).as_ref(), Ok(&read));
    if let Some((value, size)) = codec::decode::<Value>(&read, LIMIT) {
        assert!(size <= LIMIT.max(read.payload.len()));
        drop(value.to_string());
    }
}

/// A key the server says has changed: what it is taken for has exactly this key.
pub fn invalidation(key: &[u8]) {
    let keys = Keyspace::new("orders:");
    let again = match keys.parse(key) {
        Some(Invalidated::Entry { region, id }) => keys.entry(region, id),
        Some(Invalidated::Marker(marker)) => keys.marker(marker),
        None => return,
    };
    assert_eq!(again.as_bytes(), key);
}

/// The URL of a Redis, and what may follow a password in one: one that is accepted names a host and does not show its password.
pub fn address(text: &str) {
    const CANARY: &str = "canary-17";
    for text in [text.to_owned(), format!("redis://user:{CANARY}@{text}")] {
        if let Ok(location) = parse_location(&text) {
            assert!(!location.host.is_empty());
            assert!(!format!("{location:?}").contains(CANARY));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stored_bytes_of_anybody_are_read_or_a_miss(
            fixed in "m1 [jpnx][-z] [0-9]{16} [0-9]{16} ",
            tags in r#"\[("[a-z\\]{0,3}"(,"b")?)?\]\n?"#,
            payload in any::<Vec<u8>>(),
        ) {
            super::stored(&[fixed.as_bytes(), tags.as_bytes(), &payload].concat());
            super::stored(&payload);
        }

        #[test]
        fn a_changed_key_is_taken_for_what_has_this_key(
            key in "(orders:)?(e:|t:|l:)?(r:|t:|a)?[a-z:]{0,6}(:.{0,6})?",
        ) {
            super::invalidation(key.as_bytes());
        }

        #[test]
        fn no_url_shows_its_password(
            url in "(rediss?://)?([a-zA-Z0-9%]{0,4}@)?[a-z0-9.\\[\\]:]{0,8}(/[0-9a]{0,6})?",
        ) {
            super::address(&url);
        }
    }
}
