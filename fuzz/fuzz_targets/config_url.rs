//! A URL and a password beside it: what is accepted keeps its host whatever the password is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maestro_config::Environment;
use maestro_fuzz::Settings;

fuzz_target!(|input: (&str, &str)| {
    let (url, password) = input;
    let alone = Environment::from_pairs([("MAESTRO_FUZZ_URL", url)]).read::<Settings>();
    let beside = [
        ("MAESTRO_FUZZ_URL", url),
        ("MAESTRO_FUZZ_PASSWORD", password),
    ];
    let both = Environment::from_pairs(beside).read::<Settings>();
    let (Ok(alone), Ok(both)) = (alone, both) else {
        return;
    };
    let (Some(alone), Some(both)) = (alone.url, both.url) else {
        return;
    };
    for (alone, both) in alone.all().iter().zip(both.all()) {
        assert_eq!(host(alone.expose()), host(both.expose()));
    }
});

/// However it is written: `[::0]` and `[::]` are one.
fn host(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    Some(format!("{:?}:{:?}", url.host()?, url.port()))
}
