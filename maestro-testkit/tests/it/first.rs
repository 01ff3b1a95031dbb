use maestro_testkit::Stack;

#[tokio::test]
async fn a_sandbox_names_everything_a_service_needs() {
    let stack = Stack::start().await.unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let environment = sandbox.environment();
    for name in [
        "MAESTRO_SERVICE_NAME",
        "MAESTRO_ENVIRONMENT",
        "MAESTRO_POSTGRES_URL",
        "MAESTRO_POSTGRES_DIRECT_URL",
        "MAESTRO_POSTGRES_MIGRATION_URL",
        "MAESTRO_CACHE_URL",
        "MAESTRO_CACHE_PREFIX",
        "MAESTRO_MESSAGING_URL",
    ] {
        assert!(environment.iter().any(|(found, _)| found == name), "{name}");
    }
}
