//! What is asked of the server, in the cache's own words. Only [`Key`]s can be sent.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};

use crate::clock::{micros, millis};
use crate::connection::bytes;
use crate::envelope::Micros;
use crate::error::{Error, ErrorKind};
use crate::gather::Gather;
use crate::key::Key;
use crate::link::{Link, Request};
use crate::metrics::Operation;
use crate::scripts::{self, Script};

/// How long the marker of a tag lives at least. Losing one early only costs loads: a missing marker
/// counts as an invalidation.
const MARKER_LIFE: Duration = Duration::from_hours(24);

/// Asks the server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) link: Arc<Link>,
    pub(crate) gather: Arc<Gather>,
    pub(crate) scripts: Arc<Hashes>,
}

/// Hashes by which the server knows scripts.
#[derive(Debug)]
pub(crate) struct Hashes {
    begin: String,
    store: String,
    remove: String,
    mark: String,
    pub(crate) lock: String,
    pub(crate) renew: String,
    pub(crate) release: String,
    pub(crate) limit: String,
    pub(crate) push: String,
    pub(crate) count: String,
    pub(crate) session: String,
    pub(crate) touch: String,
}

/// A value to store.
pub(crate) struct Write<'a> {
    pub(crate) entry: &'a Key,
    /// Markers of everything, of the region, then of the tags.
    pub(crate) markers: &'a [Key],
    /// When the load began; `None` for a value written by the caller's will.
    pub(crate) began: Option<Micros>,
    pub(crate) letters: [u8; 2],
    pub(crate) ttl: Duration,
    /// How long the value is kept beyond its lifetime, to stand in when a load fails.
    pub(crate) stale_for: Duration,
    pub(crate) tags: &'a str,
    pub(crate) payload: &'a [u8],
    /// Loads that began longer ago are refused: their tombstone may be gone.
    pub(crate) longest_load: Duration,
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    At(Micros),
    /// Something newer is there.
    Newer,
    /// It was invalidated while it was loaded.
    Invalidated,
    /// The load took longer than tombstones live.
    Late,
}

impl Stored {
    /// The label of a refusal.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::At(_) => "stored",
            Self::Newer => "newer",
            Self::Invalidated => "invalidated",
            Self::Late => "late",
        }
    }
}

impl Server {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let hash = |script: &Script| redis::Script::new(script.body).get_hash().to_owned();
        Self {
            link,
            gather: Arc::default(),
            scripts: Arc::new(Hashes {
                begin: hash(&scripts::BEGIN),
                store: hash(&scripts::STORE),
                remove: hash(&scripts::REMOVE),
                mark: hash(&scripts::MARK),
                lock: hash(&scripts::LOCK),
                renew: hash(&scripts::RENEW),
                release: hash(&scripts::RELEASE),
                limit: hash(&scripts::LIMIT),
                push: hash(&scripts::PUSH),
                count: hash(&scripts::COUNT),
                session: hash(&scripts::SESSION),
                touch: hash(&scripts::TOUCH),
            }),
        }
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let request = Request {
            operation: Operation::Ping,
            command: redis::cmd("PING"),
            repeatable: true,
        };
        self.link.query(&request).await.map(drop)
    }

    /// The stored bytes of several keys, `None` also for a key of another type.
    pub(crate) async fn get_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Key>,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let keys: Vec<&[u8]> = keys.into_iter().map(Key::as_bytes).collect();
        let request = Request {
            operation: Operation::MultiGet,
            command: command("MGET", &keys),
            repeatable: true,
        };
        match self.link.query(&request).await? {
            Value::Array(values) => Ok(values.into_iter().map(bytes).collect()),
            other => Err(self.misunderstood("MGET", &other)),
        }
    }

    /// Makes sure the markers exist and returns the server's time, for a load to begin.
    pub(crate) async fn begin(&self, markers: &[Key]) -> Result<Micros, Error> {
        let life = millis(MARKER_LIFE).to_string();
        let answer = self
            .run(
                &scripts::BEGIN,
                &self.scripts.begin,
                markers,
                &[life.as_bytes()],
                true,
            )
            .await?;
        parse_micros(&answer).ok_or_else(|| self.misunderstood("begin", &answer))
    }

    /// Stores a value, if nothing newer speaks against it.
    pub(crate) async fn store(&self, write: Write<'_>) -> Result<Stored, Error> {
        let began = write.began.map_or(0, |began| began.0).to_string();
        let ttl = micros(write.ttl).to_string();
        let physical = millis(write.ttl.saturating_add(write.stale_for))
            .max(1)
            .to_string();
        let longest = micros(write.longest_load).to_string();
        let keys: Vec<&Key> = std::iter::once(write.entry).chain(write.markers).collect();
        let answer = self
            .run(
                &scripts::STORE,
                &self.scripts.store,
                keys,
                &[
                    began.as_bytes(),
                    &write.letters,
                    ttl.as_bytes(),
                    physical.as_bytes(),
                    write.tags.as_bytes(),
                    write.payload,
                    longest.as_bytes(),
                ],
                // A loaded value is refused as `newer` when it is there already.
                write.began.is_some(),
            )
            .await?;
        match &answer {
            Value::BulkString(text) if text == b"newer" => Ok(Stored::Newer),
            Value::BulkString(text) if text == b"invalidated" => Ok(Stored::Invalidated),
            Value::BulkString(text) if text == b"late" => Ok(Stored::Late),
            other => parse_micros(other)
                .map(Stored::At)
                .ok_or_else(|| self.misunderstood("store", other)),
        }
    }

    /// Leaves a tombstone for each entry. Fails with [`ErrorKind::OutOfMemory`] when the entries are
    /// gone but a tombstone could not be written.
    pub(crate) async fn remove(&self, entries: &[Key], tombstone: Duration) -> Result<(), Error> {
        let life = millis(tombstone).to_string();
        let answer = self
            .run(
                &scripts::REMOVE,
                &self.scripts.remove,
                entries,
                &[life.as_bytes()],
                true,
            )
            .await?;
        match answer {
            Value::Int(0) => Ok(()),
            Value::Int(bare) => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{bare} entries were removed from Redis at {}, but a load in progress may bring them back: the server has no memory left for a tombstone; raise `maxmemory`",
                    self.link.config.server()
                ),
            )),
            other => Err(self.misunderstood("remove", &other)),
        }
    }

    /// Invalidates everything the markers speak for; the flag tells those that live for ever.
    pub(crate) async fn mark(&self, markers: &[(Key, bool)]) -> Result<(), Error> {
        let life = millis(MARKER_LIFE).to_string();
        let arguments: Vec<&[u8]> = markers
            .iter()
            .map(|(_, for_ever)| {
                if *for_ever {
                    &b"0"[..]
                } else {
                    life.as_bytes()
                }
            })
            .collect();
        let keys = markers.iter().map(|(key, _)| key);
        self.run(&scripts::MARK, &self.scripts.mark, keys, &arguments, true)
            .await?;
        Ok(())
    }

    /// Takes the turn to load an entry, unless another process has it.
    pub(crate) async fn try_turn(
        &self,
        key: &Key,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, Error> {
        let mut command = redis::cmd("SET");
        command.arg(key.as_bytes()).arg(holder);
        command.arg("NX").arg("PX").arg(millis(lease));
        let request = Request {
            operation: Operation::Lock,
            command,
            // Sent twice, it would look taken by somebody else.
            repeatable: false,
        };
        Ok(self.link.query(&request).await? != Value::Nil)
    }

    /// Gives the turn to load back.
    pub(crate) async fn end_turn(&self, key: &Key, holder: &str) -> Result<(), Error> {
        let hash = &self.scripts.release;
        self.run(&scripts::RELEASE, hash, [key], &[holder.as_bytes()], true)
            .await
            .map(drop)
    }

    /// Runs a script by its hash, and sends its text when the server does not know it.
    pub(crate) async fn run<'a>(
        &self,
        script: &Script,
        hash: &str,
        keys: impl IntoIterator<Item = &'a Key>,
        arguments: &[&[u8]],
        repeatable: bool,
    ) -> Result<Value, Error> {
        let keys: Vec<&Key> = keys.into_iter().collect();
        let request = |how: &str, what: &str| {
            let mut command = redis::cmd(how);
            command.arg(what).arg(keys.len());
            for key in &keys {
                command.arg(key.as_bytes());
            }
            for argument in arguments {
                command.arg(*argument);
            }
            Request {
                operation: script.operation,
                command,
                repeatable,
            }
        };
        match self.link.query(&request("EVALSHA", hash)).await {
            Err(error) if is_unknown_script(&error) => {
                self.link.query(&request("EVAL", script.body)).await
            }
            answered => answered,
        }
    }

    pub(crate) fn misunderstood(&self, operation: &str, answer: &Value) -> Error {
        let kind = match answer {
            Value::Nil => "nothing",
            Value::Int(_) => "a number",
            Value::Array(_) => "a list",
            _ => "a text",
        };
        Error::new(
            ErrorKind::Server,
            format!(
                "{operation} on Redis at {} was answered with {kind} that was not expected; check that it is a Redis server of version 7 or later",
                self.link.config.server()
            ),
        )
    }
}

/// A command that is written without growing.
pub(crate) fn command(name: &str, arguments: &[&[u8]]) -> Cmd {
    let length = arguments
        .iter()
        .map(|argument| argument.len())
        .sum::<usize>();
    let mut command = Cmd::with_capacity(1 + arguments.len(), name.len() + length);
    command.arg(name);
    for argument in arguments {
        command.arg(*argument);
    }
    command
}

fn is_unknown_script(error: &Error) -> bool {
    let cause = error.cause::<redis::RedisError>();
    cause.is_some_and(|cause| cause.code() == Some("NOSCRIPT"))
}

fn parse_micros(value: &Value) -> Option<Micros> {
    let Value::BulkString(text) = value else {
        return None;
    };
    parse_number(text).map(Micros)
}

/// The number a marker holds.
pub(crate) fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The answer to `TIME`: seconds and microseconds.
pub(crate) fn parse_time(value: &Value) -> Option<Micros> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [Value::BulkString(seconds), Value::BulkString(micros)] = parts.as_slice() else {
        return None;
    };
    let seconds = parse_number(seconds)?.checked_mul(1_000_000)?;
    seconds.checked_add(parse_number(micros)?).map(Micros)
}
