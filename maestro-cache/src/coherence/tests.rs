//! Every interleaving of reads, writes, pushed invalidations, heartbeats, losses and reconnections,
//! over the real state and a model of the server.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::*;

/// How long a heartbeat renews the lease, in ticks of the model's clock: one, so that few ticks show
/// whether something is served for longer.
const LEASE: Nanos = 1;
const FAR: Nanos = 1_000;
const ID: &str = "1";

/// What travels on the connection for invalidations, in order.
#[derive(Clone, Copy)]
enum Pushed {
    Entry,
    Tag,
    Region,
    Flush,
    /// The answer to a heartbeat sent then.
    Heartbeat(Nanos),
}

/// A write that has returned to its caller, so that from then on its effect is promised.
struct Finished {
    version: u64,
    at: Nanos,
    /// By the process that reads: its own later reads must see it without any delay.
    ours: bool,
}

struct World {
    coherence: Coherence,
    region: Arc<RegionState>,
    tag: Arc<MarkerSlot>,
    now: Nanos,
    /// The server: a clock, the entry's creation, and its markers.
    clock: u64,
    created: u64,
    tag_marker: u64,
    region_marker: u64,
    tracking: bool,
    wire: VecDeque<Pushed>,
    finished: Vec<Finished>,
    hits: u64,
}

impl World {
    fn new() -> Self {
        let coherence = Coherence::new(1 << 14);
        let region = coherence.region("report");
        let tag = coherence.tags.slot("p");
        let world = Self {
            now: 1,
            clock: 10,
            created: 10,
            tag_marker: 1,
            region_marker: 1,
            tracking: true,
            wire: VecDeque::new(),
            finished: Vec::new(),
            hits: 0,
            coherence,
            region,
            tag,
        };
        world.coherence.connected();
        world.coherence.lease(1 + LEASE);
        world
    }

    fn push(&mut self, pushed: Pushed) {
        if self.tracking {
            self.wire.push_back(pushed);
        }
    }

    fn finish(&mut self, version: u64, ours: bool) {
        self.finished.push(Finished {
            version,
            at: self.now,
            ours,
        });
    }

    fn deliver(&mut self) {
        let entry = Invalidated::Entry {
            region: "report",
            id: ID,
        };
        match self.wire.pop_front() {
            None => {}
            Some(Pushed::Entry) => self.coherence.invalidate(entry, self.now),
            Some(Pushed::Tag) => {
                let tag = Invalidated::Marker(Marker::Tag("p"));
                self.coherence.invalidate(tag, self.now);
            }
            Some(Pushed::Region) => {
                let region = Invalidated::Marker(Marker::Region("report"));
                self.coherence.invalidate(region, self.now);
            }
            Some(Pushed::Flush) => self.coherence.flushed(),
            Some(Pushed::Heartbeat(sent)) => self.coherence.lease(sent + LEASE),
        }
    }

    /// A hit may be older than a finished write of another process by the lease, no more; older
    /// than our own not at all.
    fn check(&mut self) {
        let id = Name::of(ID);
        let Lookup::Hit { value, .. } = self.coherence.lookup(&self.region, &id, self.now) else {
            return;
        };
        let created = *value.unwrap().downcast::<u64>().unwrap();
        self.hits += 1;
        for write in &self.finished {
            let bound = if write.ours { 0 } else { LEASE };
            assert!(
                created >= write.version || (!write.ours && self.now <= write.at + bound),
                "a hit of version {created} at {}, though version {} was finished at {}",
                self.now,
                write.version,
                write.at
            );
        }
    }
}

/// Steps of one actor, in their order.
type Actor = Vec<Box<dyn Fn(&mut World)>>;

fn step(run: impl Fn(&mut World) + 'static) -> Box<dyn Fn(&mut World)> {
    Box::new(run)
}

/// Another process changes the entry.
fn writer() -> Actor {
    vec![
        step(|w| {
            w.clock += 1;
            w.created = w.clock;
            w.push(Pushed::Entry);
        }),
        step(|w| w.finish(w.created, false)),
    ]
}

/// Another process invalidates the tag: what was created before is dead.
fn tagger() -> Actor {
    vec![
        step(|w| {
            w.clock += 1;
            w.tag_marker = w.clock;
            w.push(Pushed::Tag);
        }),
        step(|w| w.finish(w.tag_marker + 1, false)),
    ]
}

/// Another process clears the region.
fn clearer() -> Actor {
    vec![
        step(|w| {
            w.clock += 1;
            w.region_marker = w.clock;
            w.push(Pushed::Region);
        }),
        step(|w| w.finish(w.region_marker + 1, false)),
    ]
}

/// This process changes the entry: it invalidates before and after the server does.
fn own_writer() -> Actor {
    vec![
        step(|w| w.coherence.invalidate_entry(&w.region, ID)),
        step(|w| {
            w.clock += 1;
            w.created = w.clock;
            w.push(Pushed::Entry);
        }),
        step(|w| {
            w.coherence.invalidate_entry(&w.region, ID);
            w.finish(w.created, true);
        }),
    ]
}

/// This process reads the entry past its memory, and keeps it. What is read is compared with the
/// markers that are read with it, as `read.rs` does.
fn reader() -> Actor {
    struct Read {
        ticket: Ticket,
        generation: u64,
        region_generation: u64,
        epoch: u64,
        created: u64,
        tag_marker: u64,
        region_marker: u64,
    }
    let read: Arc<RefCell<Option<Read>>> = Arc::default();
    let (begin, ask, keep) = (Arc::clone(&read), Arc::clone(&read), read);
    vec![
        step(move |w| {
            let now = w.now;
            *begin.borrow_mut() = Some(Read {
                epoch: w.coherence.epoch(),
                generation: w.tag.generation(),
                region_generation: w.region.marker.generation(),
                ticket: w.coherence.ticket(&w.region, ID, &[], now),
                created: 0,
                tag_marker: 0,
                region_marker: 0,
            });
        }),
        step(move |w| {
            if let Some(read) = &mut *ask.borrow_mut() {
                read.created = w.created;
                read.tag_marker = w.tag_marker;
                read.region_marker = w.region_marker;
            }
        }),
        step(move |w| {
            let Some(read) = keep.borrow_mut().take() else {
                return;
            };
            let tag = Micros(read.tag_marker);
            w.tag.learn(read.generation, read.epoch, tag);
            let region = Micros(read.region_marker);
            w.region
                .marker
                .learn(read.region_generation, read.epoch, region);
            let created = Micros(read.created);
            if created <= tag || created <= region {
                return;
            }
            let keep = Keep {
                value: Some(Arc::new(created.0)),
                created,
                fresh_until: FAR,
                refresh_at: FAR,
                stale_until: FAR,
                tags: vec![Arc::clone(&w.tag)],
                bytes: 1,
                verified: true,
            };
            w.coherence.keep(&w.region, ID, &read.ticket, keep);
        }),
    ]
}

/// The wire delivers, one message a step.
fn wire(messages: usize) -> Actor {
    (0..messages).map(|_| step(World::deliver)).collect()
}

/// A heartbeat: sent, answered in the order of the wire. Lost when the connection is.
fn heart() -> Actor {
    let sent: Arc<RefCell<Nanos>> = Arc::default();
    let answered = Arc::clone(&sent);
    vec![
        step(move |w| *sent.borrow_mut() = w.now),
        step(move |w| {
            let sent = *answered.borrow();
            w.push(Pushed::Heartbeat(sent));
        }),
    ]
}

/// The connection breaks unnoticed, is noticed, and is made again.
fn breakage() -> Actor {
    vec![
        step(|w| {
            w.tracking = false;
            w.wire.clear();
        }),
        step(|w| w.coherence.disconnected()),
        step(|w| w.tracking = true),
        step(|w| {
            w.coherence.connected();
            w.wire.push_back(Pushed::Heartbeat(w.now));
        }),
    ]
}

fn flush() -> Actor {
    vec![step(|w| w.push(Pushed::Flush))]
}

fn time(ticks: usize) -> Actor {
    (0..ticks).map(|_| step(|w| w.now += 1)).collect()
}

/// The process stands still for longer than any lease.
fn leap() -> Actor {
    vec![step(|w| w.now += 10)]
}

/// Runs every order of the actors' steps that keeps each actor's own; looks into memory after each
/// step. Returns the number of orders and of hits.
fn explore(actors: &dyn Fn() -> Vec<Actor>) -> (u64, u64) {
    fn order(left: &mut [usize], order_so_far: &mut Vec<usize>, run: &mut dyn FnMut(&[usize])) {
        let mut done = true;
        for actor in 0..left.len() {
            if left[actor] > 0 {
                done = false;
                left[actor] -= 1;
                order_so_far.push(actor);
                order(left, order_so_far, run);
                order_so_far.pop();
                left[actor] += 1;
            }
        }
        if done {
            run(order_so_far);
        }
    }
    let mut left: Vec<usize> = actors().iter().map(Vec::len).collect();
    let (mut orders, mut hits) = (0, 0);
    order(&mut left, &mut Vec::new(), &mut |order| {
        let mut world = World::new();
        let mut actors: Vec<_> = actors().into_iter().map(Vec::into_iter).collect();
        for actor in order {
            if let Some(step) = actors[*actor].next() {
                step(&mut world);
            }
            world.check();
        }
        orders += 1;
        hits += world.hits;
    });
    (orders, hits)
}

/// Explores, and makes sure that the exploration saw something: hits in many orders.
fn holds(actors: &dyn Fn() -> Vec<Actor>) {
    let (orders, hits) = explore(actors);
    assert!(orders > 500, "{orders} orders");
    assert!(hits > orders / 100, "{hits} hits in {orders} orders");
}

#[test]
fn no_order_of_a_read_a_write_and_its_news_serves_more_than_the_lease() {
    holds(&|| vec![reader(), writer(), wire(1), heart(), time(2)]);
}

#[test]
fn no_order_of_two_reads_and_a_write_serves_more_than_the_lease() {
    holds(&|| vec![reader(), reader(), writer(), wire(1), time(2)]);
}

#[test]
fn no_order_of_a_read_and_an_invalidated_tag_serves_more_than_the_lease() {
    holds(&|| vec![reader(), reader(), tagger(), wire(1), time(2)]);
}

#[test]
fn no_order_of_a_read_and_a_cleared_region_serves_more_than_the_lease() {
    holds(&|| vec![reader(), reader(), clearer(), wire(1), time(2)]);
}

#[test]
fn no_loss_of_the_connection_serves_more_than_the_lease() {
    holds(&|| vec![reader(), writer(), breakage(), time(2)]);
}

#[test]
fn no_loss_of_the_connection_amid_news_serves_more_than_the_lease() {
    holds(&|| vec![reader(), writer(), breakage(), wire(1), leap()]);
}

#[test]
fn our_own_writes_are_seen_at_once() {
    holds(&|| vec![reader(), reader(), own_writer(), wire(1), flush()]);
}

#[test]
fn the_model_finds_a_process_that_ignores_its_news() {
    let deaf = || vec![reader(), writer(), time(2)];
    let found = std::panic::catch_unwind(|| {
        explore(&|| {
            let mut actors = deaf();
            // The lease is renewed though nothing is delivered.
            actors.push(vec![step(|w| w.coherence.lease(FAR))]);
            actors
        })
    });
    assert!(found.is_err(), "the model did not notice");
}
