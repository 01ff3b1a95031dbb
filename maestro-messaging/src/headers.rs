//! Names of the headers, and reading and writing them within what one frame holds.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use lapin::types::{AMQPValue, FieldTable, ShortString};

// The names do not begin with `x-`: RabbitMQ keeps that for itself, and ignores a client's
// `x-death` from 3.13 on.
pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";
pub(crate) const BAGGAGE: &str = "baggage";
pub(crate) const CAUSATION_ID: &str = "maestro-causation-id";
pub(crate) const TENANT: &str = "maestro-tenant";
pub(crate) const KEY: &str = "maestro-key";
/// How often the message failed before.
pub(crate) const ATTEMPT: &str = "maestro-attempt";
/// Where the message was first published: a retried copy comes by way of a rung.
pub(crate) const EXCHANGE: &str = "maestro-exchange";
pub(crate) const ROUTING_KEY: &str = "maestro-routing-key";
/// Milliseconds since the epoch.
pub(crate) const FIRST_FAILED_AT: &str = "maestro-first-failed-at";
pub(crate) const LAST_FAILED_AT: &str = "maestro-last-failed-at";
/// Why it is dead: `exhausted`, `poison`, `malformed`, `unknown-type`.
pub(crate) const DEAD_REASON: &str = "maestro-dead-reason";
pub(crate) const ERROR_TYPE: &str = "maestro-error-type";
pub(crate) const ERROR_MESSAGE: &str = "maestro-error-message";
pub(crate) const ERROR_CHAIN: &str = "maestro-error-chain";
pub(crate) const FAILED_SERVICE: &str = "maestro-failed-service";
pub(crate) const FAILED_VERSION: &str = "maestro-failed-version";
pub(crate) const FAILED_INSTANCE: &str = "maestro-failed-instance";
/// How often an operator brought the message back from the dead-letter queue.
pub(crate) const REPLAYS: &str = "maestro-replays";
pub(crate) const REPLAYED_AT: &str = "maestro-replayed-at";
/// Names of foreign headers that did not fit beside ours.
pub(crate) const DROPPED: &str = "maestro-dropped-headers";

/// All headers of a message have to fit one frame, 128 KiB by default; a larger table closes the
/// whole connection. Half of it leaves room for the properties and for smaller frames.
pub(crate) const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Texts about a failure, 8 KiB in all.
pub(crate) const MAX_MESSAGE_BYTES: usize = 2 * 1024;
pub(crate) const MAX_CHAIN_BYTES: usize = 5 * 1024;
pub(crate) const MAX_TYPE_BYTES: usize = 512;

/// The headers a dead letter carries in addition; they go when it is replayed.
pub(crate) const DEATH: [&str; 9] = [
    DEAD_REASON,
    ERROR_TYPE,
    ERROR_MESSAGE,
    ERROR_CHAIN,
    FAILED_SERVICE,
    FAILED_VERSION,
    FAILED_INSTANCE,
    FIRST_FAILED_AT,
    LAST_FAILED_AT,
];

/// A header as text, if it is UTF-8 text.
pub(crate) fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes())
            .ok()
            .map(str::to_owned),
        AMQPValue::ShortString(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A header as a whole number; clients of other languages choose the width.
pub(crate) fn integer(table: &FieldTable, name: &str) -> Option<i64> {
    Some(match table.inner().get(name)? {
        AMQPValue::ShortShortInt(value) => i64::from(*value),
        AMQPValue::ShortShortUInt(value) => i64::from(*value),
        AMQPValue::ShortInt(value) => i64::from(*value),
        AMQPValue::ShortUInt(value) => i64::from(*value),
        AMQPValue::LongInt(value) => i64::from(*value),
        AMQPValue::LongUInt(value) => i64::from(*value),
        AMQPValue::LongLongInt(value) => *value,
        _ => return None,
    })
}

/// A header as a count; negative numbers read as zero.
pub(crate) fn count(table: &FieldTable, name: &str) -> Option<u32> {
    integer(table, name).map(|value| u32::try_from(value.max(0)).unwrap_or(u32::MAX))
}

pub(crate) fn set_text(table: &mut FieldTable, name: &str, value: &str) {
    table.insert(name.into(), AMQPValue::LongString(value.into()));
}

pub(crate) fn set_count(table: &mut FieldTable, name: &str, value: u32) {
    table.insert(name.into(), AMQPValue::LongLongInt(i64::from(value)));
}

pub(crate) fn set_millis(table: &mut FieldTable, name: &str, at: SystemTime) {
    let millis = at
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    table.insert(
        name.into(),
        AMQPValue::LongLongInt(i64::try_from(millis).unwrap_or(i64::MAX)),
    );
}

/// The headers of a copy: everything the sender set, without what the broker added (`x-…`; a
/// copied `x-death` would make the broker see a cycle and drop the message) and without `except`.
pub(crate) fn carried(
    table: Option<&FieldTable>,
    except: &[&str],
) -> BTreeMap<ShortString, AMQPValue> {
    let Some(table) = table else {
        return BTreeMap::new();
    };
    table
        .inner()
        .iter()
        .filter(|(name, _)| !name.as_str().starts_with("x-") && !except.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Makes the headers fit one frame: foreign ones go, largest first, and their names are kept.
pub(crate) fn fitted(mut map: BTreeMap<ShortString, AMQPValue>) -> FieldTable {
    let mut total: usize = map
        .iter()
        .map(|(name, value)| entry_size(name, value))
        .sum();
    if total > MAX_HEADER_BYTES {
        let mut foreign: Vec<(usize, ShortString)> = map
            .iter()
            .filter(|(name, _)| !is_ours(name.as_str()))
            .map(|(name, value)| (entry_size(name, value), name.clone()))
            .collect();
        foreign.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let mut dropped = String::new();
        for (size, name) in foreign {
            if total <= MAX_HEADER_BYTES - MAX_MESSAGE_BYTES {
                break;
            }
            map.remove(&name);
            total -= size;
            if !dropped.is_empty() {
                dropped.push(',');
            }
            dropped.push_str(name.as_str());
        }
        map.insert(
            DROPPED.into(),
            AMQPValue::LongString(truncated(&dropped, MAX_MESSAGE_BYTES - 64).into()),
        );
    }
    map.into()
}

/// The bytes a header table takes on the wire, roughly and never too few.
pub(crate) fn size(table: &FieldTable) -> usize {
    4 + table
        .inner()
        .iter()
        .map(|(name, value)| entry_size(name, value))
        .sum::<usize>()
}

/// The beginning of a text, cut at a character's border.
pub(crate) fn truncated(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("maestro-") || [TRACEPARENT, TRACESTATE, BAGGAGE].contains(&name)
}

fn entry_size(name: &ShortString, value: &AMQPValue) -> usize {
    // One byte for the name's length, one for the value's type.
    2 + name.as_str().len() + value_size(value)
}

fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldTable(table) => size(table),
        AMQPValue::FieldArray(array) => {
            4 + array
                .as_slice()
                .iter()
                .map(|value| 1 + value_size(value))
                .sum::<usize>()
        }
        // Numbers, flags and timestamps: eight bytes are the widest.
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_the_sender_set_and_drops_what_the_broker_added() {
        let mut table = FieldTable::default();
        set_text(&mut table, "x-death", "broker's");
        set_text(&mut table, "invoice", "7");
        set_text(&mut table, DEAD_REASON, "poison");
        let copy = carried(Some(&table), &DEATH);
        assert_eq!(
            copy.keys().map(ShortString::as_str).collect::<Vec<_>>(),
            ["invoice"]
        );
    }

    #[test]
    fn headers_too_large_for_a_frame_lose_the_largest_foreign_ones() {
        let mut table = FieldTable::default();
        set_text(&mut table, "huge", &"h".repeat(70_000));
        set_text(&mut table, "small", "s");
        set_text(&mut table, KEY, "order-7");
        let fitted = fitted(carried(Some(&table), &[]));
        assert!(size(&fitted) <= MAX_HEADER_BYTES);
        assert_eq!(text(&fitted, "small").as_deref(), Some("s"));
        assert_eq!(text(&fitted, KEY).as_deref(), Some("order-7"));
        assert_eq!(text(&fitted, DROPPED).as_deref(), Some("huge"));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(truncated("añb", 2), "a");
        assert_eq!(truncated("añb", 3), "añ");
        assert_eq!(truncated("", 0), "");
    }
}
