//! A statement's text, cut into words, quoted texts and symbols.

pub(super) enum Token<'a> {
    /// An identifier or keyword.
    Word(&'a str),
    /// An identifier in double quotes, as written between them.
    Quoted(&'a str),
    /// A string, a number, a parameter.
    Literal,
    /// Anything else, byte by byte.
    Symbol(u8),
}

/// PostgreSQL's lexical rules, as far as they decide what is a word and what is quoted.
///
/// Source: chapter 4.1 of the manual. `standard_conforming_strings` is taken to be on, as it is
/// since 9.1.
pub(super) struct Tokens<'a> {
    sql: &'a str,
    pub(super) at: usize,
    /// The text ended within a quoted text or a comment.
    pub(super) is_open: bool,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(sql: &'a str) -> Self {
        Self {
            sql,
            at: 0,
            is_open: false,
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.sql.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    /// Moves to just after the next occurrence of `end`, or to the end of the text; whether there is
    /// one.
    fn skip_past(&mut self, end: &[u8]) -> bool {
        let found = self
            .rest()
            .windows(end.len())
            .position(|window| window == end);
        self.at = found.map_or(self.sql.len(), |found| self.at + found + end.len());
        found.is_some()
    }

    fn skip_block_comment(&mut self) {
        // They nest.
        let mut depth = 0_u32;
        while self.at < self.sql.len() {
            let rest = self.rest();
            if rest.starts_with(b"/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with(b"*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
        self.is_open = true;
    }

    /// Moves past a quoted text that begins here; a doubled quote stands for itself.
    fn skip_quoted(&mut self, quote: u8, backslash: bool) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            if backslash && byte == b'\\' {
                self.at = (self.at + 1).min(self.sql.len());
            } else if byte == quote {
                if self.peek() != Some(quote) {
                    return;
                }
                self.at += 1;
            }
        }
        self.is_open = true;
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(&keep) {
            self.at += 1;
        }
        self.sql.get(start..self.at).unwrap_or_default()
    }

    /// `$1` or `$tag$…$tag$`.
    fn dollar(&mut self) {
        let start = self.at;
        self.at += 1;
        if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.take_while(|byte| byte.is_ascii_digit());
            return;
        }
        self.take_while(is_word_byte);
        if self.peek() != Some(b'$') {
            return;
        }
        self.at += 1;
        let tag = self.sql.as_bytes().get(start..self.at).unwrap_or_default();
        self.is_open = !self.skip_past(tag);
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word_byte(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit()
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let byte = self.peek()?;
            match byte {
                // The lexer's white space; vertical tab counts since PostgreSQL 16 only, and as a
                // symbol it changes nothing here.
                b' ' | b'\t' | b'\n' | b'\r' | 0x0c => self.at += 1,
                b'-' if self.rest().starts_with(b"--") => {
                    self.skip_past(b"\n");
                }
                b'/' if self.rest().starts_with(b"/*") => self.skip_block_comment(),
                b'\'' => {
                    self.skip_quoted(b'\'', false);
                    return Some(Token::Literal);
                }
                b'"' => {
                    let start = self.at + 1;
                    self.skip_quoted(b'"', false);
                    let name = self
                        .sql
                        .get(start..self.at.saturating_sub(1))
                        .unwrap_or_default();
                    return Some(Token::Quoted(name));
                }
                b'$' => {
                    self.dollar();
                    return Some(Token::Literal);
                }
                b'0'..=b'9' => {
                    self.take_while(|byte| is_word_byte(byte) || byte == b'.');
                    return Some(Token::Literal);
                }
                byte if is_word_start(byte) => {
                    let word = self.take_while(|byte| is_word_byte(byte) || byte == b'$');
                    if self.peek() == Some(b'\'') && word.eq_ignore_ascii_case("E") {
                        self.skip_quoted(b'\'', true);
                        return Some(Token::Literal);
                    }
                    return Some(Token::Word(word));
                }
                byte => {
                    self.at += 1;
                    return Some(Token::Symbol(byte));
                }
            }
        }
    }
}
