//! What is missing on this machine, and the one command that mends it.

use std::path::Path;

use crate::config::Source;
use crate::local;
use crate::service::Service;

/// A server that no binary of this machine provides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// What is missing.
    pub service: Service,
    /// Package of this machine's package system that brings it.
    pub package: &'static str,
}

/// The servers of which this machine has no binary. Looks at files only.
pub fn missing() -> Vec<Missing> {
    Service::ALL
        .into_iter()
        .filter(|service| local::find(*service).is_none())
        .map(|service| Missing {
            service,
            package: package(service, system()),
        })
        .collect()
}

/// The command, program first, that installs packages on this machine; `None` where this machine's
/// package system is not known. Needs root on Linux.
pub fn install_command(missing: &[Missing]) -> Option<Vec<String>> {
    let packages = missing.iter().map(|missing| missing.package);
    command(system(), packages)
}

fn command(system: System, packages: impl Iterator<Item = &'static str>) -> Option<Vec<String>> {
    let (program, arguments): (&str, &[&str]) = match system {
        System::Debian => ("apt-get", &["install", "--yes", "--no-install-recommends"]),
        System::Fedora => ("dnf", &["install", "--assumeyes"]),
        System::Alpine => ("apk", &["add"]),
        System::MacOs => ("brew", &["install"]),
        System::Other => return None,
    };
    Some(
        std::iter::once(program)
            .chain(arguments.iter().copied())
            .chain(packages)
            .map(str::to_owned)
            .collect(),
    )
}

/// What to do about one missing server.
pub(crate) fn remedy(service: Service, source: Source) -> String {
    let install = command(system(), std::iter::once(package(service, system())));
    match (source, install) {
        (Source::Off, _) => "set that variable, or unset MAESTRO_DEV_SERVICES".to_owned(),
        (Source::Docker, _) => "start the Docker daemon and have the image there (docker pull, or tests/images/build where there is no registry), or unset MAESTRO_DEV_SERVICES".to_owned(),
        (Source::Auto | Source::Local, Some(command)) => command.join(" "),
        (Source::Auto | Source::Local, None) => {
            format!("install {service}, or start a Docker daemon")
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Debian,
    Fedora,
    Alpine,
    MacOs,
    Other,
}

fn system() -> System {
    let there = |path: &str| Path::new(path).exists();
    if cfg!(target_os = "macos") {
        System::MacOs
    } else if there("/usr/bin/apt-get") {
        System::Debian
    } else if there("/usr/bin/dnf") {
        System::Fedora
    } else if there("/sbin/apk") {
        System::Alpine
    } else {
        System::Other
    }
}

fn package(service: Service, system: System) -> &'static str {
    match (service, system) {
        (Service::Postgres, System::Fedora) => "postgresql-server",
        (Service::Postgres, System::MacOs) => "postgresql@17",
        (Service::Postgres, _) => "postgresql",
        (Service::Redis, System::Debian) => "redis-server",
        (Service::Redis, _) => "redis",
        (Service::Rabbitmq, System::MacOs) => "rabbitmq",
        (Service::Rabbitmq, _) => "rabbitmq-server",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_installed_by_one_command() {
        let packages = |system| {
            Service::ALL
                .map(|service| package(service, system))
                .into_iter()
        };
        let debian = command(System::Debian, packages(System::Debian)).unwrap();
        assert_eq!(
            debian.join(" "),
            "apt-get install --yes --no-install-recommends postgresql redis-server rabbitmq-server"
        );
        let mac = command(System::MacOs, packages(System::MacOs)).unwrap();
        assert_eq!(mac.join(" "), "brew install postgresql@17 redis rabbitmq");
        assert_eq!(command(System::Other, packages(System::Other)), None);
    }
}
