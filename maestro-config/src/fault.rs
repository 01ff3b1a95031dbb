//! Why a value could not be had at all, whatever its type.

use std::path::PathBuf;

use crate::secret_file::Unreadable;

/// Why a definition has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NotUtf8,
    Nul,
    TooLong,
    /// Names from the variable to the one that closes the cycle.
    Cycle(Vec<String>),
    TooManyReferences,
    UnsetReference(String),
    PerhapsLiteralDollar,
    RequiredReference {
        name: String,
        advice: String,
    },
    EmptyFileName,
    /// `NAME_FILE` holds what is no path by its looks, and nothing is there.
    PerhapsTheSecret,
    SecretFile {
        path: PathBuf,
        reason: Unreadable,
    },
    /// `NAME` and `NAME_FILE` in one layer.
    NameAndFile(String),
}

impl Fault {
    /// Continues the variable's name.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::NotUtf8 => "is not UTF-8".to_owned(),
            Self::Nul => "holds a NUL character".to_owned(),
            Self::TooLong => "is longer than 1 MiB".to_owned(),
            Self::Cycle(names) => format!("refers to itself: {}", names.join(" → ")),
            Self::TooManyReferences => "follows too many references".to_owned(),
            Self::UnsetReference(name) => format!("refers to `{name}`, which nothing sets"),
            Self::PerhapsLiteralDollar => {
                "refers with `$` to a variable that nothing sets".to_owned()
            }
            Self::RequiredReference { name, .. } => {
                format!("refers to `{name}`, which has no value")
            }
            Self::EmptyFileName => "names an empty path as its file".to_owned(),
            Self::PerhapsTheSecret => {
                "names a file that does not exist, not shown because it may be the secret itself"
                    .to_owned()
            }
            Self::SecretFile { path, reason } => {
                format!("names the file {}, {reason}", path.display())
            }
            Self::NameAndFile(name) => format!("is set both as `{name}` and as `{name}_FILE`"),
        }
    }

    /// What to do about it, for the variable of this name.
    pub(crate) fn fix(&self, variable: &str) -> String {
        match self {
            Self::NotUtf8 => "write it in UTF-8; encode binary data as base64".to_owned(),
            Self::Nul => "remove it; encode binary data as base64".to_owned(),
            Self::TooLong => "check which file or command the value comes from".to_owned(),
            Self::Cycle(_) => "give one of them a value of its own".to_owned(),
            Self::TooManyReferences => "write the value itself".to_owned(),
            Self::UnsetReference(name) => {
                format!(
                    "set {name}, or write ${{{name}:-default}}; a literal `$` belongs into single quotes"
                )
            }
            Self::PerhapsLiteralDollar => format!("if the `$` is meant: {variable}='…'"),
            Self::RequiredReference { name, advice } if advice.is_empty() => format!("set {name}"),
            Self::RequiredReference { name, advice } => format!("set {name}: {advice}"),
            Self::EmptyFileName => format!("{variable}_FILE=/run/secrets/name"),
            Self::PerhapsTheSecret => {
                format!("write the path of a file, as in {variable}_FILE=/run/secrets/name")
            }
            Self::SecretFile { reason, .. } => reason.fix().to_owned(),
            Self::NameAndFile(name) => format!("remove one of {name} and {name}_FILE"),
        }
    }
}
