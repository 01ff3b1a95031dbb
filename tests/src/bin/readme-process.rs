//! The service of the README, exactly as printed there.

include!(concat!(env!("OUT_DIR"), "/readme.rs"));
