//! The cache against a real server.

mod place;

mod regions;
