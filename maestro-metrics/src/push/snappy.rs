//! Snappy's block format, as remote write demands it. Everything is written as literals: valid, and
//! not smaller than the input. A push of a few hundred kilobytes at the end of a job is not worth a
//! compressor.

use crate::protobuf::varint;

/// Longest literal with a length of two bytes.
const LITERAL: usize = 1 << 16;
/// A literal whose length follows in two bytes.
const TAG: u8 = 61 << 2;

pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + bytes.len() / LITERAL * 3 + 16);
    varint(&mut packed, bytes.len() as u64);
    for literal in bytes.chunks(LITERAL) {
        // A chunk is not empty and at most 65,536 long.
        let length = u16::try_from(literal.len() - 1).unwrap_or(u16::MAX);
        packed.push(TAG);
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(literal);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads literals, the only element there is.
    fn unpack(mut packed: &[u8]) -> Vec<u8> {
        let mut length = 0usize;
        for shift in (0..).step_by(7) {
            let byte = packed[0];
            packed = &packed[1..];
            length |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut bytes = Vec::new();
        while !packed.is_empty() {
            assert_eq!(packed[0], TAG);
            let literal = usize::from(u16::from_le_bytes([packed[1], packed[2]])) + 1;
            bytes.extend_from_slice(&packed[3..3 + literal]);
            packed = &packed[3 + literal..];
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    #[test]
    fn any_length_comes_back() {
        for length in [0, 1, 59, 60, 61, 65_535, 65_536, 65_537, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|i: usize| i.to_le_bytes()[0]).collect();
            assert_eq!(unpack(&pack(&bytes)), bytes, "{length}");
        }
    }
}
