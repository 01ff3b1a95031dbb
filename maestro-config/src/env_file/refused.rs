//! What is not understood in an env file, and what to write instead.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) message: &'static str,
    pub(super) fix: &'static str,
}

pub(super) type Result<T> = std::result::Result<T, Refused>;

pub(super) const SHELL: Refused = Refused {
    message: "is neither a setting nor an include; commands are not run here",
    fix: "keep NAME=value, `source path` and comments; move other shell code to a script",
};
pub(super) const SPACES: Refused = Refused {
    message: "has spaces beside the `=`",
    fix: "write NAME=value without them, and quote a value that begins with a space",
};
pub(super) const COMPOSE: Refused = Refused {
    message: "is written as in a compose file's `environment:`",
    fix: "write NAME=value, without `-` and with `=` for `:`",
};
pub(super) const WRONG_NAME: Refused = Refused {
    message: "has a name with other characters than letters, digits and `_`",
    fix: "rename it; environment variables are written like MAESTRO_CACHE_URL",
};
pub(super) const BARE_NAME: Refused = Refused {
    message: "gives no value",
    fix: "write NAME=value, or remove the line",
};
pub(super) const TWO_SETTINGS: Refused = Refused {
    message: "holds a second `NAME=` after a space",
    fix: "write one setting on a line, or quote the value: NAME='value with spaces'",
};
pub(super) const AFTER_QUOTES: Refused = Refused {
    message: "goes on after the closing quote",
    fix: "put the whole value into the quotes; a comment begins with ` #`",
};
pub(super) const UNCLOSED: Refused = Refused {
    message: "opens a quote that nothing closes",
    fix: "close the quote, or put a value that holds one into the other kind of quotes",
};
pub(super) const APOSTROPHE: Refused = Refused {
    message: "has a quote inside an unquoted value that is not closed on its line",
    fix: "put the whole value into the other kind of quotes, or a `\\` before the quote",
};
pub(super) const COMMAND: Refused = Refused {
    message: "asks for the output of a command, and none is run here",
    fix: "write the value itself; a literal ` or $ belongs into single quotes",
};
pub(super) const DOLLAR: Refused = Refused {
    message: "has a `$` that begins no reference",
    fix: "put a value with a literal `$` into single quotes",
};
pub(super) const REFERENCE: Refused = Refused {
    message: "has a `${…}` that cannot be read",
    fix: "write ${NAME}, ${NAME:-default} or ${NAME:?advice}; a literal `$` belongs into single quotes",
};
pub(super) const TOO_DEEP: Refused = Refused {
    message: "nests `${…}` too deeply",
    fix: "give the inner ones variables of their own",
};
