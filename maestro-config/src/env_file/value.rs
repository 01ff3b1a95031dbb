//! Values: quotes, escapes, references.

use super::cursor::{Cursor, is_name};
use super::refused::{
    AFTER_QUOTES, APOSTROPHE, COMMAND, DOLLAR, REFERENCE, Result, TOO_DEEP, TWO_SETTINGS, UNCLOSED,
};
use crate::template::{Absent, Segment, Template};

/// Deepest nesting of `${A:-${B:-…}}`; a bound for the recursion, far beyond use.
const DEEPEST: usize = 16;

/// What a backslash means depends on where it stands.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Nothing,
    DoubleQuotes,
}

/// A value to the end of its line, or to white space and `#`; the line is consumed.
pub(super) fn to_line_end(cursor: &mut Cursor<'_>) -> Result<Template> {
    let mut value = Template::default();
    let mut after_quotes = false;
    let mut after_blank = false;
    let mut unquoted = false;
    while let Some(c) = cursor.peek() {
        if cursor.at_line_end() || (c == '#' && after_blank) {
            break;
        }
        if matches!(c, ' ' | '\t') {
            after_blank = true;
            cursor.bump();
            if !after_quotes {
                value.push(c);
            }
            continue;
        }
        if after_quotes && after_blank {
            return Err(AFTER_QUOTES);
        }
        if after_blank && cursor.is_before_setting() {
            return Err(TWO_SETTINGS);
        }
        after_blank = false;
        let line = cursor.line();
        let read = piece(cursor, &mut value, after_quotes);
        // Two apostrophes, lines apart, would make one value of everything between them.
        if unquoted && (read == Err(UNCLOSED) || (read == Ok(true) && cursor.line() != line)) {
            return Err(APOSTROPHE);
        }
        after_quotes = read?;
        unquoted |= !after_quotes;
    }
    if !after_quotes {
        value.trim_end();
    }
    cursor.skip_line();
    Ok(value)
}

/// A value to the next white space or `;`; these are not consumed.
pub(super) fn word(cursor: &mut Cursor<'_>) -> Result<Template> {
    let mut value = Template::default();
    let mut after_quotes = false;
    while let Some(c) = cursor.peek() {
        if cursor.at_line_end() || matches!(c, ' ' | '\t' | ';') {
            break;
        }
        after_quotes = piece(cursor, &mut value, after_quotes)?;
    }
    Ok(value)
}

/// A quoted text, or one character outside quotes. True when it was quoted.
fn piece(cursor: &mut Cursor<'_>, value: &mut Template, after_quotes: bool) -> Result<bool> {
    if cursor.skip('\'') {
        single_quoted(cursor, value)?;
        return Ok(true);
    }
    if cursor.skip('"') {
        double_quoted(cursor, value, 0)?;
        return Ok(true);
    }
    if after_quotes {
        // So that white space of the quoted text is not trimmed with the unquoted.
        value.begin_text();
    }
    character(cursor, value, Inside::Nothing, 0)?;
    Ok(false)
}

fn single_quoted(cursor: &mut Cursor<'_>, value: &mut Template) -> Result<()> {
    value.begin_text();
    loop {
        match cursor.bump() {
            None => return Err(UNCLOSED),
            Some('\'') => return Ok(()),
            Some('\r') if cursor.starts_with("\n") => {}
            Some(c) => value.push(c),
        }
    }
}

fn double_quoted(cursor: &mut Cursor<'_>, value: &mut Template, depth: usize) -> Result<()> {
    value.begin_text();
    while !cursor.skip('"') {
        if cursor.at_end() {
            return Err(UNCLOSED);
        }
        if cursor.starts_with("\r\n") {
            cursor.bump();
        }
        character(cursor, value, Inside::DoubleQuotes, depth)?;
    }
    Ok(())
}

/// One character that is no quote, or one escape, or one reference.
fn character(
    cursor: &mut Cursor<'_>,
    value: &mut Template,
    inside: Inside,
    depth: usize,
) -> Result<()> {
    match cursor.bump() {
        Some('\\') => escape(cursor, value, inside),
        Some('$') => dollar(cursor, value, depth)?,
        Some('`') => return Err(COMMAND),
        Some(c) => value.push(c),
        None => {}
    }
    Ok(())
}

/// After a backslash. What escapes nothing keeps its backslash.
fn escape(cursor: &mut Cursor<'_>, value: &mut Template, inside: Inside) {
    if cursor.starts_with("\r\n") {
        cursor.bump();
    }
    let escaped = match (inside, cursor.peek()) {
        // The line goes on in the next one.
        (_, Some('\n')) => None,
        (_, Some(c @ ('$' | '"' | '\\' | '`')))
        | (Inside::Nothing, Some(c @ ('\'' | '#' | ' '))) => Some(c),
        (Inside::DoubleQuotes, Some('n')) => Some('\n'),
        (Inside::DoubleQuotes, Some('r')) => Some('\r'),
        (Inside::DoubleQuotes, Some('t')) => Some('\t'),
        _ => {
            value.push('\\');
            return;
        }
    };
    cursor.bump();
    if let Some(c) = escaped {
        value.push(c);
    }
}

/// After `$`.
fn dollar(cursor: &mut Cursor<'_>, value: &mut Template, depth: usize) -> Result<()> {
    if cursor.skip('{') {
        return reference(cursor, value, depth);
    }
    match cursor.peek() {
        Some('(') => Err(COMMAND),
        Some(c) if c.is_ascii_alphabetic() || c == '_' => {
            value.0.push(Segment::Reference {
                name: cursor.identifier().unwrap_or_default(),
                absent: Absent::PerhapsLiteral,
            });
            Ok(())
        }
        // A shell leaves these alone as well.
        None | Some('\n' | '\r' | ' ' | '\t' | '"' | '\'') => {
            value.push('$');
            Ok(())
        }
        Some(_) => Err(DOLLAR),
    }
}

/// After `${`.
fn reference(cursor: &mut Cursor<'_>, value: &mut Template, depth: usize) -> Result<()> {
    if depth >= DEEPEST {
        return Err(TOO_DEEP);
    }
    let name = cursor
        .identifier()
        .filter(|name| is_name(name))
        .ok_or(REFERENCE)?;
    let empty_too = cursor.skip(':');
    let absent = if cursor.skip('-') {
        Absent::Instead {
            empty_too,
            otherwise: until_brace(cursor, depth)?,
        }
    } else if cursor.skip('?') {
        let line = cursor.line_text();
        let (advice, _) = line.split_once('}').ok_or(REFERENCE)?;
        cursor.skip_bytes(advice.len() + 1);
        Absent::Advice(advice.to_owned())
    } else if !empty_too && cursor.skip('}') {
        Absent::Mistake
    } else {
        return Err(REFERENCE);
    };
    value.0.push(Segment::Reference { name, absent });
    Ok(())
}

/// The text after `:-`, to the brace that closes the reference. Quotes are quotes there too.
fn until_brace(cursor: &mut Cursor<'_>, depth: usize) -> Result<Template> {
    let mut otherwise = Template::default();
    while !cursor.skip('}') {
        if cursor.at_end() || cursor.at_line_end() {
            return Err(REFERENCE);
        }
        if cursor.skip('\'') {
            single_quoted(cursor, &mut otherwise)?;
        } else if cursor.skip('"') {
            double_quoted(cursor, &mut otherwise, depth + 1)?;
        } else if cursor.starts_with("\\}") {
            cursor.skip_bytes(2);
            otherwise.push('}');
        } else {
            character(cursor, &mut otherwise, Inside::Nothing, depth + 1)?;
        }
    }
    Ok(otherwise)
}
