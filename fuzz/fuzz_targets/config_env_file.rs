//! The text of an env file, read whole: syntax, references, merging, typed values, report.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maestro_config::Environment;
use maestro_fuzz::Settings;

fuzz_target!(|text: &str| {
    // Two layers, so that references go up and down between them.
    let (lower, upper) = text.split_once('\u{1}').unwrap_or((text, ""));
    let none: [(&str, &str); 0] = [];
    let environment = Environment::from_pairs(none)
        .with_env_file("lower.env", lower)
        .with_env_file("upper.env", upper);
    match environment.read_with_warnings::<Settings>() {
        Ok(settings) => drop(format!("{settings:?}")),
        Err(error) => drop(error.to_string()),
    }
});
