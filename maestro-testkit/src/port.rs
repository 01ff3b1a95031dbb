//! Ports for servers that are started, stopped and started again.

use std::net::TcpListener;
use std::ops::Range;

use crate::error::{Error, ErrorKind};

/// Ports are taken from below every system's range for outgoing connections: a server that was
/// stopped to be started again would else find its port taken by somebody's client. The platform's
/// own host ports (25432, 27379, …) lie above.
const SERVERS: Range<u16> = 20_000..25_000;

/// Links are many and short-lived: apart from the servers, whose range others draw from as well.
const LINKS: Range<u16> = 10_500..15_500;

/// A port of the loopback interface, for a server that a test starts itself.
///
/// Between looking for a free port and listening on it, and while a server is down to be started
/// again, nothing holds its port: another test would take it. As long as this lives, no process that
/// reserves its ports gets this one.
#[derive(Debug)]
#[must_use]
pub struct Port {
    number: u16,
    _claim: Claim,
}

impl Port {
    /// A port that nobody listens on and nobody has reserved.
    pub fn reserve() -> Result<Self, Error> {
        Self::among(&SERVERS)
    }

    /// A port for the proxy of a link.
    pub(crate) fn for_link() -> Result<Self, Error> {
        Self::among(&LINKS)
    }

    fn among(range: &Range<u16>) -> Result<Self, Error> {
        let free = (0..1000).find_map(|_| {
            let number = fastrand::u16(range.clone());
            let claim = Claim::on(number)?;
            // The claim says nothing of those who do not reserve.
            let probe = TcpListener::bind(("127.0.0.1", number)).ok()?;
            drop(probe);
            Some(Self {
                number,
                _claim: claim,
            })
        });
        free.ok_or_else(|| {
            let what = format!("found no free port on 127.0.0.1 in {range:?}");
            Error::new(ErrorKind::Io, what)
        })
    }

    /// Several of them.
    pub(crate) fn several<const N: usize>() -> Result<[Self; N], Error> {
        let mut ports = Vec::with_capacity(N);
        while ports.len() < N {
            ports.push(Self::reserve()?);
        }
        ports
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Io, "reserving ports"))
    }

    /// The port.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// A name in the abstract namespace of Unix sockets: it belongs to the same network namespace as the
/// port, needs no file, and is free again when the process ends in whatever way.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Claim {
    /// None where the system gives out no such names: then a claim is a hope.
    _name: Option<std::os::unix::net::UnixListener>,
}

#[cfg(target_os = "linux")]
impl Claim {
    fn on(port: u16) -> Option<Self> {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::{SocketAddr, UnixListener};

        let name = SocketAddr::from_abstract_name(format!("maestro-testkit-port-{port}")).ok()?;
        match UnixListener::bind_addr(&name) {
            Ok(name) => Some(Self { _name: Some(name) }),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => None,
            Err(_) => Some(Self { _name: None }),
        }
    }
}

/// Elsewhere one process at least does not hand out a port twice.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Claim {
    port: u16,
}

#[cfg(not(target_os = "linux"))]
static CLAIMED: std::sync::Mutex<std::collections::BTreeSet<u16>> =
    std::sync::Mutex::new(std::collections::BTreeSet::new());

#[cfg(not(target_os = "linux"))]
impl Claim {
    fn on(port: u16) -> Option<Self> {
        CLAIMED.lock().ok()?.insert(port).then_some(Self { port })
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for Claim {
    fn drop(&mut self) {
        if let Ok(mut claimed) = CLAIMED.lock() {
            claimed.remove(&self.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_given_to_nobody_else_while_nobody_listens_on_it() {
        let port = Port::reserve().unwrap();
        assert!(Claim::on(port.number()).is_none());
        // Whoever reserved it listens on it, stops and listens again.
        drop(TcpListener::bind(("127.0.0.1", port.number())).unwrap());
        drop(TcpListener::bind(("127.0.0.1", port.number())).unwrap());
    }

    #[test]
    fn several_ports_differ() {
        let ports = Port::several::<50>().unwrap();
        let numbers: std::collections::BTreeSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), 50);
        assert!(numbers.iter().all(|number| SERVERS.contains(number)));
    }
}
