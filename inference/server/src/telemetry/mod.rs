//! The log, and traces for those who ask for them.

mod otlp;

use self::otlp::Sender;
use crate::config::LogFormat;
use axum::http::HeaderMap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io::{IsTerminal, stderr};
use std::time::Duration;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// Name of this service where `OTEL_SERVICE_NAME` gives no other.
const SERVICE: &str = "hawkeye-inference";

/// How long the last spans may take to be delivered.
const FLUSH: Duration = Duration::from_secs(3);

/// Traces that are asked for, but cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// In a way that is not built in.
    #[error("traces are sent as http/protobuf, usually to port 4318, and not as {0}")]
    Protocol(String),
    /// To where nothing can be sent.
    #[error("traces cannot be sent: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// TLS cannot be set up, which only a defect can cause.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// What has to be ended with the process.
#[derive(Debug, Default)]
#[must_use = "the last spans are sent when it is ended"]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts the log on standard error, with `default` unless RUST_LOG says what is logged.
pub fn log(format: LogFormat, default: &str) {
    start(format, default, None);
}

/// Starts the log as [`log`] does and, where OpenTelemetry's variables say where to, the export of traces. Has to be called
/// on the runtime.
///
/// # Errors
/// When traces are asked for in a way that cannot be followed; the log is started all the same.
pub fn log_and_traces(format: LogFormat, default: &str) -> Result<Telemetry, TelemetryError> {
    let provider = provider(|name| std::env::var(name).ok());
    let found = provider.as_ref().ok().and_then(Option::as_ref);
    start(format, default, found);
    Ok(Telemetry(provider?))
}

fn start(format: LogFormat, default: &str, traces: Option<&SdkTracerProvider>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt::layer().with_writer(stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces.map(spans))
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
}

/// Turns the spans of requests for a parse into traces.
pub fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_threads(false)
        // Probes and scrapes have spans of a lower level; those of libraries would tell of every connection.
        .with_filter(Targets::new().with_target("hawkeye_inference", Level::INFO))
}

/// Makes a span part of the trace that a request's headers name (`traceparent`), if they do.
pub fn follow(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Without traces there is nobody to follow it.
    span.set_parent(caller).unwrap_or_default();
}

impl Telemetry {
    /// Sends what is left.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        // It blocks until the exporter is done, and the exporter needs this runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
        match tokio::time::timeout(FLUSH, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not delivered"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not delivered"),
            Err(_) => tracing::warn!("the last spans were not delivered in time"),
        }
    }
}

impl From<SdkTracerProvider> for Telemetry {
    fn from(provider: SdkTracerProvider) -> Self {
        Self(Some(provider))
    }
}

/// What makes and sends spans, when the environment has an endpoint for them. Endpoint, headers, sampler and resource
/// attributes are read by OpenTelemetry itself, under their standard names. Has to be called on the runtime.
///
/// # Errors
/// When traces are asked for in a way that cannot be followed.
pub fn provider(variable: impl Fn(&str) -> Option<String>) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if !wanted(&variable)? {
        return Ok(None);
    }
    let sender = Sender::new().map_err(|error| TelemetryError::Tls(error.to_string()))?;
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(sender);
    if let Some(endpoint) = endpoint(&variable) {
        exporter = exporter.with_endpoint(endpoint);
    }
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if given(&variable, "OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter.build()?)
        .with_resource(resource.build());
    Ok(Some(provider.build()))
}

/// Where traces go, as OpenTelemetry has it: the variable for traces as it is, the one for everything with a path behind it.
fn endpoint(variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    given(variable, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| {
        let all = given(variable, "OTEL_EXPORTER_OTLP_ENDPOINT")?;
        Some(format!("{}/v1/traces", all.trim_end_matches('/')))
    })
}

/// Whether traces are asked for; an error when in a way that is not built in.
fn wanted(variable: &impl Fn(&str) -> Option<String>) -> Result<bool, TelemetryError> {
    let of = |name: &str| given(variable, name);
    let disabled = of("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if endpoint(variable).is_none() || disabled || of("OTEL_TRACES_EXPORTER").as_deref() == Some("none") {
        return Ok(false);
    }
    let protocol = of("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| of("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol {
        Some(other) if other != "http/protobuf" => Err(TelemetryError::Protocol(other)),
        _ => Ok(true),
    }
}

/// Empty counts as not given, as OpenTelemetry has it.
fn given(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(set: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn traces_are_off_until_there_is_an_endpoint() {
        let is_wanted = |set: &[(&str, &str)]| wanted(&variables(set));
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(!is_wanted(&[]).expect("no"));
        assert!(!is_wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).expect("no"));
        assert!(is_wanted(&[all]).expect("yes"));
        assert!(is_wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector/v1/traces")]).expect("yes"));
        assert!(!is_wanted(&[all, ("OTEL_SDK_DISABLED", "true")]).expect("no"));
        assert!(!is_wanted(&[all, ("OTEL_TRACES_EXPORTER", "none")]).expect("no"));
        assert!(is_wanted(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).expect("yes"));
        let error = is_wanted(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).expect_err("not built in");
        assert!(error.to_string().contains("4318"), "{error}");
    }

    #[test]
    fn the_endpoint_for_everything_gets_the_path_of_traces() {
        let of = |set: &[(&str, &str)]| endpoint(&variables(set));
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        assert_eq!(of(&[all]).as_deref(), Some("http://collector:4318/v1/traces"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/spans");
        assert_eq!(of(&[all, own]).as_deref(), Some("http://other/spans"));
    }
}
