//! Events: said once, when the status changes in a way that someone would want to hear of.

use hawkeye_crds::v1alpha1::{
    Condition, ConditionStatus, ConditionType, HawkeyeDeployment, HawkeyeDeploymentStatus, PoolStatus,
};
use kube::{
    Resource,
    runtime::events::{Event, EventType, Recorder},
};

/// Longest note of an event that the API takes, in bytes.
const NOTE: usize = 1024;

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
            (_, 0) => say(false, "ScaledToZero", "No replica is planned any more."),
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

/// Publishes notices. An event that cannot be written is logged and not tried again: the status says the same.
pub async fn publish(recorder: &Recorder, object: &HawkeyeDeployment, notices: Vec<Notice>) {
    let reference = object.object_ref(&());
    for notice in notices {
        let mut note = notice.note;
        while note.len() > NOTE {
            note.pop();
        }
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
            tracing::warn!(%error, reason = %event.reason, "an event could not be written");
        }
    }
}
