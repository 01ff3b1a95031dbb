//! The layers of an environment, lowest first, and what a name stands for in them.
//!
//! References are resolved when a value is wanted, not when its line is read, so `.env` may refer to
//! what only the process environment sets. A reference means the effective value, except that a
//! variable referring to itself (`A=${A:-b}`) means what the lower layers and earlier lines say.

use std::path::PathBuf;

use secrecy::zeroize::Zeroizing;

use crate::fault::Fault;
use crate::origin::Origin;
use crate::secret_file::{self, Unreadable};
use crate::template::{Absent, Segment, Template};

/// Longest value, in bytes: far above any setting, far below what would hurt.
pub(crate) const LONGEST_VALUE: usize = 1 << 20;

/// References followed for one value, before it is taken for a mistake (or a bomb).
const MOST_STEPS: usize = 10_000;

/// One line of a file, or one pair of the process environment.
#[derive(Clone)]
pub(crate) struct Definition {
    pub(crate) name: String,
    /// `None` when the bytes are not UTF-8.
    pub(crate) value: Option<Template>,
    pub(crate) origin: Origin,
}

/// Definitions of equal rank; the last of a name wins.
#[derive(Clone, Default)]
pub(crate) struct Layer {
    pub(crate) definitions: Vec<Definition>,
}

/// All layers, lowest first.
#[derive(Clone, Default)]
pub(crate) struct Layers(pub(crate) Vec<Layer>);

/// A definition: layer, and index in it. Ordered by precedence.
pub(crate) type Position = (usize, usize);

/// A resolved value.
#[derive(Clone)]
pub(crate) struct Value {
    pub(crate) text: Zeroizing<String>,
    pub(crate) origin: Origin,
    /// Made from something secret: a secret file, or a variable whose name says so.
    pub(crate) secret: bool,
    /// The secret file it is, whole; such a value can be read again when the file changes.
    pub(crate) file: Option<PathBuf>,
}

impl Layers {
    /// The last definition of the name in one layer, below a position.
    pub(crate) fn last(&self, layer: usize, name: &str, below: Position) -> Option<Position> {
        let definitions = &self.0.get(layer)?.definitions;
        (0..definitions.len())
            .rev()
            .map(|index| (layer, index))
            .find(|at| *at < below && self.at(*at).is_some_and(|d| d.name == name))
    }

    pub(crate) fn at(&self, (layer, index): Position) -> Option<&Definition> {
        self.0.get(layer)?.definitions.get(index)
    }

    /// Every name that anything sets, with where; a name set twice comes twice.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.0
            .iter()
            .flat_map(|layer| &layer.definitions)
            .map(|definition| (definition.name.as_str(), &definition.origin))
    }

    /// The value of the definition at a position.
    pub(crate) fn value(&self, at: Position) -> Result<Value, Fault> {
        Resolution::new(self).value(at)
    }

    /// The content of the secret file that the definition at a position names.
    pub(crate) fn file_value(&self, at: Position) -> Result<Value, Fault> {
        Resolution::new(self).file_value(at)
    }

    /// The effective value of a name, directly or by its `_FILE`, when anything sets it.
    pub(crate) fn effective(&self, name: &str) -> Option<Result<Value, Fault>> {
        let mut resolution = Resolution::new(self);
        let found = self.find(name, END)?;
        Some(resolution.found(found))
    }

    /// A template that is no definition's (the path of an include) against these layers.
    pub(crate) fn expand(&self, template: &Template) -> Result<Zeroizing<String>, Fault> {
        let mut text = Zeroizing::new(String::new());
        Resolution::new(self).template(template, None, &mut text)?;
        Ok(text)
    }

    fn find(&self, name: &str, below: Position) -> Option<Found> {
        let by_file = format!("{name}_FILE");
        (0..self.0.len()).rev().find_map(|layer| {
            let direct = self.last(layer, name, below).map(Found::Direct);
            direct.or_else(|| self.last(layer, &by_file, below).map(Found::ByFile))
        })
    }
}

/// Above every definition.
pub(crate) const END: Position = (usize::MAX, 0);

#[derive(Clone, Copy)]
enum Found {
    Direct(Position),
    ByFile(Position),
}

/// The resolution of one value.
struct Resolution<'a> {
    layers: &'a Layers,
    /// Definitions being resolved, outermost first: one that is met again is a cycle.
    open: Vec<Position>,
    steps: usize,
}

impl<'a> Resolution<'a> {
    fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            open: Vec::new(),
            steps: 0,
        }
    }

    fn found(&mut self, found: Found) -> Result<Value, Fault> {
        match found {
            Found::Direct(at) => self.value(at),
            Found::ByFile(at) => self.file_value(at),
        }
    }

    fn value(&mut self, at: Position) -> Result<Value, Fault> {
        let Some(definition) = self.layers.at(at) else {
            return Err(Fault::NotUtf8);
        };
        let template = definition.value.as_ref().ok_or(Fault::NotUtf8)?;
        if self.open.contains(&at) {
            let cycle = self.open.iter().filter_map(|at| self.layers.at(*at));
            let mut names: Vec<_> = cycle.map(|d| d.name.clone()).collect();
            names.push(definition.name.clone());
            return Err(Fault::Cycle(names));
        }
        // Every open definition is a level of recursion: the depth is bounded with the steps.
        if self.open.len() >= 100 {
            return Err(Fault::TooManyReferences);
        }
        self.open.push(at);
        let mut text = Zeroizing::new(String::new());
        let secret = self.template(template, Some((at, &definition.name)), &mut text)?;
        self.open.pop();
        if text.len() > LONGEST_VALUE {
            return Err(Fault::TooLong);
        }
        if text.contains('\0') {
            return Err(Fault::Nul);
        }
        Ok(Value {
            text,
            origin: definition.origin.clone(),
            secret: secret || sounds_secret(&definition.name),
            file: None,
        })
    }

    fn file_value(&mut self, at: Position) -> Result<Value, Fault> {
        let named = self.value(at)?;
        let name = named.text.trim();
        let mut path = PathBuf::from(name);
        if path.as_os_str().is_empty() {
            return Err(Fault::EmptyFileName);
        }
        if let (true, Origin::File { path: env_file, .. }) = (path.is_relative(), &named.origin)
            && let Some(directory) = env_file.parent()
        {
            path = directory.join(path);
        }
        let text = secret_file::read(&path).map_err(|reason| match reason {
            Unreadable::Missing | Unreadable::Other(_) if !is_path(name) => Fault::PerhapsTheSecret,
            reason => Fault::SecretFile {
                path: path.clone(),
                reason,
            },
        })?;
        Ok(Value {
            text,
            origin: Origin::SecretFile {
                path: path.clone(),
                named_in: Box::new(named.origin),
            },
            secret: true,
            file: Some(path),
        })
    }

    /// Appends the resolved template; true when something secret went into it.
    fn template(
        &mut self,
        template: &Template,
        inside: Option<(Position, &str)>,
        text: &mut Zeroizing<String>,
    ) -> Result<bool, Fault> {
        let mut secret = false;
        for segment in &template.0 {
            match segment {
                Segment::Text(literal) => text.push_str(literal),
                Segment::Reference { name, absent } => {
                    secret |= self.reference(name, absent, inside, text)?;
                }
            }
            if text.len() > LONGEST_VALUE {
                return Err(Fault::TooLong);
            }
        }
        Ok(secret)
    }

    fn reference(
        &mut self,
        name: &str,
        absent: &Absent,
        inside: Option<(Position, &str)>,
        text: &mut Zeroizing<String>,
    ) -> Result<bool, Fault> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(Fault::TooManyReferences);
        }
        let below = match inside {
            Some((at, own)) if own == name => at,
            _ => END,
        };
        let found = match self.layers.find(name, below) {
            Some(found) => Some(self.found(found)?),
            None => None,
        };
        let wants_more = matches!(
            absent,
            Absent::Advice(_)
                | Absent::Instead {
                    empty_too: true,
                    ..
                }
        );
        match (found.filter(|v| !(wants_more && v.text.is_empty())), absent) {
            (Some(value), _) => {
                text.push_str(&value.text);
                Ok(value.secret)
            }
            (None, Absent::Instead { otherwise, .. }) => self.template(otherwise, inside, text),
            (None, _) if !is_conventional(name) => Err(Fault::PerhapsLiteralDollar),
            (None, Absent::Mistake) => Err(Fault::UnsetReference(name.to_owned())),
            (None, Absent::PerhapsLiteral) => Err(Fault::PerhapsLiteralDollar),
            (None, Absent::Advice(advice)) => Err(Fault::RequiredReference {
                name: name.to_owned(),
                advice: advice.clone(),
            }),
        }
    }
}

/// Whether a name is written as variables are. Any other one is not shown: it may be a piece of a
/// password, as in `pa${x}word`.
fn is_conventional(name: &str) -> bool {
    !name.bytes().any(|b| b.is_ascii_lowercase())
}

/// Whether a text is a path by its looks. What stands in a `NAME_FILE` by mistake is often the secret
/// itself, and base64 has slashes too.
fn is_path(text: &str) -> bool {
    /// What Linux takes for a path, in bytes.
    const LONGEST: usize = 4096;
    ["/", "./", "../", "~/"]
        .iter()
        .any(|start| text.starts_with(start))
        && text.len() < LONGEST
        && !text.ends_with('=')
        && !text.contains(char::is_control)
}

/// Names under which secrets travel between files, in no table of ours. A `_FILE` names a path.
pub(crate) fn sounds_secret(name: &str) -> bool {
    const WORDS: [&str; 8] = [
        "PASS",
        "_PWD",
        "SECRET",
        "TOKEN",
        "PRIVATE",
        "CREDENTIAL",
        "API_KEY",
        "APIKEY",
    ];
    !name.ends_with("_FILE") && WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests;
