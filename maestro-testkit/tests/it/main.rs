//! The test kit against real servers.

mod dedicated;
mod first;
