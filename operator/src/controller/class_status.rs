//! What the status of a HardwareClass says: how many nodes it has, and which classes admit the same ones. The text is pure;
//! `keep` writes it, only when it changes, and not more often than nodes of a growing cluster come.

use std::{sync::Arc, time::Duration};

use hawkeye_crds::v1alpha1::{
    ClassConditionType, Condition, ConditionStatus, HardwareClass, HardwareClassStatus, Reason,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::error_boundary::InvalidObject,
    runtime::reflector::Store,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{build::MANAGER, observe::GuardedClass, status::shorten};
use crate::{
    context::Reported,
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

/// The status of a class that does not decode, for the reason `error`, and so takes no node. `now` is RFC 3339.
pub fn undecodable(error: &str, generation: Option<i64>, now: &str) -> HardwareClassStatus {
    let message = format!(
        "The stored object does not decode: {error}. Apply it again as `kubectl explain hwc.spec` describes it. Until then \
         it has no nodes, and HawkeyeDeployments that name it are told that there is no such class."
    );
    HardwareClassStatus {
        observed_generation: generation,
        nodes: 0,
        conditions: vec![Condition {
            type_: ClassConditionType::Overlaps.as_str().to_owned(),
            status: ConditionStatus::Unknown,
            observed_generation: generation,
            last_transition_time: now.to_owned(),
            reason: Reason::InvalidSpec.as_str().to_owned(),
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
    let writer = Writer {
        // Of no type: what does not decode has a status, too.
        api: Api::all_with(client, &ApiResource::erase::<HardwareClass>(&())),
        classes,
        undecodable: Reported::default(),
    };
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
        wait = match writer.write(&index).await {
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

struct Writer {
    api: Api<DynamicObject>,
    classes: Store<GuardedClass>,
    /// Classes that do not decode and whose status says so. What it says now cannot be read either.
    undecodable: Reported,
}

impl Writer {
    async fn write(&self, index: &ClassIndex) -> Result<(), Error> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        for guarded in self.classes.state() {
            match &guarded.0 {
                Ok(object) => self.write_one(object, index, &now).await?,
                Err(invalid) => self.write_undecodable(invalid, &now).await?,
            }
        }
        Ok(())
    }

    async fn write_one(&self, object: &HardwareClass, index: &ClassIndex, now: &str) -> Result<(), Error> {
        let name = object.name_any();
        // The index is older than the store where a class is new; it comes with the next one.
        let Some(class) = index.get(&name).filter(|class| *class.spec == object.spec) else {
            return Ok(());
        };
        let new = status(class, object.metadata.generation, object.status.as_ref(), now);
        if object.status.as_ref() == Some(&new) {
            return Ok(());
        }
        self.patch(&name, object.metadata.uid.as_deref(), &json!(new)).await
    }

    async fn write_undecodable(&self, invalid: &InvalidObject, now: &str) -> Result<(), Error> {
        let meta = &invalid.metadata;
        let (Some(name), Some(uid)) = (&meta.name, &meta.uid) else {
            return Err(Error::Incomplete("name"));
        };
        if !self.undecodable.is_new(uid, meta.generation) {
            return Ok(());
        }
        let new = undecodable(&invalid.error, meta.generation, now);
        self.patch(name, Some(uid), &json!(new)).await?;
        self.undecodable.note(uid, meta.generation);
        Ok(())
    }

    async fn patch(&self, name: &str, uid: Option<&str>, status: &Value) -> Result<(), Error> {
        let body = json!({
            "apiVersion": HardwareClass::api_version(&()),
            "kind": HardwareClass::kind(&()),
            "metadata": {"name": name, "uid": uid},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&body);
        match timeout(LIMIT, self.api.patch_status(name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // Deleted meanwhile, or made anew under its name.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(source)) => Err(Error::api("writing the status of a HardwareClass")(source)),
            Err(_) => Err(Error::Timeout(LIMIT)),
        }
    }
}
