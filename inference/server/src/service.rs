//! `serve`: from settings to a running service, until a signal ends it.

use crate::config::{ServeArgs, not_read};
use crate::crop_cache::CropCache;
use crate::engine::{Engine, LoadError, ModelInfo};
use crate::input::Options;
use crate::metrics::Metrics;
use crate::routes::{App, RequestLimits, router};
use crate::serve::{Ended, Limits, serve};
use crate::shutdown::{follow_signals, phase};
use hawkeye_pipeline::parser::Parser;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long the device thread gets to drop its models at the end. It is cut off while it still loads or works.
const RELEASE_TIME: Duration = Duration::from_secs(2);

/// Why a service did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The port cannot be had.
    #[error("cannot listen on {host} port {port}")]
    Listen {
        /// `--host`.
        host: String,
        /// `--port`.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Signal handlers or the device thread.
    #[error("cannot set the process up")]
    Setup(#[from] io::Error),
    /// The models.
    #[error("cannot load the models: {0}")]
    Load(Arc<str>),
    /// The device hangs in one call; only another process may get it to work again.
    #[error("the device has been at one screenshot or batch for more than {} s", .0.as_secs_f32())]
    Wedged(Duration),
}

/// Listens at once, loads the models in the background, and serves until a signal has ended it. `load` is given the number
/// of the worker, from 0 to the [`workers`](ModelInfo::workers) that it tells with the first.
///
/// # Errors
/// [`ServiceError`]; a load that fails ends the service, and so does a device that hangs.
pub async fn run<L>(args: &ServeArgs, load: L) -> Result<Ended, ServiceError>
where
    L: Fn(usize) -> Result<(Parser, ModelInfo), LoadError> + Send + Sync + 'static,
{
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .map_err(|source| ServiceError::Listen {
            host: args.host.clone(),
            port: args.port,
            source,
        })?;
    let address = listener.local_addr()?;
    let (sender, receiver) = phase();
    let signals = tokio::spawn(follow_signals(sender.clone()));

    let metrics = Arc::new(Metrics::new());
    for (variable, reason) in not_read(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        tracing::warn!(variable, reason, "not read");
    }
    let settings = args.model.settings();
    let warm_up = Options::default().for_pipeline(settings);
    let cache = (args.crop_cache > 0).then(|| CropCache::new(args.crop_cache));
    let engine = Engine::start(load, warm_up, cache, Arc::clone(&metrics))?;
    let limits = RequestLimits {
        max_body_bytes: args.limits.max_body_bytes,
        max_pixels: args.limits.max_pixels,
        queue: args.limits.queue,
        queue_crops: args.limits.queue_crops,
        timeout: args.limits.request_timeout,
        body_timeout: args.body_timeout,
        device_timeout: args.expect.device_timeout,
    };
    let app = App::new(
        engine.clone(),
        Arc::clone(&metrics),
        receiver,
        settings,
        limits,
        &args.model.device.to_string(),
        args.model.expectation(Some(&args.expect)),
    );
    tracing::info!(%address, profile = %args.model.profile, "listening; models are being loaded");

    let times = Limits {
        header_timeout: args.header_timeout,
        write_timeout: args.write_timeout,
        lame_duck: args.lame_duck,
        drain: args.drain_timeout,
    };
    let ended = tokio::select! {
        ended = serve(listener, router(app), &sender, times, &metrics) => ended,
        reason = engine.load_failure() => return Err(ServiceError::Load(reason)),
        () = engine.wedged(limits.device_timeout) => return Err(ServiceError::Wedged(limits.device_timeout)),
        // Returns only if the handlers cannot be installed; without them nothing would ever drain.
        failed = signals => {
            let failure = failed.map_err(io::Error::other).and_then(|result| result);
            return Err(ServiceError::Setup(failure.err().unwrap_or_else(|| io::Error::other("signals are gone"))));
        }
    };
    if ended == Ended::Drained && tokio::time::timeout(RELEASE_TIME, engine.ended()).await.is_err() {
        tracing::debug!("the device thread is still busy");
    }
    Ok(ended)
}
