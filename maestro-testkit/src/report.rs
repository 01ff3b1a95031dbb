//! What the developer sees: where each server came from, and what takes long.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// One line on standard error; the test harness shows it with a failing test.
#[expect(clippy::print_stderr, reason = "talking to the developer is its job")]
pub(crate) fn line(text: impl Display) {
    eprintln!("maestro-testkit: {text}");
}

/// The same line only once per process: every test of a binary joins the same servers.
pub(crate) fn line_once(text: String) {
    let new = match SAID.lock() {
        Ok(mut said) => said.insert(text.clone()),
        Err(_) => true,
    };
    if new {
        line(text);
    }
}

/// Awaits something that may take long: after a second says what it is, and every ten seconds that
/// it still goes on.
pub(crate) async fn with_progress<T>(what: &str, future: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let mut future = std::pin::pin!(future);
    let mut wait = Duration::from_secs(1);
    loop {
        if let Ok(value) = tokio::time::timeout(wait, &mut future).await {
            let took = started.elapsed().as_secs_f64();
            if took > 1.0 {
                line(format_args!("{what}: {took:.1} s"));
            }
            return value;
        }
        let so_far = started.elapsed().as_secs();
        line(format_args!("{what} … ({so_far} s so far)"));
        wait = Duration::from_secs(10);
    }
}
