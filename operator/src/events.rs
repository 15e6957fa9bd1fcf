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

/// Without an event for this long everything about it is forgotten: its tokens are all there again, and a recorder forgets
/// an event that did not repeat for as long (kube-runtime 5.0, as client-go).
const SERIES: Duration = Duration::from_mins(6);

/// The events of one reason about one object. Those that repeat are held back: a pod that comes and goes would otherwise
/// have two written each time. The status says the same, and the next event that is let through says how things are then.
///
/// A recorder counts what repeats on one event, and tells repeats by the reason alone: with another note, one that knows of
/// no event yet makes an event of its own.
struct Said<R> {
    /// Events that may follow without a wait.
    tokens: u32,
    /// When `tokens` was right.
    since: Instant,
    /// When the last one was let through.
    at: Instant,
    note: String,
    recorder: R,
}

/// What was said lately, by UID and reason.
struct Lately<R>(Mutex<HashMap<(String, String), Said<R>>>);

impl<R: Clone> Lately<R> {
    /// The recorder for an event, `None` when it is held back. `new` makes one that knows of no event.
    fn admit(&self, uid: &str, reason: &str, note: &str, now: Instant, new: impl Fn() -> R) -> Option<R> {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|_, said| now.saturating_duration_since(said.at) < SERIES);
        let said = lately
            .entry((uid.to_owned(), reason.to_owned()))
            .or_insert_with(|| Said {
                tokens: BURST,
                since: now,
                at: now,
                note: note.to_owned(),
                recorder: new(),
            });
        let refilled = (now.saturating_duration_since(said.since).as_secs() / REFILL.as_secs()) as u32;
        said.tokens = said.tokens.saturating_add(refilled).min(BURST);
        said.since = if said.tokens == BURST {
            now
        } else {
            said.since + REFILL * refilled
        };
        said.tokens = said.tokens.checked_sub(1)?;
        said.at = now;
        if said.note != note {
            note.clone_into(&mut said.note);
            said.recorder = new();
        }
        Some(said.recorder.clone())
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
    lately: Lately<Recorder>,
}

impl Publisher {
    /// Events are said to come from `reporter`.
    pub fn new(client: Client, reporter: Reporter) -> Self {
        Self {
            client,
            reporter,
            lately: Lately(Mutex::default()),
        }
    }

    /// Publishes notices and says how many were written. An event that cannot be written is logged and not tried again: the
    /// status says the same.
    pub async fn publish(&self, object: &HawkeyeDeployment, notices: Vec<Notice>) -> usize {
        let reference = object.object_ref(&());
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let mut written = 0;
        for notice in notices {
            let mut note = shorten(&notice.note);
            while note.len() > NOTE {
                note.pop();
            }
            let new = || Recorder::new(self.client.clone(), self.reporter.clone());
            let Some(recorder) = self.lately.admit(uid, &notice.reason, &note, Instant::now(), new) else {
                tracing::debug!(reason = %notice.reason, "an event that repeats is held back");
                continue;
            };
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
            match recorder.publish(&event, &reference).await {
                Ok(()) => written += 1,
                Err(error) => {
                    tracing::warn!(error = shorten(&error.to_string()), reason = %event.reason, "an event could not be written");
                }
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn events_that_repeat_are_held_back_for_each_reason_alone() {
        let (lately, start) = (Lately(Mutex::default()), Instant::now());
        let admitted =
            |uid: &str, reason: &str, at: Duration| lately.admit(uid, reason, "note", start + at, || ()).is_some();
        let second = Duration::from_secs(1);
        let first = (0..60).filter(|n| admitted("uid", "Unavailable", second * *n)).count();
        assert_eq!(first, BURST as usize);
        assert!(admitted("uid", "Available", second * 60));
        assert!(admitted("other", "Unavailable", second * 60));
        // One for each time that passes, and never more than at first.
        assert!(admitted("uid", "Unavailable", REFILL));
        assert!(!admitted("uid", "Unavailable", REFILL + second));
        let later = REFILL * 100;
        let again = (0..60)
            .filter(|n| admitted("uid", "Unavailable", later + second * *n))
            .count();
        assert_eq!(again, BURST as usize);
    }

    #[test]
    fn the_same_note_goes_to_the_recorder_that_knows_it() {
        let (lately, start, made) = (Lately(Mutex::default()), Instant::now(), Cell::new(0));
        let recorder = |note: &str, at: Duration| {
            let new = || {
                made.set(made.get() + 1);
                made.get()
            };
            lately.admit("uid", "Scaled", note, start + at, new)
        };
        let second = Duration::from_secs(1);
        assert_eq!(recorder("1 to 2", Duration::ZERO), Some(1));
        assert_eq!(recorder("1 to 2", second), Some(1), "it counts the repeat");
        assert_eq!(recorder("2 to 3", second * 2), Some(2), "another text is another event");
        assert_eq!(
            recorder("2 to 3", SERIES * 2),
            Some(3),
            "the recorder has forgotten it, too"
        );
        assert_eq!(lately.0.lock().unwrap().len(), 1);
    }
}
