use proptest::prelude::*;

use super::*;

#[test]
fn durations_need_a_whole_number_and_a_unit() {
    assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
    assert_eq!(duration("2h"), Ok(Duration::from_hours(2)));
    assert_eq!(duration("0"), Ok(Duration::ZERO));
    for (text, meant) in [
        ("30", Some("30s")),
        ("30 s", Some("30s")),
        ("30S", Some("30s")),
        ("5min", Some("5m")),
        ("-5s", None),
        ("1.5s", None),
        ("0.s", None),
        ("s", None),
        ("1d", None),
        ("1m30s", None),
        ("٣s", None),
        ("99999999999999999999s", None),
        ("18446744073709551615h", None),
        ("87841h", None),
    ] {
        let wrong = duration(text).expect_err(text);
        assert_eq!(wrong.suggestion.as_deref(), meant, "{text}");
    }
}

#[test]
fn what_was_meant_by_a_list_is_the_whole_list() {
    for (text, meant) in [
        ("1,10,60", Some("1s,10s,60s")),
        ("1s, 10 s,1min", Some("1s,10s,1m")),
        ("1s,-1s,3", None),
        ("1s,,2s", None),
    ] {
        let wrong = durations(text).expect_err(text);
        assert_eq!(wrong.suggestion.as_deref(), meant, "{text}");
    }
}

#[test]
fn the_longest_duration_can_be_added_to_a_clock() {
    let longest = duration("87840h").unwrap();
    assert!(std::time::Instant::now().checked_add(longest).is_some());
    assert!(std::time::SystemTime::now().checked_add(longest).is_some());
}

#[test]
fn sizes_are_binary() {
    assert_eq!(size("64MiB"), Ok(64 << 20));
    assert_eq!(size("0"), Ok(0));
    for (text, meant) in [
        ("64MB", Some("64MiB")),
        ("64", Some("64B")),
        ("64m", Some("64MiB")),
        ("-1B", None),
        ("17179869184GiB", None),
        ("1073741825GiB", None),
    ] {
        let wrong = size(text).expect_err(text);
        assert_eq!(wrong.suggestion.as_deref(), meant, "{text}");
    }
}

#[test]
fn numbers_stay_within_their_bounds() {
    assert_eq!(count("10", 1, 10), Ok(10));
    for text in [
        "0",
        "11",
        "-1",
        "1.0",
        "+1",
        "",
        "1e1",
        "99999999999999999999999",
        "٣",
    ] {
        assert!(count(text, 1, 10).is_err(), "{text}");
    }
    assert_eq!(ratio("0.25"), Ok(0.25));
    for text in ["1.1", "-0.1", "NaN", "inf", "", "x"] {
        assert!(ratio(text).is_err(), "{text}");
    }
    assert_eq!(ratio("10%").unwrap_err().suggestion.as_deref(), Some("0.1"));
}

#[test]
fn addresses_are_numeric_and_have_a_port() {
    assert!(address("0.0.0.0:8000").is_ok());
    assert!(address("[::1]:8000").is_ok());
    for (text, meant) in [
        ("8000", Some("0.0.0.0:8000")),
        (":8000", Some("0.0.0.0:8000")),
        ("localhost:8000", Some("127.0.0.1:8000")),
        ("::1", Some("[::1]:8000")),
        ("127.0.0.1", Some("127.0.0.1:8000")),
        ("127.0.0.1:70000", None),
        ("example.org:80", None),
    ] {
        let wrong = address(text).expect_err(text);
        assert_eq!(wrong.suggestion.as_deref(), meant, "{text}");
    }
}

proptest! {
    #[test]
    fn a_duration_is_read_back_as_it_was_written(n in 0_u64..1_000_000, unit in 0_usize..4) {
        let (unit, factor) = DURATION_UNITS[unit];
        let parsed = duration(&format!("{n}{unit}"));
        let expected = Duration::from_millis(n * factor);
        if expected <= LONGEST {
            prop_assert_eq!(parsed, Ok(expected));
        } else {
            prop_assert!(parsed.is_err());
        }
    }

    #[test]
    fn a_size_is_read_back_as_it_was_written(n in 0_u64..(1 << 30), unit in 0_usize..4) {
        let (unit, factor) = SIZE_UNITS[unit];
        prop_assert_eq!(size(&format!("{n}{unit}")), Ok(n * factor));
    }

    #[test]
    fn a_suggestion_is_always_acceptable(text in "[0-9]{1,4} {0,2}[a-zA-Z]{0,5}") {
        if let Err(Wrong { suggestion: Some(meant), .. }) = duration(&text) {
            prop_assert!(duration(&meant).is_ok(), "{}", meant);
        }
        if let Err(Wrong { suggestion: Some(meant), .. }) = size(&text) {
            prop_assert!(size(&meant).is_ok(), "{}", meant);
        }
    }

    #[test]
    fn no_text_at_all_makes_a_parser_fall_over(text in any::<String>()) {
        let _ = duration(&text);
        let _ = durations(&text);
        let _ = size(&text);
        let _ = count(&text, 0, u64::MAX);
        let _ = ratio(&text);
        let _ = address(&text);
        let _ = elements(&text);
    }
}
