//! Events: said once, when the status changes in a way that someone would want to hear of.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hawkeye_crds::v1alpha1::{
    Condition, ConditionStatus, ConditionType, HawkeyeDeployment, HawkeyeDeploymentStatus, PoolStatus, Reason,
};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::Instant;

use crate::controller::status::shorten;

/// Longest note of an event that the API takes, in bytes.
const NOTE: usize = 1024;

/// Events of one reason about one object that may follow each other without a wait.
const BURST: u32 = 3;
/// After them, one in this time.
const REFILL: Duration = Duration::from_mins(2);

/// A recorder forgets an event that did not repeat for this long (kube-runtime 5.0, as client-go).
const SERIES: Duration = Duration::from_mins(6);

/// Holds back events that repeat: a pod that comes and goes would otherwise have two written each time. The status says
/// the same, and the next event that is let through says how things are then.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<HashMap<(String, String), Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u32,
    /// When `tokens` was right.
    since: Instant,
}

impl Throttle {
    /// True when an event of this reason about this UID may be published now.
    pub fn admits(&self, uid: &str, reason: &str, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A full bucket says nothing, and those of objects that are gone fill up.
        buckets.retain(|_, bucket| now.saturating_duration_since(bucket.since) < REFILL * BURST);
        let bucket = buckets.entry((uid.to_owned(), reason.to_owned())).or_insert(Bucket {
            tokens: BURST,
            since: now,
        });
        let refilled = (now.saturating_duration_since(bucket.since).as_secs() / REFILL.as_secs()) as u32;
        if refilled > 0 {
            bucket.tokens = bucket.tokens.saturating_add(refilled).min(BURST);
            bucket.since += REFILL * refilled;
        }
        if bucket.tokens == 0 {
            return false;
        }
        if bucket.tokens == BURST {
            bucket.since = now;
        }
        bucket.tokens -= 1;
        true
    }
}

/// An event that is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Something to look at, not only to know.
    pub warning: bool,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub note: String,
}

/// What is worth saying about the change from one status to the next. Pure, and made from what is stored in the cluster,
/// so that neither a second reconcile nor a restart repeats it.
pub fn notices(old: Option<&HawkeyeDeploymentStatus>, new: &HawkeyeDeploymentStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |warning: bool, reason: &str, note: &str| {
        notices.push(Notice {
            warning,
            reason: reason.to_owned(),
            note: note.to_owned(),
        });
    };
    let find = |status: &HawkeyeDeploymentStatus, type_: ConditionType| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_.as_str())
            .cloned()
    };
    let before = |type_: ConditionType| old.and_then(|old| find(old, type_));
    let after = |type_: ConditionType| find(new, type_);

    let (was, is) = (old.map_or_else(Vec::new, |old| shares(&old.pools)), shares(&new.pools));
    let sum = |shares: &[(String, i32)]| shares.iter().map(|(_, replicas)| replicas).sum::<i32>();
    if was != is {
        let places: Vec<String> = is
            .iter()
            .map(|(class, replicas)| format!("{replicas} on {class}"))
            .collect();
        match (sum(&was), sum(&is)) {
            // Without replicas for another reason, Placed says which.
            (_, 0) if zero(new) => say(false, "ScaledToZero", "No replica is planned any more."),
            (_, 0) => {}
            (0, _) => say(false, "Placed", &format!("Replicas: {}.", places.join(", "))),
            (a, b) if a == b => say(false, "Moved", &format!("Replicas are now {}.", places.join(", "))),
            (a, b) => say(
                false,
                "Scaled",
                &format!("From {a} to {b} replicas: {}.", places.join(", ")),
            ),
        }
    }
    for type_ in [ConditionType::Accepted, ConditionType::Placed] {
        if let Some(now) = after(type_).filter(|now| now.status == ConditionStatus::False)
            && changed(before(type_).as_ref(), &now)
            && now.reason != "ScaledToZero"
            // Placed repeats what Accepted says while nothing is placed.
            && (type_ == ConditionType::Accepted || !refused(new))
        {
            say(true, &now.reason, &now.message);
        }
    }
    if let Some(now) = after(ConditionType::Degraded) {
        let was = before(ConditionType::Degraded).is_some_and(|was| was.status == ConditionStatus::True);
        match (was, now.status == ConditionStatus::True) {
            (false, true) => say(true, "Degraded", &now.message),
            (true, false) if now.reason == "AsAsked" => say(false, "Recovered", &now.message),
            _ => {}
        }
    }
    if let Some(now) = after(ConditionType::DeviceVerified).filter(|now| now.status == ConditionStatus::False)
        && changed(before(ConditionType::DeviceVerified).as_ref(), &now)
        // Degraded has said the same.
        && after(ConditionType::Degraded).is_none_or(|degraded| degraded.reason != now.reason)
    {
        say(true, &now.reason, &now.message);
    }
    if let Some(now) = after(ConditionType::ImageVerified).filter(|now| now.status == ConditionStatus::False)
        && changed(before(ConditionType::ImageVerified).as_ref(), &now)
    {
        say(true, &now.reason, &now.message);
    }
    if let Some(now) = after(ConditionType::Available) {
        let was = before(ConditionType::Available).is_some_and(|was| was.status == ConditionStatus::True);
        match (was, now.status == ConditionStatus::True) {
            (false, true) => say(false, "Available", &now.message),
            (true, false) if now.reason != "ScaledToZero" => say(true, "Unavailable", &now.message),
            _ => {}
        }
    }
    notices
}

fn zero(status: &HawkeyeDeploymentStatus) -> bool {
    status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::Placed.as_str() && condition.reason == Reason::ScaledToZero.as_str()
    })
}

fn refused(status: &HawkeyeDeploymentStatus) -> bool {
    status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::Accepted.as_str() && condition.status == ConditionStatus::False
    })
}

fn changed(before: Option<&Condition>, now: &Condition) -> bool {
    before.is_none_or(|before| before.status != now.status || before.reason != now.reason)
}

fn shares(pools: &[PoolStatus]) -> Vec<(String, i32)> {
    pools
        .iter()
        .filter(|pool| pool.replicas > 0)
        .map(|pool| (pool.class.clone(), pool.replicas))
        .collect()
}

/// Writes events about HawkeyeDeployments.
pub struct Publisher {
    client: Client,
    reporter: Reporter,
    throttle: Throttle,
    told: Mutex<HashMap<(String, String), Told>>,
}

/// The last event of one reason about one object. A recorder counts what repeats on one event, and tells repeats by the
/// reason alone: with another note, a recorder that knows of no event yet makes one of its own.
struct Told {
    note: String,
    recorder: Recorder,
    at: Instant,
}

impl Publisher {
    /// Events are said to come from `reporter`.
    pub fn new(client: Client, reporter: Reporter) -> Self {
        Self {
            client,
            reporter,
            throttle: Throttle::default(),
            told: Mutex::default(),
        }
    }

    /// Publishes notices. An event that cannot be written is logged and not tried again: the status says the same.
    pub async fn publish(&self, object: &HawkeyeDeployment, notices: Vec<Notice>) {
        let reference = object.object_ref(&());
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        for notice in notices {
            let now = Instant::now();
            if !self.throttle.admits(uid, &notice.reason, now) {
                tracing::debug!(reason = %notice.reason, "an event that repeats is held back");
                continue;
            }
            let mut note = shorten(&notice.note);
            while note.len() > NOTE {
                note.pop();
            }
            let recorder = self.recorder(uid, &notice.reason, &note, now);
            let event = Event {
                type_: if notice.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: notice.reason,
                note: Some(note),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::warn!(error = shorten(&error.to_string()), reason = %event.reason, "an event could not be written");
            }
        }
    }

    fn recorder(&self, uid: &str, reason: &str, note: &str, now: Instant) -> Recorder {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| now.saturating_duration_since(told.at) < SERIES);
        let key = (uid.to_owned(), reason.to_owned());
        let recorder = match told.remove(&key) {
            Some(before) if before.note == note => before.recorder,
            _ => Recorder::new(self.client.clone(), self.reporter.clone()),
        };
        told.insert(
            key,
            Told {
                note: note.to_owned(),
                recorder: recorder.clone(),
                at: now,
            },
        );
        recorder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_repeat_are_held_back_for_each_reason_alone() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let admitted = |reason: &str, at: Duration| throttle.admits("uid", reason, start + at);
        let second = Duration::from_secs(1);
        let first = (0..60).filter(|n| admitted("Unavailable", second * *n)).count();
        assert_eq!(first, BURST as usize);
        assert!(admitted("Available", second * 60));
        assert!(throttle.admits("other", "Unavailable", start + second * 60));
        // One for each time that passes, and never more than at first.
        assert!(admitted("Unavailable", REFILL));
        assert!(!admitted("Unavailable", REFILL + second));
        let later = REFILL * 100;
        let again = (0..60).filter(|n| admitted("Unavailable", later + second * *n)).count();
        assert_eq!(again, BURST as usize);
    }
}
