//! Who made what on a server, so that what a dead process left is removed.
//!
//! One file per sandbox, service and server, `<id>.<service name>`, in a directory that belongs to
//! the server: when a server of ours ends, its registry goes with it.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use maestro_config::ServiceName;

use crate::error::Error;
use crate::home::retry_while_missing;
use crate::process::ProcessId;

/// What one process made on one server for one service.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    pub(crate) id: String,
    pub(crate) service: ServiceName,
}

impl Entry {
    /// Written before anything is made on the server.
    pub(crate) fn write(directory: &Path, id: &str, service: &ServiceName) -> Result<Self, Error> {
        let path = directory.join(format!("{id}.{service}"));
        let failed = |e| Error::io(format!("writing {}", path.display()), e);
        // Without it the next process would take the entry for an orphan.
        let unknown = || {
            failed(io::Error::other(
                "this process does not find its own start time",
            ))
        };
        let owner = ProcessId::own().ok_or_else(unknown)?.to_string();
        // Renamed into place, since an entry without an owner is an orphan.
        let new = directory.join(format!(".{id}.{service}"));
        retry_while_missing(|| {
            create(directory)?;
            std::fs::write(&new, &owner)?;
            std::fs::rename(&new, &path)
        })
        .map_err(failed)?;
        Ok(Self {
            path,
            id: id.to_owned(),
            service: service.clone(),
        })
    }

    /// Takes the entry out, once the server has confirmed that everything is gone.
    pub(crate) fn remove(&self) {
        // The registry may be gone together with its server; the last entry takes it along.
        let _ = std::fs::remove_file(&self.path);
        if let Some(directory) = self.path.parent() {
            remove_if_empty(directory);
        }
    }

    /// Entries whose process is gone.
    pub(crate) fn orphans(directory: &Path) -> Vec<Self> {
        let Ok(files) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        files
            .flatten()
            .filter_map(|file| {
                let path = file.path();
                let name = file.file_name();
                let (id, service) = name.to_str()?.split_once('.')?;
                // One that is gone by now was taken out by its owner.
                let owner = std::fs::read_to_string(&path).ok()?;
                let alive = ProcessId::parse(&owner).is_some_and(|owner| owner.is_alive());
                (!alive && !id.is_empty()).then_some(())?;
                Some(Self {
                    id: id.to_owned(),
                    service: service.parse().ok()?,
                    path,
                })
            })
            .collect()
    }
}

/// Removes a registry with nothing in it, and the home of registries of given servers with the last of
/// them; a server's own directory is not empty. The next entry brings both back.
pub(crate) fn remove_if_empty(directory: &Path) {
    if std::fs::remove_dir(directory).is_ok()
        && let Some(home) = directory.parent()
    {
        let _ = std::fs::remove_dir(home);
    }
}

/// Creates the registry for whoever owns the server's directory, which is who empties it.
fn create(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(directory),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => {
            let parent = directory.parent().unwrap_or(directory).metadata()?;
            if parent.uid() == directory.metadata()?.uid() {
                return Ok(());
            }
            chown(directory, Some(parent.uid()), Some(parent.gid()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_processes_made_is_an_orphan() {
        let scratch = tempfile::tempdir().unwrap();
        let service: ServiceName = "quality-fabric".parse().unwrap();
        let home = scratch.path().join("given");
        let registry = home.join("registry");
        let mine = Entry::write(&registry, "abc", &service).unwrap();
        std::fs::write(registry.join("def.orders"), "999999999 1").unwrap();
        let orphans = Entry::orphans(&registry);
        assert_eq!(orphans.len(), 1);
        assert_eq!(orphans[0].id, "def");
        assert_eq!(orphans[0].service.as_str(), "orders");
        orphans[0].remove();
        assert!(registry.exists());
        mine.remove();
        assert!(!home.exists());
    }
}
