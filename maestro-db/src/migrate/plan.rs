//! What is to be done, from what the files say and what the database says: no server, no clock.

use std::fmt;

use sqlx::migrate::{Migration, Migrator};

use super::MigrationReport;

/// One row of the table of migrations.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
    pub(super) success: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan<'m> {
    pub(super) pending: Vec<&'m Migration>,
    ahead: Vec<i64>,
}

impl Plan<'_> {
    pub(super) fn report(&self) -> MigrationReport {
        MigrationReport {
            applied: Vec::new(),
            pending: self
                .pending
                .iter()
                .map(|migration| (migration.version, migration.description.to_string()))
                .collect(),
            ahead: self.ahead.clone(),
        }
    }
}

/// How the database and the files differ where they must not; the source of the error of
/// [`Db::migrate`](crate::Db::migrate).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// Applied migrations whose file was changed afterwards.
    pub changed: Vec<i64>,
    /// Applied migrations that have no file, although newer ones have.
    pub missing: Vec<i64>,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |versions: &[i64]| {
            versions
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        if !self.changed.is_empty() {
            write!(
                f,
                "changed after they were applied: {} (restore the files; a change is a new migration)",
                list(&self.changed)
            )?;
        }
        if !self.missing.is_empty() {
            if !self.changed.is_empty() {
                f.write_str("; ")?;
            }
            write!(
                f,
                "applied but not among the files: {}",
                list(&self.missing)
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Drift {}

/// Compares files and database.
///
/// Versions newer than the newest file are not drift: a newer release migrated first, and this one
/// still has to start (a rolling update, or its rollback).
pub(super) fn plan<'m>(migrator: &'m Migrator, applied: &[Applied]) -> Result<Plan<'m>, Drift> {
    let files: Vec<_> = migrator
        .iter()
        .filter(|file| !file.migration_type.is_down_migration())
        .collect();
    let newest = files
        .iter()
        .map(|file| file.version)
        .max()
        .unwrap_or(i64::MIN);
    let mut drift = Drift::default();
    let mut ahead = Vec::new();
    for row in applied {
        match files.iter().find(|file| file.version == row.version) {
            Some(file) if *file.checksum != *row.checksum => drift.changed.push(row.version),
            Some(_) => {}
            None if row.version > newest => ahead.push(row.version),
            None if migrator.ignore_missing => {}
            None => drift.missing.push(row.version),
        }
    }
    if drift != Drift::default() {
        return Err(drift);
    }
    let mut pending: Vec<_> = files
        .into_iter()
        .filter(|file| !applied.iter().any(|row| row.version == file.version))
        .collect();
    pending.sort_by_key(|file| file.version);
    Ok(Plan { pending, ahead })
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr as _;
    use sqlx::migrate::MigrationType;

    use super::*;

    fn files(versions: &[i64]) -> Migrator {
        Migrator::with_migrations(
            versions
                .iter()
                .map(|&version| {
                    let sql = "select 1".into_sql_str();
                    Migration::new(version, "file".into(), MigrationType::Simple, sql, false)
                })
                .collect(),
        )
    }

    fn rows(migrator: &Migrator, versions: &[i64]) -> Vec<Applied> {
        let checksum = migrator
            .iter()
            .next()
            .map(|file| file.checksum.to_vec())
            .unwrap_or_default();
        versions
            .iter()
            .map(|&version| Applied {
                version,
                checksum: checksum.clone(),
                success: true,
            })
            .collect()
    }

    #[test]
    fn what_is_not_applied_is_pending_in_order_of_versions() {
        let files = files(&[3, 1, 2]);
        let plan = plan(&files, &rows(&files, &[2])).unwrap();
        let pending: Vec<_> = plan.pending.iter().map(|file| file.version).collect();
        assert_eq!(pending, [1, 3]);
    }

    #[test]
    fn a_file_changed_after_it_was_applied_is_drift() {
        let files = files(&[1, 2]);
        let mut rows = rows(&files, &[1, 2]);
        rows[1].checksum = vec![0];
        assert_eq!(plan(&files, &rows).unwrap_err().changed, [2]);
    }

    #[test]
    fn a_hole_is_drift_and_a_newer_release_is_not() {
        let files = files(&[1, 3]);
        assert_eq!(
            plan(&files, &rows(&files, &[1, 2, 3])).unwrap_err().missing,
            [2]
        );
        let plan = plan(&files, &rows(&files, &[1, 3, 4])).unwrap();
        assert!(plan.pending.is_empty());
        assert_eq!(plan.report().ahead, [4]);
    }

    #[test]
    fn every_difference_is_in_one_report() {
        let drift = Drift {
            changed: vec![1, 2],
            missing: vec![3],
        };
        let text = drift.to_string();
        assert!(
            text.contains("1, 2") && text.contains("not among the files: 3"),
            "{text}"
        );
    }
}
