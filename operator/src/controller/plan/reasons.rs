//! Why replicas are where they are, and where they are not: the words of a plan.

use hawkeye_crds::v1alpha1::{Device, DeviceChoice, Fallback, HawkeyeDeploymentSpec, Reason};

use super::{Candidate, Free, PoolPlan, change, count, handover::HandOver};
use crate::hardware::{ClassIndex, ClassNodes};

/// Why a pool has as many replicas as it has.
pub(super) fn pool(spec: &HawkeyeDeploymentSpec, candidate: &Candidate<'_>) -> (Reason, String) {
    let (reason, mut message) = share(spec, candidate);
    let handed = candidate.wish.saturating_sub(candidate.given);
    let mut reason = reason;
    if let Some(record) = candidate.step.record.as_ref().filter(|_| handed > 0) {
        let moved = handed_over(spec, candidate, record, handed);
        if candidate.given == 0 {
            (reason, message) = (Reason::HandedOver, moved);
        } else {
            message = format!("{message} {moved}");
        }
    } else if candidate.stuck > 0 {
        message = format!(
            "{message} {} found no node for {} and no other class can take {}.",
            pods(candidate.stuck),
            spec.hand_over_after.as_str(),
            if candidate.stuck == 1 {
                "its replica"
            } else {
                "their replicas"
            }
        );
    }
    for note in candidate.class.grace().iter().chain(&candidate.notes) {
        message = format!("{message} {note}");
    }
    (reason, message)
}

fn pods(number: u32) -> String {
    if number == 1 {
        "1 pod".to_owned()
    } else {
        format!("{number} pods")
    }
}

fn handed_over(spec: &HawkeyeDeploymentSpec, candidate: &Candidate<'_>, record: &HandOver, handed: u32) -> String {
    let class = candidate.class;
    let moved = format!(
        "Other classes have {handed} of its {} replicas, since {} found no node for {}.",
        candidate.wish,
        if handed == 1 { "that pod" } else { "those pods" },
        spec.hand_over_after.as_str()
    );
    if record.trying {
        let try_it = if candidate.extra == 1 { "tries" } else { "try" };
        return format!(
            "{moved} It has more room now: {} beyond spec.replicas {try_it} it.",
            pods(candidate.extra)
        );
    }
    let not_before = record
        .retry_after
        .map_or(String::new(), |time| format!(" not before {time}"));
    if class.spec.autoscaled {
        return format!("{moved} It is tried again,{not_before}.");
    }
    let what = class
        .spec
        .resource
        .as_ref()
        .map_or(String::new(), |resource| format!("more free {resource} or "));
    format!("{moved} It is tried again once it has {what}more schedulable nodes,{not_before}.")
}

fn share(spec: &HawkeyeDeploymentSpec, candidate: &Candidate<'_>) -> (Reason, String) {
    let Candidate { class, pin, room, .. } = *candidate;
    let replicas = candidate.given + candidate.extra;
    let resource = class.spec.resource.as_deref().unwrap_or("room");
    let held = if class.taken > 0 {
        format!("; pods of others hold {}", class.taken)
    } else {
        String::new()
    };
    if replicas > 0 {
        let why = match pin {
            Some(pin) if replicas < pin && replicas < room => trimmed(pin, replicas),
            Some(pin) if replicas < pin => format!("{pin} pinned by overrides, {replicas} of them have room here."),
            Some(_) => "As pinned by overrides.".to_owned(),
            None if class.schedulable == 0 && !class.spec.autoscaled => {
                format!(
                    "Its nodes take no new pods now{}; pods that run there already stay until they end.",
                    kept_off(class)
                )
            }
            None if class.spec.resource.is_none() => "Its nodes take as many pods as fit.".to_owned(),
            None => format!("Has room: each pod takes one {resource}."),
        };
        return (Reason::Placed, why);
    }
    if pin == Some(0) {
        return (Reason::Placed, "Left out by overrides: replicas is 0.".to_owned());
    }
    if class.nodes == 0 && !class.spec.autoscaled {
        return (Reason::NoNodes, "No node belongs to this class.".to_owned());
    }
    if !class.exists() {
        return (
            Reason::NoNodes,
            format!(
                "Every node of this class has a taint that the class does not tolerate{}; see its tolerations.",
                kept_off(class)
            ),
        );
    }
    if let Some(barred) = &candidate.barred {
        return barred.clone();
    }
    if !candidate.usable {
        return (
            Reason::FallbackDenied,
            "Not used: fallback is Deny, and this is another device.".to_owned(),
        );
    }
    if room == 0 && class.schedulable == 0 {
        return (
            Reason::NotEnoughCapacity,
            format!("None of its nodes takes pods now{}.", kept_off(class)),
        );
    }
    if room == 0 {
        return (
            Reason::NotEnoughCapacity,
            format!("No {resource} is free on its ready, schedulable nodes{held}."),
        );
    }
    if let Some(pin) = pin {
        return (Reason::Placed, trimmed(pin, 0));
    }
    let pinned = spec
        .overrides
        .iter()
        .flatten()
        .any(|(_, change)| change.replicas > Some(0));
    let who = if pinned {
        "other classes take every replica, those pinned by overrides first"
    } else {
        "classes before it take every replica"
    };
    (Reason::Placed, format!("Not needed: {who}."))
}

/// " (cordoned, taint dedicated=ci:NoSchedule)": what keeps new pods off a class's nodes.
fn kept_off(class: &ClassNodes) -> String {
    if class.obstacles.is_empty() {
        return String::new();
    }
    format!(" ({})", class.kept_off())
}

/// Of pins that add up to more than there are replicas.
fn trimmed(pin: u32, replicas: u32) -> String {
    format!("{pin} pinned by overrides, {replicas} of them are left: the pins add up to more than spec.replicas.")
}

/// Condition Placed: its reason and its sentence.
pub(super) fn placement(
    spec: &HawkeyeDeploymentSpec,
    index: &ClassIndex,
    candidates: &[Candidate<'_>],
    target: Option<Device>,
    left: u32,
    free: &Free<'_>,
) -> (Reason, String) {
    let where_to = shares(
        candidates
            .iter()
            .map(|candidate| (candidate.class.name.as_str(), candidate.given)),
    );
    if spec.replicas <= 0 {
        return (Reason::ScaledToZero, "replicas is 0, so nothing runs.".to_owned());
    }
    let so_far = if where_to.is_empty() {
        String::new()
    } else {
        format!(" Placed are {where_to}.")
    };
    let order: Vec<&ClassNodes> = candidates.iter().map(|candidate| candidate.class).collect();
    // Every class with room left, but for what the user said.
    let roomy: Vec<&ClassNodes> = index
        .classes
        .iter()
        .filter(|class| free.room(class, 0) > 0)
        .filter(|class| {
            let of = candidates.iter().find(|candidate| candidate.class.name == class.name);
            of.is_none_or(|candidate| candidate.barred.is_none())
        })
        .collect();
    let denied: Vec<&ClassNodes> = roomy
        .iter()
        .copied()
        .filter(|class| spec.fallback == Fallback::Deny && target.is_some_and(|device| class.spec.device > device))
        .filter(|class| spec.classes.as_ref().is_none_or(|names| names.contains(&class.name)))
        .collect();
    if left == 0 {
        return everything_placed(spec, candidates, &denied, &where_to);
    }
    let lead = format!("{left} of {} replicas have no place", spec.replicas);
    if target.is_none() {
        return (
            Reason::NoNodes,
            format!("{lead}: {}.{}", nowhere(spec, &order), unclassified(index)),
        );
    }
    if candidates.iter().any(|candidate| {
        candidate.pin.is_some()
            && candidate.barred.is_none()
            && free.room(candidate.class, 0) > 0
            && target == Some(candidate.class.spec.device)
    }) {
        let sum: u32 = order
            .iter()
            .filter_map(|class| change(spec, class)?.replicas)
            .map(count)
            .sum();
        return (
            Reason::PinnedBelowTotal,
            format!(
                "{lead}: overrides pin {sum} and no class without a pin has room.{so_far} Raise a pin, or leave one class \
                 without a pin to take the rest."
            ),
        );
    }
    let barred = barred(candidates);
    if !denied.is_empty() {
        return (
            Reason::FallbackDenied,
            format!(
                "{lead}: {} and fallback is Deny.{so_far}{} Set fallback: Degrade to use {}, or add capacity.",
                capacity(candidates, target, free),
                barred.map_or(String::new(), |(_, why)| format!(" {why}")),
                names(&denied)
            ),
        );
    }
    if let Some((reason, why)) = barred {
        return (reason, format!("{lead}. {why}{so_far}{}", unclassified(index)));
    }
    let allowed = |class: &ClassNodes| order.iter().any(|other| other.name == class.name);
    let elsewhere: Vec<&ClassNodes> = roomy.into_iter().filter(|class| !allowed(class)).collect();
    let hint = if elsewhere.is_empty() {
        String::new()
    } else {
        format!(
            " Not allowed by spec.classes or spec.device, but with room: {}.",
            names(&elsewhere)
        )
    };
    (
        Reason::NotEnoughCapacity,
        format!(
            "{lead}: {}.{so_far}{hint}{}",
            capacity(candidates, None, free),
            unclassified(index)
        ),
    )
}

/// Every replica is with a class; some of their pods may have found no node there, and nobody else takes them.
fn everything_placed(
    spec: &HawkeyeDeploymentSpec,
    candidates: &[Candidate<'_>],
    denied: &[&ClassNodes],
    where_to: &str,
) -> (Reason, String) {
    let stuck = shares(
        candidates
            .iter()
            .map(|candidate| (candidate.class.name.as_str(), candidate.stuck)),
    );
    if stuck.is_empty() {
        return (Reason::Placed, format!("Every replica has a place: {where_to}."));
    }
    let lead = format!(
        "The pods of {stuck} found no node for {}",
        spec.hand_over_after.as_str()
    );
    let waits = "They start as soon as the scheduler finds room; its words are in status.pools.";
    if denied.is_empty() {
        return (
            Reason::Unschedulable,
            format!("{lead}, and no other class that may be used has room. {waits}"),
        );
    }
    (
        Reason::FallbackDenied,
        format!(
            "{lead}, and fallback is Deny. {waits} Set fallback: Degrade to use {}.",
            names(denied)
        ),
    )
}

fn names(classes: &[&ClassNodes]) -> String {
    let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
    names.join(", ")
}

/// The first class that would have been used and cannot be, whatever its room.
fn barred(candidates: &[Candidate<'_>]) -> Option<(Reason, String)> {
    candidates
        .iter()
        .filter(|candidate| candidate.usable && candidate.class.exists() && candidate.pin != Some(0))
        .find_map(|candidate| {
            let (reason, why) = candidate.barred.as_ref()?;
            Some((*reason, format!("{}: {why}", candidate.class.name)))
        })
}

/// "dgx-spark offers 1 nvidia.com/gpu on ready, schedulable nodes, pods of others hold 2" for each class that is capped.
fn capacity(candidates: &[Candidate<'_>], device: Option<Device>, free: &Free<'_>) -> String {
    let parts: Vec<String> = candidates
        .iter()
        .filter(|candidate| {
            let class = candidate.class;
            class.exists() && device.is_none_or(|device| class.spec.device == device)
        })
        .filter_map(|candidate| {
            let class = candidate.class;
            let resource = class.spec.resource.as_deref()?;
            let others = if class.taken > 0 {
                format!(", pods of others hold {}", class.taken)
            } else {
                String::new()
            };
            let given = class
                .free
                .saturating_sub(free.units(class))
                .saturating_sub(u64::from(candidate.given + candidate.extra));
            let siblings = if given > 0 {
                format!(", other HawkeyeDeployments have {given}")
            } else {
                String::new()
            };
            let off = if class.schedulable == 0 {
                kept_off(class)
            } else {
                String::new()
            };
            Some(format!(
                "{} offers {} {resource} on ready, schedulable nodes{off}{others}{siblings}",
                class.name, class.free
            ))
        })
        .collect();
    if parts.is_empty() {
        "no class that may be used has room".to_owned()
    } else {
        parts.join("; ")
    }
}

/// Why no class that may be used has a node for its pods.
fn nowhere(spec: &HawkeyeDeploymentSpec, order: &[&ClassNodes]) -> String {
    if order.is_empty() {
        let device = match spec.device {
            DeviceChoice::Cuda => "device is Cuda and fallback is Deny",
            DeviceChoice::Cpu | DeviceChoice::Auto => "device is Cpu",
        };
        let of = match spec.classes {
            Some(_) => "no class that spec.classes names",
            None => "no HardwareClass of the cluster",
        };
        return format!("{device}, and {of} is for that device");
    }
    let tainted: Vec<String> = order
        .iter()
        .filter(|class| class.nodes > 0)
        .map(|class| format!("{}{}", class.name, kept_off(class)))
        .collect();
    if tainted.is_empty() {
        return format!("no node belongs to a class that may be used ({})", names(order));
    }
    let rest: Vec<&ClassNodes> = order.iter().copied().filter(|class| class.nodes == 0).collect();
    let rest = if rest.is_empty() {
        String::new()
    } else {
        format!("; no node belongs to {}", names(&rest))
    };
    format!(
        "every node of {} has a taint that its class does not tolerate{rest}",
        tainted.join(", ")
    )
}

/// The first nodes without a class and why; a status has to stay short in a cluster of thousands.
fn unclassified(index: &ClassIndex) -> String {
    const SHOWN: usize = 3;
    let total = index.unclassified.len();
    if total == 0 {
        return String::new();
    }
    let shown: Vec<String> = index
        .unclassified
        .iter()
        .take(SHOWN)
        .map(|node| format!("{} ({}: {})", node.node, node.reason, node.message))
        .collect();
    let more = if total > SHOWN {
        format!(" and {} more", total - SHOWN)
    } else {
        String::new()
    };
    format!(" Nodes without a class: {}{more}.", shown.join("; "))
}

/// Condition Degraded: the sentence that says which replicas run on a lesser device and why.
pub(super) fn degradation(spec: &HawkeyeDeploymentSpec, target: Option<Device>, pools: &[PoolPlan]) -> Option<String> {
    let wanted = match spec.device {
        DeviceChoice::Cuda => Device::Cuda,
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => target?,
    };
    let lesser: Vec<PoolPlan> = pools
        .iter()
        .filter(|pool| pool.replicas > 0 && pool.device() > wanted)
        .cloned()
        .collect();
    if lesser.is_empty() {
        return None;
    }
    let pinned = |class: &str| {
        let change = spec.overrides.as_ref().and_then(|overrides| overrides.get(class));
        change.is_some_and(|change| change.replicas.is_some())
    };
    let handed = |pool: &PoolPlan| pool.hand_over.as_ref().is_some_and(|record| record.keeps.is_some());
    let why: Vec<String> = pools
        .iter()
        .filter(|pool| pool.device() == wanted)
        .map(|pool| {
            if pool.replicas > 0 && !pinned(&pool.class) && !handed(pool) {
                return format!("{} has room for {}", pool.class, pool.replicas);
            }
            format!("{}: {}", pool.class, pool.message.trim_end_matches('.'))
        })
        .collect();
    let why = if why.is_empty() {
        match spec.classes {
            None => "the cluster has no node with that device".to_owned(),
            Some(_) => "no class that spec.classes names has a node with that device".to_owned(),
        }
    } else {
        why.join("; ")
    };
    let asked = match spec.device {
        DeviceChoice::Auto => "the best device of the cluster",
        _ => "the device asked for",
    };
    Some(format!(
        "{} instead of {} ({asked}): {why}.",
        distribution(&lesser),
        wanted.as_str()
    ))
}

/// "2 on dgx-spark, 1 on cpu-arm64".
pub fn distribution(pools: &[PoolPlan]) -> String {
    shares(pools.iter().map(|pool| (pool.class.as_str(), pool.replicas)))
}

fn shares<'s>(pools: impl Iterator<Item = (&'s str, u32)>) -> String {
    pools
        .filter(|(_, replicas)| *replicas > 0)
        .map(|(class, replicas)| format!("{replicas} on {class}"))
        .collect::<Vec<_>>()
        .join(", ")
}
