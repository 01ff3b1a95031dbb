//! Log lines: one event, one line, written in one piece.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::time::SystemTime;

use maestro_config::Identity;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::config::LogFormat;
use super::redaction::{REDACTED, Redaction, scrub};
use crate::context::Context;
use crate::handle::Counter;
use crate::metrics::{LOG_FAILURES, LOG_LINES};
use crate::registry::Registry;
use crate::timestamp::timestamp;

pub(crate) struct Logs {
    format: LogFormat,
    /// `"service":"…","version":"…",…` written once.
    identity: Box<str>,
    color: bool,
    output: Output,
    lines: [(Level, Counter); 5],
    failures: Counter,
}

/// Where lines go.
pub(crate) enum Output {
    Stdout,
    Other(Mutex<Box<dyn Write + Send>>),
}

impl Logs {
    pub(crate) fn new(
        format: LogFormat,
        output: Output,
        identity: &Identity,
        registry: &Registry,
    ) -> Self {
        let mut fields = Vec::new();
        for (name, value) in [
            ("service", identity.service().as_str()),
            ("version", identity.version()),
            ("environment", identity.deployment().as_str()),
            ("team", identity.team()),
            ("instance", identity.instance()),
        ] {
            fields.extend_from_slice(b",\"");
            fields.extend_from_slice(name.as_bytes());
            fields.extend_from_slice(b"\":");
            json(&mut fields, value);
        }
        let lines = registry.family(&LOG_LINES);
        let levels = [
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::DEBUG,
            Level::TRACE,
        ];
        Self {
            format,
            identity: String::from_utf8(fields).unwrap_or_default().into(),
            color: matches!(output, Output::Stdout)
                && std::io::IsTerminal::is_terminal(&std::io::stdout()),
            output,
            lines: levels.map(|level| (level, lines.with([word(level)]))),
            failures: registry.metric(&LOG_FAILURES),
        }
    }

    pub(crate) fn write(&self, event: &Event<'_>, context: &Context, redaction: &Redaction) {
        thread_local! {
            static BUFFER: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
        }
        let level = *event.metadata().level();
        if let Some((_, lines)) = self.lines.iter().find(|(other, _)| *other == level) {
            lines.increment();
        }
        let reused = BUFFER.try_with(|buffer| {
            // Busy when formatting a field logs something itself.
            let mut buffer = buffer.try_borrow_mut().ok()?;
            self.line(event, context, redaction, &mut buffer);
            buffer.give_back();
            Some(())
        });
        if !matches!(reused, Ok(Some(()))) {
            self.line(event, context, redaction, &mut Buffer::new());
        }
    }

    fn line(
        &self,
        event: &Event<'_>,
        context: &Context,
        redaction: &Redaction,
        buffer: &mut Buffer,
    ) {
        buffer.clear();
        event.record(&mut Fields {
            buffer,
            redaction,
            format: self.format,
        });
        match self.format {
            LogFormat::Json => self.json(event, context, buffer),
            LogFormat::Pretty => self.pretty(event, context, buffer),
        }
        let written = match &self.output {
            Output::Stdout => std::io::stdout().lock().write_all(&buffer.line),
            Output::Other(output) => output.lock().write_all(&buffer.line),
        };
        if written.is_err() {
            // There is nowhere left to say so.
            self.failures.increment();
        }
    }

    fn json(&self, event: &Event<'_>, context: &Context, buffer: &mut Buffer) {
        let Buffer {
            line,
            message,
            fields,
            ..
        } = buffer;
        line.extend_from_slice(b"{\"timestamp\":\"");
        timestamp(line, SystemTime::now());
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(event.metadata().level().as_str().as_bytes());
        line.extend_from_slice(b"\",\"message\":");
        json(line, message);
        line.extend_from_slice(b",\"target\":");
        json(line, event.metadata().target());
        line.extend_from_slice(self.identity.as_bytes());
        if let Some(trace) = context.trace() {
            let (trace, span) = (trace.trace_id(), trace.span_id());
            let _ = write!(line, ",\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"");
        }
        if let Some(correlation) = context.correlation() {
            line.extend_from_slice(b",\"correlation_id\":");
            json(line, correlation.as_str());
        }
        if let Some(tenant) = context.tenant() {
            line.extend_from_slice(b",\"tenant\":");
            json(line, tenant);
        }
        if !fields.is_empty() {
            line.extend_from_slice(b",\"fields\":{");
            line.extend_from_slice(fields);
            line.push(b'}');
        }
        line.extend_from_slice(b"}\n");
    }

    fn pretty(&self, event: &Event<'_>, context: &Context, buffer: &mut Buffer) {
        let Buffer {
            line,
            message,
            fields,
            ..
        } = buffer;
        let level = *event.metadata().level();
        let (on, off) = if self.color {
            (color(level), "\x1b[0m")
        } else {
            ("", "")
        };
        timestamp(line, SystemTime::now());
        let target = event.metadata().target();
        let _ = write!(line, " {on}{:>5}{off} {target}: ", level.as_str());
        // A line is a line: what is in a message must not look like another one.
        line.extend_from_slice(
            message
                .escape_debug()
                .to_string()
                .replace("\\\"", "\"")
                .replace("\\'", "'")
                .as_bytes(),
        );
        line.extend_from_slice(fields);
        if let Some(correlation) = context.correlation() {
            let _ = write!(line, " correlation_id={correlation}");
        }
        if let Some(tenant) = context.tenant() {
            let _ = write!(line, " tenant={tenant}");
        }
        if let Some(trace) = context.trace() {
            let _ = write!(line, " trace_id={}", trace.trace_id());
        }
        line.push(b'\n');
    }
}

struct Buffer {
    line: Vec<u8>,
    message: String,
    fields: Vec<u8>,
    scratch: String,
}

/// A line of a megabyte now and then must not be kept by every thread.
const KEPT: usize = 16 << 10;

impl Buffer {
    const fn new() -> Self {
        Self {
            line: Vec::new(),
            message: String::new(),
            fields: Vec::new(),
            scratch: String::new(),
        }
    }

    fn clear(&mut self) {
        self.line.clear();
        self.message.clear();
        self.fields.clear();
        self.scratch.clear();
    }

    fn give_back(&mut self) {
        if self.line.capacity() + self.fields.capacity() + self.message.capacity() > KEPT {
            *self = Self::new();
        }
    }
}

struct Fields<'a> {
    buffer: &'a mut Buffer,
    redaction: &'a Redaction,
    format: LogFormat,
}

impl Fields<'_> {
    fn name(&mut self, field: &Field) -> bool {
        let fields = &mut self.buffer.fields;
        match self.format {
            LogFormat::Json => {
                if !fields.is_empty() {
                    fields.push(b',');
                }
                json(fields, field.name());
                fields.push(b':');
            }
            LogFormat::Pretty => {
                fields.push(b' ');
                fields.extend_from_slice(field.name().as_bytes());
                fields.push(b'=');
            }
        }
        let covered = self.redaction.covers(field.name());
        if covered {
            self.value(REDACTED);
        }
        !covered
    }

    fn value(&mut self, text: &str) {
        let fields = &mut self.buffer.fields;
        let text = scrub(text);
        let bare = |c: char| c.is_ascii_graphic() && c != '"';
        if self.format == LogFormat::Pretty && !text.is_empty() && text.chars().all(bare) {
            fields.extend_from_slice(text.as_bytes());
        } else {
            json(fields, &text);
        }
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        if self.name(field) {
            let _ = write!(self.buffer.fields, "{value}");
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.buffer.message.push_str(&scrub(value));
        } else if self.name(field) {
            self.value(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut scratch = std::mem::take(&mut self.buffer.scratch);
        scratch.clear();
        let _ = write!(scratch, "{value:?}");
        self.record_str(field, &scratch);
        self.buffer.scratch = scratch;
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else if self.name(field) {
            // JSON has no NaN.
            self.value(&value.to_string());
        }
    }
}

fn json(buffer: &mut Vec<u8>, text: &str) {
    // Writing text to a `Vec` cannot fail.
    let _ = serde_json::to_writer(buffer, text);
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

const fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}
