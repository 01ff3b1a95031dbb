//! The id of a tenant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// The id of a tenant: 1 to 48 lower-case letters, digits, `-` and `_`, the first a letter or digit.
///
/// It is checked here once and never escaped afterwards: no character of it means anything in SQL.
///
/// ```
/// use maestro_db::TenantId;
///
/// let acme = TenantId::parse("acme")?;
/// assert_eq!(acme.as_str(), "acme");
/// assert!(TenantId::parse("acme'; drop table orders").is_err());
/// # Ok::<(), maestro_db::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Leaves room for a prefix in the name of a schema, which PostgreSQL cuts at 63 bytes.
const LONGEST: usize = 48;

impl TenantId {
    /// Checks an id.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] when it is not one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = (1..=LONGEST).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text
                .bytes()
                .all(|byte| word(byte) || byte == b'-' || byte == b'_');
        if valid {
            return Ok(Self(text.into()));
        }
        Err(Error::new(
            ErrorKind::Rejected,
            "not the id of a tenant: expected 1 to 48 lower-case letters, digits, `-` and `_`, the first a letter or digit",
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The schema of the tenant where tenants have schemas, without quotes.
    pub(crate) fn schema(&self) -> String {
        format!("tenant_{}", self.0)
    }
}

impl FromStr for TenantId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_outside_the_rule_are_refused_and_not_shown() {
        let long = "a".repeat(49);
        for id in [
            "", "-a", "_a", "Acme", "a b", "a'b", "a\"b", "a;b", "é", "a\0", &long,
        ] {
            let error = TenantId::parse(id).expect_err(id);
            assert!(id.len() < 3 || !error.to_string().contains(id), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_needs_no_quoting(text in "\\PC{0,60}") {
            if let Ok(id) = TenantId::parse(&text) {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
                prop_assert!(id.schema().len() < 63);
            }
        }
    }
}
