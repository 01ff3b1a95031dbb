//! The books of the campaign, kept past the SDK.

use anyhow::Result;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// What was acknowledged, what was handled, and what came of it.
pub(super) struct Ledger(Client);

impl Ledger {
    pub(super) async fn create(url: &str) -> Result<()> {
        let ledger = Self::connect(url).await?;
        // No unique index on the effects: it is the inbox that has to keep them single.
        ledger
            .0
            .batch_execute(
                "CREATE TABLE sent (id text PRIMARY KEY, key text, number bigint NOT NULL);
                 CREATE TABLE rolled_back (id text PRIMARY KEY);
                 CREATE TABLE handled (
                    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                    subscription text NOT NULL, id text NOT NULL
                 );
                 CREATE INDEX ON handled (subscription, id);
                 CREATE TABLE effects (id text NOT NULL);
                 CREATE INDEX ON effects (id);",
            )
            .await?;
        Ok(())
    }

    pub(super) async fn connect(url: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // Ends with its client.
        tokio::spawn(connection);
        Ok(Self(client))
    }

    /// An event the caller was told is safe.
    pub(super) async fn sent(&self, id: Uuid, key: Option<&str>, number: i64) -> Result<()> {
        let statement = "INSERT INTO sent (id, key, number) VALUES ($1, $2, $3)";
        self.0
            .execute(statement, &[&id.to_string(), &key, &number])
            .await?;
        Ok(())
    }

    /// An event that never happened.
    pub(super) async fn rolled_back(&self, id: Uuid) -> Result<()> {
        let statement = "INSERT INTO rolled_back (id) VALUES ($1)";
        self.0.execute(statement, &[&id.to_string()]).await?;
        Ok(())
    }

    pub(super) async fn handled(&self, subscription: &str, id: Uuid) -> Result<()> {
        let statement = "INSERT INTO handled (subscription, id) VALUES ($1, $2)";
        self.0
            .execute(statement, &[&subscription, &id.to_string()])
            .await?;
        Ok(())
    }

    /// Acknowledged events that a subscription has not handled.
    pub(super) async fn unhandled(&self, subscription: &str) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM sent WHERE NOT EXISTS (
                SELECT FROM handled WHERE subscription = $1 AND handled.id = sent.id)",
            &[&subscription],
        )
        .await
    }

    pub(super) async fn effects_missing(&self) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM sent
             WHERE NOT EXISTS (SELECT FROM effects WHERE effects.id = sent.id)",
            &[],
        )
        .await
    }

    pub(super) async fn effects_twice(&self) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM (SELECT id FROM effects GROUP BY id HAVING count(*) > 1) AS twice",
            &[],
        )
        .await
    }

    /// Acknowledged events whose first handling came before that of an earlier one of their key.
    pub(super) async fn out_of_order(&self, subscription: &str) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM (
                SELECT first, lag(first) OVER (PARTITION BY key ORDER BY number) AS before
                FROM (
                    SELECT key, number, min(seq) AS first FROM sent JOIN handled USING (id)
                    WHERE subscription = $1 AND key IS NOT NULL GROUP BY key, number
                ) AS firsts
             ) AS pairs WHERE first < before",
            &[&subscription],
        )
        .await
    }

    /// Events of transactions that were rolled back, and were handled or had effects.
    pub(super) async fn ghosts(&self) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM rolled_back WHERE
                EXISTS (SELECT FROM handled WHERE handled.id = rolled_back.id)
                OR EXISTS (SELECT FROM effects WHERE effects.id = rolled_back.id)",
            &[],
        )
        .await
    }

    pub(super) async fn summary(&self) -> Result<String> {
        let sent = self.count("SELECT count(*) FROM sent", &[]).await?;
        let again = self
            .count(
                "SELECT count(*) - count(DISTINCT (subscription, id)) FROM handled",
                &[],
            )
            .await?;
        Ok(format!(
            "acknowledged {sent}, handled more than once {again}"
        ))
    }

    async fn count(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<i64> {
        Ok(self.0.query_one(statement, parameters).await?.get(0))
    }
}
