//! What a reconcile needs besides its object.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    controller::{apply::Memory, observe::World, planner::Plans, verify::Devices},
    events::Publisher,
    hardware::{Images, ModelDefaults},
    metrics::Metrics,
};

/// First wait after a failure; also the least time between two tries of one object.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST: Duration = Duration::from_mins(1);

/// A failure this long ago no longer makes the next wait longer.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// Shared by every reconcile.
pub struct Context {
    /// Client of the API server, without retries of its own.
    pub client: Client,
    /// What is in the cluster.
    pub world: World,
    /// The inference images of this release.
    pub images: Images,
    /// What a spec without a model uses.
    pub models: ModelDefaults,
    /// The namespace that the operator runs in, if it runs in one.
    pub namespace: Option<String>,
    /// What of the cluster is not seen, in a sentence.
    pub blind_spot: Option<String>,
    /// The latest plans.
    pub plans: watch::Receiver<Plans>,
    /// Asks for new plans.
    pub dirty: Arc<Notify>,
    /// Writes events, and holds back those that repeat.
    pub events: Publisher,
    /// What was applied last.
    pub memory: Arc<Memory>,
    /// What pods were found to compute on.
    pub devices: Arc<Devices>,
    /// Waits after failures.
    pub backoff: Backoff,
    /// Objects that do not decode and whose status says so.
    pub invalid: Reported,
    /// Metrics.
    pub metrics: Metrics,
}

/// Objects that are remembered as reported. Those that are gone would stay for ever; past this, all are said once more.
const REPORTED: usize = 1024;

/// Generations of objects about which something was said already, by UID.
#[derive(Debug, Default)]
pub struct Reported(Mutex<HashMap<String, Option<i64>>>);

impl Reported {
    /// True when nothing was said about this generation yet.
    pub fn is_new(&self, uid: &str, generation: Option<i64>) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid) != Some(&generation)
    }

    /// Notes that it was said.
    pub fn note(&self, uid: &str, generation: Option<i64>) {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() >= REPORTED {
            reported.clear();
        }
        reported.insert(uid.to_owned(), generation);
    }
}

/// Waits after failures, for each object by itself: doubled each time and spread at random, so that objects that failed
/// together are not tried together.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, Failures>>,
    random: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    until: Instant,
}

impl Backoff {
    /// Notes a failure and says how long to wait: at least as long as the API server asks.
    pub fn failed(&self, key: &str, asked: Option<Duration>) -> Duration {
        let mut failures = self.lock();
        let count = failures.get(key).map_or(0, |entry| entry.count).saturating_add(1);
        let full = FIRST.saturating_mul(1 << count.min(6)).min(LONGEST);
        // Between half of it and all of it.
        let share = self.random.hash_one((key, count)) % 1000;
        let wait = (full / 2 + full / 2 * share as u32 / 1000)
            .max(FIRST)
            .max(asked.unwrap_or_default());
        // Objects that were deleted while they failed would stay for ever.
        let now = Instant::now();
        failures.retain(|_, entry| entry.until + FORGOTTEN > now);
        failures.insert(
            key.to_owned(),
            Failures {
                count,
                until: now + wait,
            },
        );
        wait
    }

    /// How much longer to wait, when something else wakes the object before its time.
    pub fn remaining(&self, key: &str) -> Option<Duration> {
        let left = self.lock().get(key)?.until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Notes a success.
    pub fn succeeded(&self, key: &str) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_is_reported_once_and_not_all_are_remembered_for_ever() {
        let reported = Reported::default();
        assert!(reported.is_new("a", Some(1)));
        reported.note("a", Some(1));
        assert!(!reported.is_new("a", Some(1)) && reported.is_new("a", Some(2)));
        for number in 0..3 * REPORTED {
            reported.note(&number.to_string(), Some(1));
        }
        assert!(reported.0.lock().unwrap().len() <= REPORTED);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_limit_and_end_with_a_success() {
        let backoff = Backoff::default();
        assert_eq!(backoff.remaining("a"), None);
        let waits: Vec<Duration> = (0..10).map(|_| backoff.failed("a", None)).collect();
        assert!(waits.iter().all(|wait| *wait >= FIRST && *wait <= LONGEST), "{waits:?}");
        assert!(waits[9] >= LONGEST / 2);
        assert!(backoff.remaining("a").is_some());
        assert_eq!(backoff.remaining("b"), None);
        tokio::time::advance(LONGEST).await;
        assert_eq!(backoff.remaining("a"), None);
        backoff.succeeded("a");
        assert!(backoff.failed("a", None) <= FIRST * 2);
        assert!(backoff.failed("a", Some(LONGEST)) >= LONGEST);
    }
}
