//! A secret that is either given once or in a file that may change.

use crate::layers::Value;
use crate::reader::Reader;
use crate::secret::Secret;
use crate::secret_file::SecretFile;
use crate::variable::Variable;

/// A secret wherever it comes from: fixed, when it was set as a value, or a [`SecretFile`], when it
/// was set by `NAME_FILE`. Ask for the [`current`](Self::current) one whenever a connection is opened.
#[derive(Clone, Debug)]
pub struct SecretSource(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Fixed(Secret<String>),
    File(SecretFile),
}

impl SecretSource {
    /// A secret that never changes.
    #[must_use]
    pub fn fixed(secret: Secret<String>) -> Self {
        Self(Inner::Fixed(secret))
    }

    /// The secret as it is now; costs one `stat` when it is in a file.
    pub fn current(&self) -> Secret<String> {
        match &self.0 {
            Inner::Fixed(secret) => secret.clone(),
            Inner::File(file) => file.current(),
        }
    }

    /// Reads the file again, after the server refused the secret; true when it is another one now,
    /// so that trying again makes sense.
    pub fn refresh(&self) -> bool {
        match &self.0 {
            Inner::Fixed(_) => false,
            Inner::File(file) => file.refresh(),
        }
    }

    pub(crate) fn of(value: &Value) -> Self {
        match &value.file {
            Some(path) => Self(Inner::File(SecretFile::known(
                path.clone(),
                value.text.clone(),
            ))),
            None => Self::fixed(Secret::new(String::clone(&value.text))),
        }
    }
}

impl From<SecretFile> for SecretSource {
    fn from(file: SecretFile) -> Self {
        Self(Inner::File(file))
    }
}

impl Reader<'_> {
    /// A secret that may rotate: read from `NAME_FILE`, it follows the file.
    pub fn secret_source(&mut self, variable: &Variable) -> Option<SecretSource> {
        let raw = self.raw(variable)?;
        self.check_secret(variable, &raw)?;
        self.source(variable)
    }

    /// The source of a variable whose value has been checked.
    pub(crate) fn source(&self, variable: &Variable) -> Option<SecretSource> {
        match self.entry(variable).filter(|entry| !entry.is_empty()) {
            Some(entry) => entry.value.as_ref().ok().map(SecretSource::of),
            None => variable
                .default
                .map(|text| SecretSource::fixed(Secret::new(text.to_owned()))),
        }
    }
}
