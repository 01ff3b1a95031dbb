//! Secrets in mounted files, and their rotation.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::zeroize::Zeroizing;

use crate::layers::LONGEST_VALUE;
use crate::secret::Secret;

/// A secret in a file that changes while the service runs: a Kubernetes secret volume, a Docker
/// secret, a file that an agent rewrites.
///
/// [`current`](Self::current) asks the file system whether the file is still the one that was read
/// (one `stat`, no thread, no watch) and reads it again when it is not. Kubernetes replaces a
/// symbolic link beside the file, which `stat` sees through. A volume mounted by `subPath` is never
/// updated by Kubernetes: mount the directory.
///
/// A file that is missing, empty or unreadable at that moment (it is being rewritten) leaves the
/// last good value in force, with a warning. Clones share one value.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("password");
/// std::fs::write(&path, "first\n")?;
/// let secret = maestro_config::SecretFile::open(&path)?;
/// assert_eq!(secret.current().expose(), "first");
///
/// std::fs::write(&path, "the second\n")?;
/// assert_eq!(secret.current().expose(), "the second");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SecretFile {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    stamp: Option<Stamp>,
    text: Zeroizing<String>,
    /// The last failure, so that it is reported once and not on every read.
    failure: Option<Unreadable>,
}

impl SecretFile {
    /// Reads the file for the first time. The file must be there and hold something.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, SecretFileError> {
        let path = path.into();
        match read_stamped(&path) {
            Ok((text, stamp)) => Ok(Self::holding(path, text, Some(stamp))),
            Err(reason) => Err(SecretFileError { path, reason }),
        }
    }

    /// A file whose content is known already; it is read again at the first use.
    pub(crate) fn known(path: PathBuf, text: Zeroizing<String>) -> Self {
        Self::holding(path, text, None)
    }

    fn holding(path: PathBuf, text: Zeroizing<String>, stamp: Option<Stamp>) -> Self {
        let failure = None;
        let state = State {
            stamp,
            text,
            failure,
        };
        Self {
            path,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The secret as the file holds it now. For every new connection.
    pub fn current(&self) -> Secret<String> {
        let mut state = self.lock();
        let now = std::fs::metadata(&self.path).map(|m| Stamp::of(&m));
        if now.ok() != state.stamp || state.stamp.is_none() {
            self.read_again(&mut state);
        }
        Secret::new(String::clone(&state.text))
    }

    /// Reads the file whatever `stat` says; true when the secret is another one than before. For the
    /// moment after a refused password: a file rewritten in place within the clock's resolution, at
    /// the same length, looks unchanged.
    pub fn refresh(&self) -> bool {
        self.read_again(&mut self.lock())
    }

    fn read_again(&self, state: &mut State) -> bool {
        match read_stamped(&self.path) {
            Ok((text, stamp)) => {
                let changed = *text != *state.text;
                *state = State {
                    stamp: Some(stamp),
                    text,
                    failure: None,
                };
                if changed {
                    tracing::info!(path = %self.path.display(), "secret file changed");
                }
                changed
            }
            Err(reason) => {
                if state.failure.as_ref() != Some(&reason) {
                    tracing::warn!(path = %self.path.display(), %reason, "secret file unreadable, keeping the last value");
                }
                state.failure = Some(reason);
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the state is whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A secret file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret file {path}, {reason}: {}", .reason.fix(), path = .path.display())]
pub struct SecretFileError {
    path: PathBuf,
    reason: Unreadable,
}

impl SecretFileError {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why. Reads on after the path and a comma.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Missing,
    Refused,
    NotAFile,
    NotUtf8,
    ByteOrderMark,
    Nul,
    TooLong,
    Empty,
    Other(std::io::ErrorKind),
}

impl Unreadable {
    pub(crate) const fn fix(&self) -> &'static str {
        match self {
            Self::Missing => "mount the secret there, or correct the path",
            Self::Refused => "let the user of the process read it",
            Self::NotAFile => "name the file inside the mounted directory",
            Self::NotUtf8 => "write the secret in UTF-8; encode binary data as base64",
            Self::ByteOrderMark => "save it as UTF-8 without byte order mark",
            Self::Nul => "remove it; encode binary data as base64",
            Self::TooLong => "check which file is mounted there; a secret has at most 1 MiB",
            Self::Empty => "write the secret into it",
            Self::Other(_) => "check the mount",
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("which does not exist"),
            Self::Refused => f.write_str("which this process may not read"),
            Self::NotAFile => f.write_str("which is not a file"),
            Self::NotUtf8 => f.write_str("which is not UTF-8"),
            Self::ByteOrderMark => f.write_str("which begins with a byte order mark"),
            Self::Nul => f.write_str("which holds a NUL character"),
            Self::TooLong => f.write_str("which is longer than 1 MiB"),
            Self::Empty => f.write_str("which is empty"),
            Self::Other(kind) => write!(f, "which cannot be read ({kind})"),
        }
    }
}

/// Reads a secret file; one line end is dropped from its end.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, Unreadable> {
    read_stamped(path).map(|(text, _)| text)
}

fn read_stamped(path: &Path) -> Result<(Zeroizing<String>, Stamp), Unreadable> {
    // Before opening it: to open a pipe would wait for its writer.
    if !std::fs::metadata(path)
        .map_err(|e| unreadable(&e))?
        .is_file()
    {
        return Err(Unreadable::NotAFile);
    }
    let file = File::open(path).map_err(|e| unreadable(&e))?;
    // Of the opened file: the path may lead to another one by now.
    let stamp = Stamp::of(&file.metadata().map_err(|e| unreadable(&e))?);
    let mut bytes = Zeroizing::new(Vec::new());
    // One byte more than allowed tells too long from just fitting.
    let limit = LONGEST_VALUE as u64 + 1;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(&e))?;
    if bytes.len() > LONGEST_VALUE {
        return Err(Unreadable::TooLong);
    }
    let text = content(&bytes)?;
    Ok((Zeroizing::new(text.to_owned()), stamp))
}

/// The secret in a file of these bytes.
pub(crate) fn content(bytes: &[u8]) -> Result<&str, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::NotUtf8)?;
    // Invisible in an editor, and part of the password for the server.
    if text.starts_with('\u{feff}') {
        return Err(Unreadable::ByteOrderMark);
    }
    if text.contains('\0') {
        return Err(Unreadable::Nul);
    }
    let text = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(text);
    if text.trim().is_empty() {
        return Err(Unreadable::Empty);
    }
    Ok(text)
}

fn unreadable(error: &std::io::Error) -> Unreadable {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Unreadable::Missing,
        std::io::ErrorKind::PermissionDenied => Unreadable::Refused,
        std::io::ErrorKind::IsADirectory => Unreadable::NotAFile,
        kind => Unreadable::Other(kind),
    }
}

/// What tells one content of a path from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests;
