//! The same work by ours and by every peer, in one process, in turns.
//!
//! One round lets each contender work once; the order rotates, so that nobody is always the one who
//! finds the caches cold. After a warm-up round that does not count come at least seven that do. The
//! median is quoted, the spread shown. Figures of different runs are not to be compared: the ratio
//! within one run is the result.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::time::Instant;

use serde_json::json;

use crate::cost::{self, Cost, Stopwatch};

/// Whatever went wrong; a benchmark that fails has no figures.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Time for one, lower is better.
    Milliseconds,
    /// Time for one, lower is better.
    Nanoseconds,
    /// Operations in a second, higher is better.
    PerSecond,
    /// Allocations of one, lower is better.
    Allocations,
}

/// What ours is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Shown for orientation.
    None,
    /// Ratio of ours to this peer, higher is better.
    Ratio(f64),
    /// Ours itself, in its unit, whatever the peer takes.
    AtMost(f64),
}

/// Work to be timed by several contenders.
pub struct Comparison<'a> {
    bench: String,
    unit: Unit,
    rounds: usize,
    ours: Contender<'a>,
    peers: Vec<Peer<'a>>,
}

type Measure<'a> = Box<dyn FnMut() -> Pin<Box<dyn Future<Output = Result<f64>> + 'a>> + 'a>;

struct Contender<'a> {
    measure: Measure<'a>,
    values: Vec<f64>,
    cost: Cost,
}

struct Peer<'a> {
    name: String,
    note: &'static str,
    target: Target,
    contender: Contender<'a>,
}

/// Ours against one peer.
#[derive(Debug, Clone)]
pub struct Row {
    bench: String,
    unit: Unit,
    ours: f64,
    peer: String,
    peer_value: f64,
    target: Target,
    spread: f64,
    note: &'static str,
    /// Of ours, and of the peer.
    costs: [Cost; 2],
}

impl<'a> Comparison<'a> {
    /// A comparison; `measure` does the work our way and returns its figure.
    pub fn new<F, R>(bench: impl Into<String>, unit: Unit, rounds: usize, measure: F) -> Self
    where
        F: FnMut() -> R + 'a,
        R: Future<Output = Result<f64>> + 'a,
    {
        Self {
            bench: bench.into(),
            unit,
            rounds: rounds.max(FEWEST_ROUNDS),
            ours: Contender::new(measure),
            peers: Vec::new(),
        }
    }

    /// A peer that does the same work. `note` says where its guarantee is another one than ours.
    #[must_use]
    pub fn peer<F, R>(
        mut self,
        name: impl Into<String>,
        note: &'static str,
        target: Target,
        measure: F,
    ) -> Self
    where
        F: FnMut() -> R + 'a,
        R: Future<Output = Result<f64>> + 'a,
    {
        self.peers.push(Peer {
            name: name.into(),
            note,
            target,
            contender: Contender::new(measure),
        });
        self
    }

    /// Runs all rounds.
    pub async fn run(mut self) -> Result<Vec<Row>> {
        eprint!("{}: warm-up", self.bench);
        for contender in self.contenders() {
            contender.turn().await?;
            contender.values.clear();
            contender.cost = Cost::default();
        }
        for round in 0..self.rounds {
            eprint!(", {}", round + 1);
            let mut contenders = self.contenders();
            let count = contenders.len();
            for turn in 0..count {
                contenders[(round + turn) % count].turn().await?;
            }
        }
        eprintln!();
        let ours = median(&self.ours.values);
        let spread = spread(&self.ours.values);
        let rows = self.peers.iter().map(|peer| Row {
            bench: self.bench.clone(),
            unit: self.unit,
            ours,
            peer: peer.name.clone(),
            peer_value: median(&peer.contender.values),
            target: peer.target,
            spread,
            note: peer.note,
            costs: [self.ours.cost, peer.contender.cost],
        });
        Ok(rows.collect())
    }

    fn contenders(&mut self) -> Vec<&mut Contender<'a>> {
        let peers = self.peers.iter_mut().map(|peer| &mut peer.contender);
        std::iter::once(&mut self.ours).chain(peers).collect()
    }
}

impl<'a> Contender<'a> {
    fn new<F, R>(mut measure: F) -> Self
    where
        F: FnMut() -> R + 'a,
        R: Future<Output = Result<f64>> + 'a,
    {
        Self {
            measure: Box::new(move || Box::pin(measure())),
            values: Vec::new(),
            cost: Cost::default(),
        }
    }

    async fn turn(&mut self) -> Result<()> {
        let value = (self.measure)().await?;
        self.values.push(value);
        if let Some(cost) = cost::take() {
            self.cost += cost;
        }
        Ok(())
    }
}

impl Row {
    /// Ours to the peer, higher is better; 1 when neither takes anything.
    pub fn ratio(&self) -> f64 {
        if self.ours == self.peer_value {
            1.0
        } else if self.unit == Unit::PerSecond {
            self.ours / self.peer_value
        } else {
            self.peer_value / self.ours
        }
    }

    /// Whether the target is met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        match self.target {
            Target::None => None,
            Target::Ratio(least) => Some(self.ratio() >= least),
            Target::AtMost(most) => Some(self.ours <= most),
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "bench": self.bench,
            "unit": self.unit.name(),
            "ours": self.ours,
            "peer": self.peer,
            "peer_value": self.peer_value,
            "ratio": self.ratio(),
            // A number is a ratio; a bound on ours itself is spelled out.
            "target": match self.target {
                Target::None => json!(null),
                Target::Ratio(least) => json!(least),
                Target::AtMost(most) => json!(format!("ours <= {most}")),
            },
            "met": self.met(),
            "spread": self.spread,
        })
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::PerSecond => "1/s",
            Self::Allocations => "allocations",
        }
    }
}

/// Writes one JSON object per line.
pub fn write_lines(rows: &[Row], path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    for row in rows {
        writeln!(file, "{}", row.json())?;
    }
    Ok(())
}

/// The table people read.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![
        [
            "bench", "ours", "peer", "", "ratio", "target", "met", "spread", "",
        ]
        .map(str::to_owned),
    ];
    for row in rows {
        cells.push([
            row.bench.clone(),
            format!("{} {}", figure(row.ours), row.unit.name()),
            row.peer.clone(),
            format!("{} {}", figure(row.peer_value), row.unit.name()),
            format!("{:.2}", row.ratio()),
            match row.target {
                Target::None => String::new(),
                Target::Ratio(least) => format!("{least:.2}"),
                Target::AtMost(most) => format!("≤ {} {}", figure(most), row.unit.name()),
            },
            row.met()
                .map_or("", |met| if met { "yes" } else { "NO" })
                .to_owned(),
            format!("{:.0} %", row.spread * 100.0),
            row.note.to_owned(),
        ]);
    }
    let width = |column: usize| {
        let lengths = cells.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    let mut table = String::new();
    for row in &cells {
        let line = row
            .iter()
            .zip(&widths)
            .fold(String::new(), |mut line, (cell, width)| {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
                line
            });
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// What one operation cost the processors, where that was measured.
pub fn costs(rows: &[Row]) -> Option<String> {
    let lines = rows.iter().enumerate().flat_map(|(index, row)| {
        let first = index == 0 || rows[index - 1].bench != row.bench;
        let ours = first.then_some((row.bench.as_str(), "ours", row.costs[0]));
        let peer = (row.bench.as_str(), row.peer.as_str(), row.costs[1]);
        ours.into_iter().chain([peer])
    });
    cost::table(lines)
}

/// Nanoseconds for one call of `work`, over `calls` of them.
pub fn nanoseconds<T>(calls: u32, mut work: impl FnMut() -> T) -> f64 {
    let started = Instant::now();
    for _ in 0..calls {
        std::hint::black_box(work());
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

/// Operations in a second, when `tasks` tasks do `each` operations one after the other.
/// `task` is called once per task and returns what that task does, all its operations.
pub async fn per_second<R>(tasks: u32, each: u32, mut task: impl FnMut() -> R) -> Result<f64>
where
    R: Future<Output = Result<()>> + Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    let work: Vec<R> = (0..tasks).map(|_| task()).collect();
    let stopwatch = Stopwatch::start();
    for one in work {
        running.spawn(one);
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(stopwatch.per_second(f64::from(tasks) * f64::from(each)))
}

/// A peer's name with the version that is linked in; the newest, where another peer brings an older.
pub fn versioned(package: &str, as_what: &str) -> String {
    let version = LOCK
        .rsplit("[[package]]")
        .find(|entry| entry.contains(&format!("name = \"{package}\"\n")))
        .and_then(|entry| entry.split_once("version = \"")?.1.split_once('"'))
        .map_or("?", |(version, _)| version);
    let name = format!("{package} {version}");
    if as_what.is_empty() {
        name
    } else {
        format!("{name} {as_what}")
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// From the lowest to the highest, as a part of the median.
fn spread(values: &[f64]) -> f64 {
    let median = median(values);
    if median == 0.0 {
        return 0.0;
    }
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (highest - lowest) / median
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 1000.0 => {
            let digits = format!("{value:.0}");
            let first = digits.len() % 3;
            let mut grouped = digits[..first].to_owned();
            for group in digits.as_bytes()[first..].chunks(3) {
                if !grouped.is_empty() {
                    grouped.push(',');
                }
                grouped.push_str(&String::from_utf8_lossy(group));
            }
            grouped
        }
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

const FEWEST_ROUNDS: usize = 7;
const LOCK: &str = include_str!("../Cargo.lock");

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, ours: f64, peer_value: f64, target: Target) -> Row {
        Row {
            bench: "get".to_owned(),
            unit,
            ours,
            peer: "peer 1.0".to_owned(),
            peer_value,
            target,
            spread: 0.1,
            note: "",
            costs: Default::default(),
        }
    }

    #[test]
    fn a_ratio_above_one_means_ours_is_better_whatever_the_unit() {
        let time = row(Unit::Milliseconds, 5.0, 10.0, Target::Ratio(2.0));
        assert_eq!((time.ratio(), time.met()), (2.0, Some(true)));
        let rate = row(Unit::PerSecond, 5.0, 10.0, Target::Ratio(0.6));
        assert_eq!((rate.ratio(), rate.met()), (0.5, Some(false)));
        let bound = row(Unit::Milliseconds, 150.1, 10.0, Target::AtMost(150.0));
        assert_eq!(bound.met(), Some(false));
    }

    #[test]
    fn a_line_has_exactly_the_documented_fields() {
        let line = row(Unit::PerSecond, 2.0, 1.0, Target::None).json();
        let mut fields: Vec<_> = line
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "bench",
                "met",
                "ours",
                "peer",
                "peer_value",
                "ratio",
                "spread",
                "target",
                "unit"
            ]
        );
    }

    #[tokio::test]
    async fn contenders_take_turns_and_the_warm_up_does_not_count() {
        let turns = std::cell::RefCell::new(String::new());
        let take = |who: char, value: f64| {
            turns.borrow_mut().push(who);
            async move { Ok(value) }
        };
        let mut first = true;
        let rows = Comparison::new("turns", Unit::Milliseconds, 1, || {
            let value = if std::mem::take(&mut first) { 1e9 } else { 2.0 };
            take('o', value)
        })
        .peer("peer", "", Target::None, || take('p', 4.0))
        .run()
        .await
        .unwrap();
        // Warm-up, then seven rounds in which the first turn rotates.
        assert_eq!(
            *turns.borrow(),
            "op".to_owned() + "op" + "po" + "op" + "po" + "op" + "po" + "op"
        );
        assert_eq!(rows[0].ratio(), 2.0);
        assert_eq!(rows[0].spread, 0.0);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn figures_are_grouped_and_never_show_more_digits_than_they_are_worth() {
        assert_eq!(figure(1_234_567.8), "1,234,568");
        assert_eq!(figure(123.45), "123.5");
        assert_eq!(figure(1.234), "1.23");
    }

    #[test]
    fn a_peer_is_named_with_the_version_that_is_linked_in() {
        assert!(versioned("prometheus", "").starts_with("prometheus 0."));
        assert!(versioned("clap", "derive").ends_with(" derive"));
    }
}
