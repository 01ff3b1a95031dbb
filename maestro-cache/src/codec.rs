//! From values to stored bytes and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::envelope::{Compression, Encoding, Envelope};
use crate::error::{Error, ErrorKind};

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

/// Encodes a value, and refuses one above `limit` bytes.
pub(crate) fn encode<T: Serialize>(
    region: &str,
    value: &T,
    limit: usize,
) -> Result<Encoded, Error> {
    let payload = serde_json::to_vec(value).map_err(|error| {
        Error::with_source(
            ErrorKind::Codec,
            format!(
                "a value of region `{region}` cannot be written as JSON; look at its `Serialize`"
            ),
            error,
        )
    })?;
    if payload.len() > limit {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a value of region `{region}` takes {} bytes, more than {limit}: cache less of it, or raise `max_value_bytes`",
                payload.len()
            ),
        ));
    }
    Ok(Encoded {
        encoding: Encoding::Json,
        compression: Compression::None,
        payload,
    })
}

/// Decodes a payload; `None` when it does not fit the type, which is a miss.
pub(crate) fn decode<T: DeserializeOwned>(envelope: &Envelope<'_>) -> Option<T> {
    match (envelope.encoding, envelope.compression) {
        (Encoding::Json, Compression::None) => serde_json::from_slice(envelope.payload).ok(),
        _ => None,
    }
}
