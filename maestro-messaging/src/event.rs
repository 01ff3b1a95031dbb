//! What services publish and handle.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Something that happened in a service, as others are told about it.
///
/// The type is `<noun>.<past-participle>.v<major>` and is checked when the program is compiled; it
/// is the routing key and the AMQP property `type`. The body is JSON.
///
/// ```
/// use std::borrow::Cow;
/// use maestro_messaging::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order_id: String,
///     total_cents: i64,
/// }
///
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "order.placed.v1";
///
///     fn key(&self) -> Option<Cow<'_, str>> {
///         Some(self.order_id.as_str().into())
///     }
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `<noun>.<past-participle>.v<major>`, at most 128 bytes. A change that an old handler cannot
    /// read is a new major and so a new type.
    const TYPE: &'static str;

    /// What events are ordered by: the outbox and ordered subscriptions keep events of one key in
    /// order. At most 255 bytes; `None` promises no order.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// The event's type, checked when the program is compiled.
pub(crate) const fn type_of<E: Event>() -> &'static str {
    const {
        assert!(
            is_event_type(E::TYPE),
            "an event's TYPE is `<noun>.<past-participle>.v<major>`, such as `order.placed.v1`"
        );
    }
    E::TYPE
}

/// Whether a type follows the convention; evaluated at compile time where an event is published or
/// subscribed to.
pub(crate) const fn is_event_type(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() > 128 {
        return false;
    }
    let mut labels = 0;
    let mut start = 0;
    let mut at = 0;
    while at <= bytes.len() {
        if at == bytes.len() || bytes[at] == b'.' {
            let last = at == bytes.len();
            if last {
                if !is_version(bytes, start, at) {
                    return false;
                }
            } else if !is_label(bytes, start, at) {
                return false;
            }
            labels += 1;
            start = at + 1;
        }
        at += 1;
    }
    labels >= 3
}

const fn is_label(bytes: &[u8], start: usize, end: usize) -> bool {
    if start == end || !bytes[start].is_ascii_lowercase() {
        return false;
    }
    let mut at = start;
    while at < end {
        let byte = bytes[at];
        if !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            return false;
        }
        at += 1;
    }
    true
}

const fn is_version(bytes: &[u8], start: usize, end: usize) -> bool {
    if end < start + 2 || bytes[start] != b'v' || bytes[start + 1] == b'0' {
        return false;
    }
    let mut at = start + 1;
    while at < end {
        if !bytes[at].is_ascii_digit() {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_types_follow_the_convention() {
        for text in ["order.placed.v1", "quality-run.requested.v12", "a.b.c.v1"] {
            assert!(is_event_type(text), "{text} was refused");
        }
        let long = format!("{}.placed.v1", "a".repeat(128));
        for text in [
            "",
            "order",
            "order.placed",
            "order.v1",
            "order.placed.v0",
            "order.placed.v",
            "order.placed.1",
            "Order.placed.v1",
            "order..v1",
            ".placed.v1",
            "order.placed.v1.",
            "order.pla ced.v1",
            "order.*.v1",
            "order.#.v1",
            "order.placed.v1x",
            &long,
        ] {
            assert!(!is_event_type(text), "{text} was accepted");
        }
    }
}
