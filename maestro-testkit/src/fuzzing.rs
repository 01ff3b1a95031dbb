//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use maestro_config::Secret;

use crate::docker::image::Reference;
use crate::explicit;
use crate::process::ProcessId;
use crate::service::Service;

/// The URL of a server somebody else runs, for each kind of server: what is accepted names a host.
pub fn url(text: &str) {
    for service in Service::ALL {
        if let Ok(address) = explicit::address(service, &Secret::new(text.to_owned())) {
            assert!(!address.host.is_empty());
        }
    }
}

/// The name of an image: what is made of it is a name with a tag, and stays the same.
pub fn image(text: &str) {
    let Ok(image) = Reference::parse("MAESTRO_TEST_POSTGRES_IMAGE", text) else {
        return;
    };
    drop(image.to_generic());
    let again = Reference::parse("MAESTRO_TEST_POSTGRES_IMAGE", image.as_str());
    assert_eq!(again.as_ref().ok(), Some(&image));
}

/// A process as it was written down: what is read is never one that is not ours to end.
pub fn process(text: &str) {
    if let Some(found) = ProcessId::parse(text) {
        assert!(found.pid > 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_given_url_names_a_host(
            text in "(postgresql|redis|amqp)://([a-z%]{0,4}(:[a-z%0-9]{0,6})?@)?[a-z.\\[\\]:0-9]{0,8}(/[a-z%0-9]{0,5})?",
        ) {
            super::url(&text);
        }

        #[test]
        fn an_image_has_a_tag(text in "[-a-z:/@.0-9 ]{0,20}") {
            super::image(&text);
        }

        #[test]
        fn only_processes_of_ours_are_read(text in "-?[0-9]{0,11} ?.{0,5}") {
            super::process(&text);
        }
    }
}
