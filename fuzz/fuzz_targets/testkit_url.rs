//! The URL of a server somebody else runs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_testkit::fuzzing::url(text));
