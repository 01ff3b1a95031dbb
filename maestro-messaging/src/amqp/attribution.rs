//! Which publish was returned: telling unrouted messages from routed ones for certain.
//!
//! The broker sends a return before the confirm of the same message, and returns in the order of
//! publishing. The driver keeps returns in a line and hands the first one to whichever confirm
//! completes next, so a confirm can carry a stranger's return, and a message's own return can still
//! wait in the line after its confirm was seen. A confirm is therefore *held* until one of these
//! proves that its return is not in the line:
//! - it came with no return at all: the line was empty when it completed;
//! - a later confirm came with no return;
//! - a return of a message published after it was seen: the line is in order;
//! - everything published up to it is confirmed: at any moment the line is no longer than the number
//!   of returned messages whose confirm is outstanding, also counted up to one message alone.
//!
//! Reports come in *passes*: everything the driver completed before the last report of a pass is in
//! that pass or an earlier one. Pure: no driver type, no clock.

use std::collections::VecDeque;

/// Position in the order of publishing on one channel.
pub(crate) type Sequence = u64;

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Stored by every queue it was routed to, one at least.
    Routed,
    /// Accepted; no queue wanted it.
    Unrouted,
    /// At least one queue refused it.
    Refused,
    /// The answer will not come.
    Lost,
}

/// Everything published on one channel and not settled yet.
#[derive(Debug)]
pub(crate) struct Attribution<T> {
    /// In the order of publishing; settled ones in the middle leave a hole until the front is gone.
    entries: VecDeque<Option<Entry<T>>>,
    front: Sequence,
    /// Reported since the last settling, or held by an earlier one.
    held: Vec<Held>,
    pass: u64,
    /// The last pass in which a confirm came without a return.
    empty_pass: Option<u64>,
    highest_return: Option<Sequence>,
    lost: bool,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    waiting: bool,
    returned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    sequence: Sequence,
    pass: u64,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    /// Confirmed while the line of returns was empty.
    AckEmpty,
    /// Confirmed, with a return of its own or of another message.
    AckWithReturn,
    Nack,
    Lost,
}

impl<T> Attribution<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            front: 0,
            held: Vec::new(),
            pass: 0,
            empty_pass: None,
            highest_return: None,
            lost: false,
        }
    }

    /// Notes a publish, in the order in which the channel sends them.
    pub(crate) fn published(&mut self, item: T) -> Sequence {
        self.entries.push_back(Some(Entry {
            item,
            waiting: true,
            returned: false,
        }));
        self.front + self.entries.len() as u64 - 1
    }

    /// A confirm; `returned` recognises the message whose return came with it.
    pub(crate) fn ack<F: Fn(&T) -> bool>(&mut self, sequence: Sequence, returned: Option<F>) {
        let report = match &returned {
            None => {
                self.empty_pass = Some(self.pass);
                Report::AckEmpty
            }
            Some(_) => Report::AckWithReturn,
        };
        self.note_return(returned);
        self.reported(sequence, report);
    }

    /// A negative confirm; it can carry another message's return.
    pub(crate) fn nack<F: Fn(&T) -> bool>(&mut self, sequence: Sequence, returned: Option<F>) {
        if returned.is_none() {
            self.empty_pass = Some(self.pass);
        }
        self.note_return(returned);
        self.reported(sequence, Report::Nack);
    }

    /// The channel ended before the answer.
    pub(crate) fn lost(&mut self, sequence: Sequence) {
        self.lost = true;
        self.reported(sequence, Report::Lost);
    }

    /// Ends a pass: hands out every verdict that is certain.
    pub(crate) fn settle(&mut self, mut each: impl FnMut(Sequence, T, Verdict)) {
        if self.held.is_empty() {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        let mut first_waiting = None;
        held.retain(|held| {
            let Some(verdict) = self.verdict(*held, &mut first_waiting) else {
                return true;
            };
            if let Some(entry) = self.take(held.sequence) {
                each(held.sequence, entry.item, verdict);
            }
            false
        });
        self.held = held;
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.front += 1;
        }
        self.pass += 1;
    }

    /// Takes everything that is left, in the order of publishing: the channel is gone.
    pub(crate) fn into_lost(self) -> impl Iterator<Item = (Sequence, T)> {
        let front = self.front;
        self.entries
            .into_iter()
            .enumerate()
            .filter_map(move |(at, entry)| Some((front + at as u64, entry?.item)))
    }

    /// Publishes from the oldest unsettled one on, holes included.
    pub(crate) fn span(&self) -> usize {
        self.entries.len()
    }

    /// The oldest publish that is not settled.
    pub(crate) fn oldest(&self) -> Option<&T> {
        self.entries
            .iter()
            .flatten()
            .map(|entry| &entry.item)
            .next()
    }

    fn verdict(&self, held: Held, first_waiting: &mut Option<Sequence>) -> Option<Verdict> {
        match held.report {
            Report::Nack => return Some(Verdict::Refused),
            Report::Lost => return Some(Verdict::Lost),
            Report::AckEmpty | Report::AckWithReturn => {}
        }
        if self
            .entry(held.sequence)
            .is_some_and(|entry| entry.returned)
        {
            return Some(Verdict::Unrouted);
        }
        let certain = held.report == Report::AckEmpty
            || self.empty_pass.is_some_and(|pass| pass > held.pass)
            || self
                .highest_return
                .is_some_and(|highest| highest > held.sequence);
        if certain {
            return Some(Verdict::Routed);
        }
        if self.lost {
            // Its own return may have died in the line: publishing it again finds out.
            return Some(Verdict::Lost);
        }
        let first_waiting = *first_waiting.get_or_insert_with(|| self.first_waiting());
        (first_waiting > held.sequence).then_some(Verdict::Routed)
    }

    fn note_return<F: Fn(&T) -> bool>(&mut self, returned: Option<F>) {
        let Some(matches) = returned else { return };
        let found = self.entries.iter_mut().enumerate().find_map(|(at, entry)| {
            let entry = entry.as_mut()?;
            (!entry.returned && matches(&entry.item)).then_some((at, entry))
        });
        if let Some((at, entry)) = found {
            entry.returned = true;
            let sequence = self.front + at as u64;
            self.highest_return = self.highest_return.max(Some(sequence));
        }
    }

    fn reported(&mut self, sequence: Sequence, report: Report) {
        let pass = self.pass;
        if let Some(entry) = self.entry_mut(sequence)
            && entry.waiting
        {
            entry.waiting = false;
            self.held.push(Held {
                sequence,
                pass,
                report,
            });
        }
    }

    fn first_waiting(&self) -> Sequence {
        let at = self
            .entries
            .iter()
            .position(|entry| entry.as_ref().is_some_and(|entry| entry.waiting))
            .unwrap_or(self.entries.len());
        self.front + at as u64
    }

    fn index(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.front)?).ok()
    }

    fn entry(&self, sequence: Sequence) -> Option<&Entry<T>> {
        self.entries.get(self.index(sequence)?)?.as_ref()
    }

    fn entry_mut(&mut self, sequence: Sequence) -> Option<&mut Entry<T>> {
        let index = self.index(sequence)?;
        self.entries.get_mut(index)?.as_mut()
    }

    fn take(&mut self, sequence: Sequence) -> Option<Entry<T>> {
        let index = self.index(sequence)?;
        self.entries.get_mut(index)?.take()
    }
}

#[cfg(test)]
mod tests;
