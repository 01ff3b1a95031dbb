//! Counting without a lock prefix: a thread that counts alone on a line adds to it with a load and a
//! store. That a line has one thread is what the lanes are for: a thread takes one when it counts
//! for the first time, and gives it back when it ends.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads that can have a lane at a time. Those that come later share one number, until they end:
/// memory stays bounded, and nothing is lost.
const LANES: usize = 16;

/// As [`Integer`](crate::cell::Integer): two 64-byte lines.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Line(AtomicU64);

/// One number, spread over the lanes.
#[derive(Debug, Default)]
pub(crate) struct Stripes {
    lines: [Line; LANES],
    /// What was moved elsewhere. Lines only grow: nobody but their thread may set one.
    taken: AtomicU64,
}

impl Stripes {
    /// Adds on this thread's lane; false when it has none.
    #[inline]
    pub(crate) fn add(&self, n: u64) -> bool {
        let Some(line) = lane_of_thread().and_then(|lane| self.lines.get(lane)) else {
            return false;
        };
        let sum = line.0.load(Ordering::Relaxed).wrapping_add(n);
        line.0.store(sum, Ordering::Relaxed);
        true
    }

    pub(crate) fn value(&self) -> u64 {
        let taken = self.taken.load(Ordering::Relaxed);
        self.sum().saturating_sub(taken)
    }

    /// The value; less by as much from now on.
    pub(crate) fn take(&self) -> u64 {
        let sum = self.sum();
        // Of two that take at once, the one that saw less has nothing left to take.
        sum.saturating_sub(self.taken.fetch_max(sum, Ordering::Relaxed))
    }

    fn sum(&self) -> u64 {
        let lines = self.lines.iter();
        lines.fold(0, |sum, line| {
            sum.wrapping_add(line.0.load(Ordering::Relaxed))
        })
    }
}

/// Bit by bit, the lanes that are in use.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// A thread's lane.
struct Lane(Cell<usize>);

/// Before the first count.
const UNKNOWN: usize = usize::MAX;
/// All were in use.
const NONE: usize = LANES;

impl Drop for Lane {
    fn drop(&mut self) {
        let lane = self.0.replace(NONE);
        if lane < LANES {
            // Whoever takes it next sees what was counted.
            IN_USE.fetch_and(!(1 << lane), Ordering::Release);
        }
    }
}

thread_local! {
    static LANE: Lane = const { Lane(Cell::new(UNKNOWN)) };
}

#[inline]
fn lane_of_thread() -> Option<usize> {
    // An error: the thread is ending.
    let lane = LANE.try_with(|lane| match lane.0.get() {
        UNKNOWN => first(lane),
        known => known,
    });
    lane.ok()
}

#[cold]
fn first(lane: &Lane) -> usize {
    let free = |in_use: u64| {
        let lane = in_use.trailing_ones();
        (lane < u32::try_from(LANES).unwrap_or(0)).then(|| in_use | 1 << lane)
    };
    let taken = IN_USE
        .fetch_update(Ordering::Acquire, Ordering::Relaxed, free)
        .map_or(NONE, |in_use| {
            usize::try_from(in_use.trailing_ones()).unwrap_or(NONE)
        });
    lane.0.set(taken);
    taken
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::Counter;
    use crate::handle::sealed::Sealed as _;

    const EACH: u64 = 10_000;

    fn counter() -> Counter {
        const COUNTED: crate::Metric<Counter> = crate::Metric::counter("counted_total", "Counted.");
        crate::Registry::detached().metric(&COUNTED)
    }

    /// More than there are lanes at once, and more after them on lanes that were used before.
    #[test]
    fn no_count_is_lost_whatever_threads_come_and_go() {
        let (counter, threads) = (counter(), 3 * LANES);
        let striped = counter.striped();
        for _ in 0..3 {
            let all_there = Barrier::new(threads);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        striped.increment();
                        all_there.wait();
                        for _ in 1..EACH {
                            striped.increment();
                        }
                    });
                }
            });
        }
        assert_eq!(counter.value(), 3 * threads as u64 * EACH);
    }

    #[test]
    fn what_is_taken_while_it_is_counted_is_taken_once() {
        const COUNTS: u64 = 1_000_000;
        let (counter, other) = (counter(), counter());
        let striped = counter.striped();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..COUNTS).for_each(|_| striped.increment()));
            for _ in 0..2 {
                scope.spawn(|| {
                    while other.value() < COUNTS {
                        counter.drain_into(&other);
                    }
                });
            }
        });
        assert_eq!(counter.value() + other.value(), COUNTS);
    }

    #[test]
    fn every_handle_of_a_counter_shows_what_all_have_counted() {
        let counter = counter();
        let striped = counter.striped();
        striped.add(2);
        counter.striped().increment();
        counter.increment();
        assert_eq!((counter.value(), striped.value()), (4, 4));
    }
}
