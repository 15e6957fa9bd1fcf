//! Spec + classes + capacity → pools. Pure, and one pass for all HawkeyeDeployments, so that the same cluster always
//! gives the same plan: they are served in the order of their creation, and what one is given is taken for the next.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{
    Device, DeviceChoice, Dtype, Fallback, HardwareClassSpec, HawkeyeDeploymentSpec, ImageVariant, PoolOverride,
    Profile, Quantity, Reason,
};

use crate::hardware::{ClassIndex, ClassNodes, ModelDefaults, memory};

/// A HawkeyeDeployment that wants a plan.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// When it was created, RFC 3339 in UTC: older ones are served first.
    pub created: &'a str,
    /// Its spec.
    pub spec: &'a HawkeyeDeploymentSpec,
    /// Its active pods by class, as far as they run on nodes that take no new pods of that class now: cordoned, not ready,
    /// or without the labels or the resource that they had. They keep their place until they end. So neither a restarted
    /// kubelet or device plugin nor a label publisher ends a pod that works, and without a clock: Kubernetes evicts pods
    /// of a node that stays away.
    pub held: Held,
}

/// Pods by class.
pub type Held = BTreeMap<String, u32>;

/// What one HawkeyeDeployment gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Why nothing can be done for the spec as it is, and what to do. What runs already is then left alone.
    pub refused: Option<(Reason, String)>,
    /// Its pools in the order of their classes; also those without replicas whose reason is worth saying.
    pub pools: Vec<PoolPlan>,
    /// Why all or only some replicas have a place.
    pub placed: (Reason, String),
    /// Replicas without a place.
    pub unplaced: u32,
    /// Set when replicas run on a lesser device: the sentence that says which and why.
    pub degraded: Option<String>,
}

/// One pool: what its Deployment is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPlan {
    /// Name of the class.
    pub class: String,
    /// The class as planned with.
    pub spec: HardwareClassSpec,
    /// Nodes of the class, ready or not.
    pub nodes: u32,
    /// Replicas planned; 0 when the class was passed over.
    pub replicas: u32,
    /// Number format of the models.
    pub dtype: Dtype,
    /// Image crops that share one batch.
    pub batch_size: i32,
    /// Memory limit and request.
    pub memory: Quantity,
    /// CPU request.
    pub cpu: Quantity,
    /// Why it has as many replicas as it has.
    pub reason: Reason,
    /// The same in a sentence.
    pub message: String,
}

impl PoolPlan {
    /// The device that its pods compute on.
    pub fn device(&self) -> Device {
        self.spec.device
    }

    /// The image variant that its pods run.
    pub fn variant(&self) -> ImageVariant {
        self.spec.image_variant
    }
}

/// Plans every request. The result is keyed by UID.
pub fn plan_all(requests: &[Request<'_>], index: &ClassIndex, models: &ModelDefaults) -> BTreeMap<String, Plan> {
    let mut order: Vec<&Request<'_>> = requests.iter().collect();
    order.sort_by(|a, b| (a.created, a.uid).cmp(&(b.created, b.uid)));
    let mut free = Free(
        index
            .classes
            .iter()
            .map(|class| (class.name.as_str(), class.free))
            .collect(),
    );
    order
        .into_iter()
        .map(|request| (request.uid.to_owned(), plan_one(request, index, models, &mut free)))
        .collect()
}

/// Units of each class's resource that are still free in this pass.
struct Free<'a>(BTreeMap<&'a str, u64>);

impl<'a> Free<'a> {
    fn units(&self, class: &ClassNodes) -> u64 {
        self.0.get(class.name.as_str()).copied().unwrap_or(0)
    }

    /// Room for pods on a class: its free units, or no bound where pods need no unit or nodes come on demand.
    /// To this comes what is held already.
    fn room(&self, class: &ClassNodes, held: u32) -> u32 {
        if !class.exists() {
            return held;
        }
        if class.spec.resource.is_none() || class.spec.autoscaled {
            return u32::MAX;
        }
        u32::try_from(self.units(class))
            .unwrap_or(u32::MAX)
            .saturating_add(held)
    }

    fn take(&mut self, class: &'a ClassNodes, held: u32, wanted: u32) -> u32 {
        let given = wanted.min(self.room(class, held));
        if let Some(units) = self.0.get_mut(class.name.as_str()) {
            *units = units.saturating_sub(u64::from(given.saturating_sub(held)));
        }
        given
    }
}

fn plan_one<'a>(request: &Request<'_>, index: &'a ClassIndex, models: &ModelDefaults, free: &mut Free<'a>) -> Plan {
    let spec = request.spec;
    if let Some(refused) = refusal(spec, index, models) {
        let placed = (refused.0, "Nothing is placed until the spec is accepted.".to_owned());
        return Plan {
            refused: Some(refused),
            pools: Vec::new(),
            placed,
            unplaced: 0,
            degraded: None,
        };
    }
    let order = classes_in_order(spec, index);
    let held = |class: &ClassNodes| request.held.get(&class.name).copied().unwrap_or(0);
    let target = order
        .iter()
        .find(|class| class.exists() || held(class) > 0)
        .map(|class| class.spec.device);
    let usable =
        |class: &ClassNodes| spec.fallback == Fallback::Degrade || target.is_none_or(|d| class.spec.device == d);
    let pin = |class: &ClassNodes| change(spec, class).and_then(|change| change.replicas).map(count);

    let wanted = count(spec.replicas);
    let mut left = wanted;
    let mut given: BTreeMap<&str, u32> = BTreeMap::new();
    let mut room_before: BTreeMap<&str, u32> = BTreeMap::new();
    for class in &order {
        room_before.insert(&class.name, free.room(class, held(class)));
    }
    // Pins first, so that a class further up the order cannot take what a pin gives to one further down.
    for pinned in [true, false] {
        for class in order
            .iter()
            .filter(|class| usable(class) && pin(class).is_some() == pinned)
        {
            let replicas = free.take(class, held(class), pin(class).unwrap_or(left).min(left));
            left -= replicas;
            given.insert(&class.name, replicas);
        }
    }

    let pools: Vec<PoolPlan> = order
        .iter()
        .filter(|class| {
            let named = spec.classes.is_some() || change(spec, class).is_some();
            class.exists() || class.nodes > 0 || named || given.get(class.name.as_str()).is_some_and(|n| *n > 0)
        })
        .map(|class| {
            let replicas = given.get(class.name.as_str()).copied().unwrap_or(0);
            let room = room_before.get(class.name.as_str()).copied().unwrap_or(0);
            pool(spec, class, replicas, room, pin(class), usable(class))
        })
        .collect();
    let mut placed = placement(spec, index, &order, &pools, target, left, free);
    let used = |class: &ClassNodes| given.get(class.name.as_str()).is_some_and(|replicas| *replicas > 0);
    for grace in order
        .iter()
        .filter(|class| used(class))
        .filter_map(|class| class.grace())
    {
        placed.1.extend([" ", &grace]);
    }
    Plan {
        refused: None,
        placed,
        unplaced: left,
        degraded: degradation(spec, target, &pools),
        pools,
    }
}

fn count(replicas: i32) -> u32 {
    u32::try_from(replicas).unwrap_or(0)
}

fn change<'s>(spec: &'s HawkeyeDeploymentSpec, class: &ClassNodes) -> Option<&'s PoolOverride> {
    spec.overrides.as_ref()?.get(&class.name)
}

fn refusal(spec: &HawkeyeDeploymentSpec, index: &ClassIndex, models: &ModelDefaults) -> Option<(Reason, String)> {
    if models.of(spec).is_none() {
        return Some((
            Reason::ModelMissing,
            "There is no model to run. Set spec.model.image.reference, spec.model.persistentVolumeClaim.claimName or \
             spec.model.http to a model bundle (hawkeye-export writes one), or the chart value defaultModel for all \
             HawkeyeDeployments."
                .to_owned(),
        ));
    }
    if index.classes.is_empty() {
        return Some((
            Reason::NoHardwareClasses,
            "The cluster has no HardwareClass. The chart installs the built-in ones; check with `kubectl get hwc`."
                .to_owned(),
        ));
    }
    let in_classes = spec.classes.iter().flatten().map(|name| ("classes", name));
    let in_overrides = spec.overrides.iter().flatten().map(|(name, _)| ("overrides", name));
    let unknown: Vec<String> = in_classes
        .chain(in_overrides)
        .filter(|(_, name)| index.get(name).is_none())
        .map(|(field, name)| format!("spec.{field} names {name}"))
        .collect();
    if unknown.is_empty() {
        return None;
    }
    let known: Vec<&str> = index.classes.iter().map(|class| class.name.as_str()).collect();
    Some((
        Reason::UnknownClass,
        format!(
            "{}, but there is no such HardwareClass. There are: {}.",
            unknown.join(", "),
            known.join(", ")
        ),
    ))
}

/// The classes that may be used, the first choice first.
fn classes_in_order<'a>(spec: &HawkeyeDeploymentSpec, index: &'a ClassIndex) -> Vec<&'a ClassNodes> {
    let mut order: Vec<&ClassNodes> = match &spec.classes {
        Some(names) => names.iter().filter_map(|name| index.get(name)).collect(),
        None => index.classes.iter().collect(),
    };
    match spec.device {
        DeviceChoice::Auto => {}
        DeviceChoice::Cpu => order.retain(|class| class.spec.device == Device::Cpu),
        DeviceChoice::Cuda => {
            // The device asked for is tried on every class before the next device is.
            order.sort_by_key(|class| class.spec.device);
            if spec.fallback == Fallback::Deny {
                order.retain(|class| class.spec.device == Device::Cuda);
            }
        }
    }
    order
}

fn pool(
    spec: &HawkeyeDeploymentSpec,
    class: &ClassNodes,
    replicas: u32,
    room: u32,
    pin: Option<u32>,
    usable: bool,
) -> PoolPlan {
    let change = change(spec, class);
    let asked = change.and_then(|change| change.dtype).unwrap_or(spec.dtype).explicit();
    let mut dtype = asked.unwrap_or(class.spec.dtype);
    let batch = class.spec.batch_size;
    let (reason, mut message) = pool_reason(class, replicas, room, pin, usable);
    if let Some(grace) = class.grace() {
        message = format!("{message} {grace}");
    }
    if class.spec.device == Device::Cpu && dtype == Dtype::Float16 {
        dtype = Dtype::Float32;
        message = format!("{message} CPUs have no Float16 kernels for these models, so Float32 is used.");
    }
    PoolPlan {
        class: class.name.clone(),
        nodes: class.nodes,
        replicas,
        dtype,
        batch_size: change
            .and_then(|change| change.batch_size)
            .unwrap_or(match spec.profile {
                Profile::Speed => batch.speed,
                Profile::Balanced => batch.balanced,
                Profile::Quality => batch.quality,
            }),
        memory: memory::limit(&class.spec, change),
        cpu: memory::cpu(&class.spec, change),
        spec: class.spec.clone(),
        reason,
        message,
    }
}

fn pool_reason(class: &ClassNodes, replicas: u32, room: u32, pin: Option<u32>, usable: bool) -> (Reason, String) {
    let resource = class.spec.resource.as_deref().unwrap_or("room");
    let held = if class.taken > 0 {
        format!("; pods of others hold {}", class.taken)
    } else {
        String::new()
    };
    if replicas > 0 {
        let why = match pin {
            Some(pin) if replicas < pin => format!("{pin} pinned by overrides, {replicas} of them have room here."),
            Some(_) => "As pinned by overrides.".to_owned(),
            None if class.schedulable == 0 && !class.spec.autoscaled => {
                "Its nodes take no new pods now; pods that run there already stay until they end.".to_owned()
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
            "Every node of this class has a taint that the class does not tolerate; see its tolerations.".to_owned(),
        );
    }
    if !usable {
        return (
            Reason::FallbackDenied,
            "Not used: fallback is Deny, and this is another device.".to_owned(),
        );
    }
    if room == 0 && class.schedulable == 0 {
        return (
            Reason::NotEnoughCapacity,
            "None of its nodes takes pods now: they are not ready, cordoned or tainted.".to_owned(),
        );
    }
    if room == 0 {
        return (
            Reason::NotEnoughCapacity,
            format!("No {resource} is free on its ready, schedulable nodes{held}."),
        );
    }
    (
        Reason::Placed,
        "Not needed: classes before it take every replica.".to_owned(),
    )
}

/// Condition Placed: its reason and its sentence.
fn placement(
    spec: &HawkeyeDeploymentSpec,
    index: &ClassIndex,
    order: &[&ClassNodes],
    pools: &[PoolPlan],
    target: Option<Device>,
    left: u32,
    free: &Free<'_>,
) -> (Reason, String) {
    let where_to = distribution(pools);
    if spec.replicas <= 0 {
        return (Reason::ScaledToZero, "replicas is 0, so nothing runs.".to_owned());
    }
    if left == 0 {
        return (Reason::Placed, format!("Every replica has a place: {where_to}."));
    }
    let lead = format!("{left} of {} replicas have no place", spec.replicas);
    let so_far = if where_to.is_empty() {
        String::new()
    } else {
        format!(" Placed are {where_to}.")
    };
    let names = |classes: &[&ClassNodes]| {
        classes
            .iter()
            .map(|class| class.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if target.is_none() {
        return (
            Reason::NoNodes,
            format!(
                "{lead}: no node belongs to a class that may be used ({}).{}{}",
                if order.is_empty() {
                    "none is left for this device".to_owned()
                } else {
                    names(order)
                },
                tainted(order),
                unclassified(index)
            ),
        );
    }
    // Every class with room left, but for what the user said.
    let roomy: Vec<&ClassNodes> = index.classes.iter().filter(|class| free.room(class, 0) > 0).collect();
    let pinned = |class: &ClassNodes| change(spec, class).is_some_and(|change| change.replicas.is_some());
    let allowed = |class: &ClassNodes| order.iter().any(|other| other.name == class.name);
    let denied: Vec<&ClassNodes> = roomy
        .iter()
        .copied()
        .filter(|class| spec.fallback == Fallback::Deny && target.is_some_and(|device| class.spec.device > device))
        .filter(|class| spec.classes.as_ref().is_none_or(|names| names.contains(&class.name)))
        .collect();
    if order
        .iter()
        .any(|class| pinned(class) && free.room(class, 0) > 0 && target == Some(class.spec.device))
    {
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
    if !denied.is_empty() {
        return (
            Reason::FallbackDenied,
            format!(
                "{lead}: {} and fallback is Deny.{so_far} Set fallback: Degrade to use {}, or add capacity.",
                capacity(order, target, pools, free),
                names(&denied)
            ),
        );
    }
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
            capacity(order, None, pools, free),
            unclassified(index)
        ),
    )
}

/// "dgx-spark offers 1 nvidia.com/gpu on ready, schedulable nodes, pods of others hold 2" for each class that is capped.
fn capacity(order: &[&ClassNodes], device: Option<Device>, pools: &[PoolPlan], free: &Free<'_>) -> String {
    let parts: Vec<String> = order
        .iter()
        .filter(|class| class.exists() && device.is_none_or(|device| class.spec.device == device))
        .filter_map(|class| {
            let resource = class.spec.resource.as_deref()?;
            let others = if class.taken > 0 {
                format!(", pods of others hold {}", class.taken)
            } else {
                String::new()
            };
            let own = pools
                .iter()
                .find(|pool| pool.class == class.name)
                .map_or(0, |pool| pool.replicas);
            let given = class
                .free
                .saturating_sub(free.units(class))
                .saturating_sub(u64::from(own));
            let siblings = if given > 0 {
                format!(", other HawkeyeDeployments have {given}")
            } else {
                String::new()
            };
            Some(format!(
                "{} offers {} {resource} on ready, schedulable nodes{others}{siblings}",
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

fn tainted(order: &[&ClassNodes]) -> String {
    let names: Vec<&str> = order
        .iter()
        .filter(|class| class.nodes > 0 && !class.exists())
        .map(|class| class.name.as_str())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        " The nodes of {} have taints that the class does not tolerate.",
        names.join(", ")
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

fn degradation(spec: &HawkeyeDeploymentSpec, target: Option<Device>, pools: &[PoolPlan]) -> Option<String> {
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
    let why: Vec<String> = pools
        .iter()
        .filter(|pool| pool.device() == wanted)
        .map(|pool| {
            if pool.replicas > 0 && !pinned(&pool.class) {
                return format!("{} has room for {}", pool.class, pool.replicas);
            }
            format!("{}: {}", pool.class, pool.message.trim_end_matches('.'))
        })
        .collect();
    let why = if why.is_empty() {
        "the cluster has no node with that device".to_owned()
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
    pools
        .iter()
        .filter(|pool| pool.replicas > 0)
        .map(|pool| format!("{} on {}", pool.replicas, pool.class))
        .collect::<Vec<_>>()
        .join(", ")
}
