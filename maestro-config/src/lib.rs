//! Configuration of Maestro services.
//!
//! Every setting of a service comes from `MAESTRO_*` variables. A crate declares its variables as
//! data ([`Variable`], [`Table`]) and reads them through a [`Reader`]; an [`Environment`] reads the
//! tables of all crates in one go and reports every problem at once.
//!
//! ```
//! use maestro_config::{Environment, Identity};
//!
//! let environment = Environment::from_pairs([
//!     ("MAESTRO_SERVICE_NAME", "quality-fabric"),
//!     ("MAESTRO_ENVIRONMENT", "development"),
//! ]);
//! let identity = environment.read::<Identity>()?;
//! assert_eq!(identity.service().database(), "quality_fabric");
//! # Ok::<(), maestro_config::ConfigError>(())
//! ```

mod compose;
mod conventions;
pub mod docs;
mod env_file;
mod environment;
mod error;
mod explain;
mod fault;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod identity;
mod kind;
mod layers;
mod merge;
mod origin;
mod parse;
pub mod provision;
mod raw;
mod reader;
mod report;
mod rules;
mod secret;
mod secret_file;
mod secret_source;
mod server_url;
mod template;
mod tls;
mod typos;
mod url_syntax;
mod variable;

pub use conventions::{InvalidName, ServiceName, SubscriptionName};
pub use environment::Environment;
pub use error::{ConfigError, Problem};
pub use explain::Setting;
pub use identity::{Deployment, Identity};
pub use kind::Kind;
pub use origin::Origin;
pub use reader::{FromEnvironment, Reader};
pub use secret::Secret;
pub use secret_file::{SecretFile, SecretFileError};
pub use secret_source::SecretSource;
pub use server_url::ServerUrl;
pub use tls::TlsPaths;
pub use variable::{Table, Variable};
