//! The bytes of a connection, before the driver reads them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_messaging::fuzzing::stream(bytes));
