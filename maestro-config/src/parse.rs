//! Text to values, without an environment around it. A failure says what is wrong with the text
//! without repeating it: whether it may be shown is not known here.

use std::net::SocketAddr;
use std::time::Duration;

/// Why a text is no value of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Continues the variable's name: `has no unit`.
    pub(crate) message: String,
    /// A value that was probably meant. Derived from the text: shown only where the text may be.
    pub(crate) suggestion: Option<String>,
    /// What to do, where pasting an example would not mend it.
    pub(crate) fix: Option<String>,
}

impl Wrong {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            suggestion: None,
            fix: None,
        }
    }

    pub(crate) fn meant(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Ten years: beyond any setting of a service, and far from where adding to a clock overflows.
const LONGEST: Duration = Duration::from_hours(10 * 366 * 24);

/// 1 EiB: fits every integer that sizes are turned into on a 64-bit machine.
const LARGEST: u64 = 1 << 60;

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const SIZE_UNITS: [(&str, u64); 4] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// What people write instead of the units.
const DURATION_MEANT: [(&str, &str); 12] = [
    ("msec", "ms"),
    ("millis", "ms"),
    ("milliseconds", "ms"),
    ("sec", "s"),
    ("secs", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minutes", "m"),
    ("hr", "h"),
    ("hour", "h"),
    ("hours", "h"),
];
const SIZE_MEANT: [(&str, &str); 9] = [
    ("b", "B"),
    ("k", "KiB"),
    ("kb", "KiB"),
    ("m", "MiB"),
    ("mb", "MiB"),
    ("g", "GiB"),
    ("gb", "GiB"),
    ("mib", "MiB"),
    ("gib", "GiB"),
];

/// `250ms`, `30s`, `5m`, `2h`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    let millis = number_with_unit(text, &DURATION_UNITS, &DURATION_MEANT, "s")?;
    let duration = Duration::from_millis(millis);
    if duration > LONGEST {
        return Err(Wrong::new("is longer than ten years"));
    }
    Ok(duration)
}

/// Durations separated by commas.
pub(crate) fn durations(text: &str) -> Result<Vec<Duration>, Wrong> {
    let parsed: Vec<_> = elements(text)?
        .into_iter()
        .map(|element| (element, duration(element)))
        .collect();
    // Pasting one corrected element would lose the others.
    let meant = parsed.iter().map(|(element, outcome)| match outcome {
        Ok(_) => Some(*element),
        Err(wrong) => wrong.suggestion.as_deref(),
    });
    let meant = meant.collect::<Option<Vec<_>>>().map(|all| all.join(","));
    let durations: Result<_, Wrong> = parsed.into_iter().map(|(_, outcome)| outcome).collect();
    durations.map_err(|wrong| Wrong {
        suggestion: meant,
        ..wrong
    })
}

/// `512B`, `16KiB`, `64MiB`, `1GiB`, `0`.
pub(crate) fn size(text: &str) -> Result<u64, Wrong> {
    let bytes = number_with_unit(text, &SIZE_UNITS, &SIZE_MEANT, "B")?;
    if bytes > LARGEST {
        return Err(Wrong::new("is larger than 1 EiB"));
    }
    Ok(bytes)
}

/// A whole number, both bounds included.
pub(crate) fn count(text: &str, min: u64, max: u64) -> Result<u64, Wrong> {
    if text.starts_with('-') {
        return Err(Wrong::new("is negative"));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Wrong::new("is not a whole number"));
    }
    match text.parse() {
        Ok(number) if number < min => Err(Wrong::new(format!("is below {min}"))),
        Ok(number) if number <= max => Ok(number),
        // Overflow included.
        _ => Err(Wrong::new(format!("is above {max}"))),
    }
}

/// A number from 0 to 1.
pub(crate) fn ratio(text: &str) -> Result<f64, Wrong> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        Ok(_) => Err(Wrong::new("is not between 0 and 1")),
        Err(_) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|n| n.trim().parse::<f64>().ok());
            Err(match percent.filter(|n| (0.0..=100.0).contains(n)) {
                Some(n) => Wrong::new("is a percentage").meant((n / 100.0).to_string()),
                None => Wrong::new("is not a number"),
            })
        }
    }
}

/// An IP address and a port.
pub(crate) fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        if text.parse::<u16>().is_ok() {
            return Wrong::new("is a port without an address").meant(format!("0.0.0.0:{text}"));
        }
        if let Some(port) = text.strip_prefix(':').filter(|p| p.parse::<u16>().is_ok()) {
            return Wrong::new("has no address before the port").meant(format!("0.0.0.0:{port}"));
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            return Wrong::new("has a name where an IP address belongs")
                .meant(format!("127.0.0.1:{port}"));
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Wrong::new("is an IPv6 address without brackets and port")
                .meant(format!("[{text}]:8000"));
        }
        if text.parse::<std::net::Ipv4Addr>().is_ok() {
            return Wrong::new("has no port").meant(format!("{text}:8000"));
        }
        Wrong::new("is not an IP address with a port")
    })
}

/// The elements of a comma-separated list, trimmed; an empty one is a mistake, not an element.
pub(crate) fn elements(text: &str) -> Result<Vec<&str>, Wrong> {
    let elements: Vec<_> = text.split(',').map(str::trim).collect();
    if elements.iter().any(|element| element.is_empty()) {
        return Err(Wrong::new("has an empty element between commas"));
    }
    Ok(elements)
}

fn number_with_unit(
    text: &str,
    units: &[(&str, u64)],
    meant: &[(&str, &str)],
    usual: &str,
) -> Result<u64, Wrong> {
    if text == "0" {
        return Ok(0);
    }
    if text.starts_with('-') {
        return Err(Wrong::new("is negative"));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    // Only ASCII before, so this is a character boundary.
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(Wrong::new("does not begin with a whole number"));
    }
    if unit.is_empty() {
        return Err(Wrong::new("has no unit").meant(format!("{number}{usual}")));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let lower = unit.trim().to_ascii_lowercase();
        let known = units
            .iter()
            .map(|(name, _)| (name.to_ascii_lowercase(), *name));
        let synonyms = meant.iter().map(|(from, to)| ((*from).to_owned(), *to));
        let guess = known.chain(synonyms).find(|(from, _)| *from == lower);
        let wrong = if unit.starts_with('.') {
            Wrong::new("is not a whole number")
        } else {
            Wrong::new("has an unknown unit")
        };
        return Err(match guess {
            Some((_, unit)) => wrong.meant(format!("{number}{unit}")),
            None => wrong,
        });
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| Wrong::new("is too large"))
}

#[cfg(test)]
mod tests;
