//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use futures_util::FutureExt as _;
use maestro_config::Secret;

use crate::docker::image::Reference;
use crate::explicit;
use crate::process::ProcessId;
use crate::service::Service;
use crate::wire::{amqp, redis};

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

/// What a Redis answers: reading ends, and what was read was there.
pub fn reply(bytes: &[u8]) {
    let mut rest = bytes;
    let mut before = rest.len();
    // There is nothing to wait for.
    while let Some(Ok(_)) = redis::read(&mut rest, "a reply").now_or_never() {
        assert!(rest.len() < before);
        before = rest.len();
    }
}

/// What a RabbitMQ says while a connection is opened: reading ends, and takes no more than was there.
pub fn frame(bytes: &[u8]) {
    let mut rest = bytes;
    if let Some(Ok(arguments)) = amqp::expect(&mut rest, amqp::START).now_or_never() {
        assert!(arguments.len() + rest.len() < bytes.len());
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

        #[test]
        fn reading_a_reply_ends(text in "([-+:$*][-0-9a-zA\u{e9}]{0,3}\r?\n?){0,8}") {
            super::reply(text.as_bytes());
        }

        #[test]
        fn reading_a_frame_ends(
            kind in 0u8..3,
            size in prop_oneof![0u32..40, any::<u32>()],
            method in prop::sample::select(vec![[0, 10, 0, 10], [0, 10, 0, 50], [0, 20, 0, 10]]),
            arguments in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut frame = vec![kind, 0, 0];
            frame.extend(size.to_be_bytes());
            frame.extend(method);
            frame.extend(arguments);
            super::frame(&frame);
        }
    }
}
