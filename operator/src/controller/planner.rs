//! One plan for all: reads the stores when something changed, plans every HawkeyeDeployment in one pass, and asks for
//! those whose plan changed to be reconciled.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::channel::mpsc::UnboundedSender;
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, store::WriterDropped},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    apply::Memory,
    images::{Checker, Pending, barred},
    observe::{GuardedDeployment, Pod, World, held, hosted, taken},
    plan::{Plan, Request, handover::HandOver, plan_all},
    pool::PoolDeployment,
    waiting::waiting,
};
use crate::{
    hardware::{ClassIndex, Grace, ModelDefaults, classify::by_priority},
    metrics::Metrics,
};

/// Changes within this time are planned together. A rollout of a device plugin touches every node.
const SETTLE: Duration = Duration::from_millis(100);
/// Longest sleep when a plan changes by time alone: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);
/// Planning rests for this many times as long as it took: in a cluster of thousands of nodes that change all the time, it
/// takes at most a third of a core.
const REST: u32 = 2;

/// The plans of one pass.
#[derive(Clone, Debug, Default)]
pub struct Plans(Option<Arc<HashMap<String, Planned>>>);

/// The plan of one HawkeyeDeployment.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The generation of the spec that it is for.
    pub generation: Option<i64>,
    /// The plan.
    pub plan: Arc<Plan>,
}

impl Plans {
    /// The result of a pass.
    pub fn made(plans: Vec<(String, Planned)>) -> Self {
        Self(Some(Arc::new(plans.into_iter().collect())))
    }

    /// True once a pass was made.
    pub fn ready(&self) -> bool {
        self.0.is_some()
    }

    /// The plan of a UID, whatever its generation.
    fn of(&self, uid: &str) -> Option<&Plan> {
        Some(&*self.0.as_ref()?.get(uid)?.plan)
    }

    /// The plan of a UID for this generation or a later one.
    pub fn get(&self, uid: &str, generation: Option<i64>) -> Option<Arc<Plan>> {
        let planned = self.0.as_ref()?.get(uid)?;
        (planned.generation >= generation).then(|| Arc::clone(&planned.plan))
    }
}

/// The records of hand-over: those of the plan before, or after a start those of the status.
fn hand_overs(object: &HawkeyeDeployment, before: Option<&Plan>) -> BTreeMap<String, HandOver> {
    match before.filter(|plan| plan.refused.is_none()) {
        Some(plan) => plan
            .pools
            .iter()
            .filter_map(|pool| Some((pool.class.clone(), pool.hand_over.clone()?)))
            .collect(),
        None => object
            .status
            .iter()
            .flat_map(|status| &status.pools)
            .filter_map(|pool| Some((pool.class.clone(), HandOver::from_status(pool.hand_over.as_ref()?))))
            .collect(),
    }
}

fn deployment_ref(namespace: &str, name: &str) -> ObjectRef<PoolDeployment> {
    ObjectRef::new(name).within(namespace)
}

/// In whole seconds, as times stand in a status: what is read back after a restart is what was planned with.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How long to sleep until a time.
fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now()))
        .unwrap_or(Duration::ZERO)
        .min(LONGEST_SLEEP)
}

/// Everything that planning runs with.
pub struct Planner {
    /// What is in the cluster.
    pub world: World,
    /// What a spec without a model uses.
    pub models: ModelDefaults,
    /// Asks whether images were built for the hardware.
    pub checker: Checker,
    /// Says that something changed.
    pub dirty: Arc<Notify>,
    /// What nodes were before they lost their labels.
    pub grace: Grace,
    /// Where the plans go.
    pub plans: watch::Sender<Plans>,
    /// Where the sorted nodes go, for the status of the classes.
    pub indexes: watch::Sender<Arc<ClassIndex>>,
    /// Objects to be reconciled.
    pub triggers: UnboundedSender<ObjectRef<GuardedDeployment>>,
    /// What was applied last, of which what is gone is forgotten.
    pub memory: Arc<Memory>,
    /// Metrics.
    pub metrics: Metrics,
}

impl Planner {
    /// Plans for ever.
    ///
    /// # Errors
    /// When a watch has ended.
    pub async fn run(mut self) -> Result<(), WriterDropped> {
        self.world.wait_until_ready().await?;
        loop {
            let start = Instant::now();
            let next = tracing::debug_span!("plan_all").in_scope(|| self.pass(now()));
            let rest = SETTLE.max(start.elapsed() * REST);
            match next {
                Some(next) => {
                    // Either of the two is a reason for the next pass.
                    let _elapsed = timeout(until(next), self.dirty.notified()).await;
                }
                None => self.dirty.notified().await,
            }
            sleep(rest).await;
        }
    }

    /// Plans once; says when to plan again although nothing changed.
    fn pass(&mut self, now: Timestamp) -> Option<Timestamp> {
        let start = Instant::now();
        let guarded = self.world.hawkeye_deployments.state();
        let living: Vec<&HawkeyeDeployment> = guarded
            .iter()
            .filter_map(|guarded| guarded.0.as_ref().ok())
            .filter(|object| object.metadata.deletion_timestamp.is_none())
            .collect();
        let pods = self.world.pods.state();
        let index = self.index(&living, &pods, now);
        let mut held = held(&pods, &index);
        let deployment = |namespace: &str, name: &str| self.world.deployments.get(&deployment_ref(namespace, name));
        let mut waiting = waiting(&pods, deployment);
        let before = self.plans.borrow().clone();
        let mut checked = self.checker.check(&living, &index, &pods, deployment);
        let keys: Vec<(String, String)> = living
            .iter()
            .map(|object| {
                let created = object.metadata.creation_timestamp.as_ref();
                (
                    object.uid().unwrap_or_default(),
                    created.map(|time| time.0.to_string()).unwrap_or_default(),
                )
            })
            .collect();
        let requests: Vec<Request<'_>> = living
            .iter()
            .zip(&keys)
            .map(|(object, (uid, created))| {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                Request {
                    held: held.remove(&key).unwrap_or_default(),
                    pods: waiting.remove(&key).unwrap_or_default(),
                    barred: checked.of(uid).map(barred).unwrap_or_default(),
                    hand_overs: hand_overs(object, before.of(uid)),
                    ..Request::new(uid, created, &object.spec)
                }
            })
            .collect();
        let mut made = plan_all(&requests, &index, &self.models, now);
        let next = made.values().filter_map(|plan| plan.next).min();
        let mut changed = Vec::new();
        let mut plans = Vec::new();
        for (object, (uid, _)) in living.iter().zip(keys) {
            let Some(mut plan) = made.remove(&uid) else { continue };
            let old = before.0.as_ref().and_then(|before| before.get(&uid));
            match checked.take(&uid) {
                Ok(truth) => plan.learn(truth),
                Err(Pending) if plan.refused.is_some() => {}
                // What it was given stays reserved for it; until the answer is there, the plan before holds.
                Err(Pending) => {
                    plans.extend(old.map(|old| (uid, old.clone())));
                    continue;
                }
            }
            // What did not change keeps its place in memory.
            let plan = match old {
                Some(old) if *old.plan == plan => Arc::clone(&old.plan),
                _ => {
                    changed.push(ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default()));
                    Arc::new(plan)
                }
            };
            plans.push((
                uid,
                Planned {
                    generation: object.metadata.generation,
                    plan,
                },
            ));
        }
        self.plans.send_replace(Plans::made(plans));
        for object in changed {
            // It fails only when the controller is gone, and then the process ends.
            if self.triggers.unbounded_send(object).is_err() {
                return None;
            }
        }
        self.forget();
        let seconds = start.elapsed().as_secs_f64();
        self.metrics
            .planned(seconds, living.len(), index.nodes(), index.unclassified.len());
        tracing::debug!(seconds, deployments = living.len(), unclassified = ?index.unclassified, "planned");
        let next = next.into_iter().chain(index.next_end_of_grace()).min();
        self.indexes.send_replace(Arc::new(index));
        next
    }

    fn index(&mut self, living: &[&HawkeyeDeployment], pods: &[Arc<Pod>], now: Timestamp) -> ClassIndex {
        let ours: HashSet<(String, String)> = living
            .iter()
            .map(|object| (object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        let taken: BTreeMap<(String, String), u64> = taken(pods, |namespace, name| {
            ours.contains(&(namespace.to_owned(), name.to_owned()))
        });
        let nodes = self.world.nodes.facts();
        let classes = self.world.classes.state();
        let classes = by_priority(classes.iter().filter_map(|guarded| guarded.0.as_ref().ok()));
        let assigned = self.grace.assign(&classes, &nodes, hosted(pods), now);
        ClassIndex::assigned(classes, &nodes, assigned, |node, resource| {
            taken.get(&(node.to_owned(), resource.to_owned())).copied().unwrap_or(0)
        })
    }

    fn forget(&self) {
        let made = self.world.made();
        self.memory.retain(|uid| made.contains(uid));
    }
}
