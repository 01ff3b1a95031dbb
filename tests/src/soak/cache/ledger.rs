//! What was finished when, what was read when, and whether the two agree.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::{BOUND, COMMAND_TIMEOUT, GRACE, KEYS, LOCAL_TTL, SIDES, nanos};

/// Versions finished so long ago are of no more use one by one.
const KEPT: u64 = 60_000_000_000;
/// Violations told in full.
const TOLD: usize = 10;

/// The oldest version that may be read, over time: both only grow.
#[derive(Debug, Default)]
struct Floor(BTreeMap<u64, u64>);

impl Floor {
    fn raise(&mut self, at: u64, version: u64) {
        if self.at(at) >= version {
            return;
        }
        self.0.insert(at, version);
        while let Some((later, lower)) = self.0.range(at + 1..).next()
            && *lower <= version
        {
            let later = *later;
            self.0.remove(&later);
        }
        while let Some((first, _)) = self.0.range(..at.saturating_sub(KEPT)).next()
            && self.0.len() > 1
        {
            let first = *first;
            self.0.remove(&first);
        }
    }

    fn at(&self, time: u64) -> u64 {
        let last = self.0.range(..=time).next_back();
        last.map_or(0, |(_, version)| *version)
    }
}

#[derive(Debug)]
struct Read {
    began: u64,
    ended: u64,
    /// Nobody else's answer was taken for it.
    alone: bool,
    /// Process memory may have served it.
    near: bool,
    key: usize,
    version: u64,
}

/// A time during which a process had no way to Redis, or thought so.
#[derive(Debug)]
struct Away {
    /// Nothing is heard, and nobody is told: who asks waits for the whole of a deadline.
    silent: bool,
    from: u64,
    /// `u64::MAX`: still.
    to: u64,
}

impl Away {
    fn overlaps(&self, read: &Read) -> bool {
        self.from <= read.ended && read.began <= self.to
    }
}

/// What is known of one process.
#[derive(Debug, Default)]
struct Known {
    /// Everything up to then has been entered.
    told: u64,
    waiting: VecDeque<Read>,
    /// What it has changed itself, acknowledged or not.
    own: Vec<Floor>,
    /// Faults between it and Redis.
    faults: Vec<Away>,
    /// When it said that Redis was away.
    away: Vec<Away>,
    local_hits: u64,
}

/// The books of the campaign.
#[derive(Debug)]
pub(super) struct Ledger {
    finished: Vec<Floor>,
    sides: [Known; SIDES],
    violations: Vec<String>,
    wrong: u64,
    strict: [u64; 2],
    excused: u64,
    changes: u64,
    deferred: u64,
}

impl Ledger {
    pub(super) fn new() -> Self {
        let floors = || (0..KEYS).map(|_| Floor::default()).collect();
        let known = || Known {
            own: floors(),
            ..Known::default()
        };
        Self {
            finished: floors(),
            sides: std::array::from_fn(|_| known()),
            violations: Vec::new(),
            wrong: 0,
            strict: [0; 2],
            excused: 0,
            changes: 0,
            deferred: 0,
        }
    }

    /// A fault between these processes and Redis is about to be caused.
    pub(super) fn fault_begins(&mut self, sides: &Range<usize>, silent: bool, from: u64) {
        for known in &mut self.sides[sides.clone()] {
            known
                .faults
                .retain(|fault| fault.to.saturating_add(KEPT) > from);
            known.faults.push(Away {
                silent,
                from,
                to: u64::MAX,
            });
        }
    }

    /// All faults are mended.
    pub(super) fn fault_ends(&mut self, sides: &Range<usize>, now: u64) {
        for known in &mut self.sides[sides.clone()] {
            for fault in &mut known.faults {
                fault.to = fault.to.min(now + nanos(GRACE));
            }
        }
    }

    /// Enters what a process has written: one letter and numbers.
    pub(super) fn enter(&mut self, side: usize, line: &str) -> Result<()> {
        let mut words = line.split(' ');
        let letter = words.next().unwrap_or_default();
        let mut number = || -> Result<u64> {
            let word = words.next().with_context(|| format!("`{line}` is short"))?;
            u64::from_str(word).with_context(|| format!("`{line}`"))
        };
        match letter {
            // A read, alone or perhaps with others: began, ended, 1 when process memory may have
            // served it, key, version.
            "a" | "r" => {
                let read = Read {
                    began: number()?,
                    ended: number()?,
                    alone: letter == "a",
                    near: number()? == 1,
                    key: usize::try_from(number()?)?,
                    version: number()?,
                };
                self.sides[side].waiting.push_back(read);
            }
            // A change: when it was finished, 1 when Redis acknowledged it, key, version.
            "c" => {
                let (at, acknowledged) = (number()?, number()? == 1);
                let (key, version) = (usize::try_from(number()?)?, number()?);
                self.sides[side].own[key].raise(at, version);
                self.changes += 1;
                if acknowledged {
                    self.finished[key].raise(at, version);
                } else {
                    self.deferred += 1;
                }
            }
            // The process noticed that Redis went away: when it looked before, and now.
            "d" => {
                let away = Away {
                    silent: false,
                    from: number()?,
                    to: u64::MAX,
                };
                let known = &mut self.sides[side].away;
                known.retain(|past| past.to.saturating_add(KEPT) > away.from);
                known.push(away);
            }
            // And is back.
            "u" => {
                let to = number()?;
                if let Some(away) = self.sides[side].away.last_mut() {
                    away.to = to;
                }
            }
            "h" => self.sides[side].local_hits = number()?,
            // All that happened until then has been written.
            "t" => {
                self.sides[side].told = number()?;
                self.settle();
            }
            _ => bail!("process {side} wrote `{line}`"),
        }
        Ok(())
    }

    /// Checks the reads of which all is known.
    fn settle(&mut self) {
        let everywhere = self.sides.iter().map(|known| known.told).min().unwrap_or(0);
        for side in 0..SIDES {
            while let Some(read) = self.sides[side].waiting.front()
                && read.ended <= self.sides[side].told
                && read.began.saturating_sub(nanos(BOUND)) <= everywhere
            {
                if let Some(read) = self.sides[side].waiting.pop_front() {
                    self.check(side, &read);
                }
            }
        }
    }

    fn check(&mut self, side: usize, read: &Read) {
        let known = &self.sides[side];
        // Redis was asked, or is known to be away, and may not have answered: the longest time in
        // memory counts, from a value that was right when it was taken. Who reads alone waits for a
        // deadline before giving up on a Redis that is silent.
        let asked_in_vain = |away: &Away| away.overlaps(read) && !(away.silent && read.alone);
        let excused = read.ended - read.began >= nanos(COMMAND_TIMEOUT)
            || known.faults.iter().chain(&known.away).any(asked_in_vain);
        let bound = if excused {
            self.excused += 1;
            LOCAL_TTL + BOUND
        } else {
            self.strict[usize::from(read.near)] += 1;
            BOUND
        };
        let floor = self.finished[read.key].at(read.began.saturating_sub(nanos(bound)));
        let own = known.own[read.key].at(read.began);
        if read.version >= floor.max(own) {
            return;
        }
        self.wrong += 1;
        if self.violations.len() < TOLD {
            let at = if read.near { "memory" } else { "Redis" };
            let which = if own > floor {
                format!("though it had itself made {own}")
            } else {
                format!("though {floor} was finished {bound:?} before")
            };
            self.violations.push(format!(
                "process {side} read version {} of key {} ({at}) at {}, {which}",
                read.version, read.key, read.began
            ));
        }
    }

    /// An error if a read was too old.
    pub(super) fn verdict(&self) -> Result<()> {
        ensure!(
            self.wrong == 0,
            "{} reads were too old:\n{}",
            self.wrong,
            self.violations.join("\n")
        );
        Ok(())
    }

    /// Whether enough reads were held to the bound.
    pub(super) fn has_held_enough(&self) -> bool {
        let [redis, memory] = self.strict;
        memory > 1_000 && redis > 100
    }

    /// A campaign in which hardly anything is held to the bound looks at nothing.
    pub(super) fn looked_at_enough(&self) -> Result<()> {
        let left: usize = self.sides.iter().map(|known| known.waiting.len()).sum();
        ensure!(left == 0, "{left} reads were never checked");
        ensure!(
            self.has_held_enough(),
            "hardly anything was held to the bound"
        );
        for known in &self.sides {
            ensure!(
                known.local_hits > 500,
                "process memory served hardly anything"
            );
        }
        Ok(())
    }

    pub(super) fn summary(&self) -> String {
        let [redis, memory] = self.strict;
        format!(
            "{memory} reads of two levels and {redis} of Redis held to {BOUND:?}, {} to {LOCAL_TTL:?} more; \
             {} from process memory; {} changes, {} of them deferred",
            self.excused,
            self.sides.iter().map(|known| known.local_hits).sum::<u64>(),
            self.changes,
            self.deferred
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_only_grows() {
        let mut floor = Floor::default();
        for (at, version) in [(10, 1), (30, 3), (20, 5), (40, 4), (50, 6)] {
            floor.raise(at, version);
        }
        let seen: Vec<u64> = [5, 10, 19, 20, 45, 50].map(|at| floor.at(at)).into();
        assert_eq!(seen, [0, 1, 1, 5, 5, 6]);
    }

    #[test]
    fn a_read_is_held_to_the_bound_unless_redis_was_away() {
        let lines = |side_away: bool| {
            let mut ledger = Ledger::new();
            let second = 1_000_000_000_u64;
            ledger
                .enter(1, &format!("c {} 1 3 7", 100 * second))
                .unwrap();
            if side_away {
                ledger.enter(0, &format!("d {}", 101 * second)).unwrap();
            }
            for (at, version) in [(101, 6), (102, 6), (109, 7)] {
                let (began, ended) = (at * second, at * second + 1);
                ledger
                    .enter(0, &format!("r {began} {ended} 1 3 {version}"))
                    .unwrap();
            }
            for side in 0..SIDES {
                ledger.enter(side, &format!("t {}", 200 * second)).unwrap();
            }
            ledger.wrong
        };
        assert_eq!((lines(false), lines(true)), (1, 0));
    }
}
