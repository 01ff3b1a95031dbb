//! Makes what a stranger publishes readable, before the driver reads it. Pure.
//!
//! The driver takes a short string that is not UTF-8 (a type, a header's name, a routing key from a
//! client that sends Latin-1) for a broken protocol and closes the connection. The broker then
//! delivers the message again, and so one message takes down every consumer of the service, again
//! and again. Tables nested thousands deep end the driver's thread instead.
//!
//! Sizes never change: a byte that is not UTF-8 becomes `?`, and a table nested too deep becomes a
//! byte array of the same length. The message then fails where it should: with its handler.

use std::ops::Range;

/// Walks the frames of one connection.
#[derive(Debug, Default)]
pub(crate) struct Sanitizer {
    /// Bytes of a frame that is passed on as it comes.
    rest: usize,
    /// What comes is no AMQP; the driver finds out.
    foreign: bool,
}

impl Sanitizer {
    /// Mends what is complete and says how many bytes may be passed on. The remainder is the
    /// beginning of a frame; call again with it and more.
    pub(crate) fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            if self.foreign {
                return bytes.len();
            }
            let skipped = self.rest.min(bytes.len() - at);
            self.rest -= skipped;
            at += skipped;
            let Some(frame) = bytes.get_mut(at..) else {
                return at;
            };
            let Some(header) = frame.first_chunk::<HEADER>().copied() else {
                return at;
            };
            let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let total = size.saturating_add(HEADER + 1);
            match header[0] {
                METHOD | CONTENT if size <= LARGEST => {
                    let Some(payload) = frame.get_mut(HEADER..HEADER + size) else {
                        return at;
                    };
                    if header[0] == METHOD {
                        method(payload);
                    } else {
                        content(payload);
                    }
                    if frame.len() < total {
                        // Mended already; mending again changes nothing.
                        return at;
                    }
                    at += total;
                }
                BODY | HEARTBEAT => self.rest = total,
                _ => self.foreign = true,
            }
        }
    }

    /// How many bytes the frame at the beginning of the remainder needs, as far as is known.
    pub(crate) fn needs(remainder: &[u8]) -> usize {
        match remainder.first_chunk::<HEADER>() {
            Some(header) => {
                let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
                HEADER + 1 + usize::try_from(size).unwrap_or(usize::MAX).min(LARGEST)
            }
            None => HEADER,
        }
    }
}

/// `basic.deliver`, `basic.return` and `basic.get-ok` carry names that somebody else chose.
fn method(payload: &mut [u8]) {
    let Some((id, arguments)) = payload.split_first_chunk_mut::<4>() else {
        return;
    };
    let mut reader = Reader {
        bytes: arguments,
        at: 0,
    };
    let _ = match id {
        // Consumer tag; delivery tag and redelivered; exchange; routing key.
        [0, 60, 0, 60] => reader
            .short()
            .and_then(|()| reader.skip(9))
            .and_then(|()| reader.shorts(2)),
        // Reply code; reply text, exchange, routing key.
        [0, 60, 0, 50] => reader.skip(2).and_then(|()| reader.shorts(3)),
        // Delivery tag and redelivered; exchange, routing key.
        [0, 60, 0, 71] => reader.skip(9).and_then(|()| reader.shorts(2)),
        _ => None,
    };
}

/// A content header: class, weight, body size, flags, properties.
fn content(payload: &mut [u8]) {
    let Some(flags) = payload.get(12..14) else {
        return;
    };
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    let Some(properties) = payload.get_mut(14..) else {
        return;
    };
    let mut reader = Reader {
        bytes: properties,
        at: 0,
    };
    // Content type, encoding; headers; delivery mode, priority; correlation id, reply to,
    // expiration, message id; timestamp; type, user id, app id, cluster id.
    for (bit, kind) in (2..16).rev().zip([
        Property::Short,
        Property::Short,
        Property::Table,
        Property::Bytes(1),
        Property::Bytes(1),
        Property::Short,
        Property::Short,
        Property::Short,
        Property::Short,
        Property::Bytes(8),
        Property::Short,
        Property::Short,
        Property::Short,
        Property::Short,
    ]) {
        if flags & (1 << bit) == 0 {
            continue;
        }
        let read = match kind {
            Property::Short => reader.short(),
            Property::Table => reader.table(),
            Property::Bytes(count) => reader.skip(count),
        };
        if read.is_none() {
            return;
        }
    }
}

#[derive(Clone, Copy)]
enum Property {
    Short,
    Table,
    Bytes(usize),
}

/// `None` everywhere means: not as it should be, leave it as it is.
struct Reader<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl Reader<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.range(count).map(drop)
    }

    fn shorts(&mut self, count: usize) -> Option<()> {
        for _ in 0..count {
            self.short()?;
        }
        Some(())
    }

    /// A short string, made UTF-8.
    fn short(&mut self) -> Option<()> {
        let range = self.range(1)?;
        let length = usize::from(*self.bytes.get(range.start)?);
        let range = self.range(length)?;
        let text = self.bytes.get_mut(range)?;
        if text.is_ascii() {
            return Some(());
        }
        make_utf8(text);
        Some(())
    }

    fn long(&mut self) -> Option<usize> {
        let range = self.range(4)?;
        let bytes = self.bytes.get(range)?.first_chunk::<4>()?;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }

    /// A table: names made UTF-8, and what is nested too deep made bytes. Walks without recursion.
    fn table(&mut self) -> Option<()> {
        let length = self.long()?;
        let end = self.at.checked_add(length)?;
        // The ends of the tables and arrays around the current position.
        let mut around = vec![(end, true)];
        while let Some((end, is_table)) = around.last().copied() {
            if self.at >= end {
                around.pop();
                continue;
            }
            if is_table {
                self.short()?;
            }
            let kind_at = self.at;
            let range = self.range(1)?;
            match *self.bytes.get(range.start)? {
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'U' | b'u' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'D' => self.skip(5)?,
                b'L' | b'l' | b'd' | b'T' => self.skip(8)?,
                b'V' => {}
                b'S' | b'x' => {
                    let length = self.long()?;
                    self.skip(length)?;
                }
                kind @ (b'F' | b'A') => {
                    let length = self.long()?;
                    if around.len() >= DEEPEST {
                        *self.bytes.get_mut(kind_at)? = b'x';
                        self.skip(length)?;
                    } else {
                        around.push((self.at.checked_add(length)?, kind == b'F'));
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn range(&mut self, count: usize) -> Option<Range<usize>> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }
}

fn make_utf8(text: &mut [u8]) {
    let mut at = 0;
    while let Some(rest) = text.get_mut(at..) {
        match std::str::from_utf8(rest) {
            Ok(_) => return,
            Err(error) => {
                let bad = error.valid_up_to();
                if let Some(byte) = rest.get_mut(bad) {
                    *byte = b'?';
                }
                at += bad + 1;
            }
        }
    }
}

const METHOD: u8 = 1;
const CONTENT: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Kind, channel, size.
const HEADER: usize = 7;
/// Larger than any frame that is negotiated.
const LARGEST: usize = 16 * 1024 * 1024;
/// Tables and arrays in one another. Ours are flat; the broker's `x-death` has two levels.
const DEEPEST: usize = 16;

#[cfg(test)]
mod tests;
