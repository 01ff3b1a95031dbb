//! One load at a time for a key: whoever comes while it runs waits for its result, unless the key
//! was invalidated since it began.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::coherence::Ticket;
use crate::envelope::Micros;
use crate::error::{Error, ErrorKind};

/// How far a flight is.
#[derive(Debug)]
pub(crate) enum Phase<T> {
    /// Redis is asked first.
    Reading,
    /// The loader runs.
    Loading,
    Done(Result<Option<Arc<T>>, Error>),
}

/// What a flight has brought so far.
#[derive(Debug)]
pub(crate) struct Progress<T> {
    /// A value past its lifetime, for those who do not want to wait.
    stale: Option<Arc<T>>,
    /// The server's time when the loader began.
    began: Option<Micros>,
    phase: Phase<T>,
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    /// Taken before the load began, or when it was last found to be newer than any invalidation.
    ticket: Mutex<Ticket>,
    progress: watch::Receiver<Progress<T>>,
    /// Held by the one caller that asks Redis whether the flight may still be joined.
    pub(crate) verifying: tokio::sync::Mutex<()>,
}

impl<T> Flight<T> {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket.lock().clone()
    }

    pub(crate) fn renew(&self, ticket: Ticket) {
        *self.ticket.lock() = ticket;
    }

    /// When the loader began, once that is known; `None` when there was none to call, or the server
    /// is away.
    pub(crate) async fn began(&self) -> Option<Micros> {
        let mut progress = self.progress.clone();
        let known = progress.wait_for(|progress| !matches!(progress.phase, Phase::Reading));
        known.await.ok()?.began
    }

    /// Waits for the result. Past `soft` a stale value is taken instead, if there is one.
    pub(crate) async fn landing(&self, soft: Option<Duration>) -> Landing<T> {
        let mut progress = self.progress.clone();
        let done = |progress: &Progress<T>| matches!(progress.phase, Phase::Done(_));
        if let Some(soft) = soft {
            let late = tokio::time::timeout(soft, progress.wait_for(done))
                .await
                .is_err();
            if late && let Some(stale) = progress.borrow().stale.clone() {
                return Landing::Stale(stale);
            }
        }
        match progress.wait_for(done).await.as_deref() {
            Ok(Progress {
                phase: Phase::Done(result),
                ..
            }) => Landing::Result(result.clone()),
            _ => Landing::Result(Err(Error::new(
                ErrorKind::Load,
                "the load ended without a result: its loader panicked, or the process is shutting down",
            ))),
        }
    }
}

/// How a wait ended.
pub(crate) enum Landing<T> {
    Result(Result<Option<Arc<T>>, Error>),
    Stale(Arc<T>),
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
    /// Joins the flight for this key, unless it is `instead_of`; else starts one with the ticket
    /// that `board` takes.
    pub(crate) fn join(
        self: &Arc<Self>,
        id: &str,
        optional: bool,
        instead_of: Option<&Arc<Flight<T>>>,
        board: impl FnOnce() -> Ticket,
    ) -> Place<T> {
        let key = (Box::from(id), optional);
        let mut by_id = self.by_id.lock();
        if let Some(flight) = by_id.get(&key)
            && !instead_of.is_some_and(|refused| Arc::ptr_eq(refused, flight))
        {
            return Place::Passenger(Arc::clone(flight));
        }
        let (sender, receiver) = watch::channel(Progress {
            stale: None,
            began: None,
            phase: Phase::Reading,
        });
        let flight = Arc::new(Flight {
            ticket: Mutex::new(board()),
            progress: receiver,
            verifying: tokio::sync::Mutex::new(()),
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

    /// The loader begins; `ticket` was taken before the server was asked for the time.
    pub(crate) fn loading(&self, ticket: Ticket, began: Option<Micros>) {
        self.flight.renew(ticket);
        self.progress.send_modify(|progress| {
            progress.began = began;
            progress.phase = Phase::Loading;
        });
    }

    /// Ends the flight with this result: who comes later starts another one.
    pub(crate) fn finish(self, result: Result<Option<Arc<T>>, Error>) {
        self.leave();
        self.publish(result);
    }

    /// Publishes a result while the flight goes on: who comes before it has ended shares it.
    pub(crate) fn publish(&self, result: Result<Option<Arc<T>>, Error>) {
        self.progress
            .send_modify(|progress| progress.phase = Phase::Done(result));
    }

    fn leave(&self) {
        let mut by_id = self.flights.by_id.lock();
        if by_id
            .get(&self.key)
            .is_some_and(|current| Arc::ptr_eq(current, &self.flight))
        {
            by_id.remove(&self.key);
        }
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.flight.ticket()
    }
}

impl<T> Drop for Pilot<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::Coherence;

    fn board(coherence: &Coherence) -> Ticket {
        coherence.ticket(&coherence.region("report"), "1", &[], 0)
    }

    fn start(
        flights: &Arc<Flights<u8>>,
        instead_of: Option<&Arc<Flight<u8>>>,
    ) -> (Arc<Flight<u8>>, Pilot<u8>) {
        let coherence = Coherence::new(0);
        match flights.join("1", false, instead_of, || board(&coherence)) {
            Place::Pilot(flight, pilot) => (flight, pilot),
            Place::Passenger(_) => panic!("somebody else flies"),
        }
    }

    #[tokio::test]
    async fn a_loader_that_panics_leaves_an_error_and_no_flight() {
        let flights = Arc::new(Flights::default());
        let (flight, pilot) = start(&flights, None);
        drop(pilot);
        let Landing::Result(Err(error)) = flight.landing(None).await else {
            panic!("there is no value");
        };
        assert_eq!(error.kind(), ErrorKind::Load);
        assert!(flights.by_id.lock().is_empty());
    }

    #[tokio::test]
    async fn a_flight_that_is_replaced_does_not_end_its_successor() {
        let flights = Arc::new(Flights::default());
        let (first, first_pilot) = start(&flights, None);
        let (second, second_pilot) = start(&flights, Some(&first));
        drop(first_pilot);
        let coherence = Coherence::new(0);
        let joined = flights.join("1", false, None, || board(&coherence));
        assert!(matches!(joined, Place::Passenger(flight) if Arc::ptr_eq(&flight, &second)));
        second_pilot.finish(Ok(Some(Arc::new(7))));
        let Landing::Result(Ok(Some(value))) = second.landing(None).await else {
            panic!("the load succeeded");
        };
        assert_eq!(*value, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_soft_deadline_a_stale_value_is_taken_and_the_load_goes_on() {
        let flights = Arc::new(Flights::default());
        let (flight, pilot) = start(&flights, None);
        pilot.offer_stale(&Arc::new(1));
        let early = flight.landing(Some(Duration::from_millis(10))).await;
        assert!(matches!(early, Landing::Stale(value) if *value == 1));
        pilot.publish(Ok(Some(Arc::new(2))));
        let late = flight.landing(Some(Duration::from_millis(10))).await;
        assert!(matches!(late, Landing::Result(Ok(Some(value))) if *value == 2));
    }
}
