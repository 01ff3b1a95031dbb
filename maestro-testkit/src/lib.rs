//! Dev services: real PostgreSQL, Redis and RabbitMQ for tests and demos, with nothing to set up.
//!
//! [`Stack::start`] joins the servers of this clone of the project or starts them; a
//! [`Sandbox`] is one service's own place on them, and its
//! [`environment`](Sandbox::environment) is all the service needs to run there.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use maestro_testkit::Stack;
//!
//! let stack = Stack::start().await?;
//! let sandbox = stack.sandbox("orders").await?;
//! let environment = maestro_config::Environment::from_pairs(sandbox.environment());
//!
//! // Faults concern this sandbox alone.
//! sandbox.cache_link().cut().await?;
//! sandbox.cache_link().restore().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Where a server comes from is decided one by one, and said on standard error: a
//! `MAESTRO_TEST_*_URL`, a container, a binary of this machine, or an error that names the command
//! that mends it. A test that breaks the server itself asks for [`Stack::dedicated`].

mod administer;
mod authority;
mod background;
mod config;
mod control;
mod docker;
mod error;
mod explicit;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guard;
mod home;
mod install;
mod link;
mod local;
mod port;
mod process;
mod provider;
mod registry;
mod report;
mod sandbox;
mod scram;
mod server;
mod service;
mod settings;
mod stack;
mod template;
mod tied;
mod wire;

pub use authority::{Authority, Certificate};
pub use config::{DevServicesConfig, Source};
pub use error::{Error, ErrorKind};
pub use install::{Missing, install_command, missing};
pub use link::Link;
pub use port::Port;
pub use sandbox::Sandbox;
pub use server::Server;
pub use service::{Origin, Service};
pub use stack::{Stack, StackBuilder};
pub use template::{Blank, Template, fingerprint};
pub use tied::tied;
