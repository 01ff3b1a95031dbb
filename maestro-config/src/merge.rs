//! One value per variable: in each layer `_FILE` and aliases become the variable's own name, then
//! the layers are merged.

use std::collections::BTreeMap;

use config::{Config, Map, Source};

use crate::error::Problem;
use crate::fault::Fault;
use crate::layers::{END, Layers, Position, Value};
use crate::origin::Origin;
use crate::variable::Variable;

/// What sets a variable.
#[derive(Clone)]
pub(crate) struct Entry {
    /// The name it was set under: the variable's own, or an alias.
    pub(crate) name: &'static str,
    pub(crate) value: Result<Value, Fault>,
    /// Where it is set, also when it has no value.
    pub(crate) origin: Origin,
}

impl Entry {
    /// Nothing but white space: the variable is unset on purpose.
    pub(crate) fn is_empty(&self) -> bool {
        self.value
            .as_ref()
            .is_ok_and(|value| value.text.trim().is_empty())
    }
}

/// What sets each variable in the end, and what is wrong between names.
#[derive(Default)]
pub(crate) struct Merged {
    pub(crate) entries: BTreeMap<&'static str, Entry>,
    pub(crate) problems: Vec<Problem>,
}

/// Merges the layers for these variables.
pub(crate) fn merge<'a>(
    layers: &Layers,
    variables: impl IntoIterator<Item = &'a Variable>,
) -> Merged {
    let mut merged = Merged::default();
    let mut candidates: Vec<(&'static str, Entry)> = Vec::new();
    let mut sources = vec![LayerSource::default(); layers.0.len()];
    for variable in variables {
        let mut all = Vec::new();
        for (layer, source) in sources.iter_mut().enumerate() {
            let entries = set_in(layers, layer, variable);
            let stands = entries.iter().position(|entry| !entry.is_empty());
            if let Some(entry) = entries.get(stands.unwrap_or(0)) {
                source.0.insert(variable.name.to_owned(), candidates.len());
                candidates.push((variable.name, entry.clone()));
            }
            all.extend(entries);
        }
        merged.problems.extend(conflict(variable, &all));
    }
    for index in top(sources) {
        if let Some((name, entry)) = candidates.get(index) {
            merged.entries.insert(name, entry.clone());
        }
    }
    merged
}

/// One layer for the `config` crate, which knows what overrides what. Per variable it holds the
/// number of a candidate and not its value, because errors and `Debug` of that crate print values.
#[derive(Clone, Debug, Default)]
struct LayerSource(BTreeMap<String, usize>);

impl Source for LayerSource {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, config::ConfigError> {
        let value = |index: &usize| config::Value::new(None, index.to_string());
        let pairs = self
            .0
            .iter()
            .map(|(name, index)| (name.clone(), value(index)));
        Ok(pairs.collect())
    }
}

/// The candidates that no higher layer overrides.
fn top(sources: Vec<LayerSource>) -> Vec<usize> {
    let builder = sources
        .into_iter()
        .fold(Config::builder(), |builder, source| {
            builder.add_source(source)
        });
    // Neither can fail: the sources above collect without I/O, and names are plain keys.
    let Ok(config) = builder.build() else {
        return Vec::new();
    };
    let table = config.cache.into_table().unwrap_or_default();
    table
        .into_values()
        .filter_map(|value| value.into_string().ok()?.parse().ok())
        .collect()
}

/// Everything that sets the variable in one layer: its own name first, then its aliases.
fn set_in(layers: &Layers, layer: usize, variable: &Variable) -> Vec<Entry> {
    std::iter::once(variable.name)
        .chain(variable.aliases.iter().copied())
        .filter_map(|name| {
            let direct = layers.last(layer, name, END);
            let by_file = layers.last(layer, &format!("{name}_FILE"), END);
            let at: Position = direct.or(by_file)?;
            let value = match (direct, by_file) {
                (Some(_), Some(_)) => Err(Fault::NameAndFile(name.to_owned())),
                (Some(at), None) => layers.value(at),
                (None, _) => layers.file_value(at),
            };
            let origin = match &value {
                Ok(value) => value.origin.clone(),
                Err(_) => layers.at(at)?.origin.clone(),
            };
            Some(Entry {
                name,
                value,
                origin,
            })
        })
        .collect()
}

/// A variable and its alias with different values: whichever wins, somebody set the other in vain.
fn conflict(variable: &Variable, entries: &[Entry]) -> Option<Problem> {
    let text = |entry: &Entry| entry.value.as_ref().ok().map(|value| value.text.clone());
    let set = || entries.iter().filter(|entry| !entry.is_empty());
    let (one, other) = set().find_map(|one| {
        let differs = |other: &&Entry| {
            one.name != other.name
                && text(one).is_some()
                && text(other).is_some()
                && text(one) != text(other)
        };
        set().find(differs).map(|other| (one, other))
    })?;
    let name = variable.name;
    let older = match (one.name == name, other.name == name) {
        (true, _) => Some(other),
        (_, true) => Some(one),
        _ => None,
    };
    let fix = match older {
        Some(older) => format!("keep {name}, remove {} ({})", older.name, older.origin),
        None => format!(
            "give {name} the right one of the two values, remove {} and {}",
            one.name, other.name
        ),
    };
    Some(Problem::of(
        variable,
        &one.origin,
        format!(
            "is set as {} ({}) and, differently, as {} ({})",
            one.name, one.origin, other.name, other.origin
        ),
        fix,
    ))
}

#[cfg(test)]
mod tests;
