//! Conductor: executes the quality runs that others request.

mod events;
mod executor;

use maestro::ServiceBuilder;

use crate::events::QualityRunRequested;
use crate::executor::Executor;

/// Runs the service until it is asked to stop.
pub async fn run(service: ServiceBuilder) -> Result<(), maestro::Error> {
    let service = service
        .db()
        .migrations(sqlx::migrate!())
        .cache()
        .messaging()
        .start()
        .await?;
    let executor = Executor::new(&service)?;

    let executing = executor.clone();
    service.consume(service.messaging().subscription("runs").on(
        "quality-fabric",
        move |event: QualityRunRequested, context| {
            let executor = executing.clone();
            async move { executor.execute(event, context).await }
        },
    ));

    service.serve(executor.routes()).await
}
