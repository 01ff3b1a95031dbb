//! A key that the server says has changed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|key: &[u8]| maestro_cache::fuzzing::invalidation(key));
