//! What each variable is and where it comes from.

use crate::environment::Environment;
use crate::merge;
use crate::origin::Origin;
use crate::raw::Raw;
use crate::reader::FromEnvironment;
use crate::variable::Variable;

/// One variable as the environment sets it, for commands that explain a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// The variable.
    pub variable: &'static str,
    /// What sets it.
    pub origin: Origin,
    /// The older name under which it is set, to be replaced by the variable's own.
    pub alias: Option<&'static str>,
    /// The value, unless it is secret, unreadable or not there.
    pub shown: Option<String>,
}

impl Environment {
    /// Every variable of these settings in the order of their tables, with its value where that may
    /// be shown.
    pub fn explain<T: FromEnvironment>(&self) -> Vec<Setting> {
        let tables = T::tables();
        let variables = || tables.iter().flat_map(|table| table.variables);
        let merged = merge::merge(&self.layers, variables());
        variables()
            .map(|variable| explain(variable, merged.entries.get(variable.name)))
            .collect()
    }
}

fn explain(variable: &'static Variable, entry: Option<&merge::Entry>) -> Setting {
    let Some(entry) = entry.filter(|entry| !entry.is_empty()) else {
        return Setting {
            variable: variable.name,
            origin: match variable.default {
                Some(_) => Origin::Default,
                None => Origin::Unset,
            },
            alias: None,
            shown: variable.default.map(str::to_owned),
        };
    };
    let value = entry.value.as_ref().ok();
    Setting {
        variable: variable.name,
        origin: entry.origin.clone(),
        alias: (entry.name != variable.name).then_some(entry.name),
        shown: value.and_then(|value| Raw::new(variable, value).shown()),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Environment, Identity, Origin};

    #[test]
    fn every_variable_is_explained_with_its_origin() {
        let environment = Environment::from_pairs([
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_TEAM", "redis://:canary@host"),
        ]);
        let settings = environment.explain::<Identity>();
        let of = |name| settings.iter().find(|s| s.variable == name).unwrap();
        assert_eq!(of("MAESTRO_SERVICE_NAME").shown.as_deref(), Some("orders"));
        assert_eq!(of("MAESTRO_SERVICE_NAME").origin, Origin::Given);
        assert_eq!(of("MAESTRO_SERVICE_VERSION").origin, Origin::Default);
        assert_eq!(of("MAESTRO_ENVIRONMENT").origin, Origin::Unset);
        assert_eq!(
            of("MAESTRO_TEAM").shown,
            None,
            "it looks like a URL with a password"
        );
    }
}
