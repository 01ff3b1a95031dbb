//! Protobuf's wire format, as far as OTLP and remote write need it.

pub(crate) fn varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // The low seven bits, and a flag that more follow.
        buffer.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    buffer.push(value.to_le_bytes()[0]);
}

fn key(buffer: &mut Vec<u8>, field: u32, wire: u32) {
    varint(buffer, u64::from(field << 3 | wire));
}

/// A whole number or a boolean; 0 is the default and is left out.
pub(crate) fn integer(buffer: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        key(buffer, field, 0);
        varint(buffer, value);
    }
}

#[cfg(feature = "otlp")]
/// Eight bytes; 0 is the default and is left out.
pub(crate) fn fixed64(buffer: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        key(buffer, field, 1);
        buffer.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(feature = "otlp")]
/// Four bytes; 0 is the default and is left out.
pub(crate) fn fixed32(buffer: &mut Vec<u8>, field: u32, value: u32) {
    if value != 0 {
        key(buffer, field, 5);
        buffer.extend_from_slice(&value.to_le_bytes());
    }
}

/// Bytes or text; empty is the default and is left out.
pub(crate) fn bytes(buffer: &mut Vec<u8>, field: u32, value: &[u8]) {
    if !value.is_empty() {
        key(buffer, field, 2);
        varint(buffer, value.len() as u64);
        buffer.extend_from_slice(value);
    }
}

/// A member of a `oneof`, which is written also when it has its default value.
pub(crate) mod member {
    use super::{key, varint};

    pub(crate) fn integer(buffer: &mut Vec<u8>, field: u32, value: u64) {
        key(buffer, field, 0);
        varint(buffer, value);
    }

    pub(crate) fn double(buffer: &mut Vec<u8>, field: u32, value: f64) {
        key(buffer, field, 1);
        buffer.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(buffer: &mut Vec<u8>, field: u32, value: &[u8]) {
        key(buffer, field, 2);
        varint(buffer, value.len() as u64);
        buffer.extend_from_slice(value);
    }
}

/// A message within: written first, then its length is moved before it.
pub(crate) fn message(buffer: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(buffer, field, 2);
    let start = buffer.len();
    write(buffer);
    let end = buffer.len();
    varint(buffer, (end - start) as u64);
    let length = buffer.len() - end;
    buffer[start..].rotate_right(length);
}

#[cfg(feature = "otlp")]
/// A field of a message that was received.
#[derive(Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    Fixed,
}

#[cfg(feature = "otlp")]
/// Reads the fields of a message; ends at the first that is malformed.
pub(crate) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Field<'_>)> {
    std::iter::from_fn(move || {
        let key = read_varint(&mut bytes)?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => Field::Integer(read_varint(&mut bytes)?),
            1 => {
                bytes = bytes.get(8..)?;
                Field::Fixed
            }
            2 => {
                let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(value)
            }
            5 => {
                bytes = bytes.get(4..)?;
                Field::Fixed
            }
            _ => return None,
        };
        Some((field, value))
    })
}

#[cfg(feature = "otlp")]
fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(all(test, feature = "otlp"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_of_any_length_carries_its_length() {
        for length in [0, 1, 127, 128, 20_000] {
            let mut buffer = vec![7];
            message(&mut buffer, 3, |inner| {
                inner.resize(inner.len() + length, 9);
            });
            let read: Vec<_> = fields(&buffer[1..]).collect();
            assert_eq!(read, [(3, Field::Bytes(&vec![9; length][..]))]);
        }
    }

    proptest! {
        #[test]
        fn numbers_are_read_back(value: u64) {
            let mut buffer = Vec::new();
            member::integer(&mut buffer, 1, value);
            prop_assert_eq!(fields(&buffer).next(), Some((1, Field::Integer(value))));
        }

        #[test]
        fn no_answer_breaks_the_reader(bytes: Vec<u8>) {
            let _ = fields(&bytes).count();
        }
    }
}
