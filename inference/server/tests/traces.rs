//! Spans of a request, as a collector gets them. One test: subscribers of several would get in each other's way.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use common::{body, png, start};
use hawkeye_inference::telemetry::{Telemetry, provider, spans};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;

type Exports = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector that keeps what it gets.
async fn collector() -> (u16, Exports) {
    let exports = Exports::default();
    let kept = Arc::clone(&exports);
    let keep = move |headers: HeaderMap, body: Bytes| async move {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        kept.lock()
            .unwrap()
            .push(ExportTraceServiceRequest::decode(body).unwrap());
        StatusCode::OK
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(keep))).await });
    (port, exports)
}

fn text(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test]
async fn a_parse_is_a_span_of_its_callers_trace_with_its_stages_below() {
    let (port, exports) = collector().await;
    let endpoint = format!("http://127.0.0.1:{port}");
    let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let provider = provider(variable).unwrap().unwrap();
    // The runtime has this one thread, so the service's spans are made here, too.
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans(&provider)));
    let service = start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = service
        .client
        .post(format!("{}/parse", service.url))
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-request-id", "step-1")
        .json(&body(&png(200, 120)))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    service.get("/readyz").await;
    drop(guard);
    Telemetry::from(provider).end().await;

    let exports = exports.lock().unwrap();
    let resources: Vec<_> = exports.iter().flat_map(|export| &export.resource_spans).collect();
    let resource = resources[0].resource.as_ref().unwrap();
    let name = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name");
    assert!(format!("{name:?}").contains("hawkeye-inference"), "{name:?}");
    let spans: Vec<&Span> = resources
        .iter()
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect();
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "request").collect();
    assert_eq!(requests.len(), 1, "probes have no traces");
    let request = requests[0];
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (trace.to_owned(), "00f067aa0ba902b7".to_owned())
    );
    assert_eq!(text(request, "id").as_deref(), Some("step-1"));
    assert_eq!(text(request, "http.response.status_code").as_deref(), Some("200"));
    for stage in ["decode", "find", "encode"] {
        let span = spans
            .iter()
            .find(|span| span.name == stage && span.parent_span_id == request.span_id);
        let span = span.unwrap_or_else(|| panic!("no {stage} below the request"));
        assert!(span.start_time_unix_nano >= request.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= request.end_time_unix_nano, "{stage}");
    }
}
