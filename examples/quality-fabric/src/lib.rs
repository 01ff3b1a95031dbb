//! Quality Fabric: takes quality runs over HTTP and shows their state.

mod events;
mod runs;

use maestro::ServiceBuilder;

use crate::events::QualityRunCompleted;
use crate::runs::Runs;

/// Runs the service until it is asked to stop.
pub async fn run(service: ServiceBuilder) -> Result<(), maestro::Error> {
    let service = service
        .db()
        .migrations(sqlx::migrate!())
        .cache()
        .messaging()
        .start()
        .await?;
    let runs = Runs::new(&service)?;

    let completing = runs.clone();
    service.consume(service.messaging().subscription("results").on(
        "conductor",
        move |event: QualityRunCompleted, context| {
            let runs = completing.clone();
            async move { runs.complete(event, context).await }
        },
    ));

    service.serve(runs.routes()).await
}
