//! Values before interpolation.

use secrecy::zeroize::Zeroizing;

/// A value as written: text and references to other variables.
#[derive(Clone, Default)]
pub(crate) struct Template(pub(crate) Vec<Segment>);

/// A piece of a value.
#[derive(Clone)]
pub(crate) enum Segment {
    /// Stands for itself.
    Text(Zeroizing<String>),
    /// `${NAME}` with what to do when it has no value.
    Reference { name: String, absent: Absent },
}

/// What a reference is when the other variable has no value.
#[derive(Clone)]
pub(crate) enum Absent {
    /// `${NAME}`: a mistake.
    Mistake,
    /// `$NAME`: a mistake, and perhaps the `$` of a password: the name is never shown.
    PerhapsLiteral,
    /// `${NAME:-text}` and `${NAME-text}`.
    Instead {
        /// With the colon, an empty value is absent too.
        empty_too: bool,
        otherwise: Template,
    },
    /// `${NAME:?message}`: a mistake with advice.
    Advice(String),
}

impl Template {
    pub(crate) fn text(text: String) -> Self {
        Self(vec![Segment::Text(Zeroizing::new(text))])
    }

    /// An empty text, to which characters are added from here on.
    pub(crate) fn begin_text(&mut self) {
        self.0.push(Segment::Text(Zeroizing::new(String::new())));
    }

    pub(crate) fn push(&mut self, c: char) {
        if let Some(Segment::Text(text)) = self.0.last_mut() {
            text.push(c);
        } else {
            self.0.push(Segment::Text(Zeroizing::new(c.to_string())));
        }
    }

    /// Removes unquoted white space from the end.
    pub(crate) fn trim_end(&mut self) {
        if let Some(Segment::Text(text)) = self.0.last_mut() {
            let kept = text.trim_end_matches([' ', '\t']).len();
            text.truncate(kept);
        }
    }
}
