//! Small things that live in Redis alone: recent lists, counters, sessions. None is kept in process
//! memory, and none answers while Redis is away.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use redis::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Cache;
use crate::clock::{micros, millis};
use crate::connection::bytes;
use crate::error::{Error, ErrorKind};
use crate::key::{EntryId, Kept, Key, check_label, check_name};
use crate::link::Request;
use crate::metrics::Operation;
use crate::scripts;

/// What the three have in common.
#[derive(Clone)]
struct Place {
    cache: Cache,
    kind: Kept,
    name: String,
}

impl Place {
    fn new(cache: &Cache, kind: Kept, what: &str, name: &str) -> Result<Self, Error> {
        check_label(what, name)?;
        Ok(Self {
            cache: cache.clone(),
            kind,
            name: name.to_owned(),
        })
    }

    fn key(&self, id: &str) -> Result<Key, Error> {
        check_name("an id", id)?;
        Ok(self.cache.inner().keys.kept(self.kind, &self.name, id))
    }

    const fn operation(&self) -> Operation {
        match self.kind {
            Kept::List => Operation::List,
            Kept::Counter => Operation::Counter,
            Kept::Session => Operation::Session,
        }
    }

    async fn send(&self, command: redis::Cmd, repeatable: bool) -> Result<Value, Error> {
        let request = Request {
            operation: self.operation(),
            command,
            repeatable,
        };
        self.cache.inner().server.link.query(&request).await
    }

    async fn remove(&self, id: &str) -> Result<bool, Error> {
        let mut command = redis::cmd("DEL");
        command.arg(self.key(id)?.as_bytes());
        Ok(self.send(command, true).await? == Value::Int(1))
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, Error> {
        let encoded = crate::codec::json(&self.name, value, MAX_VALUE)?;
        Ok(encoded.payload)
    }

    fn out_of_bounds(&self, problem: &str) -> Error {
        Error::new(
            ErrorKind::Config,
            format!("`{}` cannot be used: {problem}", self.name),
        )
    }
}

/// Largest element or session, in bytes of JSON: they are read as a whole.
const MAX_VALUE: usize = 1 << 20;
/// Most elements of a list: reading it is one answer.
const MAX_CAPACITY: u32 = 10_000;
/// A lifetime over more than a year is a mistake in a unit.
const MAX_LIFE: Duration = Duration::from_hours(366 * 24);

/// The last so many elements of something: messages of a channel, events of an order. Made by
/// [`Cache::recent_list`]; cheap to clone.
///
/// ```no_run
/// # use maestro_cache::{Error, RecentList};
/// # async fn example(messages: &RecentList<String>) -> Result<(), Error> {
/// for message in messages.recent("room-7", 10).await? {
///     println!("{message}");
/// }
/// messages.remove("room-7").await?; // the room was closed
/// # Ok(())
/// # }
/// ```
pub struct RecentList<T> {
    place: Place,
    capacity: u32,
    ttl: Duration,
    marker: PhantomData<fn() -> T>,
}

/// Numbers that all processes count together; made by [`Cache::counter`]. Cheap to clone.
///
/// ```no_run
/// # async fn wrong_password(user: &str) -> bool { true }
/// # async fn login(failures: &maestro_cache::Counter, user: &str) -> Result<(), maestro_cache::Error> {
/// if failures.get(user).await? >= 10 {
///     println!("closed until the counter is gone");
/// } else if wrong_password(user).await {
///     failures.add(user, 1).await?;
/// } else {
///     failures.remove(user).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Counter {
    place: Place,
    ttl: Duration,
}

/// Sessions that end when nobody uses them; made by [`Cache::sessions`]. Cheap to clone.
///
/// ```no_run
/// # use maestro_cache::{Error, Sessions};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Session { basket: Vec<u64> }
/// # async fn example(sessions: &Sessions<Session>, id: &str) -> Result<(), Error> {
/// let Some(mut session) = sessions.get(id).await? else {
///     return Ok(()); // to the login
/// };
/// session.basket.push(7);
/// if !sessions.update(id, &session).await? {
///     println!("logged out meanwhile"); // and not brought back by this
/// }
/// # Ok(())
/// # }
/// ```
pub struct Sessions<T> {
    place: Place,
    idle: Duration,
    max_age: Duration,
    marker: PhantomData<fn() -> T>,
}

macro_rules! handles {
    ($($name:ident),+) => {$(
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self { place: self.place.clone(), ..*self }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("name", &self.place.name).finish_non_exhaustive()
            }
        }
    )+};
}
handles!(RecentList, Sessions);

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("name", &self.place.name)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Lists that keep their last `capacity` elements (1 to 10,000), and go `ttl` after the last one
    /// (1 ms to a year).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
    /// let messages = cache.recent_list::<String>("message", 100, Duration::from_hours(24))?;
    /// messages.push("room-7", &"hello".to_owned()).await?;
    /// let newest_first = messages.recent("room-7", 10).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name that is no lower-case label, or what is out of bounds.
    pub fn recent_list<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        capacity: u32,
        ttl: Duration,
    ) -> Result<RecentList<T>, Error> {
        let place = Place::new(self, Kept::List, "list", name)?;
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(place.out_of_bounds("its capacity must be 1 to 10,000"));
        }
        check_life(&place, ttl)?;
        Ok(RecentList {
            place,
            capacity,
            ttl,
            marker: PhantomData,
        })
    }

    /// Counters that go `ttl` after they were first added to (1 ms to a year).
    ///
    /// ```no_run
    /// # async fn example(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
    /// let downloads = cache.counter("downloads", std::time::Duration::from_hours(24))?;
    /// let today = downloads.add("report-7", 1).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::recent_list`].
    pub fn counter(&self, name: &str, ttl: Duration) -> Result<Counter, Error> {
        let place = Place::new(self, Kept::Counter, "counter", name)?;
        check_life(&place, ttl)?;
        Ok(Counter { place, ttl })
    }

    /// Sessions that end when nobody read or wrote them for `idle`, and `max_age` after they were
    /// begun in any case (1 ms to a year each).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Session { user: String }
    /// # async fn example(cache: &maestro_cache::Cache, id: &str) -> Result<(), maestro_cache::Error> {
    /// let (idle, max_age) = (Duration::from_mins(30), Duration::from_hours(12));
    /// let sessions = cache.sessions::<Session>("login", idle, max_age)?;
    /// sessions.begin(id, &Session { user: "ann".to_owned() }).await?;
    /// if let Some(session) = sessions.get(id).await? {
    ///     println!("{}", session.user);
    /// }
    /// sessions.end(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::recent_list`].
    pub fn sessions<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        idle: Duration,
        max_age: Duration,
    ) -> Result<Sessions<T>, Error> {
        let place = Place::new(self, Kept::Session, "sessions", name)?;
        check_life(&place, idle)?;
        check_life(&place, max_age)?;
        Ok(Sessions {
            place,
            idle,
            max_age,
            marker: PhantomData,
        })
    }
}

fn check_life(place: &Place, life: Duration) -> Result<(), Error> {
    if (Duration::from_millis(1)..=MAX_LIFE).contains(&life) {
        return Ok(());
    }
    Err(place.out_of_bounds("a lifetime must be 1 ms to a year"))
}

impl<T: Serialize + DeserializeOwned> RecentList<T> {
    /// Adds the newest element; the oldest goes when there are too many. Not sent again when the
    /// connection is lost: whether it was added is then not known.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] above 1 MiB, or what the server said.
    pub async fn push<'a>(&self, id: impl Into<EntryId<'a>>, value: &T) -> Result<(), Error> {
        let key = self.place.key(id.into().as_str())?;
        let payload = self.place.encode(value)?;
        let capacity = self.capacity.to_string();
        let life = millis(self.ttl).to_string();
        let arguments = [payload.as_slice(), capacity.as_bytes(), life.as_bytes()];
        let server = &self.place.cache.inner().server;
        let hash = &server.scripts.push;
        server
            .run(&scripts::PUSH, hash, [&key], &arguments, false)
            .await
            .map(drop)
    }

    /// The newest elements, at most so many, newest first. What is not of this type is left out.
    pub async fn recent<'a>(
        &self,
        id: impl Into<EntryId<'a>>,
        at_most: u32,
    ) -> Result<Vec<T>, Error> {
        let Some(last) = at_most.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let mut command = redis::cmd("LRANGE");
        command.arg(self.place.key(id.into().as_str())?.as_bytes());
        command.arg(0).arg(last);
        match self.place.send(command, true).await? {
            Value::Array(elements) => Ok(elements
                .into_iter()
                .filter_map(bytes)
                .filter_map(|element| serde_json::from_slice(&element).ok())
                .collect()),
            other => Err(self
                .place
                .cache
                .inner()
                .server
                .misunderstood("LRANGE", &other)),
        }
    }

    /// Removes a list; false when there was none.
    pub async fn remove<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<bool, Error> {
        self.place.remove(id.into().as_str()).await
    }
}

impl Counter {
    /// Adds a number, which may be negative; returns the sum. Not sent again when the connection is
    /// lost: whether it was added is then not known.
    pub async fn add<'a>(&self, id: impl Into<EntryId<'a>>, by: i64) -> Result<i64, Error> {
        let key = self.place.key(id.into().as_str())?;
        let (by, life) = (by.to_string(), millis(self.ttl).to_string());
        let server = &self.place.cache.inner().server;
        let hash = &server.scripts.count;
        let arguments = [by.as_bytes(), life.as_bytes()];
        match server
            .run(&scripts::COUNT, hash, [&key], &arguments, false)
            .await?
        {
            Value::Int(sum) => Ok(sum),
            other => Err(server.misunderstood("counter", &other)),
        }
    }

    /// The sum; 0 when nothing was added yet, or too long ago.
    pub async fn get<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<i64, Error> {
        let mut command = redis::cmd("GET");
        command.arg(self.place.key(id.into().as_str())?.as_bytes());
        let answer = self.place.send(command, true).await?;
        if answer == Value::Nil {
            return Ok(0);
        }
        let server = &self.place.cache.inner().server;
        let misunderstood = server.misunderstood("counter", &answer);
        let text = bytes(answer).and_then(|text| String::from_utf8(text).ok());
        text.and_then(|text| text.parse().ok()).ok_or(misunderstood)
    }

    /// Forgets a counter; false when there was none.
    pub async fn remove<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<bool, Error> {
        self.place.remove(id.into().as_str()).await
    }
}

impl<T: Serialize + DeserializeOwned> Sessions<T> {
    /// Begins a session, over one with the same id.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] above 1 MiB, or what the server said.
    pub async fn begin<'a>(&self, id: impl Into<EntryId<'a>>, value: &T) -> Result<(), Error> {
        self.write(id.into().as_str(), value, true).await.map(drop)
    }

    /// Reads a session, which then lives for another `idle`. `None` when it has ended, or what is
    /// there is not of this type.
    pub async fn get<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<Option<T>, Error> {
        let key = self.place.key(id.into().as_str())?;
        let (idle, max_age) = self.lives();
        let server = &self.place.cache.inner().server;
        let hash = &server.scripts.touch;
        let arguments = [idle.as_bytes(), max_age.as_bytes()];
        let answer = server
            .run(&scripts::TOUCH, hash, [&key], &arguments, true)
            .await?;
        Ok(bytes(answer).and_then(|payload| serde_json::from_slice(&payload).ok()))
    }

    /// Changes a session; false when it has ended meanwhile: a request that is still under way does
    /// not bring back who has logged out.
    ///
    /// # Errors
    /// As [`Sessions::begin`].
    pub async fn update<'a>(&self, id: impl Into<EntryId<'a>>, value: &T) -> Result<bool, Error> {
        self.write(id.into().as_str(), value, false).await
    }

    /// Ends a session; false when it had ended.
    pub async fn end<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<bool, Error> {
        self.place.remove(id.into().as_str()).await
    }

    async fn write(&self, id: &str, value: &T, begin: bool) -> Result<bool, Error> {
        let key = self.place.key(id)?;
        let payload = self.place.encode(value)?;
        let (idle, max_age) = self.lives();
        let begin: &[u8] = if begin { b"1" } else { b"0" };
        let arguments = [
            payload.as_slice(),
            idle.as_bytes(),
            max_age.as_bytes(),
            begin,
        ];
        let server = &self.place.cache.inner().server;
        let hash = &server.scripts.session;
        let answer = server
            .run(&scripts::SESSION, hash, [&key], &arguments, true)
            .await?;
        Ok(answer == Value::Int(1))
    }

    /// In milliseconds and microseconds.
    fn lives(&self) -> (String, String) {
        (
            millis(self.idle).to_string(),
            micros(self.max_age).to_string(),
        )
    }
}
