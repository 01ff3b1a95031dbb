//! What a service gets on the shared servers, as text: the statements that create its database,
//! roles, Redis user and RabbitMQ permissions.
//!
//! Everything here is a pure function from names to statements. Nothing connects anywhere: the
//! command line, the test kit and the database crate execute what is rendered here, so that no two
//! of them can disagree about who may touch what. Every statement can be run again over its own
//! result, and converges on the same state.
//!
//! ```
//! use maestro_config::provision::{Passwords, ServiceResources, postgres, rabbitmq, redis};
//! use maestro_config::{Secret, ServiceName};
//!
//! let service: ServiceName = "quality-fabric".parse()?;
//! let password = |text: &str| Secret::new(text.to_owned());
//! let resources = ServiceResources::conventional(
//!     &service,
//!     Passwords {
//!         postgres: password("p1"),
//!         migrator: password("p2"),
//!         cache: password("p3"),
//!         messaging: password("p4"),
//!     },
//! );
//! for step in postgres::service_steps(&resources) {
//!     println!("-- in {:?}\n{}", step.run_in(), step.sql());
//! }
//! let acl = redis::service_user(&resources, &redis::Server::default());
//! assert_eq!(acl.set_user()[..3], ["ACL", "SETUSER", "quality_fabric"]);
//! let permissions = rabbitmq::permissions(&resources);
//! assert_eq!(permissions.read, r"^quality-fabric\.|\.events$");
//! # Ok::<(), maestro_config::InvalidName>(())
//! ```

mod encode;
pub mod postgres;
mod quote;
pub mod rabbitmq;
pub mod redis;
mod resources;

pub(crate) use encode::percent;
pub use resources::{Passwords, ServiceResources};
