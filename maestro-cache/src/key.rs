//! Names on the server. [`Key`] can only be made from the service's prefix, and only a [`Key`] can
//! be sent: that is the namespace.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, ErrorKind};

/// Longest id of an entry, lock, limit or list, and longest tag, in bytes. Names are repeated in
/// every invalidation message, so a name is not a place for data.
pub(crate) const MAX_NAME: usize = 1_024;
/// Most tags on one entry: each is a marker to compare on every read.
pub(crate) const MAX_TAGS: usize = 16;

/// A name on the server that carries the service's prefix.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ids can be personal data; a key is never shown.
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// What a key invalidated by the server stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidated<'a> {
    /// An entry of a region.
    Entry { region: &'a str, id: &'a str },
    /// The marker of a tag, a region or of everything.
    Marker(Marker<'a>),
}

/// What a marker speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Marker<'a> {
    /// Every entry of the service.
    All,
    /// Every entry of one region.
    Region(&'a str),
    /// Every entry with this tag.
    Tag(&'a str),
}

/// The families of names below the prefix. Only `e:` and `t:` are tracked for invalidation.
const ENTRY: &str = "e:";
const MARKER: &str = "t:";
const LOCK: &str = "l:";
const LIMIT: &str = "q:";
const KEPT: &str = "s:";
const CHANNEL: &str = "c:";

/// What is kept on the server beside entries, each kind under a letter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    List,
    Counter,
    Session,
}

/// Makes keys from the service's prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keyspace {
    prefix: Arc<str>,
}

impl Keyspace {
    /// `prefix` was checked when the configuration was read.
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The prefixes whose changes are pushed to us.
    pub(crate) fn tracked(&self) -> [String; 2] {
        [
            format!("{}{ENTRY}", self.prefix),
            format!("{}{MARKER}", self.prefix),
        ]
    }

    pub(crate) fn entry(&self, region: &str, id: &str) -> Key {
        self.join(&[ENTRY, region, ":", id])
    }

    pub(crate) fn marker(&self, marker: Marker<'_>) -> Key {
        match marker {
            Marker::All => self.join(&[MARKER, "a"]),
            Marker::Region(region) => self.join(&[MARKER, "r:", region]),
            Marker::Tag(tag) => self.join(&[MARKER, "t:", tag]),
        }
    }

    /// Who holds a lock.
    pub(crate) fn lock(&self, name: &str) -> Key {
        self.join(&[LOCK, "k:", name])
    }

    /// The last fencing token of a lock.
    pub(crate) fn fence(&self, name: &str) -> Key {
        self.join(&[LOCK, "f:", name])
    }

    /// Which process loads an entry.
    pub(crate) fn load_lock(&self, region: &str, id: &str) -> Key {
        self.join(&[LOCK, "e:", region, ":", id])
    }

    /// What a limiter knows of one caller.
    pub(crate) fn limit(&self, limiter: &str, id: &str) -> Key {
        self.join(&[LIMIT, limiter, ":", id])
    }

    pub(crate) fn kept(&self, what: Kept, name: &str, id: &str) -> Key {
        let letter = match what {
            Kept::List => "l:",
            Kept::Counter => "c:",
            Kept::Session => "s:",
        };
        self.join(&[KEPT, letter, name, ":", id])
    }

    /// A channel; channels know no database numbers, so the prefix is all that keeps services apart.
    pub(crate) fn channel(&self, name: &str) -> Key {
        self.join(&[CHANNEL, name])
    }

    /// Reads a key the server says has changed; `None` when it is none of ours.
    pub(crate) fn parse<'a>(&self, key: &'a [u8]) -> Option<Invalidated<'a>> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&*self.prefix)?;
        if let Some(entry) = name.strip_prefix(ENTRY) {
            // A region has no colon, so the first one ends it, whatever the id holds.
            let (region, id) = entry.split_once(':')?;
            return Some(Invalidated::Entry { region, id });
        }
        let marker = match name.strip_prefix(MARKER)? {
            "a" => Marker::All,
            other => match other.split_at_checked(2)? {
                ("r:", region) => Marker::Region(region),
                ("t:", tag) => Marker::Tag(tag),
                _ => return None,
            },
        };
        Some(Invalidated::Marker(marker))
    }

    fn join(&self, parts: &[&str]) -> Key {
        let length = self.prefix.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut key = Vec::with_capacity(length);
        key.extend_from_slice(self.prefix.as_bytes());
        for part in parts {
            key.extend_from_slice(part.as_bytes());
        }
        Key(key.into_boxed_slice())
    }
}

/// Checks a region's name: one lower-case kebab label.
pub(crate) fn check_region(name: &str) -> Result<(), Error> {
    check_label("region", name)
}

/// Checks a name that developers choose: one lower-case kebab label, also fit for a metric.
pub(crate) fn check_label(what: &str, name: &str) -> Result<(), Error> {
    let fits = (1..=60).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "{what} `{}` cannot be built: its name is a lower-case letter and then letters, digits and `-`, at most 60",
            name.escape_debug().take(80).collect::<String>()
        ),
    ))
}

/// Checks a name chosen by a caller.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    check_length(what, name.len())
}

/// Checks a name of so many bytes.
#[inline]
pub(crate) fn check_length(what: &str, length: usize) -> Result<(), Error> {
    if length <= MAX_NAME {
        return Ok(());
    }
    Err(too_long(what, length))
}

#[cold]
fn too_long(what: &str, length: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("{what} of {length} bytes was refused: at most {MAX_NAME}; hash what is longer"),
    )
}

/// The id of an entry: text, a number or a UUID. What is written for numbers and UUIDs is written on the
/// stack, so that a hit in process memory allocates nothing.
///
/// ```
/// use maestro_cache::EntryId;
///
/// assert_eq!(EntryId::from(42_u64).as_str(), "42");
/// assert_eq!(EntryId::from("order-7").as_str(), "order-7");
/// ```
#[derive(Clone)]
pub struct EntryId<'a>(Repr<'a>);

#[derive(Clone)]
enum Repr<'a> {
    Text(Cow<'a, str>),
    /// Written when somebody asks for the text: process memory looks a number up as it is.
    Number(u64, OnceLock<Short>),
    Short(Short),
}

/// At most 40 ASCII characters: the longest number has 39 digits and a sign.
#[derive(Clone, Copy)]
struct Short {
    bytes: [u8; 40],
    length: u8,
}

/// An id as process memory looks it up. A number and its text are one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Number(u64),
    Text(&'a [u8]),
}

impl<'a> Name<'a> {
    /// Of a text, which is a number when it is written as one is.
    pub(crate) fn of(text: &'a str) -> Self {
        let text = text.as_bytes();
        number(text).map_or(Self::Text(text), Self::Number)
    }
}

/// The number that is written as this text: no sign, no zero in front, 64 bits.
fn number(text: &[u8]) -> Option<u64> {
    match text {
        [] | [b'0', _, ..] => None,
        digits => digits.iter().try_fold(0_u64, |number, digit| {
            let digit = digit.wrapping_sub(b'0');
            let shifted = number.checked_mul(10).filter(|_| digit < 10)?;
            shifted.checked_add(u64::from(digit))
        }),
    }
}

impl Short {
    #[inline]
    fn new(text: &[u8]) -> Self {
        let mut bytes = [0; 40];
        let length = text.len().min(bytes.len());
        bytes[..length].copy_from_slice(&text[..length]);
        Self {
            bytes,
            length: u8::try_from(length).unwrap_or(0),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        let length = usize::from(self.length);
        self.bytes.get(..length).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl EntryId<'_> {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Text(text) => text,
            // Formatting by the standard library takes several times as long.
            Repr::Number(number, text) => text
                .get_or_init(|| Short::new(itoa::Buffer::new().format(*number).as_bytes()))
                .as_str(),
            Repr::Short(short) => short.as_str(),
        }
    }

    /// How process memory knows it.
    #[inline]
    pub(crate) fn name(&self) -> Name<'_> {
        match &self.0 {
            Repr::Text(text) => Name::of(text),
            Repr::Number(number, _) => Name::Number(*number),
            Repr::Short(short) => Name::Text(short.as_bytes()),
        }
    }

    /// Bytes of its text, or a few more.
    #[inline]
    pub(crate) fn length(&self) -> usize {
        match &self.0 {
            Repr::Text(text) => text.len(),
            Repr::Number(..) | Repr::Short(_) => size_of::<Short>(),
        }
    }
}

impl fmt::Debug for EntryId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryId({} bytes)", self.as_str().len())
    }
}

impl<'a> From<&'a str> for EntryId<'a> {
    fn from(text: &'a str) -> Self {
        Self(Repr::Text(Cow::Borrowed(text)))
    }
}

impl<'a> From<&'a String> for EntryId<'a> {
    fn from(text: &'a String) -> Self {
        Self(Repr::Text(Cow::Borrowed(text)))
    }
}

impl From<String> for EntryId<'_> {
    fn from(text: String) -> Self {
        Self(Repr::Text(Cow::Owned(text)))
    }
}

impl From<uuid::Uuid> for EntryId<'_> {
    fn from(id: uuid::Uuid) -> Self {
        let mut bytes = [0; 40];
        let length = id.hyphenated().encode_lower(&mut bytes).len();
        Self(Repr::Short(Short {
            bytes,
            length: u8::try_from(length).unwrap_or(0),
        }))
    }
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl From<$number> for EntryId<'_> {
            #[inline]
            fn from(number: $number) -> Self {
                Self(match u64::try_from(number) {
                    Ok(number) => Repr::Number(number, OnceLock::new()),
                    Err(_) => Repr::Short(Short::new(itoa::Buffer::new().format(number).as_bytes())),
                })
            }
        }
    )+};
}
numbers!(u128, usize, i16, i32, i64, i128, isize);

macro_rules! small_numbers {
    ($($number:ty),+) => {$(
        impl From<$number> for EntryId<'_> {
            #[inline]
            fn from(number: $number) -> Self {
                Self(Repr::Number(number.into(), OnceLock::new()))
            }
        }
    )+};
}
small_numbers!(u16, u32, u64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_uuids_are_written_as_their_text() {
        assert_eq!(EntryId::from(i128::MIN).as_str(), i128::MIN.to_string());
        assert_eq!(EntryId::from(u128::MAX).as_str(), u128::MAX.to_string());
        let id = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef);
        assert_eq!(EntryId::from(id).as_str(), id.to_string());
    }

    #[test]
    fn process_memory_takes_a_number_and_its_text_for_one_id_and_nothing_else() {
        assert_eq!(EntryId::from(42_i64).name(), EntryId::from("42").name());
        let most = u64::MAX.to_string();
        assert_eq!(EntryId::from(u64::MAX).name(), EntryId::from(&most).name());
        let above = u128::from(u64::MAX) + 1;
        let text = above.to_string();
        assert_eq!(EntryId::from(above).name(), EntryId::from(&text).name());
        assert_eq!(EntryId::from(-1).name(), EntryId::from("-1").name());
        for text in ["", "042", "00", "+42", "4 2", "42\0", "4２"] {
            assert_eq!(Name::of(text), Name::Text(text.as_bytes()));
        }
    }

    #[test]
    fn a_foreign_or_unknown_name_is_none_of_ours() {
        let keys = Keyspace::new("qf:");
        for name in [
            &b"gw:e:report:1"[..],
            b"qf:",
            b"qf:e:",
            b"qf:e:report",
            b"qf:l:rebuild",
            b"qf:t:",
            b"qf:t:x:y",
            b"qf:e:report:\xff",
            b"",
        ] {
            assert_eq!(keys.parse(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn two_texts_never_share_a_place_in_process_memory(a in "[0-2+-]{0,3}", b in "[0-2+-]{0,3}") {
            prop_assert_eq!(Name::of(&a) == Name::of(&b), a == b);
        }

        #[test]
        fn every_key_carries_the_prefix_and_reads_back_as_itself(
            region in "[a-z][a-z0-9-]{0,12}",
            id in any::<String>(),
            tag in any::<String>(),
        ) {
            let keys = Keyspace::new("qf:");
            let entry = keys.entry(&region, &id);
            prop_assert!(entry.as_bytes().starts_with(b"qf:e:"));
            prop_assert_eq!(
                keys.parse(entry.as_bytes()),
                Some(Invalidated::Entry { region: &region, id: &id })
            );
            for marker in [Marker::All, Marker::Region(&region), Marker::Tag(&tag)] {
                let key = keys.marker(marker);
                prop_assert!(key.as_bytes().starts_with(b"qf:t:"));
                prop_assert_eq!(keys.parse(key.as_bytes()), Some(Invalidated::Marker(marker)));
            }
        }

        #[test]
        fn two_names_never_share_a_key(
            a in ("[a-c-]{1,3}", "[:a-c-]{0,4}"),
            b in ("[a-c-]{1,3}", "[:a-c-]{0,4}"),
        ) {
            let keys = Keyspace::new("qf:");
            prop_assert_eq!(keys.entry(&a.0, &a.1) == keys.entry(&b.0, &b.1), a == b);
        }
    }
}
