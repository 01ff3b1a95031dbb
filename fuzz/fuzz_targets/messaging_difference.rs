//! What the broker says of an argument that differs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_messaging::fuzzing::difference(text));
