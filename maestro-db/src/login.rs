//! Whom to log in as and with which password, at the moment of each new connection.

use std::fmt;
use std::sync::Arc;

use maestro_config::Secret;
use parking_lot::RwLock;

use crate::config::Endpoint;

/// A password given by the service itself, in place of the one in the settings; shared by all
/// connections of its role.
#[derive(Clone, Default)]
pub(crate) struct Given(Arc<RwLock<Option<Secret<String>>>>);

impl Given {
    /// True when the password is another one than before.
    pub(crate) fn replace(&self, password: Secret<String>) -> bool {
        let mut current = self.0.write();
        let changed = current
            .as_ref()
            .is_none_or(|old| old.expose() != password.expose());
        *current = Some(password);
        changed
    }
}

/// An endpoint as it is now: its URL and its password may stand in files that change.
#[derive(Clone)]
pub(crate) struct Login {
    endpoint: Endpoint,
    given: Given,
    /// What the server accepted last, and how often that was another one than before.
    worked: Arc<RwLock<(Option<Endpoint>, u64)>>,
}

impl Login {
    pub(crate) fn new(endpoint: Endpoint, given: Given) -> Self {
        Self {
            endpoint,
            given,
            worked: Arc::default(),
        }
    }

    /// The endpoint as it was at the start, for names and messages.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the next connection is opened with; costs a `stat` per secret file.
    pub(crate) fn now(&self) -> Endpoint {
        let source = self.endpoint.source.as_ref();
        let mut now = source
            .and_then(|source| Endpoint::parse(&source.current()).ok())
            .unwrap_or_else(|| self.endpoint.clone());
        if let Some(given) = &*self.given.0.read() {
            now.password = Some(given.clone());
        }
        now
    }

    /// The server accepted it.
    pub(crate) fn worked(&self, endpoint: Endpoint) {
        if !self.is_the_last(&endpoint) {
            let (last, rotations) = &mut *self.worked.write();
            *rotations += u64::from(last.is_some());
            *last = Some(endpoint);
        }
    }

    /// What to try after `tried` was refused: what the files hold now, and what worked last.
    pub(crate) fn others(&self, tried: &Endpoint) -> Vec<Endpoint> {
        if let Some(source) = &self.endpoint.source {
            source.refresh();
        }
        let now = self.now();
        let mut others = Vec::new();
        if !same(&now, tried) {
            others.push(now);
        }
        if let Some(last) = &self.worked.read().0
            && !same(last, tried)
            && others.iter().all(|other| !same(other, last))
        {
            others.push(last.clone());
        }
        others
    }

    /// True when the next connection would be opened with something else than the last that worked.
    pub(crate) fn has_changed(&self) -> bool {
        self.worked.read().0.is_some() && !self.is_the_last(&self.now())
    }

    /// How often the server accepted another one than before.
    pub(crate) fn rotations(&self) -> u64 {
        self.worked.read().1
    }

    fn is_the_last(&self, endpoint: &Endpoint) -> bool {
        self.worked
            .read()
            .0
            .as_ref()
            .is_some_and(|last| same(last, endpoint))
    }
}

fn same(one: &Endpoint, other: &Endpoint) -> bool {
    let password = |endpoint: &Endpoint| endpoint.password.as_ref().map(|p| p.expose().clone());
    (&one.host, one.port, &one.user, &one.database)
        == (&other.host, other.port, &other.user, &other.database)
        && password(one) == password(other)
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Login").field(&self.endpoint).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(password: &str) -> Endpoint {
        let url = format!("postgresql://orders:{password}@db/orders");
        Endpoint::parse(&Secret::new(url)).unwrap()
    }

    fn password(endpoint: &Endpoint) -> &str {
        endpoint.password.as_ref().unwrap().expose()
    }

    #[test]
    fn a_rotation_to_the_same_password_changes_nothing() {
        let given = Given::default();
        assert!(given.replace(Secret::new("one".to_owned())));
        assert!(!given.replace(Secret::new("one".to_owned())));
        assert!(given.replace(Secret::new("two".to_owned())));
    }

    #[test]
    fn after_a_refusal_what_worked_last_is_tried_and_what_was_refused_is_not() {
        let given = Given::default();
        let login = Login::new(endpoint("one"), given.clone());
        assert!(login.others(&login.now()).is_empty());
        login.worked(login.now());
        assert!(!login.has_changed());
        given.replace(Secret::new("two".to_owned()));
        assert!(login.has_changed());
        assert_eq!(login.rotations(), 0);
        let now = login.now();
        assert_eq!(password(&now), "two");
        let others = login.others(&now);
        assert_eq!(others.iter().map(password).collect::<Vec<_>>(), ["one"]);
        // Somebody who tried before the rotation is told of the new one as well.
        let others = login.others(&endpoint("zero"));
        assert_eq!(
            others.iter().map(password).collect::<Vec<_>>(),
            ["two", "one"]
        );
        login.worked(now);
        assert_eq!((login.has_changed(), login.rotations()), (false, 1));
    }
}
