//! The bytes of a secret file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| maestro_config::fuzzing::secret_file(bytes));
