//! The process: everything it does is in the library, so that tests can run it too.

#[tokio::main]
async fn main() -> Result<(), maestro::Error> {
    quality_fabric::run(maestro::Service::builder()).await
}
