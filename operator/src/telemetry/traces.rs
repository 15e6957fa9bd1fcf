//! OpenTelemetry's standard environment, and what is made of it.

use anyhow::{Context as _, bail};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

use super::otlp::Sender;

/// Name of this service where `OTEL_SERVICE_NAME` gives no other.
pub(super) const SERVICE: &str = "hawkeye-operator";

/// What makes and sends spans, when the environment has an endpoint for them. Endpoint, headers, sampler and resource
/// attributes are read by OpenTelemetry itself, under their standard names.
pub(super) fn provider(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<SdkTracerProvider>> {
    if !wanted(&variable)? {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(Sender::new().context("traces cannot be sent")?)
        .build()
        .context("traces cannot be sent")?;
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if given(&variable, "OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    Ok(Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build(),
    ))
}

/// Whether traces are asked for; an error when in a way that is not built in.
fn wanted(variable: &impl Fn(&str) -> Option<String>) -> anyhow::Result<bool> {
    let of = |name: &str| given(variable, name);
    let endpoint = of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| of("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let disabled = of("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if endpoint.is_none() || disabled || of("OTEL_TRACES_EXPORTER").as_deref() == Some("none") {
        return Ok(false);
    }
    let protocol = of("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| of("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref() {
        None | Some("http/protobuf") => Ok(true),
        Some(other) => bail!("traces are sent as http/protobuf, usually to port 4318, and not as {other}"),
    }
}

/// Empty counts as not given, as OpenTelemetry has it.
fn given(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_wanted(variables: &[(&str, &str)]) -> anyhow::Result<bool> {
        wanted(&|name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn traces_are_off_until_there_is_an_endpoint() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(!is_wanted(&[]).unwrap());
        assert!(!is_wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap());
        assert!(is_wanted(&[endpoint]).unwrap());
        assert!(is_wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector/v1/traces")]).unwrap());
        assert!(!is_wanted(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).unwrap());
        assert!(!is_wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).unwrap());
        assert!(is_wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).unwrap());
        assert!(is_wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_err());
    }
}
