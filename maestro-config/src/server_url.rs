//! The address of a server, with the password that is in force now.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use url::Url;

use crate::kind::Kind;
use crate::parse::{self, Wrong};
use crate::reader::{Reader, in_quotes, unquoted};
use crate::rules::{self, Beside};
use crate::secret::Secret;
use crate::secret_source::SecretSource;
use crate::url_syntax;
use crate::variable::Variable;

/// The URL or URLs of a server whose user, password or whole text may rotate in secret files.
///
/// [`current`](Self::current) is for every new connection; after the server refused the password,
/// [`refresh`](Self::refresh) tells whether there is another one to try. Clones share one state.
#[derive(Clone)]
pub struct ServerUrl {
    urls: SecretSource,
    password: Option<SecretSource>,
    schemes: &'static [&'static str],
    last_good: Arc<Mutex<Secret<String>>>,
}

impl ServerUrl {
    /// The URL with the password in force; the first one of a list.
    pub fn current(&self) -> Secret<String> {
        let mut all = self.all();
        // A list that was accepted has an element.
        if all.is_empty() {
            return Secret::new(String::new());
        }
        all.swap_remove(0)
    }

    /// Every URL of a list, in its order, each with the password in force.
    pub fn all(&self) -> Vec<Secret<String>> {
        let now = self.urls.current();
        let usable = parse::elements(now.expose().trim()).and_then(|urls| {
            urls.iter()
                .try_for_each(|url| url_syntax::url(url, self.schemes).map(drop))
        });
        let mut last_good = self
            .last_good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match usable {
            Ok(()) => *last_good = now,
            Err(wrong) => tracing::warn!(
                reason = wrong.message,
                "the URL in the secret file cannot be used, keeping the last one"
            ),
        }
        let password = self.password.as_ref().map(SecretSource::current);
        last_good
            .expose()
            .split(',')
            .map(|url| with_password(url.trim(), password.as_ref()))
            .collect()
    }

    /// Reads secret files again, after the server refused the password; true when something changed,
    /// so that trying again makes sense.
    pub fn refresh(&self) -> bool {
        let password = self.password.as_ref().is_some_and(SecretSource::refresh);
        self.urls.refresh() || password
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerUrl")
            .field("schemes", &self.schemes)
            .finish_non_exhaustive()
    }
}

impl Reader<'_> {
    /// A URL; wrapped, because it can hold a password. Refused where two parsers would read it
    /// differently, and where it breaks a rule of the platform.
    pub fn url(&mut self, variable: &Variable) -> Option<Secret<String>> {
        let raw = self.raw(variable)?;
        let checked = url_syntax::url(raw.trimmed(), schemes(variable));
        self.checked(variable, &raw, checked.map(|url| vec![url]))?;
        Some(Secret::new(raw.trimmed().to_owned()))
    }

    /// A comma-separated list of URLs, each checked like [`url`](Self::url).
    pub fn urls(&mut self, variable: &Variable) -> Option<Vec<Secret<String>>> {
        let raw = self.raw(variable)?;
        let checked = parse::elements(raw.trimmed()).and_then(|urls| {
            urls.into_iter()
                .map(|url| url_syntax::url(url, schemes(variable)))
                .collect()
        });
        self.checked(variable, &raw, checked)?;
        let urls = raw.trimmed().split(',').map(str::trim);
        Some(urls.map(|url| Secret::new(url.to_owned())).collect())
    }

    /// A URL (or a list of them) that follows its secret files, with the password of a variable of
    /// its own, if that is set, in place of the one in the URL.
    pub fn server_url(
        &mut self,
        variable: &Variable,
        password: Option<&Variable>,
    ) -> Option<ServerUrl> {
        let password = match password {
            Some(password) => self.optional(password, Reader::secret_source),
            None => Some(None),
        };
        let first = match variable.kind {
            Kind::Urls { .. } => self.urls(variable).map(drop),
            _ => self.url(variable).map(drop),
        };
        first?;
        let urls = self.source(variable)?;
        let last_good = Arc::new(Mutex::new(urls.current()));
        Some(ServerUrl {
            urls,
            password: password?,
            schemes: schemes(variable),
            last_good,
        })
    }

    /// Notes what is wrong with the syntax, or every rule that is broken.
    fn checked(
        &mut self,
        variable: &Variable,
        raw: &crate::raw::Raw,
        checked: Result<Vec<Url>, Wrong>,
    ) -> Option<()> {
        let wrongs = match checked {
            Err(wrong) => vec![unquoted(raw.trimmed()).map_or(wrong, in_quotes)],
            Ok(urls) => {
                let beside = self.beside(variable);
                let deployment = self.deployment();
                let wrongs = urls
                    .iter()
                    .flat_map(|url| rules::server(url, deployment, beside));
                wrongs.collect()
            }
        };
        for wrong in &wrongs {
            self.wrong(variable, raw, wrong);
        }
        wrongs.is_empty().then_some(())
    }

    /// What stands in the other variables of the area: `MAESTRO_CACHE_PASSWORD` beside
    /// `MAESTRO_CACHE_URL`.
    fn beside(&self, variable: &Variable) -> Beside {
        let area = variable
            .name
            .strip_prefix("MAESTRO_")
            .and_then(|rest| rest.split('_').next())
            .unwrap_or_default();
        let is_set = |what: &str| {
            let name = format!("MAESTRO_{area}_{what}");
            let value = self.environment.layers.effective(&name);
            value.is_some_and(|value| value.is_ok_and(|value| !value.text.trim().is_empty()))
        };
        Beside {
            password: is_set("PASSWORD"),
            certificate: is_set("TLS_CERT"),
            ca: is_set("TLS_CA"),
        }
    }
}

fn schemes(variable: &Variable) -> &'static [&'static str] {
    match variable.kind {
        Kind::Url { schemes } | Kind::Urls { schemes } => schemes,
        _ => &[],
    }
}

/// The URL with another password; as it is when there is none.
fn with_password(url: &str, password: Option<&Secret<String>>) -> Secret<String> {
    let parsed = password.zip(Url::parse(url).ok());
    if let Some((password, mut parsed)) = parsed
        && parsed.set_password(None).is_ok()
    {
        // Encoded by hand: the parser leaves characters alone that other parsers stop at.
        let encoded = crate::provision::percent(password.expose());
        if parsed.set_password(Some(&encoded)).is_ok() {
            return Secret::new(String::from(parsed));
        }
    }
    Secret::new(url.to_owned())
}

#[cfg(test)]
mod tests;
