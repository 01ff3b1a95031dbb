//! What the kernel says of a process.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_metrics::fuzzing::process(text));
