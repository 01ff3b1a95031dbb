//! Settings with a variable of every kind, for the targets to read.

use maestro_config::{FromEnvironment, Kind, Reader, ServerUrl, Table, Variable};

const SCHEMES: &[&str] = &[
    "postgresql",
    "redis",
    "rediss",
    "amqp",
    "amqps",
    "http",
    "https",
];

const NAME: Variable = Variable::new("MAESTRO_FUZZ_NAME", Kind::Name);
const TEXT: Variable = Variable::new("MAESTRO_FUZZ_TEXT", Kind::String).aliases(&["TEXT"]);
const DURATION: Variable = Variable::new("MAESTRO_FUZZ_DURATION", Kind::Duration)
    .bounds("1ms", "1h")
    .zero("off");
const DURATIONS: Variable = Variable::new("MAESTRO_FUZZ_DURATIONS", Kind::Durations);
const SIZE: Variable = Variable::new("MAESTRO_FUZZ_SIZE", Kind::Size);
const COUNT: Variable = Variable::new("MAESTRO_FUZZ_COUNT", Kind::Count { min: 1, max: 100 });
const RATIO: Variable = Variable::new("MAESTRO_FUZZ_RATIO", Kind::Ratio);
const ADDRESS: Variable = Variable::new("MAESTRO_FUZZ_ADDRESS", Kind::Address);
const PATHS: Variable = Variable::new("MAESTRO_FUZZ_PATHS", Kind::Paths);
const URL: Variable = Variable::new("MAESTRO_FUZZ_URL", Kind::Urls { schemes: SCHEMES })
    .secret()
    .aliases(&["URL"]);
const PASSWORD: Variable = Variable::new("MAESTRO_FUZZ_PASSWORD", Kind::String).secret();

static TABLE: Table = Table {
    owner: "fuzz",
    areas: &["MAESTRO_FUZZ_"],
    variables: &[
        NAME, TEXT, DURATION, DURATIONS, SIZE, COUNT, RATIO, ADDRESS, PATHS, URL, PASSWORD,
    ],
};

/// Names of the variables that read a single value.
pub const VALUES: [&str; 8] = [
    "MAESTRO_FUZZ_NAME",
    "MAESTRO_FUZZ_TEXT",
    "MAESTRO_FUZZ_DURATION",
    "MAESTRO_FUZZ_DURATIONS",
    "MAESTRO_FUZZ_SIZE",
    "MAESTRO_FUZZ_COUNT",
    "MAESTRO_FUZZ_RATIO",
    "MAESTRO_FUZZ_ADDRESS",
];

/// One setting of every kind; what is not set is absent.
#[derive(Debug)]
pub struct Settings {
    /// The URLs, when they are set.
    pub url: Option<ServerUrl>,
    /// The text, when it is set.
    pub text: Option<String>,
}

impl FromEnvironment for Settings {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let name = reader.optional(&NAME, Reader::service_name);
        let text = reader.optional(&TEXT, Reader::string);
        let duration = reader.optional(&DURATION, Reader::duration);
        let durations = reader.optional(&DURATIONS, Reader::durations);
        let size = reader.optional(&SIZE, Reader::size);
        let count = reader.optional(&COUNT, Reader::count);
        let ratio = reader.optional(&RATIO, Reader::ratio);
        let address = reader.optional(&ADDRESS, Reader::address);
        let paths = reader.optional(&PATHS, Reader::paths);
        let url = reader.optional(&URL, |r, v| r.server_url(v, Some(&PASSWORD)));
        name?;
        duration?;
        durations?;
        size?;
        count?;
        ratio?;
        address?;
        paths?;
        Some(Self {
            url: url?,
            text: text?,
        })
    }
}
