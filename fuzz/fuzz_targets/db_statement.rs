//! The text of a statement, or of several.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|sql: &str| maestro_db::fuzzing::statement(sql));
