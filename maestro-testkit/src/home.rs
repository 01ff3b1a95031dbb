//! Where the servers of one clone of the project live, and the locks that say who uses them.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, access, flock};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind};

/// The directory of one set of servers, under the system's temporary directory: short enough for a
/// Unix socket's path (107 bytes), and reachable for the unprivileged account PostgreSQL runs as.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    path: PathBuf,
}

impl Home {
    /// The home of the clone this process was started in: the nearest directory above the working
    /// directory that is a checkout, else the topmost with a `Cargo.lock`.
    pub(crate) fn of_this_clone(variant: &str) -> Result<Self, Error> {
        let current = std::env::current_dir()
            .map_err(|e| Error::io("finding the working directory of this process", e))?;
        Ok(Self::of_clone(&clone_root(&current), variant))
    }

    /// The home of a clone. Runs that ask for other servers (`variant`) have a home of their own, so
    /// that none joins what another one left warm.
    pub(crate) fn of_clone(root: &Path, variant: &str) -> Self {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let mut digest = Sha256::new_with_prefix(root.as_os_str().as_encoded_bytes());
        digest.update(variant);
        let digest = digest.finalize();
        // 40 bits: the clones of one user of one machine are few.
        let key = digest.iter().take(5).fold(String::new(), |mut key, byte| {
            // Writing to a String cannot fail.
            let _ = write!(key, "{byte:02x}");
            key
        });
        let uid = rustix::process::geteuid().as_raw();
        let path = temporary_directory().join(format!("maestro-dev-{uid}-{key}"));
        Self { path }
    }

    /// Where it is written down what this user made on servers of somebody else, whichever clone it
    /// was: the next run of any of them removes what a killed one left.
    pub(crate) fn of_given_servers() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let path = temporary_directory().join(format!("maestro-dev-{uid}-given"));
        Self { path }
    }

    /// A home for servers that one process has to itself.
    pub(crate) fn dedicated(&self, id: &str) -> Self {
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(format!("-d{id}"));
        let path = self.path.with_file_name(name);
        Self { path }
    }

    /// Dedicated homes of this clone, whether somebody uses them or not.
    pub(crate) fn dedicated_siblings(&self) -> Vec<Self> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Vec::new();
        };
        let prefix = format!("{}-d", name.to_string_lossy());
        let Ok(entries) = fs::read_dir(parent) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| Self { path: entry.path() })
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory if need be, and refuses one that somebody else put there: the
    /// temporary directory is everybody's, and administrators' passwords go in here.
    fn create(&self) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o711).create(&self.path) {
            Ok(()) => fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let found = fs::symlink_metadata(&self.path)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            let why = format!(
                "{} exists and is not a directory of this user: remove it",
                self.path.display()
            );
            return Err(io::Error::other(why));
        }
        Ok(())
    }

    /// A directory inside the home, created if need be, owned by `owner` when this process may give
    /// it away.
    pub(crate) fn directory(
        &self,
        name: &str,
        owner: Option<(u32, u32)>,
    ) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let make = || {
            self.create()?;
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            match owner {
                Some((uid, gid)) => std::os::unix::fs::chown(&path, Some(uid), Some(gid)),
                None => Ok(()),
            }
        };
        retry_while_missing(make)
            .map_err(|e| Error::io(format!("creating {}", path.display()), e))?;
        Ok(path)
    }
}

/// Repeats what failed because a directory was not there: between two steps a guard that ended, or
/// whoever removed the last thing in it, may have removed it.
pub(crate) fn retry_while_missing<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    // Each removal is one instant of another process' clean-up, and those are few.
    const ATTEMPTS: usize = 100;

    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    attempt()
}

/// An advisory lock on a file, released when dropped or when the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Together with others: "I use this server".
    Shared,
    /// Alone.
    Exclusive,
}

impl Lock {
    /// Takes the lock if nobody stands in the way now.
    pub(crate) fn try_take(path: &Path, mode: Mode) -> Result<Option<Self>, Error> {
        Self::attempt(path, mode).map_err(|e| Error::io(format!("locking {}", path.display()), e))
    }

    fn attempt(path: &Path, mode: Mode) -> io::Result<Option<Self>> {
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o644)
            .open(path)?;
        match flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        // A guard that ended removed the file under its lock: then this is a lock on nothing.
        let held = file.metadata()?;
        match fs::metadata(path) {
            Ok(on_disk) if on_disk.ino() == held.ino() => Ok(Some(Self { _file: file })),
            _ => Ok(None),
        }
    }

    /// Takes the lock, waiting for others at most `deadline`. `prepare` runs before every try and
    /// puts the directory back that a guard may have removed.
    pub(crate) async fn take(
        path: &Path,
        mode: Mode,
        deadline: Duration,
        prepare: impl Fn() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        loop {
            prepare()?;
            match Self::attempt(path, mode) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                // The directory went between `prepare` and `open`.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("locking {}", path.display()), e)),
            }
            if started.elapsed() >= deadline {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "waited {} s for the lock {}: another process starts or stops this server",
                        deadline.as_secs(),
                        path.display()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The nearest directory that is a checkout, else the topmost one with a `Cargo.lock`, else `from`.
fn clone_root(from: &Path) -> PathBuf {
    let mut with_lock_file = None;
    for directory in from.ancestors() {
        if directory.join(".git").exists() {
            return directory.to_owned();
        }
        if directory.join("Cargo.lock").exists() {
            with_lock_file = Some(directory.to_owned());
        }
    }
    with_lock_file.unwrap_or_else(|| from.to_owned())
}

/// The system's temporary directory, unless servers cannot live there.
fn temporary_directory() -> PathBuf {
    let chosen = std::env::temp_dir();
    if is_suitable(&chosen, rustix::process::geteuid().is_root()) {
        chosen
    } else {
        PathBuf::from("/tmp")
    }
}

/// Whether servers can live in a directory, started by root or not.
fn is_suitable(directory: &Path, by_root: bool) -> bool {
    // The servers' own files and scripts quote no path.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(byte);
    let path = directory.as_os_str().as_encoded_bytes();
    // PostgreSQL's socket, `<home>/postgres/.s.PGSQL.<port>`, needs about 60 of the 107 bytes.
    let is_short = path.len() < 40;
    // PostgreSQL does not run as root, and its account has to get there.
    let is_reachable = || {
        directory.ancestors().all(|directory| {
            fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
        })
    };
    directory.is_absolute()
        && is_short
        && path.iter().all(is_plain)
        && directory.is_dir()
        && access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
        && (!by_root || is_reachable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_of_a_checkout_has_the_same_home_and_another_checkout_has_another() {
        let scratch = tempfile::tempdir().unwrap();
        for clone in ["a", "b"] {
            fs::create_dir_all(scratch.path().join(clone).join("crates/x/src")).unwrap();
            fs::write(scratch.path().join(clone).join("Cargo.lock"), "").unwrap();
            fs::write(scratch.path().join(clone).join("crates/Cargo.lock"), "").unwrap();
            fs::create_dir(scratch.path().join(clone).join(".git")).unwrap();
        }
        let root = |of: &str| clone_root(&scratch.path().join(of));
        assert_eq!(root("a/crates/x/src"), root("a"));
        assert_ne!(root("a/crates/x"), root("b/crates/x"));
        fs::remove_dir(scratch.path().join("a/.git")).unwrap();
        assert_eq!(root("a/crates/x/src"), scratch.path().join("a"));
    }

    #[test]
    fn an_exclusive_lock_waits_for_every_shared_one_and_a_removed_file_is_no_lock() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let first = Lock::try_take(&path, Mode::Shared).unwrap();
        let second = Lock::try_take(&path, Mode::Shared).unwrap();
        assert!(first.is_some() && second.is_some());
        assert!(Lock::try_take(&path, Mode::Exclusive).unwrap().is_none());
        drop((first, second));
        let alone = Lock::try_take(&path, Mode::Exclusive).unwrap();
        assert!(alone.is_some());
        assert!(Lock::try_take(&path, Mode::Shared).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        assert!(Lock::try_take(&path, Mode::Shared).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lock_that_cannot_be_taken_at_all_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        // A directory in its place, as a full disk or a missing right would be: no waiting mends it.
        let taking = Lock::take(
            scratch.path(),
            Mode::Shared,
            Duration::from_mins(10),
            || Ok(()),
        );
        let taken = tokio::time::timeout(Duration::from_secs(30), taking).await;
        let error = taken.expect("it waits").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }

    #[test]
    fn a_temporary_directory_that_servers_cannot_live_in_is_passed_over() {
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        let in_it = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let plain = in_it("plain");
        assert!(is_suitable(&plain, false), "{}", plain.display());
        for name in ["with space", "semi;colon", "per%cent", "\u{e4}"] {
            assert!(!is_suitable(&in_it(name), false), "{name}");
        }
        assert!(!is_suitable(Path::new("tmp"), false), "relative to what?");
        assert!(!is_suitable(&plain.join("gone"), false));
        let file = plain.join("file");
        fs::write(&file, "").unwrap();
        assert!(!is_suitable(&file, false));
        assert!(!is_suitable(
            &in_it("a-name-with-which-it-becomes-too-long"),
            false
        ));
        let closed = in_it("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        // PostgreSQL's account would not get there.
        assert!(is_suitable(&closed, false));
        assert!(!is_suitable(&closed, true));
    }
}
