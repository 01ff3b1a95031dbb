//! Whose fault a failure is: the one question that crates ask about each other's errors.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// The part of an error's chain that says: a server was not there, so the input is not at fault.
///
/// A client keeps the cause of its error in one of these, and shows the whole of it in
/// [`source`](StdError::source) when its server was away. Whoever calls several clients, as a message
/// handler does, then asks [`Outage::is_in`] without knowing any of their errors.
///
/// ```
/// use maestro_metrics::Outage;
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// assert!(Outage::is_in(&refused));
/// assert!(Outage::is_in(&Outage::new()));
/// assert!(!Outage::is_in(&"7a".parse::<i32>().unwrap_err()));
///
/// let outage = Outage::because(refused);
/// assert!(outage.cause().is_some_and(|cause| cause.is::<std::io::Error>()));
/// ```
#[derive(Debug, Default)]
pub struct Outage {
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Outage {
    /// Nothing more is known about it.
    #[must_use]
    pub const fn new() -> Self {
        Self { cause: None }
    }

    /// What was seen of it.
    #[must_use]
    pub fn because(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            cause: Some(cause.into()),
        }
    }

    /// What was seen of it.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Whether an error or one of its sources is an outage: an [`Outage`], or an [`io::Error`] about
    /// a connection that was refused, lost, or not answered in time.
    #[must_use]
    pub fn is_in(error: &(dyn StdError + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            let lost = error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| is_about_a_connection(error.kind()));
            if lost || error.is::<Self>() {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is away")
    }
}

impl StdError for Outage {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

fn is_about_a_connection(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        NetworkUnreachable, NotConnected, TimedOut,
    };
    matches!(
        kind,
        BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | NotConnected
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(Box<dyn StdError + Send + Sync>);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("loading the order")
        }
    }

    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(self.0.as_ref())
        }
    }

    #[test]
    fn an_outage_is_found_wherever_it_stands_in_the_chain() {
        let lost = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(Outage::is_in(&Outer(lost.into())));
        assert!(Outage::is_in(&Outer(Outage::because("no answer").into())));
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(!Outage::is_in(&Outer(full.into())));
    }
}
