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

/// What to do about a server that this machine does not have. The others that are missing are told with
/// it, or they would be the next to be told.
pub(crate) fn remedy(service: Service, source: Source) -> String {
    let others = missing().into_iter().map(|missing| missing.service);
    let all = std::iter::once(service).chain(others.filter(|other| *other != service));
    let install = mending(system(), all, rustix::process::geteuid().is_root());
    match (source, install) {
        (Source::Off, _) => "set that variable, or unset MAESTRO_DEV_SERVICES".to_owned(),
        (Source::Docker, _) => "start the Docker daemon and have the image there (docker pull, or tests/images/build where there is no registry), or unset MAESTRO_DEV_SERVICES".to_owned(),
        (Source::Auto | Source::Local, Some(command)) => command,
        (Source::Auto | Source::Local, None) => {
            format!("install {service}, or start a Docker daemon")
        }
    }
}

/// One line for a shell: with the lists that a bare Debian does not have, and with the rights it takes.
fn mending(
    system: System,
    services: impl Iterator<Item = Service>,
    by_root: bool,
) -> Option<String> {
    let packages = services.map(|service| package(service, system));
    let install = command(system, packages)?.join(" ");
    let sudo = if by_root || system == System::MacOs {
        ""
    } else {
        "sudo "
    };
    Some(match system {
        System::Debian => format!("{sudo}apt-get update && {sudo}{install}"),
        _ => format!("{sudo}{install}"),
    })
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
    fn the_command_that_mends_it_works_for_whoever_reads_it_and_brings_all_servers_at_once() {
        let all = || Service::ALL.into_iter();
        assert_eq!(
            mending(System::Debian, all(), false).unwrap(),
            "sudo apt-get update && sudo apt-get install --yes --no-install-recommends postgresql redis-server rabbitmq-server"
        );
        // A bare Debian has neither sudo nor lists of packages.
        assert_eq!(
            mending(System::Debian, [Service::Redis].into_iter(), true).unwrap(),
            "apt-get update && apt-get install --yes --no-install-recommends redis-server"
        );
        assert_eq!(
            mending(System::Alpine, [Service::Redis].into_iter(), false).unwrap(),
            "sudo apk add redis"
        );
        // Homebrew refuses to run as root.
        assert_eq!(
            mending(System::MacOs, [Service::Redis].into_iter(), false).unwrap(),
            "brew install redis"
        );
    }

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
