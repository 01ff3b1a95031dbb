//! Names that no table knows, in the areas whose tables are loaded.

use crate::variable::{Table, Variable};

/// Names of the platform that lie in our areas and are no settings of a service.
const NO_SETTINGS: [&str; 8] = [
    "MAESTRO_POSTGRES_ADMIN_USER",
    "MAESTRO_POSTGRES_ADMIN_PASSWORD",
    "MAESTRO_POSTGRES_VERSION",
    "MAESTRO_REDIS_PASSWORD",
    "MAESTRO_GRAFANA_ADMIN_USER",
    "MAESTRO_GRAFANA_ADMIN_PASSWORD",
    "MAESTRO_RABBITMQ_USER",
    "MAESTRO_RABBITMQ_PASSWORD",
];

/// True when neither a table nor the platform knows the name, and it lies in a loaded area or would
/// but for a slip in the area's own name.
pub(crate) fn is_unknown(name: &str, tables: &[&Table]) -> bool {
    if is_known(name, tables) {
        return false;
    }
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_suffix("_FILE").unwrap_or(&upper);
    is_in_an_area(&upper, tables)
        || nearest_outside(&upper, tables).is_some()
        || nearest_outside(plain, tables).is_some()
}

/// The known name that was probably meant.
pub(crate) fn nearest(name: &str, tables: &[&Table]) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let of_value = |name: &str| {
        if is_in_an_area(name, tables) {
            nearest_inside(name, tables)
        } else {
            nearest_outside(name, tables)
        }
    };
    if let Some(known) = of_value(&upper) {
        return Some(known.to_owned());
    }
    let (plain, last) = upper.rsplit_once('_')?;
    let is_file = strsim::osa_distance(last, "FILE") <= 1;
    let known = of_value(plain).filter(|_| is_file)?;
    Some(format!("{known}_FILE"))
}

/// The variable of this name (or of its `_FILE`), else the first of its area: for an example.
pub(crate) fn like(name: &str, tables: &[&Table]) -> Option<&'static Variable> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_suffix("_FILE").unwrap_or(&upper);
    let is_area = |area: &&str| upper.starts_with(area);
    let of_area = tables.iter().find(|table| table.areas.iter().any(is_area));
    variables(tables)
        .find(|variable| variable.name == plain)
        .or_else(|| of_area.and_then(|table| table.variables.first()))
}

fn is_in_an_area(upper: &str, tables: &[&Table]) -> bool {
    let mut areas = tables.iter().flat_map(|table| table.areas);
    areas.any(|area| upper.starts_with(area))
}

fn nearest_inside(upper: &str, tables: &[&Table]) -> Option<&'static str> {
    variables(tables)
        .map(|variable| (strsim::osa_distance(upper, variable.name), variable.name))
        .filter(|(distance, known)| *distance <= tolerance(known, tables))
        .min()
        .map(|(_, known)| known)
}

/// For a name outside of every area, where all other programs have theirs: two slips at most.
fn nearest_outside(upper: &str, tables: &[&Table]) -> Option<&'static str> {
    variables(tables)
        .map(|variable| variable.name)
        .filter(|known| known.starts_with("MAESTRO_") && known.len().abs_diff(upper.len()) <= 2)
        .map(|known| (strsim::osa_distance(upper, known), known))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known)
}

/// A name that is set, known to nobody, and so near to the variable that it was probably meant.
pub(crate) fn misspelling<'a>(
    variable: &Variable,
    names: impl Iterator<Item = &'a str>,
    tables: &[&Table],
) -> Option<&'a str> {
    names
        .filter(|name| !is_known(name, tables) && !NO_SETTINGS.contains(name))
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            (strsim::osa_distance(&upper, variable.name), name)
        })
        // Nearer than the other way round: here the names of all other programs are candidates.
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, name)| name)
}

/// A slip for every three letters that are the name's own: below `MAESTRO_CACHE_`, `ULR` means `URL`,
/// and `POOL` does not.
fn tolerance(name: &str, tables: &[&Table]) -> usize {
    let areas = tables.iter().flat_map(|table| table.areas);
    let area = areas
        .filter(|area| name.starts_with(**area))
        .map(|area| area.len());
    let own = name.len() - area.max().unwrap_or(0);
    (own / 3).clamp(1, 3)
}

fn is_known(name: &str, tables: &[&Table]) -> bool {
    let plain = name.strip_suffix("_FILE").unwrap_or(name);
    let of_a_table = variables(tables).any(|variable| {
        std::iter::once(&variable.name)
            .chain(variable.aliases)
            .any(|known| *known == name || *known == plain)
    });
    of_a_table
        || NO_SETTINGS.contains(&name)
        || NO_SETTINGS.contains(&plain)
        || is_service_link(name)
}

/// Kubernetes gives every pod the addresses of the services of its namespace, and ours are called
/// `maestro-postgres`: `MAESTRO_POSTGRES_SERVICE_HOST`, `MAESTRO_POSTGRES_PORT_5432_TCP_ADDR`. The one
/// called `MAESTRO_POSTGRES_PORT` is told from a port by its value alone.
fn is_service_link(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    let Some((_, port)) = name.split_once("_PORT_") else {
        return false;
    };
    let mut parts = port.split('_');
    let number = parts.next().is_some_and(|n| n.parse::<u16>().is_ok());
    let protocol = parts
        .next()
        .is_some_and(|p| ["TCP", "UDP", "SCTP"].contains(&p));
    let rest = parts
        .next()
        .is_none_or(|r| ["PROTO", "PORT", "ADDR"].contains(&r));
    number && protocol && rest
}

fn variables<'a>(tables: &'a [&Table]) -> impl Iterator<Item = &'static Variable> + 'a {
    tables.iter().flat_map(|table| table.variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    static TABLE: Table = Table {
        owner: "maestro-db",
        areas: &["MAESTRO_POSTGRES_"],
        variables: &[
            Variable::new(
                "MAESTRO_POSTGRES_URL",
                Kind::Url {
                    schemes: &["postgresql"],
                },
            )
            .aliases(&["DATABASE_URL"]),
            Variable::new(
                "MAESTRO_POSTGRES_POOL_MAX",
                Kind::Count { min: 1, max: 100 },
            ),
        ],
    };

    #[test]
    fn only_names_of_a_loaded_area_can_be_unknown() {
        for (name, unknown) in [
            ("MAESTRO_POSTGRES_POOL_MAXX", true),
            ("maestro_postgres_pool_max", true),
            ("MAESTRO_POSTGRES_POOL_MAX", false),
            ("MAESTRO_POSTGRES_URL_FILE", false),
            ("DATABASE_URL", false),
            ("MAESTRO_CACHE_TYPO", false),
            ("MAESTRO_POSTGRESS_POOL_MAX", true),
            ("MEASTRO_POSTGRES_POOL_MAX", true),
            ("MAESTRO_POSTGERS_URL_FILE", true),
            ("MAESTRO_POOL_MAX", false),
            ("DATBASE_URL", false),
            ("POSTGRES_PASSWORD", false),
            ("MAESTRO_POSTGRES_ADMIN_PASSWORD", false),
            ("MAESTRO_POSTGRES_ADMIN_PASSWORD_FILE", false),
            ("MAESTRO_POSTGRES_SERVICE_HOST", false),
            ("MAESTRO_POSTGRES_SERVICE_PORT_SQL", false),
            ("MAESTRO_POSTGRES_PORT", true),
            ("MAESTRO_POSTGRES_PORT_5432_TCP", false),
            ("MAESTRO_POSTGRES_PORT_5432_TCP_ADDR", false),
            ("MAESTRO_POSTGRES_PORT_NUMBER", true),
        ] {
            assert_eq!(is_unknown(name, &[&TABLE]), unknown, "{name}");
        }
    }

    #[test]
    fn the_nearest_name_is_found_within_reason() {
        for (name, near) in [
            (
                "MAESTRO_POSTGRES_POOLMAX",
                Some("MAESTRO_POSTGRES_POOL_MAX"),
            ),
            ("maestro_postgres_ulr", Some("MAESTRO_POSTGRES_URL")),
            ("MAESTRO_POSTGERSS_URL", Some("MAESTRO_POSTGRES_URL")),
            (
                "MAESTRO_POSTGRES_URL_FLIE",
                Some("MAESTRO_POSTGRES_URL_FILE"),
            ),
            (
                "MAESTRO_POSTGRES_URL_FILES",
                Some("MAESTRO_POSTGRES_URL_FILE"),
            ),
            (
                "MAESTRO_POSTGRES_ULR_FILE",
                Some("MAESTRO_POSTGRES_URL_FILE"),
            ),
            (
                "maestro_postgres_url_file",
                Some("MAESTRO_POSTGRES_URL_FILE"),
            ),
            ("MAESTRO_POSTGRES_APPLICATION", None),
            ("MAESTRO_POSTGRES_POOL", None),
            ("MAESTRO_POSTGRES_TTL", None),
            ("MAESTRO_POSTGRES_APPLICATION_FILE", None),
        ] {
            assert_eq!(nearest(name, &[&TABLE]).as_deref(), near, "{name}");
        }
        let [url, _] = TABLE.variables else {
            unreachable!()
        };
        let found = |names: &[&'static str]| misspelling(url, names.iter().copied(), &[&TABLE]);
        assert_eq!(
            found(&["PATH", "MAESTRO_POSTGRE_URL"]),
            Some("MAESTRO_POSTGRE_URL")
        );
        assert_eq!(found(&["PATH", "MAESTRO_POSTGRES_READ_URL"]), None);
    }
}
