//! W3C trace context: the ids of a trace and of one span in it, as they cross processes.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// The id of a trace; never zero.
///
/// ```
/// use maestro_metrics::TraceId;
///
/// let id = TraceId::from_bytes(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()).unwrap();
/// assert_eq!(id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(TraceId::from_bytes(id.to_bytes()), Some(id));
/// assert_eq!(TraceId::from_bytes([0; 16]), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// A new random id.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random().to_be_bytes());
        bytes[8..].copy_from_slice(&random().to_be_bytes());
        Self::from_bytes(bytes).unwrap_or(Self([1; 16]))
    }

    /// The id of these bytes, unless all are zero.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// The id of a span; never zero.
///
/// ```
/// use maestro_metrics::SpanId;
///
/// let id = SpanId::from_bytes(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()).unwrap();
/// assert_eq!(id.to_string(), "00f067aa0ba902b7");
/// assert_eq!(SpanId::from_bytes(id.to_bytes()), Some(id));
/// assert_ne!(SpanId::random(), id);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// A new random id.
    pub fn random() -> Self {
        Self::from_bytes(random().to_be_bytes()).unwrap_or(Self([1; 8]))
    }

    /// The id of these bytes, unless all are zero.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The bytes.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

macro_rules! hexadecimal {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; 32];
                f.write_str(hex(&self.0, &mut text))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}
hexadecimal!(TraceId, SpanId);

/// A span as its children in other processes see it: the content of `traceparent` and `tracestate`.
///
/// ```
/// use maestro_metrics::{SpanId, TraceContext, TraceId};
///
/// let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context = TraceContext::parse(header, Some("vendor=7")).unwrap();
/// assert!(context.sampled());
/// assert_eq!(context.traceparent(), header);
///
/// // The span of what is done here on its behalf:
/// let child = context.child();
/// assert_eq!(child.trace_id(), context.trace_id());
/// assert_ne!(child.span_id(), context.span_id());
/// assert_eq!(child.tracestate(), Some("vendor=7"));
/// // Or the first of a trace:
/// assert_ne!(TraceContext::root(true).trace_id(), context.trace_id());
/// // Or one that another library has given ids:
/// let foreign = TraceContext::new(TraceId::random(), SpanId::random(), true);
/// assert!(TraceContext::parse(&foreign.traceparent(), None).is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    flags: u8,
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// A span of a trace.
    pub fn new(trace_id: TraceId, span_id: SpanId, sampled: bool) -> Self {
        Self {
            trace_id,
            span_id,
            flags: u8::from(sampled) * SAMPLED,
            state: None,
        }
    }

    /// The first span of a new trace, with random ids.
    pub fn root(sampled: bool) -> Self {
        Self::new(TraceId::random(), SpanId::random(), sampled)
    }

    /// A child of this span: same trace, flags and state, a new span id.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: SpanId::random(),
            ..self.clone()
        }
    }

    /// Reads `traceparent` and `tracestate` as W3C Trace Context says: an unknown higher version is
    /// read as version 00, anything malformed is as if it were absent, and a malformed or oversized
    /// state (512 characters) is dropped alone.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let text = traceparent.trim_matches([' ', '\t']).as_bytes();
        let (head, rest) = text.split_at_checked(55)?;
        let [version] = unhex::<1>(head.get(..2)?)?;
        let well_formed = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
        let ends = match version {
            0xff => return None,
            0 => rest.is_empty(),
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !well_formed || !ends {
            return None;
        }
        let trace_id = TraceId::from_bytes(unhex(&head[3..35])?)?;
        let span_id = SpanId::from_bytes(unhex(&head[36..52])?)?;
        let [flags] = unhex::<1>(&head[53..55])?;
        Some(Self {
            trace_id,
            span_id,
            // Flags this version does not know are not passed on, as the specification asks.
            flags: flags & SAMPLED,
            state: tracestate.and_then(state),
        })
    }

    /// The trace.
    pub const fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The span.
    pub const fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// Whether the trace is recorded.
    pub const fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The value of the `traceparent` header.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// The value of the `tracestate` header.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

const SAMPLED: u8 = 1;

/// List members a vendor may add to `tracestate`; the specification's limit.
const STATE_MEMBERS: usize = 32;
/// Characters of `tracestate` that every participant must carry; longer ones are dropped.
const STATE_LENGTH: usize = 512;

fn state(text: &str) -> Option<Arc<str>> {
    let text = text.trim();
    let members = text.split(',').filter(|member| !member.trim().is_empty());
    let valid = !text.is_empty()
        && text.len() <= STATE_LENGTH
        && text
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) || b == b'\t')
        && members.clone().count() <= STATE_MEMBERS
        && members.clone().all(|member| {
            member
                .split_once('=')
                .is_some_and(|(key, value)| !key.trim().is_empty() && !value.is_empty())
        });
    valid.then(|| text.into())
}

fn hex<'a>(bytes: &[u8], text: &'a mut [u8; 32]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(&text[..bytes.len() * 2]).unwrap_or_default()
}

/// Lower-case only, as the header demands.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    fn digit(byte: u8) -> Option<u8> {
        match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        }
    }
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Ids must be unique, not secret: xoshiro256++ for each thread, seeded by the system's randomness.
/// (A generator with 64 bits of state would meet itself within days on a busy platform.)
fn random() -> u64 {
    thread_local! {
        static STATE: RefCell<[u64; 4]> = RefCell::new(seed());
    }
    STATE
        .try_with(|state| next(&mut state.borrow_mut()))
        // Only while the thread is being torn down.
        .unwrap_or_else(|_| seed()[0])
}

fn seed() -> [u64; 4] {
    let (a, b) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let ((a, b), (c, d)) = (a.as_u64_pair(), b.as_u64_pair());
    [a, b, c, d]
}

fn next(s: &mut [u64; 4]) -> u64 {
    let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
    let t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3].rotate_left(45);
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn malformed_parents_are_as_if_absent() {
        for header in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(header, None), None, "{header}");
        }
    }

    #[test]
    fn a_higher_version_is_read_as_version_zero() {
        let header = PARENT.replacen("00", "cc", 1) + "-more";
        let context = TraceContext::parse(&header, None).unwrap();
        assert_eq!(context.traceparent(), PARENT);
    }

    #[test]
    fn a_bad_state_is_dropped_alone() {
        let long = format!("a={}", "x".repeat(600));
        for bad in ["novalue", "=x", "a=\u{7f}", &long] {
            let context = TraceContext::parse(PARENT, Some(bad)).unwrap();
            assert_eq!(context.tracestate(), None, "{bad}");
        }
        let context = TraceContext::parse(PARENT, Some("vendor=1, other=2")).unwrap();
        assert_eq!(context.child().tracestate(), Some("vendor=1, other=2"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let context = TraceContext::new(
                TraceId::from_bytes(trace).unwrap(),
                SpanId::from_bytes(span).unwrap(),
                sampled,
            );
            prop_assert_eq!(TraceContext::parse(&context.traceparent(), None), Some(context));
        }

        #[test]
        fn no_header_breaks_the_parser(header: String, state: String) {
            let _ = TraceContext::parse(&header, Some(&state));
        }
    }
}
