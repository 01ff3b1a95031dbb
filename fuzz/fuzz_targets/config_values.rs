//! One value of each kind. A value that is accepted is accepted again with white space around it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maestro_config::Environment;
use maestro_fuzz::{Settings, VALUES};

fuzz_target!(|text: &str| {
    for name in VALUES {
        let accepted = Environment::from_pairs([(name, text)]).read::<Settings>();
        let padded = Environment::from_pairs([(name, format!(" {text}\n"))]).read::<Settings>();
        assert_eq!(accepted.is_ok(), padded.is_ok(), "{name}");
        if let Err(error) = accepted {
            assert!(
                error
                    .problems()
                    .iter()
                    .all(|problem| !problem.fix().is_empty())
            );
        }
    }
});
