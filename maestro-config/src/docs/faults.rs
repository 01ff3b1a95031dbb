//! What is wrong with the tables themselves; crates and the documentation command test for it.

use crate::kind::Kind;
use crate::parse;
use crate::url_syntax;
use crate::variable::{Table, Variable};

/// Every inconsistency of these tables as a sentence: a name or alias used twice, a default, example
/// or bound that would not be accepted, a variable outside its crate's areas, a missing sentence of
/// documentation. Empty when all is well.
pub fn faults(tables: &[&Table]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for table in super::unique(tables) {
        for variable in table.variables {
            let mut fault = |text: String| faults.push(format!("{}: {text}", variable.name));
            for name in std::iter::once(variable.name).chain(variable.aliases.iter().copied()) {
                if names.contains(&name) {
                    fault(format!("{name} is declared twice"));
                }
                names.push(name);
            }
            let conventional = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            if !variable.name.chars().all(conventional) {
                fault("is not upper-case letters, digits and `_`".to_owned());
            }
            let in_an_area = table
                .areas
                .iter()
                .any(|area| variable.name.starts_with(area));
            if variable.name.starts_with("MAESTRO_") && !in_an_area {
                fault("lies in no area of its table, so nobody finds a typo of it".to_owned());
            }
            if variable.name.ends_with("_FILE") {
                fault("ends in _FILE, which names the secret file of another variable".to_owned());
            }
            if variable.doc.is_empty() {
                fault("has no documentation".to_owned());
            }
            for (what, text) in texts(variable) {
                if let Err(wrong) = accepts(variable, text) {
                    fault(format!("the {what} `{text}` {}", wrong.message));
                }
            }
        }
    }
    faults
}

/// The texts in a declaration that have to be values.
fn texts(variable: &Variable) -> Vec<(&'static str, &'static str)> {
    let mut texts = Vec::new();
    texts.extend(variable.default.map(|text| ("default", text)));
    // An example with `<…>` has a place to fill in.
    if !variable.example.is_empty() && !variable.example.contains('<') {
        texts.push(("example", variable.example));
    }
    if let Some((min, max)) = variable.bounds {
        texts.push(("bound", min));
        texts.push(("bound", max));
    }
    texts
}

fn accepts(variable: &Variable, text: &str) -> Result<(), parse::Wrong> {
    match variable.kind {
        Kind::String | Kind::Path => Ok(()),
        Kind::Name => text
            .parse::<crate::ServiceName>()
            .map(drop)
            .map_err(|error| parse::Wrong::new(format!("is not {}", error.expected()))),
        Kind::Duration => parse::duration(text).map(drop),
        Kind::Durations => parse::durations(text).map(drop),
        Kind::Size => parse::size(text).map(drop),
        Kind::Count { min, max } => parse::count(text, min, max).map(drop),
        Kind::Ratio => parse::ratio(text).map(drop),
        Kind::Url { schemes } => url_syntax::url(text, schemes).map(drop),
        Kind::Urls { schemes } => parse::elements(text)?
            .into_iter()
            .try_for_each(|url| url_syntax::url(url, schemes).map(drop)),
        Kind::Address => parse::address(text).map(drop),
        Kind::Paths => parse::elements(text).map(drop),
        Kind::Choice { words } if words.contains(&text) => Ok(()),
        Kind::Choice { .. } => Err(parse::Wrong::new("is none of the words accepted")),
    }
}
