//! Images of the servers in two generations, built from Debian packages by `tests/images/build`.

use std::process::Command;

use super::{Program, install, missing_of, provide};
use crate::failure::Result;
use crate::process::{self, announce};
use crate::workspace;

/// Servers of one age, together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generation {
    pub(crate) name: &'static str,
    /// What the testkit reads, and the image it is to take.
    pub(crate) images: &'static [(&'static str, &'static str)],
}

/// The oldest servers in use, and the newest.
pub(crate) const GENERATIONS: [Generation; 2] = [
    Generation {
        name: "bookworm",
        images: &[
            (
                "MAESTRO_TEST_POSTGRES_IMAGE",
                "maestro-standin/postgres:bookworm",
            ),
            ("MAESTRO_TEST_CACHE_IMAGE", "maestro-standin/redis:bookworm"),
            (
                "MAESTRO_TEST_MESSAGING_IMAGE",
                "maestro-standin/rabbitmq:bookworm",
            ),
        ],
    },
    Generation {
        name: "trixie",
        images: &[
            (
                "MAESTRO_TEST_POSTGRES_IMAGE",
                "maestro-standin/postgres:trixie",
            ),
            ("MAESTRO_TEST_CACHE_IMAGE", "maestro-standin/redis:trixie"),
            (
                "MAESTRO_TEST_MESSAGING_IMAGE",
                "maestro-standin/rabbitmq:trixie",
            ),
        ],
    },
];

/// Builds the images of a generation (`all`: of each) that are not there yet; the script says what it
/// does and what it needs. Bookworm's also get the names the testkit asks Docker for by default.
pub(crate) fn build(generation: &str) -> Result<()> {
    announce(
        "building images of the servers that are not there yet (about two minutes a generation)",
    );
    if install::is_possible() && !missing_of(&[DEBOOTSTRAP]).is_empty() {
        provide(&[DEBOOTSTRAP])?;
    }
    process::run(
        Command::new(workspace::root().join("tests/images/build"))
            .args(["--generation", generation]),
    )
}

const DEBOOTSTRAP: Program = Program {
    name: "debootstrap",
    package: "debootstrap",
    files: &["/usr/sbin/debootstrap"],
    command: Some("debootstrap"),
    is_server: false,
};
