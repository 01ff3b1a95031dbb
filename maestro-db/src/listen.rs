//! LISTEN: notifications of the server, and a visible sign when some may have been missed.

use std::fmt;
use std::time::Duration;

use sqlx::Executor as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::mpsc;

use crate::client::Db;
use crate::connect::{Connector, Purpose};
use crate::error::Error;
use crate::pool::Task;
use crate::retry::Backoff;

/// Notifications of some channels, on a connection of its own to the server itself.
///
/// The connection is opened again by itself, however it was lost. What was sent meanwhile is gone,
/// because PostgreSQL keeps nothing for a listener that is not there: [`Event::Gap`] says so, and a
/// listener that must not miss anything then looks into its tables.
#[derive(Debug)]
pub struct Listener {
    events: mpsc::Receiver<Event>,
    /// Ends with the listener.
    _task: Task,
}

/// What a [`Listener`] hears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A notification.
    Notification(Notification),
    /// The connection was lost and is back: notifications may have been missed in between.
    Gap,
}

/// One notification.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notification {
    /// The channel.
    pub channel: String,
    /// What was sent, up to 8,000 bytes; empty when nothing was.
    pub payload: String,
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A payload may hold personal data.
        f.debug_struct("Notification")
            .field("channel", &self.channel)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// Events that wait for the consumer. Beyond that the connection is not read from, and the server
/// keeps them in its own queue.
const WAITING: usize = 1_024;

/// A connection that was silent for this long is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(15);

impl Db {
    /// Listens to channels. Waits until the server has confirmed it, so what is sent afterwards is
    /// heard.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use maestro_db::Event;
    ///
    /// let mut listener = db.listen(&["orders"]).await?;
    /// while let Some(event) = listener.next().await {
    ///     match event {
    ///         Event::Notification(news) => println!("order {}", news.payload),
    ///         _ => println!("look into the table: some may have been missed"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The notification itself is sent by `select pg_notify('orders', $1)`, and heard when its
    /// transaction commits.
    ///
    /// # Errors
    /// When the first connection cannot be opened. Later losses are mended and are no errors.
    pub async fn listen(&self, channels: &[&str]) -> Result<Listener, Error> {
        let config = self.config();
        let login = self.inner().login_to(&config.direct);
        let ear = Ear {
            connector: Connector::new(config, login, Purpose::Direct)?,
            channels: channels.iter().map(|&channel| channel.to_owned()).collect(),
        };
        let connection = ear.connect().await?;
        let (sender, events) = mpsc::channel(WAITING);
        Ok(Listener {
            events,
            _task: Task::spawn(ear.hear(connection, sender)),
        })
    }
}

impl Listener {
    /// The next event; `None` never comes while the listener lives and the runtime runs.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

struct Ear {
    connector: Connector,
    channels: Vec<String>,
}

impl Ear {
    async fn connect(&self) -> Result<PgListener, Error> {
        let endpoint = self.connector.endpoint();
        // sqlx's listener takes its connection from a pool of sqlx's: one that holds this one, made
        // anew for every attempt, so that it has the password of now.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .acquire_timeout(self.connector.timeout())
            .connect_lazy_with(self.connector.options());
        let open = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            // Losses are mended here, where they are seen.
            listener.eager_reconnect(false);
            listener
                .listen_all(self.channels.iter().map(String::as_str))
                .await?;
            Ok(listener)
        };
        let opened = tokio::time::timeout(self.connector.timeout(), open).await;
        opened
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| Error::during(format!("listening at {endpoint} failed"), error))
    }

    async fn hear(self, mut connection: PgListener, events: mpsc::Sender<Event>) {
        loop {
            match tokio::time::timeout(SILENCE, connection.try_recv()).await {
                Ok(Ok(Some(news))) => {
                    let notification = Notification {
                        channel: news.channel().to_owned(),
                        payload: news.payload().to_owned(),
                    };
                    if events
                        .send(Event::Notification(notification))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    continue;
                }
                // Silence: ask. What arrives meanwhile is kept for the next `try_recv`.
                Err(_) => {
                    let question = connection.execute("SELECT 1");
                    if let Ok(Ok(_)) =
                        tokio::time::timeout(self.connector.timeout(), question).await
                    {
                        continue;
                    }
                    tracing::warn!("the connection that listens does not answer any more");
                }
                Ok(Ok(None)) => tracing::info!("the connection that listens was lost"),
                Ok(Err(error)) => tracing::warn!(%error, "the connection that listens failed"),
            }
            connection = self.again().await;
            if events.send(Event::Gap).await.is_err() {
                return;
            }
        }
    }

    /// Tries for as long as it takes.
    async fn again(&self) -> PgListener {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match self.connect().await {
                Ok(connection) => return connection,
                Err(error) => {
                    let pause = backoff.next();
                    tracing::debug!(%error, ?pause, "listening again failed");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}
