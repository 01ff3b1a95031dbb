//! AMQP properties and headers of a message from anybody.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_messaging::fuzzing::envelope(bytes));
