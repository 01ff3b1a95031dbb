//! One pass over all tables, and one report of what it found.

use std::collections::BTreeSet;

use secrecy::zeroize::Zeroizing;

use crate::environment::Environment;
use crate::error::{ConfigError, Problem};
use crate::files;
use crate::identity::Deployment;
use crate::layers::sounds_secret;
use crate::merge;
use crate::origin::Origin;
use crate::reader::{FromEnvironment, Reader};
use crate::rules;
use crate::template::Segment;
use crate::typos;
use crate::url_syntax::may_hold_password;
use crate::variable::Table;

/// Unknown names that are listed each; the rest are counted.
const MOST_UNKNOWN: usize = 50;

/// Reads the settings; the value and the warnings, or every problem.
pub(crate) fn read<T: FromEnvironment>(
    environment: &Environment,
) -> Result<(T, Vec<Problem>), ConfigError> {
    let tables = T::tables();
    let variables = tables.iter().flat_map(|table| table.variables);
    let merged = merge::merge(&environment.layers, variables);
    let mut reader = Reader {
        environment,
        tables,
        problems: Vec::new(),
        warnings: Vec::new(),
        explained: BTreeSet::new(),
        merged,
    };
    let value = T::read(&mut reader);
    let secrets = secrets(environment, &reader);
    let Reader {
        tables,
        merged,
        problems,
        mut warnings,
        explained,
        ..
    } = reader;

    let mut report = environment.problems.clone();
    let mut of_variables = [merged.problems, problems].concat();
    of_variables.sort_by_key(|problem| place(problem, &tables));
    report.extend(of_variables);
    report.extend(unsaid_deployment(environment, &tables, &report));
    let mut unknown = unknown(environment, &tables);
    unknown.retain(|problem| !explained.contains(&problem.variable));
    let strict = environment.deployment().is_some_and(Deployment::is_strict);
    if strict {
        report.extend(unknown);
    } else {
        warnings.extend(unknown);
    }
    if value.is_none() && report.is_empty() {
        report.push(silent());
    }
    finish(&mut report, &secrets);
    finish(&mut warnings, &secrets);
    match value {
        Some(value) if report.is_empty() => Ok((value, warnings)),
        _ => Err(ConfigError { problems: report }),
    }
}

/// Where the variable stands in the tables; the last place for one that stands in none.
fn place(problem: &Problem, tables: &[&Table]) -> usize {
    let mut variables = tables.iter().flat_map(|table| table.variables);
    variables
        .position(|variable| variable.name == problem.variable)
        .unwrap_or(usize::MAX)
}

/// A service that does not say what kind of environment it is in would run without the strict rules.
/// Settings that require nothing (of the test kit, of tools) are read without it.
fn unsaid_deployment(
    environment: &Environment,
    tables: &[&Table],
    report: &[Problem],
) -> Option<Problem> {
    let said = environment.deployment().is_some();
    let reported = report
        .iter()
        .any(|problem| problem.variable == files::ENVIRONMENT);
    let mut variables = tables.iter().flat_map(|table| table.variables);
    let is_service = variables.any(|variable| variable.required);
    (environment.is_process && is_service && !said && !reported).then(|| {
        let variable = &crate::identity::ENVIRONMENT;
        let message = "is not set to a kind of environment";
        Problem::of(variable, &Origin::Unset, message, variable.fix(None))
    })
}

fn unknown(environment: &Environment, tables: &[&Table]) -> Vec<Problem> {
    let mut seen = BTreeSet::new();
    // The address of a service, from Kubernetes, has the name that a port would have.
    let is_link = |name: &str| {
        let value = || environment.layers.effective(name)?.ok();
        name.ends_with("_PORT") && value().is_some_and(|value| value.text.contains("://"))
    };
    let mut names = environment
        .layers
        .names()
        .filter(|(name, _)| typos::is_unknown(name, tables) && !is_link(name))
        .filter(|(name, _)| seen.insert(*name));
    let mut problems: Vec<_> = names
        .by_ref()
        .take(MOST_UNKNOWN)
        .map(|(name, origin)| unknown_name(name, origin, tables))
        .collect();
    if let Some((name, origin)) = names.next() {
        let more = 1 + names.count();
        problems.push(Problem {
            message: format!(
                "is the first of {more} more names that no crate of this service knows"
            ),
            ..unknown_name(name, origin, tables)
        });
    }
    problems
}

fn unknown_name(name: &str, origin: &Origin, tables: &[&Table]) -> Problem {
    let printed = name.escape_debug();
    let nearest = typos::nearest(name, tables);
    let nearest = nearest.as_deref();
    let shown = typos::like(nearest.unwrap_or(name), tables);
    Problem {
        variable: name.to_owned(),
        origin: origin.to_string(),
        message: "is known to no crate that this service uses".to_owned(),
        expected: match nearest {
            Some(near) => format!("perhaps `{near}`"),
            None => "a name of docs/configuration.md".to_owned(),
        },
        example: shown
            .map(|variable| format!("{}={}", variable.name, variable.example_text()))
            .unwrap_or_default(),
        fix: match nearest {
            Some(near) => format!("rename {printed} to {near}"),
            None => format!("remove {printed}; docs/configuration.md lists what there is"),
        },
    }
}

/// Settings that failed without a word are a mistake in their crate; still not a silent one.
fn silent() -> Problem {
    Problem {
        variable: "settings".to_owned(),
        origin: Origin::Unset.to_string(),
        message: "could not be read, and their crate did not say why".to_owned(),
        expected: "every `FromEnvironment::read` that returns `None` notes a problem".to_owned(),
        example: String::new(),
        fix: "report it to the crate's owner".to_owned(),
    }
}

/// Every problem once (two crates may read one variable), and no secret in any, whoever wrote it.
fn finish(problems: &mut Vec<Problem>, secrets: &[Zeroizing<String>]) {
    let mut kept: Vec<Problem> = Vec::with_capacity(problems.len());
    for mut problem in problems.drain(..) {
        for secret in secrets {
            problem.scrub(secret);
        }
        if !kept.contains(&problem) {
            kept.push(problem);
        }
    }
    *problems = kept;
}

/// Every secret that is known here, for [`Problem::scrub`].
fn secrets(environment: &Environment, reader: &Reader<'_>) -> Vec<Zeroizing<String>> {
    let mut secrets = Vec::new();
    let variables = reader.tables.iter().flat_map(|table| table.variables);
    for variable in variables {
        if let Some(entry) = reader.merged.entries.get(variable.name)
            && let Ok(value) = &entry.value
            && (variable.secret || value.secret || may_hold_password(&value.text))
        {
            with_parts(&value.text, &mut secrets);
        }
    }
    let definitions = environment
        .layers
        .0
        .iter()
        .flat_map(|layer| &layer.definitions);
    for definition in definitions.filter(|definition| sounds_secret(&definition.name)) {
        for segment in definition.value.iter().flat_map(|template| &template.0) {
            if let Segment::Text(text) = segment {
                with_parts(text, &mut secrets);
            }
        }
    }
    // Longest first, so that no secret is cut in two by a shorter one inside it.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    secrets
}

/// The text, and the passwords of the URLs in it, as written and as meant.
fn with_parts(text: &str, secrets: &mut Vec<Zeroizing<String>>) {
    let mut add = |part: &str| {
        // Short ones are words of the report itself, and the well-known are no secrets.
        if part.len() >= 6 && rules::password(part).is_none() {
            secrets.push(Zeroizing::new(part.to_owned()));
        }
    };
    // A URL without user is an address, and may well be the example.
    if !text.contains("://") || text.contains('@') {
        add(text.trim());
    }
    for url in text.split(',') {
        let Some((_, rest)) = url.split_once("://") else {
            continue;
        };
        let Some((user, _)) = rest.rsplit_once('@') else {
            continue;
        };
        if let Some((_, password)) = user.split_once(':') {
            add(password);
            add(&rules::percent_decoded(password));
        }
    }
}

#[cfg(test)]
mod tests;
