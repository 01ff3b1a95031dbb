//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use crate::context::{BAGGAGE, CORRELATION_ID, Context, TENANT_ID, TRACEPARENT, TRACESTATE};
use crate::otlp::{Endpoint, decode_response};
use crate::process::parse_stat;
use crate::telemetry::{LogLevel, SecretHeaders};

/// The headers of a call from anybody: what is read of them is passed on as it was read, in headers
/// that any protocol takes.
pub fn context(headers: [&str; 5]) {
    let names = [TRACEPARENT, TRACESTATE, BAGGAGE, CORRELATION_ID, TENANT_ID];
    let read = Context::extract(|name| {
        names
            .iter()
            .zip(headers)
            .find_map(|(known, value)| (*known == name).then_some(value))
    });
    let mut written = Vec::new();
    read.inject(|name, value| written.push((name, value.to_owned())));
    assert!(written.iter().all(|(_, value)| {
        value
            .bytes()
            .all(|b| b == b'\t' || (b' '..=b'~').contains(&b))
    }));
    let again = Context::extract(|name| {
        written
            .iter()
            .find_map(|(known, value)| (*known == name).then_some(value))
    });
    assert_eq!(again, read);
}

/// The answer of a collector: reading ends, and says no more than was there.
pub fn response(bytes: &[u8]) {
    let read = decode_response(bytes);
    // Each byte that is not UTF-8 becomes a character of three.
    assert!(read.message.len() <= 3 * bytes.len());
}

/// The URL of a collector, and what may follow a password in one: the password is not shown, and what
/// was made of a URL is left as it is when read again.
pub fn endpoint(text: &str) {
    const CANARY: &str = "canary-17";
    for text in [text.to_owned(), format!("http://user:{CANARY}@{text}")] {
        let Ok(endpoint) = Endpoint::parse(&text) else {
            continue;
        };
        let shown = endpoint.to_string();
        assert!(!shown.contains(CANARY), "{shown}");
        let again = Endpoint::parse(&shown);
        assert_eq!(again.map(|again| again.to_string()), Ok(shown));
    }
}

/// Log directives, and headers for a collector: what is read is read again as the same, and no header
/// is shown.
pub fn settings(text: &str) {
    if let Some(level) = LogLevel::parse(text) {
        assert_eq!(LogLevel::parse(level.as_str()), Some(level));
    }
    let pairs = |headers: &SecretHeaders| -> Vec<(String, String)> {
        let pairs = headers.iter();
        pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    };
    if let Some(headers) = SecretHeaders::parse(text) {
        assert_eq!(format!("{headers:?}"), "[redacted]");
        let read = pairs(&headers);
        let written: Vec<_> = read
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let again = SecretHeaders::parse(&written.join(","));
        assert_eq!(again.as_ref().map(pairs), Some(read));
    }
}

/// What the kernel says of a process, whatever its program is called.
pub fn process(text: &str) {
    let _ = parse_stat(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_are_passed_on_as_they_were_read(
            parent in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]{0,3})?",
            state in "([a-z]{0,3}=[ -~]{0,3},?){0,3}\t?",
            baggage in "( ?[a-z]{0,3}=[ -~]{0,3},?){0,3}",
            correlation in ".{0,6}",
            tenant in "[ -~é]{0,6}",
        ) {
            super::context([&parent, &state, &baggage, &correlation, &tenant]);
        }

        #[test]
        fn an_answer_is_read_to_its_end(bytes in any::<Vec<u8>>()) {
            super::response(&bytes);
        }

        #[test]
        fn a_url_is_mended_once(
            url in "(https?://)?([a-z]{1,3}(:[a-z]{1,3})?@)?[a-z0-9]{1,5}(:(4317|4318|14268|80))?(/[a-z/]{0,6})?(/v1/traces/?)?(\\?a=b)?",
        ) {
            super::endpoint(&url);
        }

        #[test]
        fn settings_are_read_again_as_the_same(
            directives in "((info|warn|[a-z:]{0,6}(=(debug|TRACE|off|7)?)?),? ?){0,4}",
            headers in "( ?[a-zA-Z-]{0,4}=[ -~é]{0,6},?){0,3}",
        ) {
            super::settings(&directives);
            super::settings(&headers);
        }

        #[test]
        fn no_name_of_a_program_stops_the_reading(text in "[0-9]{1,3} \\(.{0,5}\\) ([0-9a-zA-Z.-]{1,4} ?){0,30}") {
            super::process(&text);
        }
    }
}
