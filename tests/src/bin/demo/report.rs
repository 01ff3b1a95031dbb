//! What the demo prints: a line a step, a check a figure, one verdict.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The running account of the demo.
pub(crate) struct Report {
    started: Instant,
    step: u32,
    failed: Vec<String>,
    checks: u32,
    printed: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            step: 0,
            failed: Vec::new(),
            checks: 0,
            printed: String::new(),
        }
    }

    /// Announces the next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        let at = seconds(self.started.elapsed());
        self.print(&format!("\n{:>2}. {title}   [{at}]", self.step));
    }

    /// A figure worth seeing that nothing depends on.
    pub(crate) fn note(&mut self, text: impl Display) {
        self.print(&format!("    · {text}"));
    }

    /// A statement that must hold.
    pub(crate) fn check(&mut self, holds: bool, statement: impl Display) {
        self.checks += 1;
        if holds {
            self.print(&format!("    ✓ {statement}"));
        } else {
            self.print(&format!("    ✗ {statement}"));
            self.failed.push(format!("step {}: {statement}", self.step));
        }
    }

    /// True while everything held.
    pub(crate) fn holds(&self) -> bool {
        self.failed.is_empty()
    }

    /// Everything printed so far.
    pub(crate) fn printed(&self) -> &str {
        &self.printed
    }

    fn print(&mut self, line: &str) {
        println!("{line}");
        self.printed.push_str(line);
    }

    /// Prints the verdict; true when everything held.
    pub(crate) fn verdict(&self) -> bool {
        let took = seconds(self.started.elapsed());
        if self.failed.is_empty() {
            println!(
                "\nThe demo held: {} checks in {} steps, {took}.",
                self.checks, self.step
            );
            return true;
        }
        println!(
            "\nThe demo did NOT hold: {} of {} checks failed, {took}.",
            self.failed.len(),
            self.checks
        );
        for failure in &self.failed {
            println!("  ✗ {failure}");
        }
        false
    }
}

/// `12.3 s` or `840 ms`.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
