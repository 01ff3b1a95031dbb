//! Log directives, and headers for a collector.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| maestro_metrics::fuzzing::settings(text));
