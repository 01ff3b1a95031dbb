//! From values to stored bytes and back.

use std::io::{Read as _, Write as _};

use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::envelope::{Compression, Encoding, Envelope};
use crate::error::{Error, ErrorKind};
use crate::options::Options;

/// How values of a region are written. Each is read whatever the region writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// Text that any language and `redis-cli` read.
    #[default]
    Json,
    /// Half the size and faster to read for numbers and bytes; fields go by name, so that one can be
    /// added.
    MessagePack,
}

/// A value ready to be stored.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) encoding: Encoding,
    pub(crate) compression: Compression,
    pub(crate) payload: Vec<u8>,
}

impl Encoded {
    /// A note that there is no such value.
    pub(crate) const fn absent() -> Self {
        Self {
            encoding: Encoding::Absent,
            compression: Compression::None,
            payload: Vec::new(),
        }
    }

    /// The two letters of the header.
    pub(crate) fn letters(&self) -> [u8; 2] {
        [
            u8::try_from(self.encoding.letter()).unwrap_or(b'?'),
            u8::try_from(self.compression.letter()).unwrap_or(b'?'),
        ]
    }
}

/// Encodes a value of a region as it was told to, and refuses one above its limit.
pub(crate) fn encode<T: Serialize>(
    region: &str,
    value: &T,
    options: &Options,
) -> Result<Encoded, Error> {
    let limit = options.max_value_bytes;
    let mut encoded = match options.codec {
        Codec::Json => json(region, value, limit)?,
        Codec::MessagePack => {
            let payload = rmp_serde::to_vec_named(value)
                .map_err(|error| unwritable(region, "MessagePack", error))?;
            Encoded {
                encoding: Encoding::MessagePack,
                compression: Compression::None,
                payload: within(region, payload, limit)?,
            }
        }
    };
    if options
        .compress_above
        .is_some_and(|size| encoded.payload.len() > size)
    {
        let smaller =
            compress(&encoded.payload).filter(|bytes| bytes.len() < encoded.payload.len());
        if let Some(payload) = smaller {
            encoded.compression = Compression::Zlib;
            encoded.payload = payload;
        }
    }
    Ok(encoded)
}

/// Encodes a value as JSON, and refuses one above `limit` bytes.
pub(crate) fn json<T: Serialize>(name: &str, value: &T, limit: usize) -> Result<Encoded, Error> {
    let payload = serde_json::to_vec(value).map_err(|error| unwritable(name, "JSON", error))?;
    Ok(Encoded {
        encoding: Encoding::Json,
        compression: Compression::None,
        payload: within(name, payload, limit)?,
    })
}

fn unwritable(
    name: &str,
    codec: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    let context =
        format!("a value of `{name}` cannot be written as {codec}; look at its `Serialize`");
    Error::with_source(ErrorKind::Codec, context, error)
}

fn within(name: &str, payload: Vec<u8>, limit: usize) -> Result<Vec<u8>, Error> {
    if payload.len() <= limit {
        return Ok(payload);
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!(
            "a value of `{name}` takes {} bytes, more than {limit}: cache less of it, or raise `max_value_bytes`",
            payload.len()
        ),
    ))
}

fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    // What a cache wants is time: the higher levels take several times as long for some percent.
    let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(payload).ok()?;
    encoder.finish().ok()
}

/// At most so many bytes: a few stored ones may stand for gigabytes.
fn decompress(payload: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut decoder = ZlibDecoder::new(payload).take(most.saturating_add(1));
    decoder.read_to_end(&mut plain).ok()?;
    (plain.len() <= limit).then_some(plain)
}

/// Decodes a payload, with its size before compression; `None` when it does not fit the type or the
/// limit, which is a miss.
pub(crate) fn decode<T: DeserializeOwned>(
    envelope: &Envelope<'_>,
    limit: usize,
) -> Option<(T, usize)> {
    let plain;
    let payload = match envelope.compression {
        Compression::None => envelope.payload,
        Compression::Zlib => {
            plain = decompress(envelope.payload, limit)?;
            &plain
        }
    };
    let value = match envelope.encoding {
        Encoding::Json => serde_json::from_slice(payload).ok()?,
        Encoding::MessagePack => rmp_serde::from_slice(payload).ok()?,
        Encoding::Absent | Encoding::Tombstone => return None,
    };
    Some((value, payload.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Micros;

    fn stored(encoding: Encoding, compression: Compression, payload: &[u8]) -> Envelope<'_> {
        Envelope {
            encoding,
            compression,
            created: Micros(1),
            expires: Micros(2),
            tags: Vec::new(),
            payload,
        }
    }

    #[test]
    fn a_few_bytes_that_stand_for_many_are_a_miss() {
        let plain = serde_json::to_vec(&"a".repeat(100_000)).unwrap();
        let small = compress(&plain).unwrap();
        assert!(small.len() < 1_000);
        let envelope = stored(Encoding::Json, Compression::Zlib, &small);
        assert!(decode::<String>(&envelope, plain.len()).is_some());
        assert!(decode::<String>(&envelope, plain.len() - 1).is_none());
    }

    #[test]
    fn an_added_field_is_read_from_messagepack() {
        #[derive(serde::Serialize)]
        struct Old {
            id: u64,
        }
        #[derive(serde::Deserialize)]
        struct New {
            id: u64,
            title: Option<String>,
        }
        let bytes = rmp_serde::to_vec_named(&Old { id: 7 }).unwrap();
        let envelope = stored(Encoding::MessagePack, Compression::None, &bytes);
        let (new, size) = decode::<New>(&envelope, 100).unwrap();
        assert_eq!((new.id, new.title, size), (7, None, bytes.len()));
    }

    #[test]
    fn damaged_bytes_are_a_miss() {
        for compression in [Compression::None, Compression::Zlib] {
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                let envelope = stored(encoding, compression, b"\xc1 damaged");
                assert!(decode::<String>(&envelope, 100).is_none());
            }
        }
    }
}
