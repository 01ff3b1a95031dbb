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

mod conventions;
mod environment;
mod error;
mod identity;
pub mod provision;
mod reader;
mod secret;
mod variable;

pub use conventions::{InvalidName, ServiceName, SubscriptionName};
pub use environment::Environment;
pub use error::{ConfigError, Problem};
pub use identity::{Deployment, Identity};
pub use reader::{FromEnvironment, Reader};
pub use secret::Secret;
pub use variable::{Kind, Table, Variable};
