//! The layout of a stored value: a line of text that any language can read, then the payload.
//!
//! ```text
//! m1 j- 1795000000000000 1795000300000000 ["project-7"]\n{"id":7}
//! │  ││ │                │                │             └ payload
//! │  ││ │                │                └ tags, a JSON array without line break
//! │  ││ │                └ logical expiry, microseconds since 1970 by the server's clock
//! │  ││ └ creation, microseconds since 1970 by the server's clock
//! │  │└ compression: `-` none, `z` zlib
//! │  └ codec: `j` JSON, `p` MessagePack, `n` known to be absent, `x` tombstone
//! └ version of the layout
//! ```
//!
//! The first 40 bytes have a fixed width, so that a script reads them with `GETRANGE`.

use serde::Deserialize;

/// A point in time by the server's clock, in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) u64);

impl Micros {
    /// The farthest future: a marker that is not known makes everything older than it.
    pub(crate) const MAX: Self = Self(u64::MAX);
}

/// How a payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    MessagePack,
    /// Looked for and known not to exist.
    Absent,
    /// Removed: what was loaded before its creation must not be stored.
    Tombstone,
}

impl Encoding {
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Json => 'j',
            Self::MessagePack => 'p',
            Self::Absent => 'n',
            Self::Tombstone => 'x',
        }
    }

    fn parse(letter: u8) -> Option<Self> {
        Some(match letter {
            b'j' => Self::Json,
            b'p' => Self::MessagePack,
            b'n' => Self::Absent,
            b'x' => Self::Tombstone,
            _ => return None,
        })
    }
}

/// Whether the payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Zlib,
}

impl Compression {
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::None => '-',
            Self::Zlib => 'z',
        }
    }

    fn parse(letter: u8) -> Option<Self> {
        match letter {
            b'-' => Some(Self::None),
            b'z' => Some(Self::Zlib),
            _ => None,
        }
    }
}

/// A stored value, taken apart but not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) encoding: Encoding,
    pub(crate) compression: Compression,
    pub(crate) created: Micros,
    pub(crate) expires: Micros,
    pub(crate) tags: Vec<String>,
    pub(crate) payload: &'a [u8],
}

/// Why stored bytes are no value of ours. A label of a metric: never holds the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Written by something else, or by another version of the layout.
    Foreign,
    /// Ours, but cut short or damaged.
    Damaged,
}

impl Malformed {
    /// The label.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Damaged => "damaged",
        }
    }
}

const VERSION: &[u8] = b"m1 ";
/// Width of the fixed part.
const FIXED: usize = 40;

impl<'a> Envelope<'a> {
    /// Takes stored bytes apart.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if !bytes.starts_with(VERSION) {
            return Err(Malformed::Foreign);
        }
        let (fixed, rest) = bytes.split_at_checked(FIXED).ok_or(Malformed::Damaged)?;
        let &[_, _, _, encoding, compression, b' ', ref created @ .., b' '] = fixed else {
            return Err(Malformed::Damaged);
        };
        let (created, expires) = created.split_at_checked(16).ok_or(Malformed::Damaged)?;
        let expires = expires.strip_prefix(b" ").ok_or(Malformed::Damaged)?;
        let line = rest
            .iter()
            .position(|b| *b == b'\n')
            .ok_or(Malformed::Damaged)?;
        let (tags, payload) = rest.split_at(line);
        Ok(Self {
            encoding: Encoding::parse(encoding).ok_or(Malformed::Foreign)?,
            compression: Compression::parse(compression).ok_or(Malformed::Foreign)?,
            created: parse_micros(created).ok_or(Malformed::Damaged)?,
            expires: parse_micros(expires).ok_or(Malformed::Damaged)?,
            tags: parse_tags(tags).ok_or(Malformed::Damaged)?,
            payload: payload.get(1..).unwrap_or_default(),
        })
    }
}

impl Envelope<'_> {
    /// Whether it only says that there was something.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.encoding == Encoding::Tombstone
    }
}

/// The tags as the header holds them: a JSON array. JSON escapes line breaks, so it is one line.
pub(crate) fn tags_field(tags: &[String]) -> String {
    if tags.is_empty() {
        return "[]".to_owned();
    }
    // Strings always serialize.
    serde_json::to_string(tags).unwrap_or_else(|_| "[]".to_owned())
}

fn parse_micros(digits: &[u8]) -> Option<Micros> {
    digits
        .iter()
        .try_fold(0_u64, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + u64::from(digit - b'0'))
        })
        .map(Micros)
}

fn parse_tags(field: &[u8]) -> Option<Vec<String>> {
    if field == b"[]" {
        return Some(Vec::new());
    }
    let mut reader = serde_json::Deserializer::from_slice(field);
    let tags = Vec::<String>::deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    (tags.len() <= crate::key::MAX_TAGS).then_some(tags)
}

/// The whole stored form, as the scripts of the server write it; the in-memory double and the tests
/// write it here.
#[cfg(any(test, fuzzing))]
pub(crate) fn write(
    encoding: Encoding,
    compression: Compression,
    created: Micros,
    expires: Micros,
    tags: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = format!(
        "m1 {}{} {:016} {:016} {tags}\n",
        encoding.letter(),
        compression.letter(),
        created.0,
        expires.0
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_example_reads_as_documented() {
        let bytes = b"m1 j- 1795000000000000 1795000300000000 [\"project-7\"]\n{\"id\":7}";
        let envelope = Envelope::parse(bytes).unwrap();
        assert_eq!(envelope.encoding, Encoding::Json);
        assert_eq!(envelope.created, Micros(1_795_000_000_000_000));
        assert_eq!(envelope.expires, Micros(1_795_000_300_000_000));
        assert_eq!(envelope.tags, ["project-7"]);
        assert_eq!(envelope.payload, b"{\"id\":7}");
    }

    #[test]
    fn another_version_and_foreign_bytes_are_told_from_damage() {
        for bytes in [
            &b""[..],
            b"m2 j- 1795000000000000 1795000300000000 []\n7",
            b"{\"id\":7}",
            b"m1 q- 1795000000000000 1795000300000000 []\n7",
        ] {
            assert_eq!(
                Envelope::parse(bytes),
                Err(Malformed::Foreign),
                "{}",
                bytes.escape_ascii()
            );
        }
        for bytes in [
            &b"m1 j- 1795000000000000 1795000300000000 []"[..],
            b"m1 j- 179500000000000 1795000300000000  []\n7",
            b"m1 j- 1795000000000000 1795000300000000 [7]\n7",
            b"m1 j-",
        ] {
            assert_eq!(
                Envelope::parse(bytes),
                Err(Malformed::Damaged),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            created in 0..9_999_999_999_999_999_u64,
            expires in 0..9_999_999_999_999_999_u64,
            tags in proptest::collection::vec(any::<String>(), 0..4),
            payload in any::<Vec<u8>>(),
        ) {
            let field = tags_field(&tags);
            let bytes = write(
                Encoding::Json, Compression::Zlib, Micros(created), Micros(expires), &field, &payload,
            );
            let envelope = Envelope::parse(&bytes).unwrap();
            prop_assert_eq!(envelope, Envelope {
                encoding: Encoding::Json,
                compression: Compression::Zlib,
                created: Micros(created),
                expires: Micros(expires),
                tags,
                payload: &payload,
            });
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in any::<Vec<u8>>(), cut in 0..60_usize) {
            let _ = Envelope::parse(&bytes);
            let good = write(
                Encoding::Json, Compression::None, Micros(1), Micros(2), "[\"a\"]", &bytes,
            );
            let _ = Envelope::parse(good.get(..cut.min(good.len())).unwrap());
        }
    }
}
