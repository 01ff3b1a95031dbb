//! The URL of a collector.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_metrics::fuzzing::endpoint(text));
