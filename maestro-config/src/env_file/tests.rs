use proptest::prelude::*;

use super::*;
use crate::template::{Absent, Segment, Template};

/// The assignments of a text as `NAME=value`, references in their written form.
fn read(text: &str) -> Vec<String> {
    let parsed = parse(text);
    assert_eq!(parsed.faults, [], "{text}");
    let items = parsed.items.iter().map(|(_, item)| match item {
        Item::Assign { name, value } => format!("{name}={}", written(value)),
        Item::Include { path, optional } => {
            format!(
                "{} {}",
                if *optional { "optional" } else { "source" },
                written(path)
            )
        }
    });
    items.collect()
}

fn written(template: &Template) -> String {
    let segments = template.0.iter().map(|segment| match segment {
        Segment::Text(text) => text.to_string(),
        Segment::Reference { name, absent } => match absent {
            Absent::Mistake => format!("${{{name}}}"),
            Absent::PerhapsLiteral => format!("${name}"),
            Absent::Advice(advice) => format!("${{{name}:?{advice}}}"),
            Absent::Instead {
                empty_too,
                otherwise,
            } => {
                let colon = if *empty_too { ":" } else { "" };
                format!("${{{name}{colon}-{}}}", written(otherwise))
            }
        },
    });
    segments.collect()
}

#[test]
fn ordinary_lines_mean_what_a_shell_makes_of_them() {
    for (line, meaning) in [
        ("A=b", "A=b"),
        ("  export A=b  ", "A=b"),
        ("A=", "A="),
        ("A=''", "A="),
        ("A=  # nothing", "A="),
        ("A=b # comment", "A=b"),
        ("A=b#c", "A=b#c"),
        ("A=#b", "A=#b"),
        ("A='b # c'", "A=b # c"),
        ("A='b'  # c", "A=b"),
        ("A=\"b ' c\"", "A=b ' c"),
        ("A='a'\"b\"c", "A=abc"),
        ("A=\"b \"c  ", "A=b c"),
        ("A='b '", "A=b "),
        ("A=hello world", "A=hello world"),
        ("A=b\\$c\\#d", "A=b$c#d"),
        ("A='b$c\\'", "A=b$c\\"),
        ("A=\"x\\n\\t\\\"\\\\\\$\"", "A=x\n\t\"\\$"),
        ("A=b\\\nc", "A=bc"),
        ("A=C:\\path", "A=C:\\path"),
        ("A=five$", "A=five$"),
        ("A=${B}", "A=${B}"),
        ("A=$B/c", "A=$B/c"),
        ("A=${B:-}", "A=${B:-}"),
        ("A=${B:-c d}e", "A=${B:-c d}e"),
        ("A=${B-c}", "A=${B-c}"),
        ("A=${B:-\"c}\"'}'}", "A=${B:-c}}}"),
        ("A=\"${B:-${C:-d}}\"", "A=${B:-${C:-d}}"),
        ("A='${B}'", "A=${B}"),
        ("A=${B:?set B}", "A=${B:?set B}"),
        (
            "A=postgresql://u:${P:-changeme}@h:5432/db",
            "A=postgresql://u:${P:-changeme}@h:5432/db",
        ),
        (
            "source ../infrastructure/.env.infrastructure",
            "source ../infrastructure/.env.infrastructure",
        ),
        (". './a b/.env' # why", "source ./a b/.env"),
        ("source \"${DIR:-..}/.env\";", "source ${DIR:-..}/.env"),
        (
            "source .env.local 2>/dev/null || true",
            "optional .env.local",
        ),
        (
            "[ -f .env.local ] && source .env.local",
            "optional .env.local",
        ),
    ] {
        assert_eq!(read(line), [meaning], "{line}");
    }
}

#[test]
fn lines_that_set_nothing_are_skipped() {
    let text = "\u{feff}# comment\n\n   \nset -a\nset +a\nset -o allexport\nexport A\n#!/bin/sh\n";
    assert_eq!(read(text), Vec::<String>::new());
}

#[test]
fn windows_line_ends_belong_to_no_value() {
    assert_eq!(
        read("A=b\r\nC='d\r\ne'\r\nF=\"g\"\r\n"),
        ["A=b", "C=d\ne", "F=g"]
    );
    assert_eq!(read("A=b\r"), ["A=b"]);
}

#[test]
fn quoted_values_may_span_lines_and_lines_are_still_counted() {
    let parsed = parse("A='1\n2\n3'\nB=4\nC D\n");
    let lines: Vec<_> = parsed.items.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 4]);
    assert_eq!(parsed.faults[0].line, 5);
}

#[test]
fn what_is_not_understood_says_what_to_write_instead() {
    for (line, message, name) in [
        ("A = b", "spaces", None),
        ("A= b", "spaces", Some("A")),
        ("A=\tb", "spaces", Some("A")),
        ("A=it's", "inside an unquoted value", Some("A")),
        ("A=b\"c", "inside an unquoted value", Some("A")),
        ("A=b c'd", "inside an unquoted value", Some("A")),
        ("- A=b", "compose", None),
        ("A: b", "compose", None),
        ("A-B=c", "name with other characters", None),
        ("1A=c", "name with other characters", None),
        ("A", "gives no value", None),
        ("A=b B=c", "second `NAME=`", Some("A")),
        ("A='b' c", "after the closing quote", Some("A")),
        ("A='b", "quote that nothing closes", Some("A")),
        ("A=\"b", "quote that nothing closes", Some("A")),
        ("A=$(date)", "command", Some("A")),
        ("A=`date`", "command", Some("A")),
        ("A=pa$1word", "begins no reference", Some("A")),
        ("A=pa$$word", "begins no reference", Some("A")),
        ("A=${B", "cannot be read", Some("A")),
        ("A=${}", "cannot be read", Some("A")),
        ("A=${B/x/y}", "cannot be read", Some("A")),
        ("A=${B:+c}", "cannot be read", Some("A")),
        (
            "if [ -f x ]; then",
            "neither a setting nor an include",
            None,
        ),
        ("echo hello", "neither a setting nor an include", None),
        ("source", "gives no value", None),
        ("source a b", "neither a setting nor an include", None),
        ("set -e", "neither a setting nor an include", None),
        ("[ -f x ] || exit", "neither a setting nor an include", None),
    ] {
        let parsed = parse(line);
        let [fault] = parsed.faults.as_slice() else {
            panic!("{line}: {:?}", parsed.faults);
        };
        assert!(fault.message.contains(message), "{line}: {}", fault.message);
        assert_eq!(fault.name.as_deref(), name, "{line}");
        assert!(!fault.fix.is_empty());
    }
}

#[test]
fn a_fault_does_not_hide_the_settings_after_it() {
    let parsed = parse("A='-----BEGIN\nMIIEcanary\nCANARY=\nB=c\nD E\n");
    assert_eq!(parsed.faults.len(), 1, "one mistake, one fault");
    let named =
        |(_, item): &(usize, Item)| matches!(item, Item::Assign { name, .. } if name == "B");
    assert!(parsed.items.iter().any(named));
}

#[test]
fn an_apostrophe_swallows_no_lines() {
    let parsed = parse("A=it's\nB=2\nC=don't\nD E\n");
    let lines: Vec<_> = parsed.faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 3, 4]);
    let named =
        |(_, item): &(usize, Item)| matches!(item, Item::Assign { name, .. } if name == "B");
    assert!(parsed.items.iter().any(named));
    assert_eq!(read("A=a'b c'd\nB=2"), ["A=ab cd", "B=2"]);
    assert_eq!(read("A='a\nb'\"c\nd\""), ["A=a\nbc\nd"]);
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("A={}x{}", "${B:-".repeat(100_000), "}".repeat(100_000));
    assert!(parse(&deep).faults[0].message.contains("too deeply"));
}

proptest! {
    #[test]
    fn no_text_at_all_makes_the_parser_fall_over(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_text_of_its_own_characters_makes_the_parser_fall_over(
        text in "[AB=${}:\\-?'\"\\\\ #\n\r`().;|&x1]{0,60}"
    ) {
        let parsed = parse(&text);
        let lines = text.matches('\n').count() + 1;
        prop_assert!(parsed.items.iter().all(|(line, _)| *line <= lines));
        prop_assert!(parsed.faults.iter().all(|fault| fault.line <= lines));
    }

    #[test]
    fn a_single_quoted_value_is_read_back_as_it_is(value in "[^'\r\0]{0,40}") {
        prop_assert_eq!(read(&format!("A='{value}'\nB=c")), [format!("A={value}"), "B=c".to_owned()]);
    }

    #[test]
    fn a_plain_value_is_read_back_as_it_is(value in "[a-zA-Z0-9_:/@.,+%-]{1,40}") {
        prop_assert_eq!(read(&format!("A={value}")), [format!("A={value}")]);
    }

    #[test]
    fn a_fault_never_repeats_the_line(
        before in "[AB=${}:'\"\\\\ #`-]{0,8}", after in "[=${}:'\"\\\\ #`-]{0,8}"
    ) {
        let parsed = parse(&format!("{before}canary{after}\n"));
        let shown = format!("{:?}", parsed.faults);
        prop_assert!(!shown.contains("canary"), "{}", shown);
    }
}
