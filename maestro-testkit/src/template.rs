//! Databases that are migrated once and cloned for every test.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;

use maestro_config::ServiceName;
use maestro_config::provision::ServiceResources;
use sha2::{Digest, Sha256};

use crate::background;
use crate::error::{Error, ErrorKind};
use crate::sandbox::{self, Members, Sandbox};
use crate::service::{Origin, Service};
use crate::stack::Member;

/// A migrated database of one service, from which sandboxes are cloned.
#[derive(Clone, Debug)]
pub struct Template {
    members: Members,
    resources: ServiceResources,
}

impl Template {
    /// A sandbox of the template's service whose database is a clone: schema and rows are there, and
    /// everything is owned as if it had been migrated in place.
    pub async fn sandbox(&self) -> Result<Sandbox, Error> {
        let service = self.resources.service().clone();
        sandbox::create(&self.members, service, Some(self.resources.clone())).await
    }
}

/// What a migration is given: the still empty database.
#[derive(Clone, Debug)]
pub struct Blank {
    environment: Vec<(String, String)>,
}

impl Blank {
    /// `MAESTRO_*` pairs with which the service's migrations run on the empty database.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }
}

/// The template of a service and a fingerprint; migrates it if it is not there yet.
pub(crate) async fn obtain<F, E>(
    members: &Members,
    service: ServiceName,
    fingerprint: &str,
    migrate: impl FnOnce(Blank) -> F,
) -> Result<Template, Error>
where
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Some(member) = members.get(&Service::Postgres) else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a template needs PostgreSQL, which this stack was started without",
        ));
    };
    let digest = Sha256::digest(fingerprint.as_bytes());
    let id = digest
        .iter()
        .take(5)
        .fold(String::from("m"), |mut id, byte| {
            // Writing to a String cannot fail.
            let _ = write!(id, "{byte:02x}");
            id
        });
    let resources = sandbox::resources(&service, &id)?;
    let template = Template {
        members: members.clone(),
        resources: resources.clone(),
    };
    let build = |member: &Arc<Member>| {
        let member = Arc::clone(member);
        let resources = resources.clone();
        async move { member.administrator.begin_template(&resources).await }
    };
    // None: another test or an earlier run has finished it.
    let Some(building) = background::run(build(member)).await? else {
        return Ok(template);
    };
    let server = member.running.address.authority();
    let blank = Blank {
        environment: sandbox::environment(&resources, &id, |wanted| {
            (wanted == Service::Postgres).then(|| server.clone())
        }),
    };
    // Runs on the caller's runtime. If it fails or is dropped, so is the lock, and the next one
    // starts afresh.
    migrate(blank).await.map_err(|e| {
        let what = format!("migrating the template database of {service}");
        Error::new(ErrorKind::Refused, what).with(e)
    })?;
    let member = Arc::clone(member);
    background::run(async move {
        let given = member.running.origin == Origin::Explicit;
        member
            .administrator
            .finish_template(building, &resources, given)
            .await
    })
    .await?;
    Ok(template)
}

/// A fingerprint of files, names and contents, with everything in directories: what a template of
/// migrations hangs on.
pub fn fingerprint<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> io::Result<String> {
    let mut digest = Sha256::new();
    for path in paths {
        add(&mut digest, path.as_ref())?;
    }
    Ok(digest
        .finalize()
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

fn add(digest: &mut Sha256, path: &Path) -> io::Result<()> {
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            add(digest, &entry.path())?;
        }
        return Ok(());
    }
    let content = std::fs::read(path)?;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    // Lengths keep `a` + `bc` apart from `ab` + `c`.
    digest.update(name.len().to_be_bytes());
    digest.update(name);
    digest.update(content.len().to_be_bytes());
    digest.update(&content);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_every_byte_and_name_of_a_migration() {
        let scratch = tempfile::tempdir().unwrap();
        let of = || fingerprint([scratch.path()]).unwrap();
        std::fs::write(scratch.path().join("1.sql"), "create table a ()").unwrap();
        let first = of();
        assert_eq!(first, of());
        std::fs::write(scratch.path().join("1.sql"), "create table b ()").unwrap();
        let second = of();
        std::fs::rename(scratch.path().join("1.sql"), scratch.path().join("2.sql")).unwrap();
        let third = of();
        assert!(first != second && second != third);
    }
}
