//! The accept loop. `axum::serve` sets no header timeout, and hyper's needs a timer, so the loop is our own.

use crate::metrics::{Metrics, Slow};
use crate::shutdown::{Phase, PhaseReceiver, PhaseSender};
use crate::stall::Stalling;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Open connections at once; more wait in the kernel's backlog. Parsing is bounded far below this by the queue.
const MAX_CONNECTIONS: usize = 1024;

/// Rest after an `accept` that failed for want of file descriptors, so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Time limits of connections and of stopping.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A client must have sent its request's headers within this time; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// A client that takes nothing of its answer for this long is cut off.
    pub write_timeout: Duration,
    /// How long the port still answers after SIGTERM, with `/readyz` saying no.
    pub lame_duck: Duration,
    /// How long requests in flight may take to finish once the port is closed.
    pub drain: Duration,
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every request in flight was answered.
    Drained,
    /// Time ran out, or a second signal came, with requests in flight.
    Cut,
}

/// Serves `app` until `phase` leaves `Running`, then drains.
///
/// `phase` is also written: the lame-duck phase ends here.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    phase: &PhaseSender,
    limits: Limits,
    metrics: &Arc<Metrics>,
) -> Ended {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);

    let mut stop = std::pin::pin!(stop_listening(phase, limits.lame_duck));
    loop {
        let (slot, stream) = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let service = TowerToHyperService::new(app.clone());
        let stream = Stalling::new(stream, limits.write_timeout, Arc::clone(metrics));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let metrics = Arc::clone(metrics);
        metrics.connections.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Clients that leave or dawdle are everyday life.
                tracing::debug!(%error, "connection ended");
                if error.is_timeout() {
                    metrics.cut(Slow::Headers);
                }
            }
            metrics.connections.dec();
            drop(slot);
        });
    }
    drop(listener);

    let in_flight = MAX_CONNECTIONS - slots.available_permits();
    tracing::info!(connections = in_flight, "port closed, finishing what is in flight");
    let mut hurry = phase.subscribe();
    tokio::select! {
        () = graceful.shutdown() => Ended::Drained,
        () = tokio::time::sleep(limits.drain) => Ended::Cut,
        () = reached(&mut hurry, Phase::AtOnce) => Ended::Cut,
    }
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (Option<OwnedSemaphorePermit>, TcpStream) {
    // The semaphore is never closed, so there always is a permit.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                return (slot, stream);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Resolves when the port shall close.
async fn stop_listening(phase: &PhaseSender, lame_duck: Duration) {
    let mut receiver = phase.subscribe();
    left_running(&mut receiver).await;
    if *receiver.borrow() == Phase::LameDuck {
        tokio::select! {
            () = tokio::time::sleep(lame_duck) => {}
            () = reached(&mut receiver, Phase::AtOnce) => {}
        }
        phase.send_if_modified(|now| {
            let end = *now == Phase::LameDuck;
            if end {
                *now = Phase::Draining;
            }
            end
        });
    }
}

/// Resolves as soon as the phase is not `Running`; never if the sender is gone.
async fn left_running(phase: &mut PhaseReceiver) {
    if phase.wait_for(|now| *now != Phase::Running).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn reached(phase: &mut PhaseReceiver, wanted: Phase) {
    if phase.wait_for(|now| *now == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}
