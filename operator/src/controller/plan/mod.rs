//! Spec + classes + capacity → pools. Pure, and one pass for all HawkeyeDeployments, so that the same cluster always
//! gives the same plan: they are served in the order of their creation, and what one is given is taken for the next.
//!
//! `reasons` has the words, `handover` what happens when pods find no node.

pub mod handover;
mod reasons;

use std::{collections::BTreeMap, sync::Arc};

use hawkeye_crds::v1alpha1::{
    Device, DeviceChoice, Dtype, Fallback, HardwareClassSpec, HawkeyeDeploymentSpec, ImageVariant, PoolOverride,
    Profile, Quantity, Reason,
};
use jiff::{SignedDuration, Timestamp};

use self::handover::{Capacity, HandOver, PoolPods, Step};
use super::images::{Checks, Truth};
use crate::hardware::{ClassIndex, ClassNodes, ModelDefaults, memory};

pub use self::reasons::distribution;

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
    /// Classes that it cannot use, whatever room they have, each with the reason and a sentence.
    pub barred: BTreeMap<String, (Reason, String)>,
    /// What its pods say about hand-over, by class.
    pub pods: BTreeMap<String, PoolPods>,
    /// The records of hand-over as they were, by class.
    pub hand_overs: BTreeMap<String, HandOver>,
}

impl<'a> Request<'a> {
    /// A request of which nothing runs yet.
    pub fn new(uid: &'a str, created: &'a str, spec: &'a HawkeyeDeploymentSpec) -> Self {
        Self {
            uid,
            created,
            spec,
            held: Held::new(),
            barred: BTreeMap::new(),
            pods: BTreeMap::new(),
            hand_overs: BTreeMap::new(),
        }
    }
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
    /// Replicas with a place in a pool where their pods find no node, and that no other class can take.
    pub stuck: u32,
    /// Set when replicas run on a lesser device: the sentence that says which and why.
    pub degraded: Option<String>,
    /// When time alone may change the plan.
    pub next: Option<Timestamp>,
    /// What is known of the images, which the planner adds; `None` while they are not looked up.
    pub images: Option<Checks>,
}

impl Plan {
    /// Adds what is known of the images; `None` while they are not looked up.
    pub fn learn(&mut self, truth: Option<Truth>) {
        for pool in &mut self.pools {
            let digest = truth.as_ref().and_then(|truth| truth.digests.of(&pool.class));
            pool.model_digest = digest.map(str::to_owned);
        }
        self.images = truth.map(|truth| truth.checks);
    }
}

/// One pool: what its Deployment is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPlan {
    /// Name of the class.
    pub class: String,
    /// The class as planned with.
    pub spec: Arc<HardwareClassSpec>,
    /// Nodes of the class, ready or not.
    pub nodes: u32,
    /// Pods planned; 0 when the class was passed over.
    pub replicas: u32,
    /// Of these, pods beyond spec.replicas that try whether the class has room again. Their replicas run elsewhere meanwhile.
    pub extra: u32,
    /// Number format of the models.
    pub dtype: Dtype,
    /// Image crops that share one batch.
    pub batch_size: i32,
    /// Memory limit and request.
    pub memory: Quantity,
    /// CPU request.
    pub cpu: Quantity,
    /// A rollout may start a new pod before it ends an old one: there is room for one more.
    pub surge: bool,
    /// The record of its hand-over, while pods find no node or replicas are with other classes.
    pub hand_over: Option<HandOver>,
    /// Digest of the model's image that its pods mount, which the planner adds; `None` where they mount a tag or no image.
    pub model_digest: Option<String>,
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

/// Plans every request. The result is keyed by UID. `now` is in whole seconds.
pub fn plan_all(
    requests: &[Request<'_>],
    index: &ClassIndex,
    models: &ModelDefaults,
    now: Timestamp,
) -> BTreeMap<String, Plan> {
    let mut order: Vec<&Request<'_>> = requests.iter().collect();
    order.sort_by(|a, b| (a.created, a.uid).cmp(&(b.created, b.uid)));
    let mut free = Free(
        index
            .classes
            .iter()
            .map(|class| (class.name.as_str(), class.free))
            .collect(),
    );
    let mut plans: BTreeMap<String, Plan> = order
        .into_iter()
        .map(|request| (request.uid.to_owned(), plan_one(request, index, models, &mut free, now)))
        .collect();
    // What is free once everybody has been served is room for the pods that rollouts start first.
    for pool in plans.values_mut().flat_map(|plan| &mut plan.pools) {
        let free = free.0.get(pool.class.as_str()).is_some_and(|units| *units > 0);
        pool.surge &= pool.replicas > 0 && (pool.spec.resource.is_none() || free);
    }
    plans
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

/// A class that may be used, while replicas are given.
struct Candidate<'a> {
    class: &'a ClassNodes,
    /// Pods on nodes that take no new ones.
    held: u32,
    pin: Option<u32>,
    /// Fallback allows its device.
    usable: bool,
    /// Why it cannot be used, whatever its room.
    barred: Option<(Reason, String)>,
    dtype: Dtype,
    batch_size: i32,
    memory: Quantity,
    cpu: Quantity,
    /// Sentences about number format and batch that someone may not expect.
    notes: Vec<String>,
    step: Step,
    /// Room before this HawkeyeDeployment took any.
    room: u32,
    /// Replicas that it would be given if none were handed over.
    wish: u32,
    /// Replicas that it is given.
    given: u32,
    /// Pods beyond these that try it.
    extra: u32,
    /// Of those given, replicas that were to be handed over, but that no other class can take.
    stuck: u32,
}

impl Candidate<'_> {
    fn keeps(&self) -> Option<u32> {
        self.step.record.as_ref()?.keeps
    }

    fn trying(&self) -> bool {
        self.step.record.as_ref().is_some_and(|record| record.trying)
    }

    fn takes_part(&self) -> bool {
        self.usable && self.barred.is_none()
    }
}

fn plan_one<'a>(
    request: &Request<'_>,
    index: &'a ClassIndex,
    models: &ModelDefaults,
    free: &mut Free<'a>,
    now: Timestamp,
) -> Plan {
    let spec = request.spec;
    if let Some(refused) = refusal(spec, index, models) {
        let placed = (refused.0, "Nothing is placed until the spec is accepted.".to_owned());
        return Plan {
            refused: Some(refused),
            pools: Vec::new(),
            placed,
            unplaced: 0,
            stuck: 0,
            degraded: None,
            images: None,
            next: None,
        };
    }
    let order = classes_in_order(spec, index);
    let target = order
        .iter()
        .find(|class| class.exists() || held(request, class) > 0)
        .map(|class| class.spec.device);
    let mut candidates: Vec<Candidate<'a>> = order
        .into_iter()
        .map(|class| candidate(request, class, target, free, now))
        .collect();
    let left = give(&mut candidates, free, count(spec.replicas));

    let mut placed = reasons::placement(spec, index, &candidates, target, left, free);
    for grace in candidates
        .iter()
        .filter(|candidate| candidate.given > 0)
        .filter_map(|candidate| candidate.class.grace())
    {
        placed.1.extend([" ", &grace]);
    }
    let next = candidates.iter().filter_map(|candidate| candidate.step.wake).min();
    let stuck = candidates.iter().map(|candidate| candidate.stuck).sum();
    let pools: Vec<PoolPlan> = candidates
        .into_iter()
        .filter(|candidate| {
            let class = candidate.class;
            let named = spec.classes.is_some() || change(spec, class).is_some();
            class.exists() || class.nodes > 0 || named || candidate.given + candidate.extra > 0
        })
        .map(|candidate| pool(spec, candidate))
        .collect();
    Plan {
        refused: None,
        placed,
        unplaced: left,
        stuck,
        degraded: reasons::degradation(spec, target, &pools),
        images: None,
        pools,
        next,
    }
}

/// Gives replicas to the candidates in their order and says how many are left without a place.
fn give<'a>(candidates: &mut [Candidate<'a>], free: &mut Free<'a>, wanted: u32) -> u32 {
    let mut left = wanted;
    // Pins first, so that a class further up the order cannot take what a pin gives to one further down.
    for pinned in [true, false] {
        for candidate in candidates
            .iter_mut()
            .filter(|candidate| candidate.takes_part() && candidate.pin.is_some() == pinned)
        {
            let Candidate { class, held, .. } = *candidate;
            let wanted = candidate.pin.unwrap_or(left).min(left);
            candidate.wish = wanted.min(free.room(class, held));
            candidate.given = free.take(class, held, candidate.wish.min(candidate.keeps().unwrap_or(u32::MAX)));
            left -= candidate.given;
            if candidate.trying() {
                let held = held.saturating_sub(candidate.given);
                candidate.extra = free.take(class, held, candidate.wish - candidate.given);
            }
        }
    }
    // Replicas that no other class can take stay where they are, for the scheduler may find room at any time.
    for candidate in candidates
        .iter_mut()
        .filter(|candidate| candidate.given < candidate.wish)
    {
        let back = left.min(candidate.wish - candidate.given);
        let tried = back.min(candidate.extra);
        candidate.extra -= tried;
        let held = candidate.held.saturating_sub(candidate.given + candidate.extra + tried);
        candidate.stuck = tried + free.take(candidate.class, held, back - tried);
        candidate.given += candidate.stuck;
        left -= candidate.stuck;
    }
    left
}

fn count(replicas: i32) -> u32 {
    u32::try_from(replicas).unwrap_or(0)
}

fn change<'s>(spec: &'s HawkeyeDeploymentSpec, class: &ClassNodes) -> Option<&'s PoolOverride> {
    spec.overrides.as_ref()?.get(&class.name)
}

fn held(request: &Request<'_>, class: &ClassNodes) -> u32 {
    request.held.get(&class.name).copied().unwrap_or(0)
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

/// What a class's pods would be, whether it can be used, and where its hand-over stands.
fn candidate<'a>(
    request: &Request<'_>,
    class: &'a ClassNodes,
    target: Option<Device>,
    free: &Free<'_>,
    now: Timestamp,
) -> Candidate<'a> {
    let spec = request.spec;
    let change = change(spec, class);
    let mut notes = Vec::new();
    let asked = change.and_then(|change| change.dtype).unwrap_or(spec.dtype).explicit();
    let mut dtype = asked.unwrap_or(class.spec.dtype);
    if class.spec.device == Device::Cpu && dtype == Dtype::Float16 {
        dtype = Dtype::Float32;
        notes.push("CPUs have no Float16 kernels for these models, so Float32 is used.".to_owned());
    }
    if class.spec.device == Device::Cuda && dtype == Dtype::Int8 {
        // The schema lets no GPU class have it itself.
        dtype = class.spec.dtype;
        notes.push(format!(
            "GPUs have no Int8 kernels for these models, so {} is used.",
            dtype.as_str()
        ));
    }
    let batch = class.spec.batch_size;
    let batch = match spec.profile {
        Profile::Speed => batch.speed,
        Profile::Balanced => batch.balanced,
        Profile::Quality => batch.quality,
    };
    // Nodes that an autoscaler adds may be larger than those that exist now.
    let largest = class.largest_memory.filter(|_| !class.spec.autoscaled);
    let mut barred = request.barred.get(&class.name).cloned();
    let fit = memory::fit(&class.spec, dtype, batch, change, largest).unwrap_or_else(|why| {
        barred.get_or_insert((Reason::MemoryDoesNotFit, format!("No pod fits: {why}")));
        memory::Fit {
            batch_size: 1,
            memory: change
                .and_then(|change| change.memory.clone())
                .unwrap_or_else(|| class.spec.memory.limit.clone()),
            note: None,
        }
    });
    notes.extend(fit.note);
    let cpu = memory::cpu(&class.spec, change);
    let most = class.largest_cpu_milli.filter(|_| !class.spec.autoscaled);
    if let Some(why) = memory::cpu_does_not_fit(&cpu, change, most) {
        barred.get_or_insert((Reason::CpuDoesNotFit, format!("No pod fits: {why}")));
    }
    let asks = format!("cpu {cpu}, memory {}", fit.memory);
    let nothing = PoolPods::default();
    let step = handover::step(&handover::Facts {
        before: request.hand_overs.get(&class.name),
        pods: request.pods.get(&class.name).unwrap_or(&nothing),
        capacity: Capacity {
            units: free.units(class),
            nodes: class.schedulable,
        },
        autoscaled: class.spec.autoscaled,
        asks: &asks,
        after: spec
            .hand_over_after
            .seconds()
            .map(|seconds| SignedDuration::from_secs(seconds.into())),
        now,
    });
    let held = held(request, class);
    Candidate {
        class,
        held,
        pin: change.and_then(|change| change.replicas).map(count),
        usable: spec.fallback == Fallback::Degrade || target.is_none_or(|device| class.spec.device == device),
        barred,
        dtype,
        batch_size: fit.batch_size,
        memory: fit.memory,
        cpu,
        notes,
        step,
        room: free.room(class, held),
        wish: 0,
        given: 0,
        extra: 0,
        stuck: 0,
    }
}

fn pool(spec: &HawkeyeDeploymentSpec, candidate: Candidate<'_>) -> PoolPlan {
    let (reason, message) = reasons::pool(spec, &candidate);
    let class = candidate.class;
    PoolPlan {
        class: class.name.clone(),
        spec: Arc::clone(&class.spec),
        nodes: class.nodes,
        replicas: candidate.given + candidate.extra,
        extra: candidate.extra,
        dtype: candidate.dtype,
        batch_size: candidate.batch_size,
        memory: candidate.memory,
        cpu: candidate.cpu,
        surge: !candidate.step.blocked_rollout,
        hand_over: candidate.step.settle(candidate.wish, candidate.given),
        model_digest: None,
        reason,
        message,
    }
}
