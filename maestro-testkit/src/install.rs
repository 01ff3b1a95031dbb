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
            package: package(service),
        })
        .collect()
}

/// The command, program first, that installs packages on this machine; `None` where this machine's
/// package system is not known. Needs root on Linux.
pub fn install_command(missing: &[Missing]) -> Option<Vec<String>> {
    let (program, arguments): (&str, &[&str]) = match system() {
        System::Debian => ("apt-get", &["install", "--yes", "--no-install-recommends"]),
        System::Fedora => ("dnf", &["install", "--assumeyes"]),
        System::Alpine => ("apk", &["add"]),
        System::MacOs => ("brew", &["install"]),
        System::Other => return None,
    };
    let packages = missing.iter().map(|missing| missing.package);
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
    let missing = Missing {
        service,
        package: package(service),
    };
    match (source, install_command(&[missing])) {
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

fn package(service: Service) -> &'static str {
    match (service, system()) {
        (Service::Postgres, System::Fedora) => "postgresql-server",
        (Service::Postgres, System::MacOs) => "postgresql@17",
        (Service::Postgres, _) => "postgresql",
        (Service::Redis, System::Debian) => "redis-server",
        (Service::Redis, _) => "redis",
        (Service::Rabbitmq, System::MacOs) => "rabbitmq",
        (Service::Rabbitmq, _) => "rabbitmq-server",
    }
}
