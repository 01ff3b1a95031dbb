//! This crate's own tables, in the schema `maestro` of the service's database.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// What a service asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) tenants: bool,
    pub(crate) leases: bool,
}

impl Parts {
    /// The migrations of these parts, which run before the service's; `None` when there are none.
    ///
    /// Each part has versions of its own, so that a service can ask for one later.
    pub(crate) fn migrations(self) -> Option<Migrator> {
        let file = |version, name: &'static str, sql: &'static str| {
            Migration::new(
                version,
                name.into(),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        };
        let mut files = Vec::new();
        if self.tenants {
            files.push(file(1, "tenants", include_str!("schema/tenants.sql")));
            let schemas = include_str!("schema/tenant_schemas.sql");
            files.push(file(2, "tenant schemas", schemas));
        }
        if self.leases {
            files.push(file(1_001, "leases", include_str!("schema/leases.sql")));
        }
        if files.is_empty() {
            return None;
        }
        let mut migrator = Migrator::with_migrations(files);
        // A part that is not asked for any more stays.
        migrator.set_ignore_missing(true);
        migrator.create_schema("maestro");
        migrator.dangerous_set_table_name("maestro.schema_migrations");
        Some(migrator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_that_was_not_asked_for() {
        assert!(Parts::default().migrations().is_none());
        let leases = Parts {
            leases: true,
            ..Parts::default()
        }
        .migrations()
        .unwrap();
        assert_eq!(
            leases.iter().map(|file| file.version).collect::<Vec<_>>(),
            [1_001]
        );
    }
}
