//! What a RabbitMQ says while a connection is opened.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_testkit::fuzzing::frame(bytes));
