//! What the status of a HardwareClass says: how many nodes it has, and which classes admit the same ones. The text is pure;
//! `keep` writes it, only when it changes, and not more often than nodes of a growing cluster come.

use std::{sync::Arc, time::Duration};

use hawkeye_crds::v1alpha1::{
    ClassConditionType, Condition, ConditionStatus, HardwareClass, HardwareClassStatus, Reason,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::reflector::Store,
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{build::MANAGER, observe::GuardedClass, status::shorten};
use crate::{
    error::Error,
    hardware::{ClassIndex, ClassNodes, classify::Overlap},
};

/// Least time between two looks: nodes that join one after another lead to one write.
const PAUSE: Duration = Duration::from_secs(5);
/// First and longest wait after a write that failed, e.g. for want of the right to.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));
/// Longest time that a write may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Other classes that a message names.
const SHOWN: usize = 3;

/// The status of a class. `old` gives the time at which the condition last changed; `now` is RFC 3339.
pub fn status(
    class: &ClassNodes,
    generation: Option<i64>,
    old: Option<&HardwareClassStatus>,
    now: &str,
) -> HardwareClassStatus {
    let type_ = ClassConditionType::Overlaps.as_str();
    let (overlaps, reason, message) = verdict(class);
    let status = ConditionStatus::from(overlaps);
    let before = old.and_then(|old| old.conditions.iter().find(|condition| condition.type_ == type_));
    HardwareClassStatus {
        observed_generation: generation,
        nodes: i32::try_from(class.nodes).unwrap_or(i32::MAX),
        conditions: vec![Condition {
            type_: type_.to_owned(),
            status,
            observed_generation: generation,
            last_transition_time: match before {
                Some(before) if before.status == status => before.last_transition_time.clone(),
                _ => now.to_owned(),
            },
            reason: reason.as_str().to_owned(),
            message: shorten(&message),
        }],
    }
}

fn verdict(class: &ClassNodes) -> (bool, Reason, String) {
    let equal: Vec<&Overlap> = with(class, |overlap| overlap.priority == class.spec.priority);
    if !equal.is_empty() {
        let text = "are admitted by classes of the same priority, and the one whose name comes first has them";
        return (
            true,
            Reason::EqualPriority,
            format!("{} {text}. Give the classes unequal priorities.", nodes(&equal)),
        );
    }
    let others: Vec<&Overlap> = with(class, |overlap| overlap.other_first);
    if !others.is_empty() {
        let text = "match this class, too, and belong to the other, whose priority is higher. Pods of this class may still \
                    land there, as far as its labels allow; exclude those nodes in nodeSelectorTerms where that matters.";
        return (true, Reason::HigherPriorityHas, format!("{} {text}", nodes(&others)));
    }
    let mine: Vec<&Overlap> = with(class, |_| true);
    if !mine.is_empty() {
        let text = "match the other class, too, and belong to this one, whose priority is higher.";
        return (true, Reason::LowerPriorityMatches, format!("{} {text}", nodes(&mine)));
    }
    (
        false,
        Reason::Disjoint,
        "No other class admits a node of this one.".to_owned(),
    )
}

fn with(class: &ClassNodes, test: impl Fn(&Overlap) -> bool) -> Vec<&Overlap> {
    class.overlaps.iter().filter(|overlap| test(overlap)).collect()
}

/// "Nodes shared with l40s (2, the first is gpu-1), a100 (1: gpu-7)".
fn nodes(overlaps: &[&Overlap]) -> String {
    let shown: Vec<String> = overlaps
        .iter()
        .take(SHOWN)
        .map(|overlap| match overlap.nodes {
            1 => format!("{} (1: {})", overlap.class, overlap.example),
            many => format!("{} ({many}, the first is {})", overlap.class, overlap.example),
        })
        .collect();
    let more = match overlaps.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!(" and {more} more classes"),
        _ => String::new(),
    };
    format!("Nodes shared with {}{more}", shown.join(", "))
}

/// Keeps the status of every class up to date, until `indexes` ends.
pub async fn keep(client: Client, classes: Store<GuardedClass>, mut indexes: watch::Receiver<Arc<ClassIndex>>) {
    let api = Api::all(client);
    let mut wait = None;
    loop {
        let changed = match wait {
            None => indexes.changed().await,
            Some(wait) => {
                sleep(wait).await;
                indexes.has_changed().map(|_| ())
            }
        };
        if changed.is_err() {
            return;
        }
        let index = Arc::clone(&indexes.borrow_and_update());
        wait = match write(&api, &classes, &index).await {
            Ok(()) => None,
            Err(error) => {
                let longer = wait.map_or(RETRY.0, |wait: Duration| (wait * 2).min(RETRY.1));
                tracing::warn!(%error, wait_s = longer.as_secs(), "the status of a HardwareClass could not be written");
                Some(longer)
            }
        };
        if wait.is_none() {
            sleep(PAUSE).await;
        }
    }
}

async fn write(api: &Api<HardwareClass>, classes: &Store<GuardedClass>, index: &ClassIndex) -> Result<(), Error> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for guarded in classes.state() {
        let Ok(object) = &guarded.0 else { continue };
        let name = object.name_any();
        // The index is older than the store where a class is new; it comes with the next one.
        let Some(class) = index.get(&name).filter(|class| class.spec == object.spec) else {
            continue;
        };
        let new = status(class, object.metadata.generation, object.status.as_ref(), &now);
        if object.status.as_ref() == Some(&new) {
            continue;
        }
        let body = json!({
            "apiVersion": HardwareClass::api_version(&()),
            "kind": HardwareClass::kind(&()),
            "metadata": {"name": name, "uid": object.metadata.uid},
            "status": new,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&body);
        match timeout(LIMIT, api.patch_status(&name, &params, &patch)).await {
            Ok(Ok(_)) => {}
            // Deleted meanwhile, or made anew under its name.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(source)) => return Err(Error::api("writing the status of a HardwareClass")(source)),
            Err(_) => return Err(Error::Timeout(LIMIT)),
        }
    }
    Ok(())
}
