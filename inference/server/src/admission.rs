//! Places in the queue, and when to come back if there is none.

use crate::error::ApiError;
use crate::metrics::Metrics;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Weight of the newest parse in the moving average: about the last sixteen count.
const NEWEST: f64 = 1.0 / 8.0;

/// Bounds of `Retry-After`: whole seconds are the header's unit, and who waits longer than a minute has given up.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);

/// How fast parses come out of the device, from the times at which they did.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceRate {
    last: Option<Instant>,
    /// Seconds from one answer to the next while there is work.
    interval: Option<f64>,
}

impl ServiceRate {
    /// Records a parse that the device took up at `begun` and answered at `done`. Idle time before `begun` does not count;
    /// of two parses that ran side by side only the later end does.
    pub fn answered(&mut self, begun: Instant, done: Instant) {
        let since = self.last.map_or(begun, |last| last.max(begun));
        let sample = done.saturating_duration_since(since).as_secs_f64();
        self.interval = Some(self.interval.map_or(sample, |mean| mean + (sample - mean) * NEWEST));
        self.last = Some(self.last.map_or(done, |last| last.max(done)));
    }

    /// When to try again if `held` requests are there now: by then half of them are answered. `guess` is the time of one
    /// parse, for as long as none was measured.
    pub fn retry_after(&self, held: usize, guess: Duration) -> Duration {
        let interval = self.interval.unwrap_or(guess.as_secs_f64());
        let wait = Duration::try_from_secs_f64(interval * held as f64 / 2.0).unwrap_or(LONGEST);
        wait.clamp(SHORTEST, LONGEST)
    }
}

/// The places. A request keeps its own from before its body is read until it is answered.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    size: usize,
    rate: Arc<Mutex<ServiceRate>>,
    metrics: Arc<Metrics>,
}

/// A place in the queue; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    _place: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.metrics.held.dec();
    }
}

impl Admission {
    /// `size` places, at least one.
    pub fn new(size: usize, metrics: Arc<Metrics>) -> Self {
        let size = size.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(size)),
            size,
            rate: Arc::default(),
            metrics,
        }
    }

    /// A place in the queue. `guess` is the time of one parse, for as long as none was measured.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when there is none; never waits.
    pub fn admit(&self, guess: Duration) -> Result<Admitted, ApiError> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            self.metrics.held.inc();
            return Ok(Admitted {
                _place: place,
                metrics: Arc::clone(&self.metrics),
            });
        }
        // Copied out: nothing that can panic runs under the lock, so a poisoned one is sound.
        let rate = *self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        Err(ApiError::Busy {
            held: self.size,
            retry_after: rate.retry_after(self.size, guess),
        })
    }

    /// Records a parse that took `took` on the device and ended now.
    pub fn answered(&self, took: Duration) {
        let done = Instant::now();
        let begun = done.checked_sub(took).unwrap_or(done);
        self.rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answered(begun, done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_that_of_busy_times() {
        let start = Instant::now();
        let mut rate = ServiceRate::default();
        assert_eq!(
            rate.retry_after(10, SECOND),
            5 * SECOND,
            "a guess until one is measured"
        );
        // Two seconds each, with an hour of idleness between.
        for hour in 0..40 {
            let begun = start + 3600 * hour * SECOND;
            rate.answered(begun, begun + 2 * SECOND);
        }
        assert_eq!(rate.retry_after(8, SECOND), 8 * SECOND);
        assert_eq!(rate.retry_after(1, SECOND), SECOND);
        assert_eq!(rate.retry_after(1000, SECOND), LONGEST);
    }

    #[test]
    fn two_devices_answer_twice_as_fast() {
        let start = Instant::now();
        let mut rate = ServiceRate::default();
        for round in 0..60 {
            let begun = start + 2 * round * SECOND;
            rate.answered(begun, begun + 2 * SECOND);
            rate.answered(begun, begun + 2 * SECOND);
        }
        let wait = rate.retry_after(20, SECOND).as_secs_f64();
        assert!((wait - 10.0).abs() < 1.0, "{wait} s for 20 at one a second, halved");
    }

    #[test]
    fn a_place_comes_back_when_it_is_dropped() {
        let admission = Admission::new(1, Arc::new(Metrics::new()));
        let place = admission.admit(SECOND).expect("free");
        let refused = admission.admit(30 * SECOND).expect_err("taken");
        assert_eq!(
            refused,
            ApiError::Busy {
                held: 1,
                retry_after: 15 * SECOND
            }
        );
        drop(place);
        assert!(admission.admit(SECOND).is_ok());
    }
}
