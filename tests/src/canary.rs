//! A secret of its own in every secret variable of a service, to be looked for in what it shows.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use url::Url;

/// A service's environment, by variable.
pub type Environment = Vec<(String, String)>;

/// Secret variables whose value is no URL with a password in it.
const PLAIN: [&str; 4] = [
    "MAESTRO_POSTGRES_PASSWORD",
    "MAESTRO_CACHE_PASSWORD",
    "MAESTRO_MESSAGING_PASSWORD",
    "MAESTRO_TRACING_HEADERS",
];

/// A working environment with every secret variable set: the password that the server takes stands in
/// `…_PASSWORD`, and the URLs of the same role carry others, which must not be used and not be shown.
pub fn armed(environment: Environment) -> Result<Environment> {
    let value = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        let (_, value) = found.with_context(|| format!("{name} is not set"))?;
        Ok::<_, anyhow::Error>(value.clone())
    };
    let direct = value("MAESTRO_POSTGRES_DIRECT_URL")?;
    let mut set = vec![
        ("MAESTRO_POSTGRES_DIRECT_URL", with_decoy(&direct)?),
        ("MAESTRO_POSTGRES_READ_URL", with_decoy(&direct)?),
        (
            "MAESTRO_TRACING_HEADERS",
            format!("authorization=Bearer {}", decoy()),
        ),
    ];
    for (url, password) in [
        ("MAESTRO_POSTGRES_URL", "MAESTRO_POSTGRES_PASSWORD"),
        ("MAESTRO_CACHE_URL", "MAESTRO_CACHE_PASSWORD"),
        ("MAESTRO_MESSAGING_URL", "MAESTRO_MESSAGING_PASSWORD"),
    ] {
        let real = value(url)?;
        set.push((password, password_of(&real)?));
        set.push((url, with_decoy(&real)?));
    }
    // Not a service's business, and so a thing that it might print.
    for (url, scheme) in [
        ("MAESTRO_TEST_POSTGRES_URL", "postgresql"),
        ("MAESTRO_TEST_CACHE_URL", "redis"),
        ("MAESTRO_TEST_MESSAGING_URL", "amqp"),
        ("MAESTRO_TEST_MESSAGING_MANAGEMENT_URL", "http"),
    ] {
        let somewhere = format!("{scheme}://administrator:none@127.0.0.1:9/");
        set.push((url, with_decoy(&somewhere)?));
    }
    let mut armed = environment;
    armed.retain(|(name, _)| set.iter().all(|(set, _)| set != name));
    armed.extend(
        set.into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    );
    Ok(armed)
}

/// The secrets in a service's environment, by variable; an error if any secret variable of the platform
/// is not set, because then it was not looked for.
pub fn secrets(environment: &Environment) -> Result<Environment> {
    let mut found = Environment::new();
    for name in secret_variables()? {
        let value = environment.iter().find(|(known, _)| *known == name);
        let (_, value) = value.with_context(|| format!("secret variable {name} is not set"))?;
        let secret = if PLAIN.contains(&name.as_str()) {
            // `authorization=Bearer <secret>`, or the secret itself.
            value.rsplit(' ').next().unwrap_or_default().to_owned()
        } else {
            password_of(value).with_context(|| format!("secret variable {name}"))?
        };
        ensure!(secret.len() >= 16, "{name}: too short to be looked for");
        found.push((name, secret));
    }
    Ok(found)
}

/// The variables whose secrets appear in `shown`.
pub fn leaks(secrets: &Environment, shown: &str) -> Vec<String> {
    let leaked = secrets.iter().filter(|(_, secret)| shown.contains(secret));
    leaked.map(|(name, _)| name.clone()).collect()
}

/// The names marked as secret in the schema of the environment, which is generated from the tables of all
/// crates and tested against them. Older names stand for a newer one that is there too.
fn secret_variables() -> Result<Vec<String>> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    let properties = schema["properties"].as_object();
    let properties = properties.context("the schema has no properties")?;
    let secret = |property: &Value| property["writeOnly"] == true && property["deprecated"] != true;
    let names = properties.iter().filter(|(_, property)| secret(property));
    Ok(names.map(|(name, _)| name.clone()).collect())
}

const SCHEMA: &str = include_str!("../../docs/configuration.schema.json");

fn with_decoy(url: &str) -> Result<String> {
    let mut url = Url::parse(url)?;
    let set = url.set_password(Some(&decoy()));
    ensure!(set.is_ok(), "this URL cannot have a password");
    Ok(url.into())
}

fn password_of(url: &str) -> Result<String> {
    let url = Url::parse(url)?;
    Ok(url.password().context("a URL without password")?.to_owned())
}

fn decoy() -> String {
    format!("canary{:016x}", fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        let pairs = [
            (
                "MAESTRO_POSTGRES_URL",
                "postgresql://a:0123456789abcdef@h/d",
            ),
            (
                "MAESTRO_POSTGRES_DIRECT_URL",
                "postgresql://a:0123456789abcdef@h/d",
            ),
            (
                "MAESTRO_POSTGRES_MIGRATION_URL",
                "postgresql://m:fedcba9876543210@h/d",
            ),
            ("MAESTRO_CACHE_URL", "redis://a:1123456789abcdef@h/0"),
            ("MAESTRO_MESSAGING_URL", "amqp://a:2123456789abcdef@h/v"),
        ];
        pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()
    }

    #[test]
    fn every_secret_variable_of_every_crate_has_a_secret_of_its_own() {
        let armed = armed(environment()).unwrap();
        let secrets = secrets(&armed).unwrap();
        // A schema of another shape would mark none.
        assert!(secrets.len() >= 14, "{secrets:?}");
        for (index, (name, secret)) in secrets.iter().enumerate() {
            let others = secrets.iter().skip(index + 1);
            assert!(others.clone().all(|(_, other)| other != secret), "{name}");
            assert!(leaks(&secrets, &format!("a {secret} b")).iter().eq([name]));
        }
    }

    #[test]
    fn a_secret_variable_that_is_not_set_is_an_error() {
        let error = secrets(&environment()).unwrap_err();
        assert!(error.to_string().contains("is not set"), "{error}");
    }
}
