//! One load at a time for a key: whoever comes while it runs waits for its result.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::coherence::Ticket;
use crate::error::{Error, ErrorKind};

/// What a flight has brought so far.
#[derive(Debug)]
pub(crate) struct Progress<T> {
    /// A value past its lifetime, for those who do not want to wait.
    pub(crate) stale: Option<Arc<T>>,
    pub(crate) done: Option<Result<Option<Arc<T>>, Error>>,
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    /// Taken when it began: who comes after an invalidation does not join it.
    pub(crate) ticket: Ticket,
    progress: watch::Receiver<Progress<T>>,
}

impl<T> Flight<T> {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress<T>> {
        self.progress.clone()
    }
}

type Key = (Box<str>, bool);

/// The flights of a region, by id and whether the value may be absent.
#[derive(Debug)]
pub(crate) struct Flights<T> {
    by_id: Mutex<HashMap<Key, Arc<Flight<T>>>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            by_id: Mutex::new(HashMap::new()),
        }
    }
}

/// A caller's place on a flight.
pub(crate) enum Place<T> {
    /// Another caller's load is under way.
    Passenger(Arc<Flight<T>>),
    /// This caller has to load.
    Pilot(Arc<Flight<T>>, Pilot<T>),
}

/// Publishes a flight's results and ends it when dropped, whatever happened to the load.
#[derive(Debug)]
pub(crate) struct Pilot<T> {
    flights: Arc<Flights<T>>,
    flight: Arc<Flight<T>>,
    key: Key,
    progress: watch::Sender<Progress<T>>,
}

impl<T> Flights<T> {
    /// Joins a flight that `may_join`, or starts one with the ticket that `board` takes.
    pub(crate) fn join(
        self: &Arc<Self>,
        id: &str,
        optional: bool,
        may_join: impl Fn(&Ticket) -> bool,
        board: impl FnOnce() -> Ticket,
    ) -> Place<T> {
        let key = (Box::from(id), optional);
        let mut by_id = self.by_id.lock();
        if let Some(flight) = by_id.get(&key)
            && may_join(&flight.ticket)
        {
            return Place::Passenger(Arc::clone(flight));
        }
        let (sender, receiver) = watch::channel(Progress {
            stale: None,
            done: None,
        });
        let flight = Arc::new(Flight {
            ticket: board(),
            progress: receiver,
        });
        by_id.insert(key.clone(), Arc::clone(&flight));
        drop(by_id);
        let pilot = Pilot {
            flights: Arc::clone(self),
            flight: Arc::clone(&flight),
            key,
            progress: sender,
        };
        Place::Pilot(flight, pilot)
    }
}

impl<T> Pilot<T> {
    pub(crate) fn offer_stale(&self, value: &Arc<T>) {
        self.progress
            .send_modify(|progress| progress.stale = Some(Arc::clone(value)));
    }

    pub(crate) fn finish(&self, result: Result<Option<Arc<T>>, Error>) {
        self.progress
            .send_modify(|progress| progress.done = Some(result));
    }
}

impl<T> Drop for Pilot<T> {
    fn drop(&mut self) {
        let mut by_id = self.flights.by_id.lock();
        if by_id
            .get(&self.key)
            .is_some_and(|current| Arc::ptr_eq(current, &self.flight))
        {
            by_id.remove(&self.key);
        }
    }
}

/// Waits for the result. Past `soft` a stale value is taken instead, if there is one.
pub(crate) async fn wait<T>(
    mut progress: watch::Receiver<Progress<T>>,
    soft: Option<std::time::Duration>,
) -> Landing<T> {
    let finished = |progress: &Progress<T>| progress.done.is_some();
    if let Some(soft) = soft {
        let late = tokio::time::timeout(soft, progress.wait_for(finished))
            .await
            .is_err();
        if late && let Some(stale) = progress.borrow().stale.clone() {
            return Landing::Stale(stale);
        }
    }
    match progress.wait_for(finished).await {
        Ok(progress) => Landing::Result(progress.done.clone().unwrap_or_else(|| Err(crashed()))),
        Err(_) => Landing::Result(Err(crashed())),
    }
}

/// How a wait ended.
pub(crate) enum Landing<T> {
    Result(Result<Option<Arc<T>>, Error>),
    Stale(Arc<T>),
}

fn crashed() -> Error {
    Error::new(
        ErrorKind::Load,
        "the load ended without a result: its loader panicked, or the process is shutting down",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::Coherence;

    fn board(coherence: &Coherence) -> Ticket {
        coherence.ticket(&coherence.region("report"), "1", &[], 0)
    }

    #[tokio::test]
    async fn a_loader_that_panics_leaves_an_error_and_no_flight() {
        let coherence = Coherence::new(0);
        let flights = Arc::new(Flights::<u8>::default());
        let Place::Pilot(flight, pilot) = flights.join("1", false, |_| true, || board(&coherence))
        else {
            panic!("nobody else flies");
        };
        let waiting = wait(flight.subscribe(), None);
        drop(pilot);
        let Landing::Result(Err(error)) = waiting.await else {
            panic!("there is no value");
        };
        assert_eq!(error.kind(), ErrorKind::Load);
        assert!(flights.by_id.lock().is_empty());
    }

    #[tokio::test]
    async fn who_may_not_join_takes_over_and_the_older_flight_does_not_end_it() {
        let coherence = Coherence::new(0);
        let flights = Arc::new(Flights::<u8>::default());
        let Place::Pilot(_, first) = flights.join("1", false, |_| true, || board(&coherence))
        else {
            panic!("nobody else flies");
        };
        let Place::Pilot(second, pilot) = flights.join("1", false, |_| false, || board(&coherence))
        else {
            panic!("the first may not be joined");
        };
        drop(first);
        assert!(matches!(
            flights.join("1", false, |_| true, || board(&coherence)),
            Place::Passenger(_)
        ));
        pilot.finish(Ok(Some(Arc::new(7))));
        let Landing::Result(Ok(Some(value))) = wait(second.subscribe(), None).await else {
            panic!("the load succeeded");
        };
        assert_eq!(*value, 7);
    }
}
