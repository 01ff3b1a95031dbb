//! What is known of a transaction without asking the server: pure bookkeeping.

use std::fmt;
use std::sync::Arc;

use crate::error::classify;
use crate::statement::Statement;

/// Where a transaction stands.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Open savepoints.
    depth: u32,
    /// The first failure, and how many savepoints were open then.
    failure: Option<(Failure, u32)>,
    /// A savepoint was dropped: roll back to it before anything else.
    unwind: Option<u32>,
    /// The driver's connection was handed out.
    escaped: bool,
}

/// Why a transaction cannot go on.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    reason: String,
    /// Rolling back to a savepoint cannot mend it: the connection itself is of no use.
    fatal: bool,
}

impl Failure {
    /// The server refused a statement.
    pub(super) fn statement(statement: Option<&Arc<Statement>>, error: &sqlx::Error) -> Self {
        let kind = classify(error).as_str();
        let reason = match statement {
            Some(statement) => format!(
                "the statement `{}` failed ({kind}): {error}",
                statement.summary
            ),
            None => format!("a statement failed ({kind}): {error}"),
        };
        Self {
            reason,
            fatal: false,
        }
    }

    /// The future of a statement was dropped before its answer came: whether it did anything is
    /// unknown, so nothing may be built on it.
    pub(super) fn cancelled() -> Self {
        Self {
            reason: "the future of a statement in it was dropped before its end".to_owned(),
            fatal: true,
        }
    }

    pub(super) fn lost() -> Self {
        Self {
            reason: "its connection was lost".to_owned(),
            fatal: true,
        }
    }

    pub(super) fn lost_because(error: &sqlx::Error) -> Self {
        Self {
            reason: format!("its connection was lost: {error}"),
            fatal: true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl State {
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref().map(|(failure, _)| failure)
    }

    pub(super) fn escaped(&self) -> bool {
        self.escaped
    }

    pub(super) fn escape(&mut self) {
        self.escaped = true;
    }

    /// A savepoint was set.
    pub(super) fn push(&mut self) {
        self.depth += 1;
    }

    /// A savepoint was released; those inside it with it.
    pub(super) fn released(&mut self, depth: u32) {
        self.depth = depth.saturating_sub(1);
    }

    /// The first failure is the one to report; a fatal one replaces one that could be mended.
    pub(super) fn fail(&mut self, failure: Failure) {
        let keep = match &self.failure {
            None => false,
            Some((first, _)) => first.fatal || !failure.fatal,
        };
        if !keep {
            self.failure = Some((failure, self.depth));
        }
    }

    /// A savepoint was dropped: everything since it is to be undone.
    pub(super) fn unwind(&mut self, depth: u32) {
        self.unwind = Some(self.unwind.map_or(depth, |outer| outer.min(depth)));
    }

    /// The savepoint to roll back to now, unless nothing can be sent any more.
    pub(super) fn take_unwind(&mut self) -> Option<u32> {
        if self
            .failure
            .as_ref()
            .is_some_and(|(failure, _)| failure.fatal)
        {
            return None;
        }
        self.unwind.take()
    }

    /// The server has rolled back to the savepoint and forgotten it.
    pub(super) fn unwound(&mut self, depth: u32) {
        self.depth = depth.saturating_sub(1);
        if self
            .failure
            .as_ref()
            .is_some_and(|(failure, at)| !failure.fatal && *at >= depth)
        {
            self.failure = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Failure {
        Failure {
            reason: "refused".to_owned(),
            fatal: false,
        }
    }

    #[test]
    fn a_failure_inside_a_savepoint_ends_with_it() {
        let mut state = State::default();
        state.push();
        state.fail(refused());
        assert!(state.failure().is_some());
        state.unwind(1);
        assert_eq!(state.take_unwind(), Some(1));
        state.unwound(1);
        assert!(state.failure().is_none());
        assert_eq!(state.depth(), 0);
    }

    #[test]
    fn a_failure_outside_a_savepoint_stays() {
        let mut state = State::default();
        state.fail(refused());
        state.push();
        state.unwound(1);
        assert!(state.failure().is_some());
    }

    #[test]
    fn a_cancelled_statement_is_not_mended_by_a_savepoint() {
        let mut state = State::default();
        state.push();
        state.fail(refused());
        state.fail(Failure::cancelled());
        state.unwind(1);
        assert_eq!(state.take_unwind(), None);
        assert!(state.failure().unwrap().reason.contains("dropped"));
    }

    #[test]
    fn the_first_of_several_failures_is_the_one_to_report() {
        let mut state = State::default();
        state.fail(Failure {
            reason: "first".to_owned(),
            fatal: false,
        });
        state.fail(refused());
        assert_eq!(state.failure().unwrap().to_string(), "first");
    }

    #[test]
    fn dropping_two_savepoints_unwinds_to_the_outer_one() {
        let mut state = State::default();
        state.push();
        state.push();
        state.unwind(2);
        state.unwind(1);
        assert_eq!(state.take_unwind(), Some(1));
        assert_eq!(state.take_unwind(), None);
    }
}
