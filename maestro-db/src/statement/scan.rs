//! One pass over a statement's text: words, without what stands in quotes and comments.

use std::sync::OnceLock;

use super::tokens::{Token, Tokens};
use super::{Effect, Statement};

/// Looks at a text, which may hold several statements.
pub(super) fn scan(sql: &str) -> Statement {
    let mut seen = Seen::default();
    let mut text = Tokens::new(sql);
    let mut tokens = text.by_ref().peekable();
    while let Some(token) = tokens.next() {
        seen.token(&token, tokens.peek());
    }
    Statement {
        operation: seen.operation.unwrap_or("OTHER"),
        table: seen.table,
        summary: summary(sql),
        returns_rows: seen.returns_rows,
        effect: seen.effect.unwrap_or(Effect::None),
        is_open: text.is_open,
        tagged: None,
        duration: OnceLock::new(),
    }
}

/// The statements of a text. The body of a `BEGIN ATOMIC` function is cut at its semicolons too.
pub(super) fn split(sql: &str) -> Vec<&str> {
    let mut statements = Vec::new();
    let mut tokens = Tokens::new(sql);
    let (mut start, mut empty) = (0, true);
    while let Some(token) = tokens.next() {
        if matches!(token, Token::Symbol(b';')) {
            if !empty {
                statements.extend(sql.get(start..tokens.at - 1));
            }
            (start, empty) = (tokens.at, true);
        } else {
            empty = false;
        }
    }
    if !empty {
        statements.extend(sql.get(start..));
    }
    statements
}

/// What the words so far have told.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one fact of its own about the text"
)]
struct Seen {
    operation: Option<&'static str>,
    table: Option<Box<str>>,
    returns_rows: bool,
    effect: Option<Effect>,
    /// Words of the current statement, to read its beginning; the rest does not matter.
    words: u32,
    /// Its first word waits for the second one to say what it does.
    pending: Option<&'static str>,
    /// The next word is the name of a table, because this keyword came before.
    table_next: Option<&'static str>,
    /// Open parentheses: a `SELECT` in one is not the statement's operation.
    depth: u32,
    /// After `WITH`: the operation is that of the main statement.
    with: bool,
    /// In a `CREATE` statement, where `BEGIN ATOMIC` begins a body with semicolons of its own.
    create: bool,
    begin: bool,
    /// In the body of a function, of which nothing can be said without a parser.
    opaque: bool,
}

impl Seen {
    fn token(&mut self, token: &Token<'_>, next: Option<&Token<'_>>) {
        if self.opaque {
            return;
        }
        match token {
            Token::Word(word) => self.word(word, next),
            Token::Quoted(name) => {
                self.words = self.words.saturating_add(1);
                if self.words == 3 && self.pending.take().is_some() && is_any(name, SCOPE) {
                    self.note(Effect::Scope("SET LOCAL of a tenant's scope"));
                }
                self.name(name, next);
            }
            Token::Symbol(b';') => {
                self.words = 0;
                self.pending = None;
                self.table_next = None;
                self.depth = 0;
                self.with = false;
                self.create = false;
                self.begin = false;
            }
            Token::Symbol(b'(') => {
                self.depth += 1;
                // `COPY (SELECT …)` copies no table.
                self.table_next = self.table_next.filter(|keyword| *keyword != "COPY");
            }
            Token::Symbol(b')') => self.depth = self.depth.saturating_sub(1),
            Token::Symbol(_) | Token::Literal => {}
        }
    }

    fn word(&mut self, word: &str, next: Option<&Token<'_>>) {
        self.words = self.words.saturating_add(1);
        if self.words == 1 {
            self.first(word);
        } else if let Some(first) = self.pending.take() {
            if self.words == 2 {
                self.second(first, word);
            } else if is_any(word, SCOPE) {
                self.note(Effect::Scope("SET LOCAL of a tenant's scope"));
            }
        }
        if self.with
            && self.depth == 0
            && let Some(operation) = known(word, &["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"])
        {
            self.operation = Some(operation);
            self.with = false;
            if operation != "SELECT" {
                // What is written matters more than what was read for it.
                self.table = None;
                self.table_next = None;
            }
        }
        if is(word, "RETURNING") {
            self.returns_rows = true;
        }
        if self.create {
            if self.begin && is(word, "ATOMIC") {
                // Its semicolons end nothing here, and telling its `END` from a statement's takes a
                // parser: the rest is not looked at, and the connection is closed afterwards.
                self.note(Effect::Function("BEGIN ATOMIC"));
                self.opaque = true;
            }
            self.begin = is(word, "BEGIN");
        }
        self.name(word, next);
        if self.table.is_none()
            && let Some(keyword) = known(word, &["FROM", "INTO", "UPDATE", "TABLE", "JOIN", "COPY"])
        {
            self.table_next = Some(keyword);
        }
    }

    /// A word that may be the name of a table or of a function.
    fn name(&mut self, name: &str, next: Option<&Token<'_>>) {
        if let Some(function) = known(name, FUNCTIONS) {
            self.note(Effect::Function(function));
        }
        let Some(keyword) = self.table_next else {
            return;
        };
        // Words that may stand between the keyword and the name.
        if is_any(name, &["ONLY", "IF", "NOT", "EXISTS", "LATERAL", keyword]) {
            return;
        }
        match next {
            // A schema: the table comes after the dot.
            Some(Token::Symbol(b'.')) => {}
            Some(Token::Symbol(b'(')) if matches!(keyword, "FROM" | "JOIN") => {
                // A function; what follows `INTO t` and `TABLE t` in parentheses are columns.
                self.table_next = None;
            }
            _ => {
                self.table = Some(name.into());
                self.table_next = None;
            }
        }
    }

    fn first(&mut self, word: &str) {
        self.create = is(word, "CREATE");
        let operation = known(word, OPERATIONS).unwrap_or("OTHER");
        if self.operation.is_none() {
            self.operation = Some(operation);
        }
        match operation {
            "WITH" => {
                self.with = true;
                self.returns_rows = true;
            }
            "SELECT" | "VALUES" | "TABLE" | "SHOW" | "EXPLAIN" => self.returns_rows = true,
            _ => {}
        }
        if let Some(word) = known(word, TRANSACTION) {
            self.note(Effect::Transaction(word));
        } else if let Some(word) = known(word, SESSION) {
            self.note(Effect::Session(word));
        } else if let Some(word) = known(word, &["SET", "PREPARE", "DECLARE"]) {
            self.pending = Some(word);
        }
    }

    fn second(&mut self, first: &'static str, word: &str) {
        match first {
            "SET" if is_any(word, &["LOCAL", "CONSTRAINTS", "TRANSACTION"]) => {
                self.note(Effect::Local("SET LOCAL"));
                // The third word says what is set.
                self.pending = Some("SET LOCAL");
            }
            "PREPARE" if is(word, "TRANSACTION") => {
                self.note(Effect::Transaction("PREPARE TRANSACTION"));
            }
            // A cursor `WITH HOLD` outlives the transaction; without it, it needs one.
            "DECLARE" => self.note(Effect::Local("DECLARE")),
            first => self.note(Effect::Session(first)),
        }
    }

    /// The first effect that is refused somewhere wins: it is what the error will name.
    fn note(&mut self, effect: Effect) {
        let weight = |effect: Option<Effect>| match effect {
            None | Some(Effect::None) => 0,
            Some(Effect::Local(_)) => 1,
            Some(Effect::Scope(_)) => 2,
            Some(Effect::Function(_)) => 3,
            Some(Effect::Session(_) | Effect::Transaction(_)) => 4,
        };
        if weight(Some(effect)) > weight(self.effect) {
            self.effect = Some(effect);
        }
    }
}

const OPERATIONS: &[&str] = &[
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "MERGE",
    "WITH",
    "VALUES",
    "TABLE",
    "SHOW",
    "EXPLAIN",
    "CALL",
    "DO",
    "COPY",
    "CREATE",
    "ALTER",
    "DROP",
    "TRUNCATE",
    "GRANT",
    "REVOKE",
    "COMMENT",
    "LOCK",
    "NOTIFY",
    "ANALYZE",
    "VACUUM",
    "REINDEX",
    "CLUSTER",
    "REFRESH",
    "SET",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
];

const TRANSACTION: &[&str] = &[
    "BEGIN",
    "START",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "SAVEPOINT",
    "RELEASE",
];

const SESSION: &[&str] = &[
    "RESET",
    "DISCARD",
    "LISTEN",
    "UNLISTEN",
    "DEALLOCATE",
    "LOAD",
];

/// Settings that say whose rows a transaction sees: `SET LOCAL maestro.tenant`, `search_path`,
/// `ROLE`, `SESSION AUTHORIZATION`, `row_security`.
const SCOPE: &[&str] = &["maestro", "search_path", "ROLE", "SESSION", "row_security"];

/// Functions whose effect can outlive the transaction.
const FUNCTIONS: &[&str] = &[
    "set_config",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_shared",
    "pg_advisory_unlock_all",
];

fn is(word: &str, keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword)
}

fn is_any(word: &str, keywords: &[&str]) -> bool {
    keywords.iter().any(|keyword| is(word, keyword))
}

fn known(word: &str, keywords: &[&'static str]) -> Option<&'static str> {
    keywords.iter().find(|keyword| is(word, keyword)).copied()
}

/// The text on one line, cut at a length that fits into a log line.
fn summary(sql: &str) -> Box<str> {
    const LONGEST: usize = 240;
    let mut line = String::new();
    for word in sql.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > LONGEST {
            let end = (0..=LONGEST)
                .rev()
                .find(|&end| line.is_char_boundary(end))
                .unwrap_or(0);
            line.truncate(end);
            line.push('…');
            break;
        }
    }
    line.into()
}
