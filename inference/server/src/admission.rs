//! Who is let in, and when to come back who is not.

use crate::error::ApiError;
use crate::metrics::Metrics;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

    /// How long it takes until `held` requests are answered. `guess` is the time of one, for as long as none was measured.
    fn until_answered(&self, held: usize, guess: Duration) -> Duration {
        let interval = self.interval.unwrap_or(guess.as_secs_f64());
        Duration::try_from_secs_f64(interval * held as f64).unwrap_or(Duration::MAX)
    }

    /// When to try again if `held` requests are there now: by then half of them are answered. `guess` is the time of one
    /// parse, for as long as none was measured.
    pub fn retry_after(&self, held: usize, guess: Duration) -> Duration {
        (self.until_answered(held, guess) / 2).clamp(SHORTEST, LONGEST)
    }
}

/// What is held now.
#[derive(Debug, Default)]
struct Held {
    requests: usize,
    /// Crops that are known to wait for a device, and those that are expected of requests which have not been searched yet.
    crops: usize,
    rate: ServiceRate,
    /// Crops of a request, as the last ones had.
    expected: f64,
}

/// Decides who is let in, by what is held: requests, because each keeps its body, and crops, because those are what takes time. Who
/// could not be answered within the time limit is sent away at once, instead of after it.
///
/// The crops of a screenshot are known only once it has been searched. Until then a request counts with as many as the last
/// ones had, in the mean; at first with the most that the profile returns. From then on it counts with its own, less those
/// that are cached, and with none once they are described.
#[derive(Debug, Clone)]
pub struct Admission {
    most_requests: usize,
    /// How long the wait may be.
    patience: Duration,
    held: Arc<Mutex<Held>>,
    metrics: Arc<Metrics>,
}

/// A place among those that are held; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Admission,
    crops: AtomicUsize,
}

impl Admitted {
    /// The screenshot was searched: it counts with `crops` from now on, and later ones are expected to be more like it.
    pub fn found(&self, crops: usize) {
        let mut held = self.admission.held();
        held.expected += (crops as f64 - held.expected) * NEWEST;
        self.count(&mut held, crops);
    }

    /// Its crops are described: it counts with none from now on.
    pub fn described(&self) {
        self.count(&mut self.admission.held(), 0);
    }

    fn count(&self, held: &mut Held, crops: usize) {
        held.crops = held.crops - self.crops.swap(crops, Ordering::Relaxed) + crops;
        self.admission.show(held);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let crops = *self.crops.get_mut();
        let mut held = self.admission.held();
        held.requests -= 1;
        held.crops -= crops;
        self.admission.show(&held);
    }
}

impl Admission {
    /// `most_requests` places, at least one; `crops` is what is expected of a request for as long as none was searched, and
    /// `longest` the time limit of one.
    pub fn new(most_requests: usize, crops: usize, longest: Duration, metrics: Arc<Metrics>) -> Self {
        let held = Held {
            expected: crops as f64,
            ..Held::default()
        };
        Self {
            most_requests: most_requests.max(1),
            // The rest is for what the estimate does not know: the next screenshots may be larger than the last ones.
            patience: longest * 3 / 4,
            held: Arc::new(Mutex::new(held)),
            metrics,
        }
    }

    // Nothing that can panic runs under the lock, so a poisoned one is sound.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: &Held) {
        self.metrics.held.set(held.requests as i64);
        self.metrics.held_crops.set(held.crops as i64);
    }

    /// A place for one more request, if with it at most `most_crops` are held and all of them are answered well within the time limit
    /// at the rate of the last ones; there is always one for the first. `guess` is the time of one parse, for as long as none
    /// was measured.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when there is none; never waits.
    pub fn admit(&self, most_crops: usize, guess: Duration) -> Result<Admitted, ApiError> {
        let mut held = self.held();
        let crops = held.expected.round() as usize;
        let in_time = held.rate.until_answered(held.requests + 1, guess) <= self.patience;
        let fits = held.requests == 0 || (held.crops + crops <= most_crops && in_time);
        if held.requests >= self.most_requests || !fits {
            return Err(ApiError::Busy {
                held: held.requests,
                retry_after: held.rate.retry_after(held.requests, guess),
            });
        }
        held.requests += 1;
        held.crops += crops;
        self.show(&held);
        drop(held);
        Ok(Admitted {
            admission: self.clone(),
            crops: AtomicUsize::new(crops),
        })
    }

    /// Records a parse that a device began with at `begun` and that ended now.
    pub fn answered(&self, begun: Instant) {
        self.held().rate.answered(begun, Instant::now());
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

    const PLENTY: usize = 1000;
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_place_comes_back_when_it_is_dropped() {
        let admission = Admission::new(1, 25, HOUR, Arc::new(Metrics::new()));
        let place = admission.admit(PLENTY, SECOND).expect("free");
        let refused = admission.admit(PLENTY, 30 * SECOND).expect_err("taken");
        assert_eq!(
            refused,
            ApiError::Busy {
                held: 1,
                retry_after: 15 * SECOND
            }
        );
        drop(place);
        assert!(admission.admit(PLENTY, SECOND).is_ok());
    }

    #[test]
    fn crops_are_counted_as_expected_until_they_are_known() {
        let metrics = Arc::new(Metrics::new());
        let admission = Admission::new(100, 25, HOUR, Arc::clone(&metrics));
        let first = admission.admit(60, SECOND).expect("25 of 60");
        let second = admission.admit(60, SECOND).expect("50 of 60");
        assert!(admission.admit(60, SECOND).is_err(), "75 would be too many");
        first.found(9);
        let third = admission.admit(60, SECOND).expect("9 + 25 + 23 of 60");
        assert_eq!((metrics.held.get(), metrics.held_crops.get()), (3, 57));
        first.described();
        second.found(300);
        assert!(
            admission.admit(60, SECOND).is_err(),
            "one of them was larger than expected"
        );
        second.described();
        third.described();
        assert_eq!(metrics.held_crops.get(), 0);
        assert!(admission.admit(60, SECOND).is_ok(), "58 are expected now");
        drop((first, second, third));
        assert_eq!((metrics.held.get(), metrics.held_crops.get()), (0, 0));
    }

    #[test]
    fn what_is_expected_follows_what_was_found() {
        let admission = Admission::new(100, 25, HOUR, Arc::new(Metrics::new()));
        for _ in 0..100 {
            admission.admit(60, SECOND).expect("the first").found(4);
        }
        let places: Vec<_> = std::iter::from_fn(|| admission.admit(60, SECOND).ok()).collect();
        assert_eq!(places.len(), 15);
    }

    #[test]
    fn the_first_is_let_in_whatever_it_has() {
        let admission = Admission::new(100, 300, HOUR, Arc::new(Metrics::new()));
        let place = admission.admit(10, SECOND).expect("nothing else is held");
        assert!(admission.admit(10, SECOND).is_err());
        drop(place);
        assert!(admission.admit(10, SECOND).is_ok());
    }

    #[test]
    fn who_cannot_be_answered_in_time_is_not_let_in() {
        let admission = Admission::new(100, 1, 12 * SECOND, Arc::new(Metrics::new()));
        let let_in = |guess: Duration| {
            let places: Vec<_> = std::iter::from_fn(|| admission.admit(PLENTY, guess).ok()).collect();
            places.len()
        };
        assert_eq!(let_in(2 * SECOND), 4, "nothing was measured");
        let measure = |seconds: u32| {
            let now = Instant::now();
            let mut rate = ServiceRate::default();
            rate.answered(now, now + seconds * SECOND);
            admission.held().rate = rate;
        };
        measure(3);
        assert_eq!(
            let_in(HOUR),
            3,
            "a fourth would be answered after 12 s, if all goes well"
        );
        measure(30);
        assert_eq!(let_in(HOUR), 1, "the first always is");
    }
}
