//! The headers that carry trace, baggage, correlation id and tenant, from anybody.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|headers: [&str; 5]| maestro_metrics::fuzzing::context(headers));
