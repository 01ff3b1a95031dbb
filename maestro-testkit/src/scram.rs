//! The form in which PostgreSQL keeps a password, made here.
//!
//! PostgreSQL would derive it in 4096 rounds, and so would every client at every connection: 40 to
//! 90 ms of a core in a debug build, for passwords of servers that live for minutes. One round is
//! SCRAM all the same, and a wrong password is refused all the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// `SCRAM-SHA-256$1:<salt>$<stored key>:<server key>` for a password of ASCII letters and digits
/// (others would have to be normalised first).
pub(crate) fn verifier(password: &str) -> String {
    let salt: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    let (stored, server) = keys(password, &salt, 1);
    format!(
        "SCRAM-SHA-256$1:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server)
    )
}

/// The stored key and the server key of RFC 5802.
fn keys(password: &str, salt: &[u8], rounds: u32) -> ([u8; 32], [u8; 32]) {
    let mut last = hmac(password.as_bytes(), &[salt, &1u32.to_be_bytes()]);
    let mut salted = last;
    for _ in 1..rounds {
        last = hmac(password.as_bytes(), &[&last]);
        for (byte, next) in salted.iter_mut().zip(last) {
            *byte ^= next;
        }
    }
    let client = hmac(&salted, &[b"Client Key"]);
    (
        Sha256::digest(client).into(),
        hmac(&salted, &[b"Server Key"]),
    )
}

/// HMAC-SHA-256 of the parts in a row. Keys are shorter than a block of 64 bytes here.
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    for part in parts {
        inner.update(part);
    }
    Sha256::new_with_prefix(pad(0x5c))
        .chain_update(inner.finalize())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3: user `user`, password `pencil`.
    #[test]
    fn the_keys_are_those_that_prove_the_exchange_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let (stored, server) = keys("pencil", &salt, 4096);
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let exchange = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
        );
        let signature = hmac(&server, &[exchange.as_bytes()]);
        assert_eq!(
            STANDARD.encode(signature),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        // The client's proof, taken apart with its signature, is a key with the stored hash.
        let proof = STANDARD
            .decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
            .unwrap();
        let signature = hmac(&stored, &[exchange.as_bytes()]);
        let client: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        assert_eq!(<[u8; 32]>::from(Sha256::digest(client)), stored);
    }
}
