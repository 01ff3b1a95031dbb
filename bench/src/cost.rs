//! What the work costs the processors: in this process, and in all others (the server, the kernel's part
//! for it, and whatever else runs). A ratio between two ways that cost the server the same says less of
//! them than of the server.

use std::fmt::Write as _;
use std::fs;
use std::ops::AddAssign;
use std::sync::Mutex;
use std::time::Instant;

/// Seconds of processor time, over so many operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    operations: f64,
    elapsed: f64,
    own: f64,
    all: f64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.elapsed += other.elapsed;
        self.own += other.own;
        self.all += other.all;
    }
}

/// Measures work from its start on.
pub struct Stopwatch {
    started: Instant,
    own: f64,
    all: f64,
}

impl Stopwatch {
    pub fn start() -> Self {
        let (own, all) = (own(), all());
        let started = Instant::now();
        Self { started, own, all }
    }

    /// Operations in a second. What they cost is the last turn's until somebody takes it.
    pub fn per_second(self, operations: f64) -> f64 {
        let elapsed = self.started.elapsed().as_secs_f64();
        let cost = Cost {
            operations,
            elapsed,
            own: own() - self.own,
            all: all() - self.all,
        };
        if let Ok(mut last) = LAST.lock() {
            *last = Some(cost);
        }
        operations / elapsed
    }
}

static LAST: Mutex<Option<Cost>> = Mutex::new(None);

/// What was measured since the last call.
pub fn take() -> Option<Cost> {
    LAST.lock().ok()?.take()
}

/// Of this process.
fn own() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses, which may hold spaces: fields 14 and 15 of proc(5).
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    seconds(fields.split(' ').skip(11).take(2))
}

/// Of the whole machine, without what was idle: user, nice, system, irq and softirq of proc(5).
fn all() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    seconds(
        [1, 2, 3, 6, 7]
            .iter()
            .filter_map(|at| fields.get(*at).copied()),
    )
}

/// From clock ticks, of which user space sees a hundred a second.
fn seconds<'a>(ticks: impl Iterator<Item = &'a str>) -> f64 {
    ticks
        .filter_map(|text| text.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// One line for each who was measured; `None` if nobody was.
pub fn table<'a>(lines: impl Iterator<Item = (&'a str, &'a str, Cost)>) -> Option<String> {
    let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    let mut table = String::from(
        "microseconds of processor time for one                                    here     elsewhere  idle\n",
    );
    let heading = table.len();
    for (bench, who, cost) in lines.filter(|(_, _, cost)| cost.operations > 0.0 && cost.all > 0.0) {
        let each = |seconds: f64| seconds * 1e6 / cost.operations;
        let (own, others) = (each(cost.own), each((cost.all - cost.own).max(0.0)));
        let idle = 1.0 - (cost.all / (cost.elapsed * processors)).min(1.0);
        let what = format!("{bench}: {who}");
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{what:<70} {own:>8.1} {others:>13.1} {:>4.0} %",
            idle * 100.0
        );
    }
    (table.len() > heading).then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_busy_loop_costs_is_counted_here() {
        let stopwatch = Stopwatch::start();
        let until = Instant::now() + std::time::Duration::from_millis(300);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        stopwatch.per_second(10.0);
        let cost = take().unwrap();
        // Others may have had the processor for a while.
        assert!(cost.own > 0.01 && cost.all >= cost.own - 0.02, "{cost:?}");
        let table = table([("spin", "ours", cost)].into_iter()).unwrap();
        assert!(table.lines().nth(1).unwrap().starts_with("spin: ours "));
    }

    #[test]
    fn who_was_not_measured_has_no_line() {
        assert!(table([("spin", "ours", Cost::default())].into_iter()).is_none());
    }
}
