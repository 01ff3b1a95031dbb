//! Paths of certificates and keys.

use std::path::PathBuf;

use crate::parse::Wrong;
use crate::reader::Reader;
use crate::variable::Variable;

/// The files of `MAESTRO_<AREA>_TLS_{CA,CERT,KEY}`: an own certificate authority, and certificate and
/// key with which the service proves who it is.
///
/// Paths, not contents: a client reads them for every new connection, so that a renewed certificate
/// is taken up without a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsPaths {
    /// The certificate authority that signed the server's certificate; the system's when absent.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key; one is never there without the other.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Reader<'_> {
    /// The paths of one area. A file that cannot be opened is a problem now and not at the first
    /// connection; so is a certificate without its key.
    pub fn tls(&mut self, ca: &Variable, cert: &Variable, key: &Variable) -> Option<TlsPaths> {
        let ca = self.optional(ca, Self::readable);
        let certificate = self.optional(cert, Self::readable);
        let private = self.optional(key, Self::readable);
        let identity = match (certificate?, private?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return self.alone(key, cert),
            (None, Some(_)) => return self.alone(cert, key),
        };
        Some(TlsPaths { ca: ca?, identity })
    }

    fn alone<T>(&mut self, absent: &Variable, present: &Variable) -> Option<T> {
        let message = format!(
            "is not set, but {} is, and they belong together",
            present.name
        );
        self.problem(absent, message, absent.fix(None));
        None
    }

    fn readable(&mut self, variable: &Variable) -> Option<PathBuf> {
        self.parse(variable, |text| {
            let path = PathBuf::from(text);
            let wrong = |message: String| {
                Err(Wrong::new(message).fix("mount the file there, or correct the path"))
            };
            if text.starts_with("-----BEGIN") {
                return Err(Wrong::new(
                    "holds the key or certificate itself where its path belongs",
                )
                .fix("write it into a file, and that file's path here"));
            }
            // Before opening it: to open a pipe would wait for its writer.
            match std::fs::metadata(&path) {
                Ok(metadata) if !metadata.is_file() => return wrong("is not a file".to_owned()),
                Ok(_) => {}
                Err(error) => return wrong(format!("cannot be opened ({})", error.kind())),
            }
            match std::fs::File::open(&path) {
                Ok(_) => Ok(path),
                Err(error) => wrong(format!("cannot be opened ({})", error.kind())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Environment, FromEnvironment, Kind, Reader, Table, TlsPaths, Variable};

    const CA: Variable = Variable::new("MAESTRO_CACHE_TLS_CA", Kind::Path);
    const CERT: Variable = Variable::new("MAESTRO_CACHE_TLS_CERT", Kind::Path);
    const KEY: Variable = Variable::new("MAESTRO_CACHE_TLS_KEY", Kind::Path);
    static TABLE: Table = Table {
        owner: "maestro-cache",
        areas: &["MAESTRO_CACHE_"],
        variables: &[CA, CERT, KEY],
    };

    #[derive(Debug)]
    struct Tls(TlsPaths);

    impl FromEnvironment for Tls {
        fn tables() -> Vec<&'static Table> {
            vec![&TABLE]
        }

        fn read(reader: &mut Reader<'_>) -> Option<Self> {
            reader.tls(&CA, &CERT, &KEY).map(Self)
        }
    }

    #[test]
    fn certificate_and_key_come_together_and_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file.pem");
        std::fs::write(&file, "x").unwrap();
        let file = file.to_str().unwrap();
        let missing = directory.path().join("missing.pem");
        let missing = missing.to_str().unwrap();
        let read =
            |pairs: &[(&str, &str)]| Environment::from_pairs(pairs.iter().copied()).read::<Tls>();
        let both = read(&[(CERT.name(), file), (KEY.name(), file)]).unwrap().0;
        assert!(both.identity.is_some() && both.ca.is_none());
        assert_eq!(read(&[]).unwrap().0, TlsPaths::default());
        let alone = read(&[(CERT.name(), file)]).unwrap_err();
        assert_eq!(alone.problems()[0].variable(), KEY.name());
        let unreadable = [
            (CA.name(), missing),
            (CERT.name(), missing),
            (KEY.name(), missing),
        ];
        assert_eq!(read(&unreadable).unwrap_err().problems().len(), 3);
        let directory = directory.path().to_str().unwrap();
        assert!(read(&[(CA.name(), directory)]).is_err());
    }

    #[test]
    fn a_key_where_its_path_belongs_is_not_shown() {
        let key = "-----BEGIN PRIVATE KEY-----\ncanaryMIIEvQ\n-----END PRIVATE KEY-----\n";
        let pairs = [(KEY.name(), key), (CERT.name(), "/nowhere/at/all")];
        let error = Environment::from_pairs(pairs).read::<Tls>().unwrap_err();
        let shown = error.to_string();
        assert!(!shown.contains("canary"), "{shown}");
        assert!(
            shown.contains("holds the key or certificate itself"),
            "{shown}"
        );
    }
}
