//! Spans, as a collector gets them.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::api::DeleteParams;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use rustix::process::Signal;
use tokio::net::TcpListener;

use crate::{
    life::nodes,
    operator::Operator,
    scenarios::{MODEL, create, namespace, parsers, until_status},
    server::{Cluster, POD, lock, wait},
};

const NAMESPACE: &str = "traces";

type Exports = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector that keeps what it gets; ends with the test.
async fn collector() -> Result<(u16, Exports)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let exports = Exports::default();
    let kept = Arc::clone(&exports);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            let service = service_fn(move |request| keep(Arc::clone(&kept), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok((port, exports))
}

async fn keep(exports: Exports, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let good = request.uri().path() == "/v1/traces" && request.headers()["content-type"] == "application/x-protobuf";
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let export = body.ok().and_then(|body| ExportTraceServiceRequest::decode(body).ok());
    let mut response = Response::new(Empty::new());
    match export.filter(|_| good) {
        Some(export) => lock(&exports).push(export),
        None => *response.status_mut() = http::StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn spans(exports: &Exports) -> Vec<Span> {
    lock(exports)
        .iter()
        .flat_map(|export| &export.resource_spans)
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| scope.spans.clone())
        .collect()
}

pub async fn reach_a_collector(cluster: &'static Cluster) -> Result<()> {
    cluster.kill_operator();
    nodes(cluster).await?;
    namespace(cluster, NAMESPACE).await?;
    let (port, exports) = collector().await?;
    let endpoint = format!("http://127.0.0.1:{port}");
    // Longer than the test, so that what arrives was sent at the end.
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
    ];
    let operator = Operator::start(cluster, POD, &environment).await?;
    let spec = format!("{{classes: [cpu-amd64], model: {MODEL}}}");
    create(cluster, NAMESPACE, "demo", &spec, false).await?;
    until_status(cluster, NAMESPACE, "demo", "any status", |_| true).await?;
    ensure!(lock(&exports).is_empty(), "spans were sent before their time");
    operator.signal(Signal::TERM);
    wait("the operator to end", async || Ok(operator.ended())).await?;
    ensure!(
        operator.ended().is_some_and(|status| status.success()),
        "{}",
        operator.log()
    );

    let resource = lock(&exports)
        .first()
        .and_then(|export| export.resource_spans.first()?.resource.clone())
        .with_context(|| format!("no span arrived: {}", operator.log()))?;
    ensure!(
        text(&resource.attributes, "service.name") == Some("hawkeye-operator"),
        "{resource:?}"
    );
    let spans = spans(&exports);
    let by_name: HashMap<&str, usize> = spans.iter().fold(HashMap::new(), |mut count, span| {
        *count.entry(span.name.as_str()).or_default() += 1;
        count
    });
    let reconcile = spans
        .iter()
        .find(|span| {
            span.name == "reconcile"
                && text(&span.attributes, "namespace") == Some(NAMESPACE)
                && text(&span.attributes, "name") == Some("demo")
        })
        .with_context(|| format!("no span of the reconcile: {by_name:?}"))?;
    ensure!(reconcile.parent_span_id.is_empty(), "it is not the root: {reconcile:?}");
    for step in ["plan", "apply", "status"] {
        let child = spans.iter().find(|span| {
            span.name == step && span.trace_id == reconcile.trace_id && span.parent_span_id == reconcile.span_id
        });
        let child = child.with_context(|| format!("no {step} within the reconcile: {by_name:?}"))?;
        ensure!(child.end_time_unix_nano <= reconcile.end_time_unix_nano, "{child:?}");
    }
    ensure!(by_name.contains_key("plan_all"), "{by_name:?}");
    ensure!(
        by_name.keys().all(|name| !name.contains("HTTP")),
        "spans of the client: {by_name:?}"
    );
    parsers(cluster, NAMESPACE)
        .delete("demo", &DeleteParams::default())
        .await?;
    drop(operator);
    cluster.start_operator().await
}
