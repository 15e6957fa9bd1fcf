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
    time::{Instant, sleep},
};

use super::{
    apply::Memory,
    observe::{GuardedDeployment, Pod, World, held, hosted, taken},
    plan::{Plan, Request, plan_all},
};
use crate::{
    hardware::{ClassIndex, Grace, ModelDefaults, NodeFacts, classify::by_priority},
    metrics::Metrics,
};

/// Changes within this time are planned together. A rollout of a device plugin touches every node.
const SETTLE: Duration = Duration::from_millis(100);

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

    /// The plan of a UID for this generation or a later one.
    pub fn get(&self, uid: &str, generation: Option<i64>) -> Option<Arc<Plan>> {
        let planned = self.0.as_ref()?.get(uid)?;
        (planned.generation >= generation).then(|| Arc::clone(&planned.plan))
    }
}

/// Everything that planning runs with.
pub struct Planner {
    /// What is in the cluster.
    pub world: World,
    /// What a spec without a model uses.
    pub models: ModelDefaults,
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
            let now = Timestamp::now();
            let end = self.pass(now);
            // A clock that was set meanwhile leads to a pass too many or a little late, not to none.
            let end_of_grace = end.map(|end| Duration::try_from(end.duration_since(now)).unwrap_or_default());
            tokio::select! {
                () = self.dirty.notified() => sleep(SETTLE).await,
                () = sleep(end_of_grace.unwrap_or_default()), if end_of_grace.is_some() => {}
            }
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
            .map(|(object, (uid, created))| Request {
                uid,
                created,
                spec: &object.spec,
                held: held
                    .remove(&(object.namespace().unwrap_or_default(), object.name_any()))
                    .unwrap_or_default(),
            })
            .collect();
        let mut made = plan_all(&requests, &index, &self.models);
        let before = self.plans.borrow().clone();
        let mut changed = Vec::new();
        let mut plans = Vec::new();
        for (object, (uid, _)) in living.iter().zip(keys) {
            let Some(plan) = made.remove(&uid) else { continue };
            let old = before.0.as_ref().and_then(|before| before.get(&uid));
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
            .planned(seconds, living.len(), self.world.nodes.len(), index.unclassified.len());
        tracing::debug!(seconds, deployments = living.len(), unclassified = ?index.unclassified, "planned");
        let end_of_grace = index.next_end_of_grace();
        self.indexes.send_replace(Arc::new(index));
        end_of_grace
    }

    fn index(&mut self, living: &[&HawkeyeDeployment], pods: &[Arc<Pod>], now: Timestamp) -> ClassIndex {
        let ours: HashSet<(String, String)> = living
            .iter()
            .map(|object| (object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        let taken: BTreeMap<(String, String), u64> = taken(pods, |namespace, name| {
            ours.contains(&(namespace.to_owned(), name.to_owned()))
        });
        let nodes: Vec<NodeFacts> = self.world.nodes.state().iter().map(|node| node.facts()).collect();
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
