//! From signals to the phases of stopping.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Running,
    /// `/readyz` says no, but the port still answers: endpoints that still route here must not see refused connections.
    LameDuck,
    /// The port is closed; requests in flight are finished.
    Draining,
    /// A second signal: stop without waiting for anything.
    AtOnce,
}

/// Sets the phase; whoever holds it stops the server.
pub type PhaseSender = watch::Sender<Phase>;
/// Follows the phase.
pub type PhaseReceiver = watch::Receiver<Phase>;

/// A new phase, `Running`.
pub fn phase() -> (PhaseSender, PhaseReceiver) {
    watch::channel(Phase::Running)
}

/// Follows SIGTERM and SIGINT for ever.
///
/// SIGTERM (Kubernetes) starts with the lame-duck phase, which [`crate::serve::serve`] ends; SIGINT (a person at a
/// terminal) drains straight away; a second signal of either kind stops at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn follow_signals(phase: PhaseSender) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let (name, first) = tokio::select! {
            _ = terminate.recv() => ("SIGTERM", Phase::LameDuck),
            _ = interrupt.recv() => ("SIGINT", Phase::Draining),
        };
        let next = if *phase.borrow() == Phase::Running {
            first
        } else {
            Phase::AtOnce
        };
        tracing::info!(signal = name, ?next, "stopping");
        phase.send_replace(next);
    }
}
