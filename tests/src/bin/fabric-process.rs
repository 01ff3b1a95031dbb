//! The example service as a program that the scenarios start: the same library, built with the tests.

#[tokio::main]
async fn main() -> Result<(), maestro::Error> {
    quality_fabric::run(maestro::Service::builder()).await
}
