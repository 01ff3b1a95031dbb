//! Bytes under a key of a cache, from anybody.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_cache::fuzzing::stored(bytes));
