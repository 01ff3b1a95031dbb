//! Reads that are asked for at the same time travel in one command. What a command costs the driver, the
//! timer, the socket and the server is then paid once for all of them.
//!
//! Nobody waits for company: what was asked for while other tasks had their turn is sent as soon as they had
//! it. The command is sent by a task of its own, so that no reader depends on another being polled.

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::connection::bytes;
use crate::error::Error;
use crate::key::Key;
use crate::link::Request;
use crate::metrics::Operation;
use crate::server::{Server, command};

/// Keys in one command. More than that hold the server up for other services: 500 values of a few
/// kilobytes take it about a millisecond.
pub(crate) const KEYS_A_COMMAND: usize = 500;
/// Reads under way up to which the next one is sent by itself: there is nothing to share, and another task
/// would only add its turn to the time of the read.
const ALONE: usize = 2;

type Answer = Result<Option<Vec<u8>>, Error>;

/// The reads of one cache.
#[derive(Debug, Default)]
pub(crate) struct Gather(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Commands that were sent and not answered.
    under_way: usize,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    asked: Instant,
    answer: oneshot::Sender<Answer>,
}

/// The task that will send what is waiting. Should it end before it did, with its runtime, then whoever
/// waits is told, and the next reader starts another.
struct Turn(Option<Server>);

impl Turn {
    /// What is waiting now.
    fn end(mut self) -> Option<(Server, Vec<Waiting>)> {
        let server = self.0.take()?;
        let waiting = server.gather.take();
        Some((server, waiting))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(server) = &self.0 {
            server.gather.take();
        }
    }
}

impl Gather {
    fn take(&self) -> Vec<Waiting> {
        let mut state = self.0.lock();
        let room = Vec::with_capacity(state.waiting.len());
        std::mem::replace(&mut state.waiting, room)
    }
}

/// How a read is sent.
enum Way<'a> {
    Alone(UnderWay<'a>),
    Together(oneshot::Receiver<Answer>),
}

/// Counts a command that is under way.
struct UnderWay<'a>(&'a Gather);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.lock().under_way -= 1;
    }
}

impl Server {
    /// The stored bytes of one key. A key of another type is an error of kind
    /// [`WrongType`](crate::ErrorKind::WrongType), or `None` when it was read together with others.
    pub(crate) async fn get(&self, key: Key) -> Answer {
        let link = &self.link;
        link.observed(Operation::Get, async |asked| {
            match self.way(&key, asked) {
                Way::Alone(_under_way) => self.get_alone(&key, asked).await,
                Way::Together(answer) => match answer.await {
                    Ok(answer) => answer,
                    // Its runtime is gone, this one is not.
                    Err(_) => self.get_alone(&key, asked).await,
                },
            }
        })
        .await
    }

    fn way(&self, key: &Key, asked: Instant) -> Way<'_> {
        let mut state = self.gather.0.lock();
        if state.under_way < ALONE && state.waiting.is_empty() {
            state.under_way += 1;
            return Way::Alone(UnderWay(&self.gather));
        }
        let (answer, receiver) = oneshot::channel();
        let key = key.clone();
        state.waiting.push(Waiting { key, asked, answer });
        let first = state.waiting.len() == 1;
        drop(state);
        if first {
            tokio::spawn(send_gathered(Turn(Some(self.clone()))));
        }
        Way::Together(receiver)
    }

    async fn get_alone(&self, key: &Key, asked: Instant) -> Answer {
        let request = Request {
            operation: Operation::Get,
            command: command("GET", &[key.as_bytes()]),
            repeatable: true,
        };
        self.link.attempt(&request, asked, 1).await.map(bytes)
    }

    async fn send_chunk(self, chunk: Vec<Waiting>) {
        let Some(asked) = chunk.first().map(|first| first.asked) else {
            return;
        };
        self.gather.0.lock().under_way += 1;
        let under_way = UnderWay(&self.gather);
        if let [one] = chunk.as_slice() {
            let answer = self.get_alone(&one.key, asked).await;
            drop(under_way);
            return give(chunk, [answer]);
        }
        let keys: Vec<&[u8]> = chunk.iter().map(|one| one.key.as_bytes()).collect();
        let request = Request {
            operation: Operation::Get,
            command: command("MGET", &keys),
            repeatable: true,
        };
        let calls = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let answer = self.link.attempt(&request, asked, calls).await;
        drop(under_way);
        match answer {
            Ok(Value::Array(values)) => {
                give(chunk, values.into_iter().map(|value| Ok(bytes(value))));
            }
            Ok(other) => {
                let error = self.misunderstood("MGET", &other);
                give(chunk, std::iter::repeat(Err(error)));
            }
            Err(error) => give(chunk, std::iter::repeat(Err(error))),
        }
    }
}

async fn send_gathered(turn: Turn) {
    // After all tasks that are ready to run: what they ask for comes along.
    tokio::task::yield_now().await;
    let Some((server, waiting)) = turn.end() else {
        return;
    };
    let mut waiting = waiting.into_iter().peekable();
    while waiting.peek().is_some() {
        let chunk: Vec<Waiting> = waiting.by_ref().take(KEYS_A_COMMAND).collect();
        if waiting.peek().is_none() {
            return server.send_chunk(chunk).await;
        }
        tokio::spawn(server.clone().send_chunk(chunk));
    }
}

/// A reader that got nothing asks by itself; one that has gone wants no answer.
fn give(chunk: Vec<Waiting>, answers: impl IntoIterator<Item = Answer>) {
    for (waiting, answer) in chunk.into_iter().zip(answers) {
        let _ = waiting.answer.send(answer);
    }
}

#[cfg(test)]
mod tests;
