//! The files with which a server of this machine speaks TLS.

use std::path::{Path, PathBuf};

use super::write_private;
use crate::authority::Authority;
use crate::error::Error;

/// Paths in a server's directory.
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Writes the authority's certificate, and a certificate and key for the server.
pub(super) fn write(
    authority: &Authority,
    directory: &Path,
    owner: Option<(u32, u32)>,
) -> Result<Files, Error> {
    let files = Files {
        ca: directory.join("ca.pem"),
        certificate: directory.join("server.pem"),
        key: directory.join("server.key"),
    };
    let server = authority.server()?;
    write_private(&files.ca, authority.pem(), owner)?;
    write_private(&files.certificate, server.pem(), owner)?;
    write_private(&files.key, server.key(), owner)?;
    Ok(files)
}
