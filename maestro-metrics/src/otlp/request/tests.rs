use std::time::{Duration, Instant};

use maestro_config::Environment;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value;
use prost::Message;

use super::*;
use crate::propagation::TraceContext;
use crate::span::SpanKind;

pub(in crate::otlp) fn record() -> SpanRecord {
    let parent = TraceContext::root(true);
    SpanRecord {
        trace: parent.child(),
        parent: Some(parent.span_id()),
        name: "GET /orders/{id}".into(),
        kind: SpanKind::Server,
        began: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
        started: Instant::now(),
        nanoseconds: 1_500,
        attributes: vec![
            ("flag".into(), Value::Bool(false)),
            ("count".into(), Value::Integer(-7)),
            ("ratio".into(), Value::Number(0.25)),
            ("empty".into(), Value::Text("".into())),
        ],
        events: vec![SpanEvent {
            name: "retried".into(),
            at: UNIX_EPOCH + Duration::from_secs(1_700_000_001),
            attributes: vec![("attempt".into(), Value::Integer(2))],
        }],
        links: vec![TraceContext::root(false)],
        failed: Some("no room".into()),
        dropped_attributes: 3,
        dropped_events: 4,
        correlation: Some("order-17".into()),
        tenant: Some("acme".into()),
    }
}

#[test]
fn an_independent_decoder_reads_every_part_of_a_span() {
    let identity = Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "quality-fabric"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("MAESTRO_INSTANCE_ID", "qf-1"),
    ])
    .read()
    .unwrap();
    let record = record();
    let mut buffer = vec![1, 2, 3];
    let two = [record.clone(), record.clone()];
    encode(&Resource::new(&identity), &two, &mut buffer);
    let request = ExportTraceServiceRequest::decode(&buffer[..]).unwrap();

    let [spans] = &request.resource_spans[..] else {
        panic!("{request:?}");
    };
    let resource = spans.resource.as_ref().unwrap();
    let of = |key: &str| {
        let pair = resource
            .attributes
            .iter()
            .find(|pair| pair.key == key)
            .unwrap();
        pair.value.clone().unwrap().value.unwrap()
    };
    assert_eq!(
        of("service.name"),
        any_value::Value::StringValue("quality-fabric".into())
    );
    assert_eq!(
        of("service.instance.id"),
        any_value::Value::StringValue("qf-1".into())
    );
    assert_eq!(
        of("deployment.environment.name"),
        any_value::Value::StringValue("test".into())
    );

    let scope = &spans.scope_spans[0];
    assert_eq!(scope.spans.len(), 2);
    let span = &scope.spans[0];
    assert_eq!(span.trace_id, record.trace.trace_id().to_bytes());
    assert_eq!(span.span_id, record.trace.span_id().to_bytes());
    assert_eq!(span.parent_span_id, record.parent.unwrap().to_bytes());
    assert_eq!(span.name, "GET /orders/{id}");
    assert_eq!(span.kind, 2);
    assert_eq!(span.start_time_unix_nano, 1_700_000_000_123_456_789);
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500);
    assert_eq!(span.flags, 1);
    assert_eq!(
        (span.dropped_attributes_count, span.dropped_events_count),
        (3, 4)
    );
    let values: Vec<_> = span
        .attributes
        .iter()
        .map(|pair| {
            (
                pair.key.as_str(),
                pair.value.clone().unwrap().value.unwrap(),
            )
        })
        .collect();
    assert_eq!(
        values,
        [
            ("flag", any_value::Value::BoolValue(false)),
            ("count", any_value::Value::IntValue(-7)),
            ("ratio", any_value::Value::DoubleValue(0.25)),
            ("empty", any_value::Value::StringValue(String::new())),
            (
                "correlation.id",
                any_value::Value::StringValue("order-17".into())
            ),
            ("tenant.id", any_value::Value::StringValue("acme".into())),
        ]
    );
    assert_eq!(span.events[0].name, "retried");
    assert_eq!(span.events[0].time_unix_nano, 1_700_000_001_000_000_000);
    assert_eq!(
        span.links[0].trace_id,
        record.links[0].trace_id().to_bytes()
    );
    let status = span.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "no room"));
}

#[test]
fn a_partial_success_is_read() {
    let response = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 3,
            error_message: "too old".to_owned(),
        }),
    };
    assert_eq!(
        decode_response(&response.encode_to_vec()),
        PartialSuccess {
            rejected: 3,
            message: "too old".to_owned()
        }
    );
    assert_eq!(decode_response(&[]), PartialSuccess::default());
}
