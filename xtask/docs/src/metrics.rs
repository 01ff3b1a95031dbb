//! `docs/metrics.md`, from the catalogues of the crates.

use std::fmt::Write as _;

use maestro_metrics::{Catalogue, Description, Kind, SEMANTIC_CONVENTIONS, Stability};

/// The page of every metric of these catalogues, a section for each crate.
pub(crate) fn markdown(catalogues: &[Catalogue]) -> String {
    let mut page = introduction();
    for catalogue in catalogues {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {}\n\n", catalogue.owner);
        page.push_str("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n");
        for metric in catalogue.metrics {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                metric.name,
                kind(metric),
                labels(metric),
                meaning(metric),
            );
        }
    }
    buckets(catalogues, &mut page);
    page
}

fn introduction() -> String {
    format!(
        "<!-- Generated from the code's catalogues by `cargo xtask docs`; edits are lost. -->\n\
         # Metrics\n\n\
         Every metric that the SDK emits. Each series also carries `service`, `team` and `environment`. \
         A family that reaches its limit of series counts further label values under `_overflow`. \
         Names marked *in development* follow a part of OpenTelemetry's semantic conventions \
         {SEMANTIC_CONVENTIONS} that is not stable yet; the others change only with a major version.\n"
    )
}

fn kind(metric: &Description) -> String {
    match metric.unit.as_str() {
        "" => metric.kind.as_str().to_owned(),
        unit => format!("{}, {unit}", metric.kind.as_str()),
    }
}

fn labels(metric: &Description) -> String {
    let labels = metric.labels.iter().map(|label| match metric.top {
        Some(top) if top.label == *label => format!("`{label}` (top {})", top.keep),
        _ => format!("`{label}`"),
    });
    labels.collect::<Vec<_>>().join(", ")
}

fn meaning(metric: &Description) -> String {
    let help = metric.help.replace('|', "\\|");
    match metric.stability {
        Stability::Development => format!("{help} *In development.*"),
        _ => help,
    }
}

/// The histograms' bounds, each list once with the metrics that have it.
fn buckets(catalogues: &[Catalogue], page: &mut String) {
    let mut lists: Vec<(&[f64], Vec<&str>)> = Vec::new();
    let metrics = catalogues.iter().flat_map(|catalogue| catalogue.metrics);
    for metric in metrics.filter(|metric| metric.kind == Kind::Histogram) {
        match lists
            .iter_mut()
            .find(|(bounds, _)| *bounds == metric.buckets)
        {
            Some((_, names)) => names.push(metric.name),
            None => lists.push((metric.buckets, vec![metric.name])),
        }
    }
    if lists.is_empty() {
        return;
    }
    page.push_str("\n## Buckets\n\n| upper bounds | histograms |\n| --- | --- |\n");
    for (bounds, names) in lists {
        let bounds: Vec<String> = bounds.iter().map(f64::to_string).collect();
        let _ = writeln!(page, "| {} | `{}` |", bounds.join(" "), names.join("`, `"));
    }
}

#[cfg(test)]
mod tests {
    use maestro_metrics::{Counter, Histogram, Metric};

    use super::*;

    const LOOKUPS: Metric<Counter, 2> =
        Metric::counter("lookups_total", "Lookups by level | result.").labels(["level", "result"]);
    const TIME: Metric<Histogram> =
        Metric::histogram("batch_messages", "Messages in a batch.", &[1.0, 10.0]).development();

    #[test]
    fn a_metric_is_shown_with_kind_unit_labels_and_stability() {
        static METRICS: [Description; 2] = [LOOKUPS.describe(), TIME.describe()];
        let page = markdown(&[Catalogue::new("maestro-cache", &METRICS)]);
        assert!(page.contains("\n## maestro-cache\n"), "{page}");
        assert!(
            page.contains(
                r"| `lookups_total` | counter | `level`, `result` | Lookups by level \| result. |"
            ),
            "{page}"
        );
        assert!(
            page.contains(
                "| `batch_messages` | histogram |  | Messages in a batch. *In development.* |"
            ),
            "{page}"
        );
        assert!(page.contains("| 1 10 | `batch_messages` |"), "{page}");
    }
}
