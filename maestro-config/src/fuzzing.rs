//! What the fuzz targets call (`fuzz/` of the workspace) beside the crate's own interface, and property
//! tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use crate::{compose, secret_file};

/// A compose file: reading ends, and what is taken for a name is one and stands in the file.
pub fn compose(text: &str) {
    let names = compose::variables(text);
    for (index, name) in names.iter().enumerate() {
        let conventional = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        assert!(!name.is_empty() && name.bytes().all(conventional), "{name}");
        assert!(text.contains(name.as_str()));
        assert!(
            !names.iter().take(index).any(|before| before == name),
            "{name} twice"
        );
    }
}

/// The bytes of a secret file: the secret is all of them but one line end.
pub fn secret_file(bytes: &[u8]) {
    let Ok(secret) = secret_file::content(bytes) else {
        return;
    };
    assert!(!secret.trim().is_empty());
    let end = bytes.strip_prefix(secret.as_bytes());
    assert!(
        [&b""[..], b"\n", b"\r\n"].map(Some).contains(&end),
        "{bytes:?}"
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_compose_file_makes_the_reading_fall_over(
            text in "(environment:|  |- |[AB_]{1,3}|=|: |canary|\"|'|#|&|\n|é){0,40}",
            entries in "environment:\n( {0,2}(- )?[\"']?[ABa_]{0,2}[=: é]{0,2}\n){0,6}",
            any in any::<String>(),
        ) {
            super::compose(&text);
            super::compose(&entries);
            super::compose(&any);
        }

        #[test]
        fn a_secret_loses_one_line_end_and_nothing_else(
            text in "[ -~é\n\r]{0,6}(\r?\n){0,3}",
            any in any::<Vec<u8>>(),
        ) {
            super::secret_file(text.as_bytes());
            super::secret_file(&any);
        }
    }
}
