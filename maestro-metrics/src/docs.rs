//! The page of all metrics, from the same declarations that are registered.
//!
//! ```
//! use maestro_metrics::{CATALOGUE, docs};
//!
//! assert_eq!(docs::faults(&[&CATALOGUE]), Vec::<String>::new());
//! assert!(docs::markdown(&[&CATALOGUE]).contains("`maestro_build_info`"));
//! ```

use std::collections::HashMap;
use std::fmt::Write;

use crate::catalogue::{Catalogue, Description, Kind, SEMANTIC_CONVENTIONS, Stability, Unit};

/// The catalogues as a page in Markdown, one table for each crate, in the order given.
pub fn markdown(catalogues: &[&Catalogue]) -> String {
    // Writing to a String cannot fail.
    let mut page = introduction();
    for catalogue in catalogues {
        let _ = write!(
            page,
            "\n## {}\n\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n",
            catalogue.owner
        );
        for metric in catalogue.metrics {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                metric.name,
                kind(metric),
                labels(metric),
                meaning(metric)
            );
        }
    }
    page.push_str(&buckets(catalogues));
    page
}

/// What is wrong with catalogues that are used together: a name that is declared in two ways, or
/// twice by one crate. What is wrong with one metric alone does not compile.
pub fn faults(catalogues: &[&Catalogue]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen: HashMap<&str, (&str, &Description)> = HashMap::new();
    for catalogue in catalogues {
        for metric in catalogue.metrics {
            let Some((owner, other)) = seen.insert(metric.name, (catalogue.owner, metric)) else {
                continue;
            };
            if owner == catalogue.owner {
                faults.push(format!("{}: declared twice by {owner}", metric.name));
            } else if other != metric {
                faults.push(format!(
                    "{}: declared differently by {owner} and {}",
                    metric.name, catalogue.owner
                ));
            }
        }
    }
    faults
}

fn introduction() -> String {
    format!(
        "<!-- Generated from the code's catalogues by `cargo xtask docs`; edits are lost. -->\n\
         # Metrics\n\n\
         Every series also has the labels `service`, `team` and `environment` of the service that \
         exposes it: scrape with `honor_labels: true`. A family has a limit of series; what exceeds \
         it is counted under the label value `_overflow`, in `maestro_metrics_overflow_total`, and \
         in one log line. Names marked *in development* follow version {SEMANTIC_CONVENTIONS} of the \
         OpenTelemetry semantic conventions, where they are not final yet. Histograms of durations \
         keep the trace of a sampled request as the exemplar of its bucket (OpenMetrics only).\n"
    )
}

fn kind(metric: &Description) -> String {
    match metric.unit.as_str() {
        "" => metric.kind.as_str().to_owned(),
        unit => format!("{}, {unit}", metric.kind.as_str()),
    }
}

fn labels(metric: &Description) -> String {
    if metric.labels.is_empty() {
        return "none".to_owned();
    }
    let labels: Vec<String> = metric
        .labels
        .iter()
        .map(|label| match metric.top.filter(|top| top.label == *label) {
            Some(top) => format!("`{label}` (busiest {})", top.keep),
            None => format!("`{label}`"),
        })
        .collect();
    labels.join(", ")
}

fn meaning(metric: &Description) -> String {
    // A pipe would end the cell.
    let mut text = metric.help.replace('|', "\\|").replace('\n', " ");
    if metric.kind == Kind::Gauge && metric.unit == Unit::Ratio {
        text.push_str(" From 0 to 1.");
    }
    if metric.stability == Stability::Development {
        text.push_str(" *In development.*");
    }
    text
}

/// Bounds are shown once for each set, not once for each metric.
fn buckets(catalogues: &[&Catalogue]) -> String {
    let mut sets: Vec<(&[f64], Vec<&str>)> = Vec::new();
    let metrics = catalogues.iter().flat_map(|catalogue| catalogue.metrics);
    for metric in metrics.filter(|metric| metric.kind == Kind::Histogram) {
        match sets
            .iter_mut()
            .find(|(bounds, _)| *bounds == metric.buckets)
        {
            Some((_, names)) if names.contains(&metric.name) => {}
            Some((_, names)) => names.push(metric.name),
            None => sets.push((metric.buckets, vec![metric.name])),
        }
    }
    if sets.is_empty() {
        return String::new();
    }
    let mut text = "\n## Buckets\n\n| upper bounds | histograms |\n| --- | --- |\n".to_owned();
    for (bounds, names) in sets {
        let bounds: Vec<String> = bounds.iter().map(f64::to_string).collect();
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {} | {} |", bounds.join(" "), names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Gauge, Histogram, Metric};

    const A: Metric<Counter, 2> = Metric::counter("a_total", "As | bs.")
        .labels(["kind", "tenant"])
        .top("tenant", 20);
    const B: Metric<Histogram> = Metric::seconds("b_seconds", "Bs.").development();
    const OTHER_A: Metric<Counter> = Metric::counter("a_total", "Something else.");
    const C: Metric<Gauge> = Metric::gauge("c_ratio", "Cs.");
    const FIRST: Catalogue = Catalogue::new(
        "first",
        &[A.describe(), B.describe(), C.describe(), C.describe()],
    );
    const SECOND: Catalogue = Catalogue::new("second", &[OTHER_A.describe(), B.describe()]);

    #[test]
    fn the_page_names_kind_labels_and_buckets() {
        let page = markdown(&[&FIRST, &SECOND]);
        for part in [
            "## first\n",
            "| `a_total` | counter | `kind`, `tenant` (busiest 20) | As \\| bs. |",
            "| `b_seconds` | histogram, seconds | none | Bs. *In development.* |",
            "| `c_ratio` | gauge, ratio | none | Cs. From 0 to 1. |",
            "| 0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1 2 2.5 5 7.5 10 | `b_seconds` |",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn two_declarations_of_one_name_are_a_fault() {
        assert_eq!(
            faults(&[&FIRST, &SECOND]),
            [
                "c_ratio: declared twice by first",
                "a_total: declared differently by first and second"
            ]
        );
    }
}
