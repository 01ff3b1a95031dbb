//! What a Redis answers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_testkit::fuzzing::reply(bytes));
