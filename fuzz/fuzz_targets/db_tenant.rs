//! The id of a tenant.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_db::fuzzing::tenant(text));
