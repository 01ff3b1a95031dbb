use super::super::resources::Passwords;
use super::*;

fn resources(password: &str) -> ServiceResources {
    let secret = |text: &str| Secret::new(text.to_owned());
    ServiceResources::conventional(
        &"orders".parse().unwrap(),
        Passwords {
            postgres: secret(password),
            migrator: secret(password),
            cache: secret(password),
            messaging: secret(password),
        },
    )
}

#[test]
fn only_what_postgresql_refuses_in_a_transaction_stands_alone() {
    let steps = service_steps(&resources("x"));
    let alone: Vec<_> = steps.iter().filter(|s| !s.is_transactional()).collect();
    assert_eq!(alone.len(), 1);
    assert!(
        alone[0]
            .sql()
            .starts_with("CREATE DATABASE \"orders\" OWNER \"orders_owner\"")
    );
    assert!(alone[0].skip_if().is_some(), "creating twice is an error");
    assert_eq!(
        *steps[2].run_in(),
        RunIn::Database("orders".to_owned()),
        "privileges belong to the service's database"
    );
}

#[test]
fn a_password_cannot_end_its_literal() {
    let steps = service_steps(&resources(r"x'; DROP ROLE admin; --\"));
    assert!(
        steps[0]
            .sql()
            .contains(r"PASSWORD E'x''; DROP ROLE admin; --\\'")
    );
}

#[test]
fn debug_of_a_step_shows_no_password() {
    let shown = format!("{:?}", service_steps(&resources("canary")));
    assert!(!shown.contains("canary"), "{shown}");
}
