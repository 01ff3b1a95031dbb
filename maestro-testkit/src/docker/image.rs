//! Names of images.

use std::fmt;

use testcontainers::GenericImage;

use crate::error::{Error, ErrorKind};

/// The name of an image: `postgres:15`, `registry.example:5000/team/redis@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    whole: String,
    /// Where the tag or digest begins, behind its separator.
    tag: usize,
}

impl Reference {
    /// Takes a name apart; one without a tag means `latest`, as everywhere in Docker.
    pub(crate) fn parse(variable: &str, text: &str) -> Result<Self, Error> {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if text.is_empty() || text.contains(odd) || text.starts_with(['-', ':', '/']) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{variable} is no name of an image: {text:?}; expected one like `postgres:15`"
                ),
            ));
        }
        // A colon before the last slash separates a registry from its port.
        let name = text.rfind('/').map_or(0, |slash| slash + 1);
        let mut whole = text.to_owned();
        let tag = match text.get(name..).and_then(|last| last.rfind(':')) {
            Some(colon) if name + colon + 1 < text.len() => name + colon + 1,
            Some(_) => {
                whole.push_str("latest");
                text.len()
            }
            None => {
                whole.push_str(":latest");
                text.len() + 1
            }
        };
        Ok(Self { whole, tag })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.whole
    }

    /// The image as testcontainers wants it; it puts name and tag together again with a colon.
    pub(crate) fn to_generic(&self) -> GenericImage {
        let (name, tag) = self.whole.split_at(self.tag);
        GenericImage::new(name.trim_end_matches(':'), tag)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_registry_port_its_tag_and_its_digest() {
        for (text, expected, tag) in [
            ("postgres:15", "postgres:15", "15"),
            ("postgres", "postgres:latest", "latest"),
            (
                "localhost:5000/redis",
                "localhost:5000/redis:latest",
                "latest",
            ),
            (
                "r.example:5000/a/redis:7-alpine",
                "r.example:5000/a/redis:7-alpine",
                "7-alpine",
            ),
            ("redis@sha256:0ff1ce", "redis@sha256:0ff1ce", "0ff1ce"),
        ] {
            let reference = Reference::parse("X", text).unwrap();
            assert_eq!(reference.as_str(), expected);
            assert_eq!(reference.whole.split_at(reference.tag).1, tag);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_variable_that_holds_it() {
        for text in ["", " ", "postgres 15", "-f", ":15", "/redis", "redis\n"] {
            let error = Reference::parse("MAESTRO_TEST_CACHE_IMAGE", text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains("MAESTRO_TEST_CACHE_IMAGE"),
                "{error}"
            );
        }
    }
}
