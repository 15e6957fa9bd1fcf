//! The processor beside the devices: decoding, cutting, drawing and encoding, away from the async threads.

use crate::engine::EngineError;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use tokio::sync::Semaphore;

/// Runs as many pieces of work at once as there are processors; what is given up while it waits is never begun with.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Semaphore>);

impl Default for Pool {
    fn default() -> Self {
        // In a container that is what its CPU limit leaves.
        Self::new(available_parallelism().map_or(1, NonZero::get))
    }
}

impl Pool {
    /// At most `size` at once, at least one.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Semaphore::new(size.max(1))))
    }

    /// Runs `work`, which may take milliseconds but waits for nothing.
    ///
    /// # Errors
    /// [`EngineError::Panicked`] when it panics.
    pub async fn run<T, F>(&self, work: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        // Never closed, so there always is a permit in the end.
        let permit = Arc::clone(&self.0).acquire_owned().await.ok();
        let work = move || {
            let result = work();
            drop(permit);
            result
        };
        self.run_at_once(work).await
    }

    /// Runs `work` without waiting for others: a device may wait for it.
    ///
    /// # Errors
    /// [`EngineError::Panicked`] when it panics.
    pub async fn run_at_once<T, F>(&self, work: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let ran = tokio::task::spawn_blocking(work).await;
        ran.map_err(|error| EngineError::Panicked(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn what_is_given_up_while_it_waits_never_runs() {
        let pool = Pool::new(1);
        let (go, held) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || held.recv().is_ok()).await }
        });
        while pool.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let ran = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ran);
        let second = pool.run(move || mark.store(true, Ordering::SeqCst));
        assert!(tokio::time::timeout(Duration::from_millis(20), second).await.is_err());
        go.send(()).expect("is waited for");
        assert_eq!(first.await.expect("ends"), Ok(true));
        assert_eq!(pool.run(|| 1).await, Ok(1));
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_gives_its_place_back() {
        let pool = Pool::new(1);
        for _ in 0..3 {
            let error = pool.run(|| panic!("told to")).await.expect_err("panicked");
            assert!(matches!(error, EngineError::Panicked(_)), "{error}");
        }
    }
}
