//! A certificate authority of a test's own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, ErrorKind};

/// A certificate authority that nobody knows but those who are told of it, for tests of TLS.
/// Cheap to clone.
///
/// ```
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use maestro_testkit::Authority;
///
/// let authority = Authority::new()?;
/// let client = authority.client("orders")?;
/// let directory = std::env::temp_dir();
/// // `ca.pem`, `client.pem` and `client.key`, as MAESTRO_*_TLS_{CA,CERT,KEY} want them.
/// let ca = authority.write(&directory, "ca")?;
/// let (certificate, key) = client.write(&directory, "client")?;
/// # let _ = (ca, certificate, key);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    pem: Arc<str>,
}

impl Authority {
    /// An authority with a key of its own.
    pub fn new() -> Result<Self, Error> {
        let mut params = named("maestro-testkit");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            issuer: Arc::new(Issuer::new(params, key)),
            pem: pem.into(),
        })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate to `<directory>/<stem>.pem`.
    pub fn write(&self, directory: &Path, stem: &str) -> Result<PathBuf, Error> {
        write(directory, &format!("{stem}.pem"), &self.pem)
    }

    /// A certificate for a server on this machine: `127.0.0.1` and `localhost`.
    pub fn server(&self) -> Result<Certificate, Error> {
        self.issue("server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client of this name.
    pub fn client(&self, name: &str) -> Result<Certificate, Error> {
        self.issue(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<Certificate, Error> {
        let mut params = named(name);
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        params.subject_alt_names = CertificateParams::new(names)
            .map_err(failed)?
            .subject_alt_names;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Certificate {
            pem: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate that an [`Authority`] issued, and its private key.
#[derive(Clone)]
pub struct Certificate {
    pem: String,
    key: String,
}

impl Certificate {
    /// The certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its private key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Writes certificate and key to `<directory>/<stem>.pem` and `<stem>.key`.
    pub fn write(&self, directory: &Path, stem: &str) -> Result<(PathBuf, PathBuf), Error> {
        Ok((
            write(directory, &format!("{stem}.pem"), &self.pem)?,
            write(directory, &format!("{stem}.key"), &self.key)?,
        ))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    std::fs::write(&path, text)
        .map_err(|error| Error::io(format!("writing {}", path.display()), error))?;
    Ok(path)
}

fn failed(error: rcgen::Error) -> Error {
    Error::new(ErrorKind::Io, "making a certificate").with(error)
}
