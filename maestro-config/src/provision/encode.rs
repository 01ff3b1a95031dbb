//! Percent-encoding and password digests.

use sha2::{Digest, Sha256};

/// Everything but the unreserved characters of RFC 3986, so that a password with `@`, `/` or `%`
/// stays one component of a URL.
pub(crate) fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// SHA-256 in lower-case hexadecimal, the form Redis takes after `#`.
pub(super) fn sha256_hex(text: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// RabbitMQ's salted SHA-256: base64 of the salt and the digest of salt and password. The salt is
/// derived from user and password, so that the same input renders the same file.
pub(super) fn rabbit_hash(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let seed = Sha256::new()
        .chain_update("maestro-rabbitmq-salt\0")
        .chain_update(user)
        .chain_update([0])
        .chain_update(password)
        .finalize();
    let salt = &seed[..4];
    let digest = Sha256::new()
        .chain_update(salt)
        .chain_update(password)
        .finalize();
    let mut bytes = salt.to_vec();
    bytes.extend_from_slice(&digest);
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_do_not_survive_encoding() {
        assert_eq!(percent("p@ss/w:%é-~"), "p%40ss%2Fw%3A%25%C3%A9-~");
    }

    #[test]
    fn a_digest_is_the_published_one() {
        assert_eq!(
            sha256_hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
