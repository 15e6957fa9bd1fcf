//! The log.

use tracing_subscriber::{EnvFilter, fmt};

use crate::args::LogFormat;

/// Starts the log on standard error. Without RUST_LOG it holds what the operator does, and warnings of its libraries.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,hawkeye_operator=info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}
