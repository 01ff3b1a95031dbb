//! Which tables a tenant's rows are in.

use sqlx::AssertSqlSafe;

use super::{TenantId, TenantModel};
use crate::error::{Error, ErrorKind};
use crate::transaction::Transaction;

/// A table with rows of tenants, as the catalogue describes it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Table {
    /// Quoted, and with its schema unless that is the tenant's own.
    pub(super) name: String,
    /// Quoted; without those that the server computes.
    pub(super) columns: Vec<String>,
    /// Their types, as the server writes them.
    pub(super) types: Vec<String>,
    /// Quoted columns of the primary key; empty when there is none.
    pub(super) key: Vec<String>,
    /// Names of tables that its foreign keys lead to, itself left out.
    pub(super) parents: Vec<String>,
}

/// Those with the policy of `maestro.protect` or `maestro.protect_schema`, in the schemas of the model.
const TABLES: &str = "with tables as ( \
       select c.oid, case when $1 then quote_ident(c.relname) else format('%I.%I', n.nspname, c.relname) end as name \
       from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
       where c.relkind in ('r', 'p') and not c.relispartition and c.relrowsecurity \
         and case when $1 then n.nspname = $2 else n.nspname not like 'tenant\\_%' end \
         and exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'maestro_tenant') \
     ) \
     select t.name, \
       coalesce(array_agg(quote_ident(a.attname) order by a.attnum) filter (where a.attname is not null), '{}') as columns, \
       coalesce(array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) order by a.attnum) filter (where a.attname is not null), '{}') as types, \
       coalesce((select array_agg(quote_ident(k.attname) order by array_position(i.indkey::int2[], k.attnum)) \
         from pg_catalog.pg_index i join pg_catalog.pg_attribute k on k.attrelid = i.indrelid and k.attnum = any (i.indkey::int2[]) \
         where i.indrelid = t.oid and i.indisprimary), '{}') as key, \
       coalesce((select array_agg(distinct p.name) from pg_catalog.pg_constraint f join tables p on p.oid = f.confrelid \
         where f.contype = 'f' and f.conrelid = t.oid and p.oid <> t.oid), '{}') as parents \
     from tables t left join pg_catalog.pg_attribute a \
       on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' \
     group by t.oid, t.name order by t.name";

/// The tables, each after those that its foreign keys lead to.
pub(super) async fn tables(
    tx: &mut Transaction,
    model: TenantModel,
    id: &TenantId,
) -> Result<Vec<Table>, Error> {
    let found: Vec<Table> = sqlx::query_as(AssertSqlSafe(TABLES))
        .bind(model == TenantModel::Schemas)
        .bind(id.schema())
        .fetch_all(tx)
        .await
        .map_err(|error| Error::during("looking for the tenants' tables failed", error))?;
    parents_first(found)
}

fn parents_first(mut left: Vec<Table>) -> Result<Vec<Table>, Error> {
    let mut sorted: Vec<Table> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|table| {
            table
                .parents
                .iter()
                .all(|parent| sorted.iter().any(|t| t.name == *parent))
        });
        if ready.is_empty() {
            let names: Vec<_> = rest.into_iter().map(|table| table.name).collect();
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the foreign keys of {} lead in a circle, so their rows have no order in which they can be stored or erased",
                    names.join(", ")
                ),
            ));
        }
        sorted.extend(ready);
        left = rest;
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, parents: &[&str]) -> Table {
        Table {
            name: name.to_owned(),
            columns: Vec::new(),
            types: Vec::new(),
            key: Vec::new(),
            parents: parents.iter().map(|&parent| parent.to_owned()).collect(),
        }
    }

    #[test]
    fn tables_come_after_those_they_refer_to_and_circles_are_named() {
        let sorted = parents_first(vec![
            table("lines", &["orders", "articles"]),
            table("orders", &["customers"]),
            table("articles", &[]),
            table("customers", &[]),
        ]);
        let names: Vec<_> = sorted
            .unwrap()
            .into_iter()
            .map(|table| table.name)
            .collect();
        assert_eq!(names, ["articles", "customers", "orders", "lines"]);
        let error = parents_first(vec![table("a", &["b"]), table("b", &["a"])]).unwrap_err();
        assert!(error.to_string().contains("a, b"), "{error}");
    }
}
