//! What the process and its runtime use, read when they are scraped.

use std::fs;

use crate::metrics::{
    PROCESS_CPU, PROCESS_FDS, PROCESS_FDS_MAX, PROCESS_RESIDENT, PROCESS_START, PROCESS_THREADS,
    PROCESS_VIRTUAL, RUNTIME_BUSY, RUNTIME_QUEUE, RUNTIME_TASKS, RUNTIME_WORKERS,
};
use crate::registry::Registry;

/// Exposes CPU time, memory, file descriptors, threads and the start time of this process, under the
/// names every Prometheus client uses. Read from `/proc`; elsewhere than on Linux nothing is
/// exposed.
pub fn observe_process(registry: &Registry) {
    registry.observe(&PROCESS_CPU, [], || stat().map(|stat| stat.cpu_seconds));
    registry.observe(&PROCESS_RESIDENT, [], || {
        status("VmRSS:").map(|kib| kib * 1_024.0)
    });
    registry.observe(&PROCESS_VIRTUAL, [], || {
        status("VmSize:").map(|kib| kib * 1_024.0)
    });
    registry.observe(&PROCESS_THREADS, [], || status("Threads:"));
    registry.observe(&PROCESS_FDS, [], || {
        let open = fs::read_dir("/proc/self/fd").ok()?.count();
        // Reading the folder opens one more.
        Some(open.saturating_sub(1) as f64)
    });
    registry.observe(&PROCESS_FDS_MAX, [], max_fds);
    // It does not change, so it is read once.
    let start = stat()
        .zip(boot_time())
        .map(|(stat, boot)| boot + stat.start_seconds);
    registry.observe(&PROCESS_START, [], move || start);
}

/// Exposes the tokio runtime it is called in: workers, tasks, queue, busy time. Outside a runtime
/// nothing is exposed.
pub fn observe_runtime(registry: &Registry) {
    let Ok(handle) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let metrics = handle.metrics();
    let of = |read: fn(&tokio::runtime::RuntimeMetrics) -> f64| {
        let metrics = metrics.clone();
        move || Some(read(&metrics))
    };
    registry.observe(
        &RUNTIME_WORKERS,
        [],
        of(|metrics| metrics.num_workers() as f64),
    );
    registry.observe(
        &RUNTIME_TASKS,
        [],
        of(|metrics| metrics.num_alive_tasks() as f64),
    );
    registry.observe(
        &RUNTIME_QUEUE,
        [],
        of(|metrics| metrics.global_queue_depth() as f64),
    );
    registry.observe(
        &RUNTIME_BUSY,
        [],
        of(|metrics| {
            (0..metrics.num_workers())
                .map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64())
                .sum()
        }),
    );
}

pub(crate) struct Stat {
    cpu_seconds: f64,
    /// Since the machine started.
    start_seconds: f64,
}

/// The kernel gives user space clock ticks of 1/100 s on every architecture Linux runs on today.
const TICKS: f64 = 100.0;

fn stat() -> Option<Stat> {
    parse_stat(&fs::read_to_string("/proc/self/stat").ok()?)
}

pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the command in parentheses, and may itself hold spaces and parentheses.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Counted as in proc(5): `fields` begins with the third.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_seconds: (field(14)? + field(15)?) / TICKS,
        start_seconds: field(22)? / TICKS,
    })
}

fn status(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    number_after(&text, name)
}

fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    number_after(&text, "btime")
}

/// The first number of the line that begins with `name`.
fn number_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn max_fds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_ascii_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_is_read_over() {
        let text = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 12345 1 1";
        let stat = parse_stat(text).unwrap();
        assert!((stat.cpu_seconds - 3.0).abs() < 1e-9);
        assert!((stat.start_seconds - 123.45).abs() < 1e-9);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn this_process_has_memory_files_and_a_past() {
        let registry = Registry::detached();
        observe_process(&registry);
        observe_runtime(&registry);
        let text = registry.text();
        let value =
            |name: &str| number_after(&text, name).unwrap_or_else(|| panic!("{name}\n{text}"));
        assert!(value("process_resident_memory_bytes ") > 1e6);
        assert!(value("process_virtual_memory_bytes ") > value("process_resident_memory_bytes "));
        assert!(value("process_open_fds ") >= 3.0);
        assert!(value("process_max_fds ") > value("process_open_fds "));
        assert!(value("process_threads ") >= 1.0);
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs_f64();
        let age = now - value("process_start_time_seconds ");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(value("maestro_runtime_workers ") >= 1.0);
        assert!(text.contains("process_cpu_seconds_total "));
    }
}
