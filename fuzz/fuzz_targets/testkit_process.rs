//! A process as it was written down.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_testkit::fuzzing::process(text));
