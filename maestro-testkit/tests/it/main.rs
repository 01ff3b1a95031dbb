//! The test kit against real servers.

mod clients;
mod dedicated;
mod links;
mod sandboxes;
mod sharing;
mod sources;
mod templates;
