//! Which argument of a queue differs, out of the broker's words. Pure.

use crate::topology::{Difference, Values};

/// Reads `inequivalent arg 'x-max-length' for queue 'a' in vhost '/': received the value '7' of type
/// 'signedint' but current is none`; the words are those of RabbitMQ 3.8 to 4.x. They are cut at 255 bytes,
/// so the values can be missing, and the driver's error and its cause say them one after the other: only
/// what stands in the last is taken for one sentence. `None` if it said something else.
pub(crate) fn read(text: &str) -> Option<Difference> {
    let (_, text) = text.rsplit_once("inequivalent arg '")?;
    let (argument, text) = text.split_once('\'')?;
    Some(Difference {
        argument: argument.to_owned(),
        values: values(text).ok(),
    })
}

fn values(text: &str) -> Result<Values, Cut> {
    let (_, text) = text.split_once(": received ").ok_or(Cut)?;
    let (here, there) = text.split_once(" but current is ").ok_or(Cut)?;
    Ok(Values {
        there: value(there)?,
        here: value(here)?,
    })
}

/// `none`, `the value '7' of type 'signedint'` or `'true'`, whatever follows.
fn value(text: &str) -> Result<Option<String>, Cut> {
    if text.starts_with("none") {
        return Ok(None);
    }
    let quoted = match text.strip_prefix("the value '") {
        Some(text) => text.split_once("' of type '"),
        None => text
            .strip_prefix('\'')
            .and_then(|text| text.split_once('\'')),
    };
    let (value, _) = quoted.ok_or(Cut)?;
    Ok(Some(value.to_owned()))
}

/// The sentence ends before the values do.
struct Cut;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_words_give_the_argument_and_both_values() {
        let of = |argument: &str, there: Option<&str>, here: Option<&str>| {
            Some(Difference {
                argument: argument.to_owned(),
                values: Some(Values {
                    there: there.map(str::to_owned),
                    here: here.map(str::to_owned),
                }),
            })
        };
        for (text, difference) in [
            (
                // As the driver's error and its cause say it one after the other.
                "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'a.b' in vhost 'm': \
                 received the value '7' of type 'signedint' but current is none: inequivalent arg \
                 'x-max-length' for queue 'a.b' in vhost 'm': received the value '7' of type 'signedint' \
                 but current is none",
                of("x-max-length", None, Some("7")),
            ),
            (
                "inequivalent arg 'x-message-ttl' for queue 'a.b' in vhost '/': received none but \
                 current is the value '1000' of type 'long'",
                of("x-message-ttl", Some("1000"), None),
            ),
            (
                "inequivalent arg 'durable' for queue 'a.b' in vhost '/': received 'true' but current is 'false'",
                of("durable", Some("false"), Some("true")),
            ),
            (
                "inequivalent arg 'x-message-ttl' for queue 'a.b' in vhost '/': received none but curr",
                Some(Difference {
                    argument: "x-message-ttl".to_owned(),
                    values: None,
                }),
            ),
            (
                // Somebody else's exchange may have any name.
                "inequivalent arg 'x-dead-letter-exchange' for queue 'a.b' in vhost '/': received the value \
                 'a' of type 'longstr' but current is the value 'it's' of type 'longstr'",
                of("x-dead-letter-exchange", Some("it's"), Some("a")),
            ),
            (
                "inequivalent arg 'x-message-ttl' for queue 'a.b' in vhost '/': received the value '7' of \
                 type 'long' but current is the value '10: inequivalent arg 'x-message-ttl' for queue 'a.b' \
                 in vhost '/': received the value '7' of type 'long' but current is the value '10",
                Some(Difference {
                    argument: "x-message-ttl".to_owned(),
                    values: None,
                }),
            ),
            ("queue 'a.b' in vhost '/' in use", None),
        ] {
            assert_eq!(read(text), difference, "{text}");
        }
    }
}
