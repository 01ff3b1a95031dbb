//! The URL of a Redis.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_cache::fuzzing::address(text));
