//! The log, and traces for those who ask for them.

mod otlp;
mod traces;

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::time::timeout;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{ParseError, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::args::LogFormat;

/// How long the last spans may take to be delivered.
const FLUSH: Duration = Duration::from_secs(3);

/// Added to every filter; see [`discreet`]. The other warnings of the client's TLS stay.
const DISCREET: [&str; 2] = ["kube_client::client=error", "kube_client::client::tls=warn"];

/// What has to be ended with the process.
#[derive(Debug, Default)]
#[must_use = "the last spans are sent when it is ended"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts the log on standard error and, where the environment says where to, the export of traces. Without RUST_LOG the
/// log holds what the operator does, and warnings of its libraries.
///
/// # Errors
/// When traces are asked for in a way that cannot be followed.
pub fn init(format: LogFormat) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,hawkeye_operator=info"));
    let filter = discreet(filter)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    let provider = traces::provider(|name| std::env::var(name).ok())?;
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(traces::SERVICE))
            .with_threads(false)
            // Our own spans only: those of the client would tell of every watch and every renewal of the Lease.
            .with_filter(Targets::new().with_target("hawkeye_operator", tracing::Level::DEBUG))
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .init();
    Ok(Telemetry { traces: provider })
}

/// Without the client's warning about an answer that does not decode. It holds the whole answer, and a list of pods has the
/// environment of everybody's containers. What failed is said by whoever asked.
fn discreet(filter: EnvFilter) -> Result<EnvFilter, ParseError> {
    DISCREET
        .iter()
        .try_fold(filter, |filter, directive| Ok(filter.add_directive(directive.parse()?)))
}

impl Telemetry {
    /// Sends what is left.
    pub async fn end(self) {
        let Some(provider) = self.traces else { return };
        // It blocks until the exporter is done, and the exporter needs this runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
        match timeout(FLUSH, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not delivered"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not delivered"),
            Err(_) => tracing::warn!("the last spans were not delivered in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_for_no_answer_of_the_api_server_is_logged_whole() {
        for asked in ["warn,hawkeye_operator=info", "debug", "kube_client::client=trace"] {
            let filter = discreet(EnvFilter::new(asked)).unwrap();
            let text = filter.to_string();
            assert!(text.split(',').any(|part| part == DISCREET[0]), "{text}");
            assert!(!text.contains("kube_client::client=trace"), "{text}");
        }
    }
}
