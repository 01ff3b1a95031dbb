//! Counting test results, whoever ran the tests.

use std::fmt;

/// Tests passed and failed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// Adds what one line of a libtest run says, if it is its closing line
    /// (`test result: ok. 3 passed; 0 failed; …`).
    pub(crate) fn add_libtest_line(&mut self, line: &str) {
        let Some((_, counts)) = line
            .trim_start()
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split(';') {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => self.passed += count.parse::<u64>().unwrap_or(0),
                Some((count, "failed")) => self.failed += count.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// The counts in the root element of a JUnit report, as nextest writes it.
    /// `None` if this is no such report.
    pub(crate) fn of_junit(report: &str) -> Option<Self> {
        let root = report.split_once("<testsuites ")?.1.split_once('>')?.0;
        let count = |name: &str| -> Option<u64> {
            let value = root.split_once(&format!("{name}=\""))?.1;
            value.split_once('"')?.0.parse().ok()
        };
        let failed = count("failures")? + count("errors")?;
        Some(Self {
            passed: count("tests")?.checked_sub(failed)?,
            failed,
        })
    }

    /// Takes how the run itself ended into account: one that failed without a failed test (a crash,
    /// a build error) must not be counted as a success.
    #[must_use]
    pub(crate) fn ended(mut self, success: bool) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_several_test_binaries_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test names::a_name_is_kept ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "   test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s",
            "a test printed: test result: 99 passed",
        ] {
            tally.add_libtest_line(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 8,
                failed: 2
            }
        );
    }

    #[test]
    fn a_junit_report_counts_failures_and_errors_as_failed() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="10" failures="2" errors="1" uuid="u" time="1.5">
    <testsuite name="xtask" tests="3" failures="9">"#;
        assert_eq!(
            Tally::of_junit(report),
            Some(Tally {
                passed: 7,
                failed: 3
            })
        );
        assert_eq!(Tally::of_junit("<html>"), None);
    }

    #[test]
    fn a_run_that_crashed_without_a_failed_test_is_no_success() {
        let passed = Tally {
            passed: 4,
            failed: 0,
        };
        assert_eq!(passed.ended(false).to_string(), "4 passed, 1 failed");
        assert_eq!(passed.ended(true).to_string(), "4 passed, 0 failed");
    }
}
