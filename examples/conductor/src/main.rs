//! The process: everything it does is in the library, so that tests can run it too.

#[tokio::main]
async fn main() -> Result<(), maestro::Error> {
    conductor::run(maestro::Service::builder()).await
}
