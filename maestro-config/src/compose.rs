//! What a compose file would hand to a service: only names are taken from it, to say what to move.

/// The names under every `environment:`, in both forms (`NAME: value` and `- NAME=value`).
pub(crate) fn variables(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside: Option<usize> = None;
    for line in text.lines() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        // A list may stand at the indent of its key.
        let belongs = |of: usize| indent > of || (indent == of && content.starts_with("- "));
        if !inside.is_some_and(belongs) {
            inside = begins_environment(content).then_some(indent);
            continue;
        }
        let entry = content
            .trim_start_matches("- ")
            .trim_start_matches(['"', '\'']);
        let end = entry
            .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
            .unwrap_or(entry.len());
        let (name, rest) = entry.split_at(end);
        let known = names.iter().any(|known| known == name);
        if !name.is_empty() && rest.starts_with(['=', ':', '"', '\'']) && !known {
            names.push(name.to_owned());
        }
    }
    names
}

/// The key alone, or with a comment or an anchor for other services to refer to.
fn begins_environment(content: &str) -> bool {
    let after = content.strip_prefix("environment:").map(str::trim);
    after.is_some_and(|after| after.is_empty() || after.starts_with(['#', '&']))
}

#[cfg(test)]
mod tests {
    use super::variables;

    #[test]
    fn both_forms_of_an_environment_are_found_and_nothing_else() {
        let text = "services:\n  orders:\n    image: orders\n    environment:\n      \
                    MAESTRO_CACHE_URL: redis://:canary@h/1\n      \"DATABASE_URL\": x\n    ports:\n      \
                    - 8000:8000\n  worker:\n    environment:\n    - MAESTRO_TEAM=platform\n    \
                    - LOG_LEVEL=info\n    labels:\n      - A=b\n";
        let expected = [
            "MAESTRO_CACHE_URL",
            "DATABASE_URL",
            "MAESTRO_TEAM",
            "LOG_LEVEL",
        ];
        assert_eq!(variables(text), expected);
    }

    #[test]
    fn a_comment_or_an_anchor_beside_the_key_hides_nothing() {
        for key in [
            "environment: # why",
            "environment: &shared",
            "environment:   ",
        ] {
            let text = format!("x-shared:\n  {key}\n    MAESTRO_TEAM: platform\n");
            assert_eq!(variables(&text), ["MAESTRO_TEAM"], "{key}");
        }
        assert!(variables("environment: none\n  A: b\n").is_empty());
    }
}
