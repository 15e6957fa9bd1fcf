//! What can be seen of a device from outside: whether it answers, how long it has been at its job, how large its batches are.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failures of the device in a row, without a success between, after which the process is reported as not alive: a GPU
/// that faulted stays faulted for the life of the process.
const DEAD_AFTER: u32 = 5;

/// Of one device thread, which writes them.
#[derive(Debug)]
pub(super) struct Vitals {
    epoch: Instant,
    /// Milliseconds from the epoch to the job's begin, plus one; 0 between jobs.
    since: AtomicU64,
    failures: AtomicU32,
    /// Crops in a batch once they are fewer than at the start; 0 before.
    shrunk: AtomicUsize,
}

impl Vitals {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            since: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            shrunk: AtomicUsize::new(0),
        }
    }

    pub(super) fn begin(&self) {
        let since = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(since + 1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    pub(super) fn busy_for(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.epoch.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
    }

    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// How many failures there are now in a row.
    pub(super) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn is_alive(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < DEAD_AFTER
    }

    pub(super) fn shrink_batch(&self, size: usize) {
        self.shrunk.store(size, Ordering::Relaxed);
    }

    pub(super) fn shrunk_batch(&self) -> Option<usize> {
        Some(self.shrunk.load(Ordering::Relaxed)).filter(|size| *size > 0)
    }
}
