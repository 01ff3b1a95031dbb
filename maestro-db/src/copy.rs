//! `COPY … FROM STDIN`: the fastest way in, row by row in binary.

use std::fmt;

use sqlx::encode::{Encode, IsNull};
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, Postgres};
use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, SqlSafeStr as _, Statement as _, Type, TypeInfo as _,
};

use crate::bulk::{qualified, quoted};
use crate::error::{Error, ErrorKind};
use crate::transaction::{CopyStream, Transaction};

/// Rows on their way into a table, begun by [`Transaction::copy_in`].
///
/// Nothing is stored before [`finish`](Self::finish) and the commit after it. Dropping it ends the
/// transaction, as cancelling any statement in it does.
#[must_use = "nothing is stored before `finish`"]
pub struct CopyIn<'t> {
    stream: CopyStream<'t>,
    buffer: PgArgumentBuffer,
    columns: Vec<PgTypeInfo>,
    table: &'static str,
    checked: bool,
}

/// A row of [`CopyIn::row`]: a tuple of what sqlx can encode, up to twelve columns.
///
/// Types that sqlx must ask the server about cannot be copied: your own composite types, and
/// `Json` into a column of type `jsonb`.
pub trait CopyRow: sealed::Row {}

/// Bytes gathered before they are sent: a few packets.
const PORTION: usize = 64 * 1024;

/// The signature of binary COPY, no flags, no extension of the header.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Instead of the number of columns of another row.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

impl Transaction {
    /// Begins to copy rows into columns of a table.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// let mut tx = db.begin().await?;
    /// let mut copy = tx.copy_in("readings", &["sensor", "value"]).await?;
    /// for value in 0..100_000 {
    ///     copy.row(&("outside", f64::from(value))).await?;
    /// }
    /// copy.finish().await?;
    /// tx.commit().await
    /// # }
    /// ```
    ///
    /// Binary COPY believes the bytes it is given, so the Rust types are held against the columns'
    /// types at the first row. PostgreSQL refuses COPY into a table with row-level security: use
    /// [`BulkInsert`](crate::BulkInsert) there.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] when there is no such table or column, or it has row-level security.
    pub async fn copy_in(
        &mut self,
        table: &'static str,
        columns: &[&'static str],
    ) -> Result<CopyIn<'_>, Error> {
        let names: Vec<_> = columns.iter().map(|name| quoted(name)).collect();
        let (into, names) = (qualified(table), names.join(", "));
        let describe = AssertSqlSafe(format!("SELECT {names} FROM {into}")).into_sql_str();
        let statement = (&mut *self).prepare(describe).await.map_err(|error| {
            Error::during(format!("looking at the columns of {table} failed"), error)
        })?;
        let columns = statement
            .columns()
            .iter()
            .map(|column| column.type_info().clone())
            .collect();
        let sql = format!("COPY {into} ({names}) FROM STDIN (FORMAT binary)");
        let stream = self.copy_stream(&sql).await.map_err(|error| {
            Error::during(format!("beginning to copy into {table} failed"), error)
        })?;
        let mut buffer = PgArgumentBuffer::default();
        buffer.extend_from_slice(HEADER);
        Ok(CopyIn {
            stream,
            buffer,
            columns,
            table,
            checked: false,
        })
    }
}

impl CopyIn<'_> {
    /// Adds a row; sends what was gathered every now and then.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when a type is not the column's.
    ///
    /// # Cancellation
    /// Dropping the future ends the transaction.
    pub async fn row<R: CopyRow>(&mut self, row: &R) -> Result<(), Error> {
        if !self.checked {
            R::check(&self.columns).map_err(|problem| {
                let table = self.table;
                Error::new(
                    ErrorKind::Codec,
                    format!("a row to be copied into {table} {problem}"),
                )
            })?;
            self.checked = true;
        }
        row.write(&mut self.buffer).map_err(|error| {
            Error::during(
                format!("encoding a row to be copied into {} failed", self.table),
                sqlx::Error::Encode(error),
            )
        })?;
        if self.buffer.len() >= PORTION {
            self.send().await
        } else {
            Ok(())
        }
    }

    /// Ends the copy; returns how many rows the server took.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] and the like, as for an insert. The transaction is aborted then.
    ///
    /// # Cancellation
    /// Dropping the future ends the transaction.
    pub async fn finish(mut self) -> Result<u64, Error> {
        self.buffer.extend_from_slice(&TRAILER);
        self.send().await?;
        let Self { stream, table, .. } = self;
        let result = stream.finish().await;
        result.map_err(|error| Error::during(format!("copying into {table} failed"), error))
    }

    async fn send(&mut self) -> Result<(), Error> {
        let result = self.stream.send(&self.buffer).await;
        self.buffer.clear();
        result.map_err(|error| Error::during(format!("copying into {} failed", self.table), error))
    }
}

impl fmt::Debug for CopyIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

mod sealed {
    use super::{PgArgumentBuffer, PgTypeInfo};

    pub trait Row {
        /// The end of a sentence about a row that does not fit.
        fn check(columns: &[PgTypeInfo]) -> Result<(), String>;
        fn write(&self, buffer: &mut PgArgumentBuffer) -> Result<(), sqlx::error::BoxDynError>;
    }
}

fn check<'q, T: Encode<'q, Postgres> + Type<Postgres>>(
    number: usize,
    column: &PgTypeInfo,
) -> Result<(), String> {
    if T::compatible(column) {
        return Ok(());
    }
    Err(format!(
        "has a {} as value {}, where the column's type is {}",
        T::type_info().name(),
        number + 1,
        column.name()
    ))
}

fn write<'q, T: Encode<'q, Postgres>>(
    value: &T,
    buffer: &mut PgArgumentBuffer,
) -> Result<(), sqlx::error::BoxDynError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    let length = match value.encode_by_ref(buffer)? {
        IsNull::Yes => -1,
        IsNull::No => i32::try_from(buffer.len() - start - 4)?,
    };
    if let Some(place) = buffer.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

macro_rules! rows {
    ($($count:literal: $($name:ident $index:tt),+;)+) => {$(
        impl<$($name),+> sealed::Row for ($($name,)+)
        where
            $($name: for<'q> Encode<'q, Postgres> + Type<Postgres>),+
        {
            fn check(columns: &[PgTypeInfo]) -> Result<(), String> {
                if columns.len() != $count {
                    return Err(format!("has {} values for {} columns", $count, columns.len()));
                }
                $(check::<$name>($index, &columns[$index])?;)+
                Ok(())
            }

            fn write(&self, buffer: &mut PgArgumentBuffer) -> Result<(), sqlx::error::BoxDynError> {
                buffer.extend_from_slice(&i16::to_be_bytes($count));
                $(write(&self.$index, buffer)?;)+
                Ok(())
            }
        }

        impl<$($name),+> CopyRow for ($($name,)+)
        where
            $($name: for<'q> Encode<'q, Postgres> + Type<Postgres>),+
        {
        }
    )+};
}
rows! {
    1: A 0;
    2: A 0, B 1;
    3: A 0, B 1, C 2;
    4: A 0, B 1, C 2, D 3;
    5: A 0, B 1, C 2, D 3, E 4;
    6: A 0, B 1, C 2, D 3, E 4, F 5;
    7: A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
    9: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8;
    10: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9;
    11: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10;
    12: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11;
}

#[cfg(test)]
mod tests {
    use sealed::Row as _;

    use super::*;

    #[test]
    fn a_row_is_a_count_and_each_value_with_its_length() {
        let mut buffer = PgArgumentBuffer::default();
        (1_i32, "ab", None::<i64>).write(&mut buffer).unwrap();
        let expected = [
            &[0, 3][..],
            &[0, 0, 0, 4, 0, 0, 0, 1],
            &[0, 0, 0, 2, b'a', b'b'],
            &[255, 255, 255, 255],
        ];
        assert_eq!(**buffer, expected.concat());
    }

    #[test]
    fn a_type_that_is_not_the_columns_is_noticed_before_its_bytes_are_taken_for_something_else() {
        let columns = [
            <i64 as Type<Postgres>>::type_info(),
            <String as Type<Postgres>>::type_info(),
        ];
        <(i64, &str)>::check(&columns).unwrap();
        <(Option<i64>, String)>::check(&columns).unwrap();
        // As long as a bigint, and something else.
        let problem = <(f64, &str)>::check(&columns).unwrap_err();
        assert!(
            problem.contains("FLOAT8") && problem.contains("INT8"),
            "{problem}"
        );
        assert!(
            <(i64,)>::check(&columns)
                .unwrap_err()
                .contains("1 values for 2 columns")
        );
    }
}
