//! The variables as a JSON schema, for editors and for checks of deployment files.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::variable::{Table, Variable};

/// A JSON schema (draft 2020-12) of an environment as an object of strings. Other variables than
/// ours are none of its business.
pub fn json_schema(tables: &[&Table]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for variable in super::unique(tables).iter().flat_map(|t| t.variables) {
        properties.insert(variable.name.to_owned(), property(variable));
        for name in std::iter::once(&variable.name).chain(variable.aliases) {
            properties.insert(
                format!("{name}_FILE"),
                json!({ "type": "string", "description": format!("File that holds the value of {name}.") }),
            );
        }
        for alias in variable.aliases {
            let mut property = property(variable);
            property["deprecated"] = json!(true);
            property["description"] = json!(format!("Older name of {}.", variable.name));
            properties.insert((*alias).to_owned(), property);
        }
        if variable.required {
            required.push(any_of(variable));
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Environment of a Maestro service",
        "type": "object",
        "properties": properties,
        "allOf": required,
    })
}

/// The variable under one of its names, directly or by a file.
fn any_of(variable: &Variable) -> Value {
    let names = std::iter::once(&variable.name).chain(variable.aliases);
    let options: Vec<_> = names
        .flat_map(|name| [(*name).to_owned(), format!("{name}_FILE")])
        .map(|name| json!({ "required": [name] }))
        .collect();
    json!({ "anyOf": options })
}

fn property(variable: &Variable) -> Value {
    let mut property = Map::new();
    property.insert("type".to_owned(), json!("string"));
    property.insert("description".to_owned(), json!(variable.doc));
    if let Kind::Choice { words } = variable.kind {
        property.insert("enum".to_owned(), json!(words));
    }
    if let Some(pattern) = pattern(variable.kind) {
        property.insert("pattern".to_owned(), json!(pattern));
    }
    if let Some(default) = variable.default {
        property.insert("default".to_owned(), json!(default));
    }
    if !variable.example.is_empty() {
        property.insert("examples".to_owned(), json!([variable.example]));
    }
    if variable.secret {
        property.insert("writeOnly".to_owned(), json!(true));
    }
    Value::Object(property)
}

/// What the text looks like; the bounds of numbers are beyond a pattern.
fn pattern(kind: Kind) -> Option<String> {
    const DURATION: &str = "(0|[0-9]+(ms|s|m|h))";
    Some(match kind {
        Kind::Name => "^[a-z][a-z0-9-]{1,38}[a-z0-9]$".to_owned(),
        Kind::Duration => format!("^{DURATION}$"),
        Kind::Durations => format!("^{DURATION}(, *{DURATION})*$"),
        Kind::Size => "^(0|[0-9]+(B|KiB|MiB|GiB))$".to_owned(),
        Kind::Count { .. } => "^[0-9]+$".to_owned(),
        Kind::Ratio => "^(0|1|0?\\.[0-9]+|[01]\\.[0-9]*)$".to_owned(),
        Kind::Url { schemes } => format!("^({})://", schemes.join("|")),
        Kind::Urls { schemes } => {
            let schemes = schemes.join("|");
            format!("^({schemes})://[^,]+(, *({schemes})://[^,]+)*$")
        }
        Kind::Address => "^.+:[0-9]{1,5}$".to_owned(),
        Kind::String | Kind::Path | Kind::Paths | Kind::Choice { .. } => return None,
    })
}
