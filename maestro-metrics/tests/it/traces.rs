use std::time::Duration;

use maestro_metrics::{Context, TRACEPARENT, TraceContext};
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector, text};
use crate::service::Service;

const FLUSH: Duration = Duration::from_mins(1);

async fn exporting(variables: &[(&str, &str)]) -> (Service, Collector) {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let mut all = vec![("MAESTRO_TRACING_ENDPOINT", url.as_str())];
    all.extend_from_slice(variables);
    (Service::start(&all), collector)
}

#[tokio::test]
async fn children_know_their_parents_and_attributes_keep_their_types() {
    let (service, collector) = exporting(&[]).await;
    let order = async {
        tracing::info!(item = "book", "picked");
        let payment = info_span!(
            "pay",
            otel.kind = "client",
            amount = 12.5,
            retries = 3_u64,
            ok = true
        );
        async {}.instrument(payment).await;
        Context::current()
    };
    let seen = order
        .instrument(info_span!("order", otel.name = "order 7", id = 7))
        .await;
    let report = service.shutdown(FLUSH).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.exported, 2);

    let order = collector.span("order 7");
    let pay = collector.span("pay");
    assert_eq!(pay.parent_span_id, order.span_id);
    assert_eq!(pay.trace_id, order.trace_id);
    assert!(order.parent_span_id.is_empty());
    assert_eq!(
        seen.trace().unwrap().span_id().to_bytes().to_vec(),
        order.span_id
    );
    assert_eq!(pay.kind, 3);
    assert_eq!(text(&pay, "amount").as_deref(), Some("12.5"));
    assert_eq!(text(&pay, "retries").as_deref(), Some("3"));
    assert_eq!(text(&pay, "ok").as_deref(), Some("true"));
    assert_eq!(order.events[0].name, "picked");
    assert!(order.end_time_unix_nano >= pay.end_time_unix_nano);
}

#[tokio::test]
async fn a_message_continues_the_trace_of_its_sender_and_passes_everything_on() {
    let (service, collector) = exporting(&[]).await;
    let parent = TraceContext::root(true);
    let headers = [
        (TRACEPARENT, parent.traceparent()),
        ("tracestate", "vendor=1".to_owned()),
        ("x-correlation-id", "order-17".to_owned()),
        ("x-tenant-id", "acme".to_owned()),
        ("baggage", "plan=gold".to_owned()),
    ];
    // As a consumer runs it: inside a span of its own that has nothing to do with the message.
    let sent = async {
        let context =
            Context::extract(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v));
        let span = context.span(|| info_span!("process", otel.kind = "consumer"));
        let work = async {
            tracing::info!("handled");
            let task = tokio::spawn(async { Context::current() }.in_current_span());
            task.await.unwrap()
        };
        context.scope(work).instrument(span).await
    }
    .instrument(info_span!("consumer loop"))
    .await;
    let line = service.logs.json().remove(0);
    service.shutdown(FLUSH).await;

    let process = collector.span("process");
    assert_eq!(process.trace_id, parent.trace_id().to_bytes());
    assert_eq!(process.parent_span_id, parent.span_id().to_bytes());
    assert_eq!(process.trace_state, "vendor=1");
    assert_eq!(
        text(&process, "correlation.id").as_deref(),
        Some("order-17")
    );
    assert_eq!(text(&process, "tenant.id").as_deref(), Some("acme"));
    let trace = sent.trace().unwrap();
    assert_eq!(trace.span_id().to_bytes().to_vec(), process.span_id);
    assert_eq!(trace.tracestate(), Some("vendor=1"));
    assert_eq!(sent.baggage("plan"), Some("gold"));
    assert_eq!(sent.correlation().unwrap().as_str(), "order-17");
    assert_eq!(line["trace_id"], parent.trace_id().to_string());
    assert_eq!(line["span_id"], trace.span_id().to_string());
    assert_eq!(line["correlation_id"], "order-17");
    assert_eq!(line["tenant"], "acme");
}

#[tokio::test]
async fn an_unsampled_trace_keeps_its_ids_and_makes_no_spans_inside() {
    let (service, collector) = exporting(&[("MAESTRO_TRACING_SAMPLE_RATIO", "0")]).await;
    let (context, child) = async {
        let child = info_span!("child");
        (Context::current(), child)
    }
    .instrument(info_span!("root"))
    .await;
    assert!(child.is_disabled());
    let trace = context.trace().unwrap();
    assert!(!trace.sampled());
    assert!(trace.traceparent().ends_with("-00"));
    let report = service.shutdown(FLUSH).await;
    assert_eq!(
        (report.exported, collector.spans().len()),
        (0, 0),
        "{report}"
    );
}

#[tokio::test]
async fn callers_decide_whether_a_trace_is_sampled() {
    let (service, collector) = exporting(&[("MAESTRO_TRACING_SAMPLE_RATIO", "0")]).await;
    let sampled = Context::new().with_trace(TraceContext::root(true));
    let followed = sampled.span(|| info_span!("followed"));
    async { async {}.instrument(info_span!("inside")).await }
        .instrument(followed)
        .await;
    service.shutdown(FLUSH).await;
    assert_eq!(
        collector.span("inside").parent_span_id,
        collector.span("followed").span_id
    );

    let (service, collector) = exporting(&[("MAESTRO_TRACING_SAMPLE_RATIO", "1")]).await;
    let unsampled = Context::new().with_trace(TraceContext::root(false));
    async {}
        .instrument(unsampled.span(|| info_span!("followed")))
        .await;
    service.shutdown(FLUSH).await;
    assert!(collector.spans().is_empty());
}

#[tokio::test]
async fn failed_and_slow_roots_are_exported_though_unsampled() {
    let variables = [
        ("MAESTRO_TRACING_SAMPLE_RATIO", "0"),
        ("MAESTRO_TRACING_SLOW", "1s"),
    ];
    let (service, collector) = exporting(&variables).await;
    async { tracing::error!("no such table") }
        .instrument(info_span!("failed"))
        .await;
    let pause = tokio::time::sleep(Duration::from_millis(1_100));
    pause.instrument(info_span!("slow")).await;
    async {}.instrument(info_span!("quick")).await;
    let registry = service.registry.clone();
    service.shutdown(FLUSH).await;
    let mut names: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    names.sort();
    assert_eq!(names, ["failed", "slow"]);
    assert_eq!(
        collector.span("failed").status.unwrap().message,
        "no such table"
    );
    let kept =
        |reason| crate::service::sum(&registry, "maestro_traces_spans_kept_total", &[reason]);
    assert!((kept("reason=\"error\"") - 1.0).abs() < 1e-9);
    assert!((kept("reason=\"slow\"") - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn without_a_collector_the_callers_trace_is_passed_on_untouched() {
    let service = Service::start(&[]);
    let parent = TraceContext::root(true);
    let context = Context::new().with_trace(parent.clone());
    let span = context.span(|| info_span!("work"));
    let inside = async { Context::current() }.instrument(span).await;
    assert_eq!(inside.trace(), Some(&parent));
    let new = async { Context::current() }
        .instrument(info_span!("work"))
        .await;
    assert!(!new.trace().unwrap().sampled());
    assert!(service.shutdown(FLUSH).await.is_clean());
}

#[tokio::test]
async fn grpc_is_spoken_on_its_port() {
    let collector = Collector::grpc(Behaviour::Accept).await;
    let url = collector.url();
    let service = Service::start(&[
        ("MAESTRO_TRACING_ENDPOINT", url.as_str()),
        ("MAESTRO_TRACING_HEADERS", "x-key=sesame"),
    ]);
    async {}.instrument(info_span!("over grpc")).await;
    let report = service.shutdown(FLUSH).await;
    assert!(report.is_clean(), "{report}");
    collector.span("over grpc");
    assert_eq!(collector.headers()[0]["x-key"], "sesame");
}

#[tokio::test]
async fn a_grpc_refusal_is_told_from_success() {
    let collector = Collector::grpc(Behaviour::GrpcStatus(3)).await;
    let url = collector.url();
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    async {}.instrument(info_span!("refused")).await;
    let report = service.shutdown(FLUSH).await;
    assert!(!report.is_clean());
    assert!(report.last_failure.unwrap().contains("gRPC status 3"));
}

#[tokio::test]
async fn a_current_thread_runtime_and_none_at_all_can_export() {
    // The span is made on a plain thread, and the runtime of this test is a current-thread one.
    let (service, collector) = exporting(&[]).await;
    let dispatch = service.telemetry.dispatch().clone();
    std::thread::spawn(move || {
        tracing::dispatcher::with_default(&dispatch, || info_span!("plain thread").in_scope(|| {}));
    })
    .join()
    .unwrap();
    assert!(service.shutdown(FLUSH).await.is_clean());
    collector.span("plain thread");
}

#[tokio::test]
async fn a_second_subscriber_of_the_process_is_refused_with_a_reason() {
    let (first, second) = (Service::start(&[]), Service::start(&[]));
    // Whoever comes second, here or in another test of this process, is told.
    let _ = first.telemetry.install();
    let error = second.telemetry.install().unwrap_err();
    assert_eq!(error.kind(), maestro_metrics::ErrorKind::Conflict);
    assert!(error.to_string().contains("already"), "{error}");
}

/// Notes the names of the spans it is shown.
struct Names(std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Names {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        _: &tracing::span::Id,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        self.0.lock().unwrap().push(attributes.metadata().name());
    }
}

#[tokio::test]
async fn a_layer_of_another_kind_sees_all_spans_and_ours_exports_as_before() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let environment = maestro_config::Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "quality-fabric"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("MAESTRO_TRACING_ENDPOINT", url.as_str()),
        ("MAESTRO_TRACING_SAMPLE_RATIO", "0"),
    ]);
    let (identity, config) = environment
        .read::<(maestro_config::Identity, maestro_metrics::TelemetryConfig)>()
        .unwrap();
    let registry = maestro_metrics::Registry::new(&identity);
    let seen = std::sync::Arc::default();
    let logs = crate::service::Lines::default();
    let telemetry = maestro_metrics::Telemetry::builder(&config, &identity, &registry)
        .log_to(logs.clone())
        .layer(Names(std::sync::Arc::clone(&seen)))
        .start()
        .unwrap();
    {
        let _current = tracing::dispatcher::set_default(telemetry.dispatch());
        async {
            async { tracing::info!("inside") }
                .instrument(info_span!("child"))
                .await;
        }
        .instrument(info_span!("quick"))
        .await;
        async { tracing::error!("no such table") }
            .instrument(info_span!("failed"))
            .await;
    }
    let report = telemetry.shutdown(std::time::Instant::now() + FLUSH).await;
    assert!(report.is_clean(), "{report}");
    // Unsampled traces as well, for it decides itself.
    assert_eq!(*seen.lock().unwrap(), ["quick", "child", "failed"]);
    let exported: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    assert_eq!(exported, ["failed"]);
    let lines = logs.json();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines.iter().all(|line| line["trace_id"].is_string()),
        "{lines:?}"
    );
}
