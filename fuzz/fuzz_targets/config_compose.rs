//! The text of a compose file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_config::fuzzing::compose(text));
