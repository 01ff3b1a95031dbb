//! The URL of a broker.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_messaging::fuzzing::address(text));
