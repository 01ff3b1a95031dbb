//! A tenant's rows as a stream of text, and back.
//!
//! One JSON line says what follows, then each table has a JSON line and its rows in the text format of
//! `COPY`, ended by `\.`. Values are written by the types' own output functions, so that every type that
//! PostgreSQL can dump is exported, and the same rows give the same bytes.

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::admin::note;
use super::tables::{Table, tables};
use super::{TenantId, Tenants};
use crate::error::{Error, ErrorKind};
use crate::pool::Holder;
use crate::transaction::{Isolation, Transaction, TransactionOptions};

/// What an export or a restore held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportSummary {
    /// Tables with their rows, in the order in which they stand in the export.
    pub tables: Vec<(String, u64)>,
}

impl ExportSummary {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|(_, rows)| rows).sum()
    }
}

/// The version of the format.
const FORMAT: u64 = 1;

/// Output functions obey these; set to what they are by default, whatever the role's are.
const AS_DEFAULT: &str = "SET LOCAL extra_float_digits = 1; SET LOCAL datestyle = 'ISO, YMD'; \
     SET LOCAL intervalstyle = 'postgres'; SET LOCAL bytea_output = 'hex'; SET LOCAL timezone = 'UTC'";

/// Bytes gathered before they are written.
const PORTION: usize = 64 * 1024;

/// Rows restored by one statement.
const BATCH: usize = 1_000;

impl Tenants {
    /// Writes all rows of a tenant, of one moment, table by table; rows go by and are not gathered.
    /// The same rows give the same bytes. The trail is not part of it.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), Box<dyn std::error::Error>> {
    /// use maestro_db::TenantId;
    ///
    /// let mut bytes = Vec::new(); // or a file of tokio's
    /// let summary = db.tenants()?.export(&TenantId::parse("acme")?, &mut bytes).await?;
    /// println!("{} rows", summary.rows());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such tenant; [`ErrorKind::Config`] when foreign keys of
    /// its tables lead in a circle; [`ErrorKind::Unavailable`] when writing fails, with the reason.
    ///
    /// # Cancellation
    /// Dropping the future leaves a part in `to`, which lacks its last line.
    pub async fn export(
        &self,
        id: &TenantId,
        to: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<ExportSummary, Error> {
        self.must_exist(id).await?;
        let options = TransactionOptions::new()
            .isolation(Isolation::RepeatableRead)
            .read_only();
        let mut tx = self.inside(id, options).await?;
        let mut summary = ExportSummary::default();
        let mut out = Out::new(to);
        out.line(&json!({"maestro_tenant": id.as_str(), "format": FORMAT}))
            .await?;
        for table in tables(&mut tx, self.model, id).await? {
            out.line(&json!({"table": table.name, "columns": table.columns}))
                .await?;
            let rows = export_table(&mut tx, &table, &mut out).await?;
            out.text("\\.\n").await?;
            summary.tables.push((table.name, rows));
        }
        tx.rollback().await?;
        out.line(&json!({"end": summary.tables.len(), "rows": summary.rows()}))
            .await?;
        out.flush().await?;
        let mut noting = self.db.begin().await?;
        note(&mut noting, id, "exported", &counts(&summary.tables)).await?;
        noting.commit().await?;
        Ok(summary)
    }

    /// Stores the rows of an export for the tenant of the same id, in one transaction. The tenant must
    /// have been created here, its tables be there and hold none of these rows.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db, export: Vec<u8>) -> Result<(), maestro_db::Error> {
    /// use maestro_db::TenantId;
    ///
    /// let acme = TenantId::parse("acme")?;
    /// let tenants = db.tenants()?;
    /// tenants.create(&acme, "Acme Ltd").await?;
    /// let summary = tenants.restore(&acme, &mut export.as_slice()).await?; // or a file in a `BufReader`
    /// for (table, rows) in &summary.tables {
    ///     println!("{rows} rows of {table}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when it is no export, is cut off or another tenant's;
    /// [`ErrorKind::Conflict`] when rows are there already; [`ErrorKind::NotFound`] when there is no
    /// such tenant. Nothing is stored then.
    ///
    /// # Cancellation
    /// Dropping the future stores nothing.
    pub async fn restore(
        &self,
        id: &TenantId,
        from: &mut (impl AsyncBufRead + Unpin + Send),
    ) -> Result<ExportSummary, Error> {
        self.must_exist(id).await?;
        let mut tx = self.inside(id, TransactionOptions::new()).await?;
        let there = tables(&mut tx, self.model, id).await?;
        let mut lines = In {
            from,
            number: 0,
            line: Vec::new(),
        };
        let head = lines.json().await?;
        if head["format"] != FORMAT || head["maestro_tenant"] != id.as_str() {
            return Err(lines.wrong(&format!(
                "expected an export of tenant {id} in format {FORMAT}"
            )));
        }
        let mut summary = ExportSummary::default();
        loop {
            let head = lines.json().await?;
            let Some(name) = head["table"].as_str() else {
                if head["end"] == summary.tables.len() && head["rows"] == summary.rows() {
                    break;
                }
                return Err(lines.wrong("the export is not whole"));
            };
            let Some(table) = there.iter().find(|table| table.name == name) else {
                return Err(lines.wrong(&format!("there is no table {name} of tenants here")));
            };
            let rows = restore_table(&mut tx, table, &head, &mut lines).await?;
            summary.tables.push((name.to_owned(), rows));
        }
        note(&mut tx, id, "restored", &counts(&summary.tables)).await?;
        tx.commit().await?;
        Ok(summary)
    }

    pub(super) async fn must_exist(&self, id: &TenantId) -> Result<(), Error> {
        match self.find(id).await? {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no tenant {id}"),
            )),
        }
    }

    /// A transaction of the tenant, whatever its state.
    pub(super) async fn inside(
        &self,
        id: &TenantId,
        options: TransactionOptions,
    ) -> Result<Transaction, Error> {
        let tenant = self.db.tenant(id.clone());
        let origin = Holder::Internal("a tenant's export, restore or erasure");
        let mut tx = tenant.scoped(false, options, origin).await?;
        tx.internal("SET", AS_DEFAULT.to_owned()).await?;
        Ok(tx)
    }
}

pub(super) fn counts(tables: &[(String, u64)]) -> Value {
    json!({ "tables": tables.iter().cloned().collect::<std::collections::BTreeMap<_, _>>() })
}

async fn export_table(
    tx: &mut Transaction,
    table: &Table,
    out: &mut Out<'_, impl AsyncWrite + Unpin + Send>,
) -> Result<u64, Error> {
    let texts: Vec<_> = table
        .columns
        .iter()
        .map(|column| format!("t.{column}::text"))
        .collect();
    // By text and by byte: the same in every database, whatever its collation.
    let order = if table.key.is_empty() {
        "t::text collate \"C\"".to_owned()
    } else {
        let keys: Vec<_> = table
            .key
            .iter()
            .map(|key| format!("t.{key}::text collate \"C\""))
            .collect();
        keys.join(", ")
    };
    // Names are the catalogue's own, quoted by the server.
    let sql = format!(
        "select {} from {} t order by {order}",
        texts.join(", "),
        table.name
    );
    let failed = |error| Error::during(format!("exporting {} failed", table.name), error);
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(tx);
    let (mut count, mut line) = (0, String::new());
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        line.clear();
        for index in 0..table.columns.len() {
            if index > 0 {
                line.push('\t');
            }
            let value: Option<&str> = row.try_get(index).map_err(failed)?;
            escape(value, &mut line);
        }
        line.push('\n');
        out.text(&line).await?;
        count += 1;
    }
    Ok(count)
}

async fn restore_table(
    tx: &mut Transaction,
    table: &Table,
    head: &Value,
    lines: &mut In<'_, impl AsyncBufRead + Unpin + Send>,
) -> Result<u64, Error> {
    let columns: Vec<&str> = head["columns"]
        .as_array()
        .map(|columns| columns.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut types = Vec::new();
    for column in &columns {
        let found = table
            .columns
            .iter()
            .zip(&table.types)
            .find(|(name, _)| name == column);
        let Some((_, its_type)) = found else {
            return Err(lines.wrong(&format!("{} has no column {column} here", table.name)));
        };
        types.push(its_type);
    }
    let casts: Vec<_> = types
        .iter()
        .enumerate()
        .map(|(i, its)| format!("u.c{i}::{its}"))
        .collect();
    let names: Vec<_> = (0..columns.len()).map(|i| format!("c{i}")).collect();
    let arrays: Vec<_> = (1..=columns.len())
        .map(|i| format!("${i}::text[]"))
        .collect();
    // Names and types are the catalogue's own, as the server writes them.
    let sql = AssertSqlSafe(format!(
        "insert into {} ({}) overriding system value select {} from unnest({}) as u ({})",
        table.name,
        columns.join(", "),
        casts.join(", "),
        arrays.join(", "),
        names.join(", ")
    ))
    .into_sql_str();
    let (mut count, mut batch) = (0, vec![Vec::new(); columns.len()]);
    loop {
        let line = lines.next().await?;
        let end = line == "\\.";
        if !end {
            let mut values = line.split('\t').map(unescape);
            for column in &mut batch {
                match values.next() {
                    Some(Ok(value)) => column.push(value),
                    _ => return Err(lines.wrong("is no row of this table")),
                }
            }
        }
        let rows = batch.first().map_or(0, Vec::len);
        if rows == BATCH || end && rows > 0 {
            let mut query = sqlx::query(sql.clone());
            for column in &mut batch {
                query = query.bind(std::mem::take(column));
            }
            query.execute(&mut *tx).await.map_err(|error| {
                Error::during(format!("restoring {} failed", table.name), error)
            })?;
            count += rows as u64;
        }
        if end {
            break;
        }
    }
    advance_sequences(tx, table).await?;
    Ok(count)
}

/// Numbers that the server would give out next and that came with the rows are skipped.
async fn advance_sequences(tx: &mut Transaction, table: &Table) -> Result<(), Error> {
    for (column, its) in table.columns.iter().zip(&table.types) {
        if !matches!(its.as_str(), "smallint" | "integer" | "bigint") {
            continue;
        }
        // One statement: a number that is ahead already stays.
        let sql = format!(
            "select case when h.highest > nextval(s.name::regclass) then setval(s.name::regclass, h.highest) end \
             from (select max({column})::bigint as highest from {0}) h, \
               (select pg_catalog.pg_get_serial_sequence($1, $2) as name) s where s.name is not null and h.highest is not null",
            table.name
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(&table.name)
            .bind(column.trim_matches('"').replace("\"\"", "\""))
            .execute(&mut *tx)
            .await
            .map_err(|error| {
                Error::during(
                    format!("advancing the numbers of {} failed", table.name),
                    error,
                )
            })?;
    }
    Ok(())
}

/// One value in the text format of `COPY`.
fn escape(value: Option<&str>, line: &mut String) {
    let Some(value) = value else {
        line.push_str("\\N");
        return;
    };
    for c in value.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c => line.push(c),
        }
    }
}

fn unescape(text: &str) -> Result<Option<String>, ()> {
    if text == "\\N" {
        return Ok(None);
    }
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        value.push(match c {
            '\\' => match chars.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                _ => return Err(()),
            },
            c => c,
        });
    }
    Ok(Some(value))
}

struct Out<'w, W> {
    to: &'w mut W,
    gathered: Vec<u8>,
}

impl<'w, W: AsyncWrite + Unpin> Out<'w, W> {
    fn new(to: &'w mut W) -> Self {
        Self {
            to,
            gathered: Vec::with_capacity(PORTION),
        }
    }

    async fn line(&mut self, value: &Value) -> Result<(), Error> {
        self.text(&format!("{value}\n")).await
    }

    async fn text(&mut self, text: &str) -> Result<(), Error> {
        self.gathered.extend_from_slice(text.as_bytes());
        if self.gathered.len() >= PORTION {
            self.send().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Error> {
        let sent = self.to.write_all(&self.gathered).await;
        self.gathered.clear();
        sent.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "writing an export failed").with_source(error)
        })
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.send().await?;
        self.to.flush().await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "writing an export failed").with_source(error)
        })
    }
}

struct In<'r, R> {
    from: &'r mut R,
    number: u64,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> In<'_, R> {
    async fn next(&mut self) -> Result<&str, Error> {
        self.line.clear();
        self.number += 1;
        let read = self.from.read_until(b'\n', &mut self.line).await;
        let read = read.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "reading an export failed").with_source(error)
        })?;
        if read == 0 || self.line.pop() != Some(b'\n') {
            return Err(self.wrong("the export is cut off"));
        }
        if std::str::from_utf8(&self.line).is_err() {
            return Err(self.wrong("is no UTF-8"));
        }
        Ok(std::str::from_utf8(&self.line).unwrap_or_default())
    }

    async fn json(&mut self) -> Result<Value, Error> {
        let parsed = serde_json::from_str(self.next().await?);
        parsed.map_err(|_| self.wrong("is not the head of a part of an export"))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Codec,
            format!("line {} of an export: {what}", self.number),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_comes_back_from_one_line_and_one_column(value in proptest::option::of("[\\PC\\n\\r\\t\\\\N.]{0,20}")) {
            let mut line = String::new();
            escape(value.as_deref(), &mut line);
            prop_assert!(!line.contains(['\n', '\t', '\r']));
            prop_assert!(line != "\\.");
            prop_assert_eq!(unescape(&line), Ok(value));
        }
    }
}
