use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Arg, Cmd};

use super::*;
use crate::connection::{Double, Failure, Line, OnEvent};
use crate::key::Keyspace;
use crate::link::Link;

/// A server that answers every key with the key, and notes how many came at a time; or says nothing.
#[derive(Clone, Debug, Default)]
struct Echo {
    commands: Arc<Mutex<Vec<usize>>>,
    silent: bool,
}

impl Double for Echo {
    fn connect(&self, _: OnEvent) -> Result<Arc<dyn Line>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl Line for Echo {
    fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        let arguments = command.args_iter().skip(1);
        let keys: Vec<Value> = arguments
            .filter_map(|argument| match argument {
                Arg::Simple(key) => Some(Value::BulkString(key.to_vec())),
                _ => None,
            })
            .collect();
        self.commands.lock().push(keys.len());
        match <[Value; 1]>::try_from(keys) {
            _ if self.silent => Err(Failure::Timeout),
            Ok([one]) => Ok(one),
            Err(many) => Ok(Value::Array(many)),
        }
    }
}

/// As busy as it takes for reads to travel together.
async fn busy(echo: &Echo) -> Server {
    let server = Server::new(Link::over(Arc::new(echo.clone())).await);
    server.gather.0.lock().under_way = ALONE;
    server
}

async fn read(server: &Server, id: usize) -> Answer {
    let key = Keyspace::new("qf:").entry("report", &id.to_string());
    let expected = key.as_bytes().to_vec();
    let read = server.get(key).await;
    if let Ok(read) = &read {
        assert_eq!(read.as_ref(), Some(&expected), "another's answer");
    }
    read
}

#[tokio::test]
async fn what_is_asked_for_at_the_same_time_travels_in_one_command() {
    let echo = Echo::default();
    let server = busy(&echo).await;
    let read = join_all((0..300).map(|id| read(&server, id))).await;
    assert!(read.iter().all(Result::is_ok));
    assert_eq!(*echo.commands.lock(), [300]);
    assert_eq!(server.gather.0.lock().under_way, ALONE);
}

#[tokio::test]
async fn what_is_asked_for_alone_is_sent_alone_and_at_once() {
    let echo = Echo::default();
    let server = busy(&echo).await;
    server.gather.0.lock().under_way = 0;
    for id in 0..3 {
        // Answered at the first poll: no other task had a turn.
        let read = futures_util::FutureExt::now_or_never(read(&server, id));
        assert!(read.is_some_and(|read| read.is_ok()));
    }
    assert_eq!(*echo.commands.lock(), [1, 1, 1]);
    assert_eq!(server.gather.0.lock().under_way, 0);
}

#[tokio::test]
async fn no_command_asks_for_more_than_it_may() {
    let echo = Echo::default();
    let server = busy(&echo).await;
    let most = KEYS_A_COMMAND;
    let read = join_all((0..=2 * most).map(|id| read(&server, id))).await;
    assert!(read.iter().all(Result::is_ok));
    let mut commands = echo.commands.lock().clone();
    commands.sort_unstable();
    assert_eq!(commands, [1, most, most]);
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_the_others_their_answers() {
    let server = busy(&Echo::default()).await;
    let mut readers: Vec<_> = (0..20).map(|id| Box::pin(read(&server, id))).collect();
    for reader in &mut readers {
        assert!(futures_util::poll!(reader).is_pending());
    }
    let read = join_all(readers.split_off(10)).await;
    assert!(read.iter().all(Result::is_ok));
}

#[test]
fn a_reader_gets_an_answer_when_the_runtime_that_was_to_ask_is_gone() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let gone = runtime();
    let server = gone.block_on(busy(&Echo::default()));
    let mut first = Box::pin(read(&server, 1));
    assert!(
        gone.block_on(async { futures_util::poll!(&mut first) })
            .is_pending()
    );
    drop(gone);
    let rest = async {
        let both = futures_util::future::join(first, read(&server, 2));
        tokio::time::timeout(std::time::Duration::from_secs(20), both).await
    };
    let (first, second) = runtime().block_on(rest).expect("nobody asks");
    assert!(first.is_ok() && second.is_ok());
}

/// As it was when each call had a command: a service that is busy learns at once that nobody answers.
#[tokio::test]
async fn a_command_that_is_not_answered_counts_for_all_its_calls() {
    let echo = Echo {
        silent: true,
        ..Echo::default()
    };
    for (calls, up) in [(4, true), (5, false)] {
        let server = busy(&echo).await;
        let read = join_all((0..calls).map(|id| read(&server, id))).await;
        assert!(read.iter().all(Result::is_err));
        assert_eq!(server.link.is_up(), up, "after {calls} calls");
    }
}
