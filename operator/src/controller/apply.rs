//! Objects → cluster: server-side apply of what differs, then removal of what is wanted no more. One way for all kinds.
//!
//! An object of a needed name that is not ours is left alone and reported. What is as it should be is not written.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    fmt::Debug,
    hash::{Hash, Hasher},
    slice,
    sync::{Mutex, PoisonError},
};

use hawkeye_crds::v1alpha1::Quantity;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::build::{CLASS_LABEL, MANAGER, Objects, Owner};
use crate::error::Error;

/// What exists of a HawkeyeDeployment's objects as far as the watches know.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its Deployments.
    pub deployments: Vec<Deployment>,
    /// Its Service.
    pub services: Vec<Service>,
    /// Its PodDisruptionBudget.
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    /// Its NetworkPolicy.
    pub network_policies: Vec<NetworkPolicy>,
}

/// What the API server acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Deployments by class.
    pub deployments: BTreeMap<String, Deployment>,
    /// The Service exists and is ours.
    pub service: bool,
    /// Objects of someone else that stand in the way, by [`title`]: a sentence for each.
    pub conflicts: BTreeMap<String, String>,
    /// Objects that the API server refused, by [`title`]: its message for each.
    pub refusals: BTreeMap<String, String>,
}

/// Kind and name of an object, e.g. `Deployment demo-graviton`.
pub fn title<K: Resource<DynamicType = ()>>(name: &str) -> String {
    format!("{} {name}", K::kind(&()))
}

/// The annotation that holds a hash of what was applied last. By it a field that is wanted no more is told from one that
/// someone else added. Should the hash come out differently in another release, every object is written once.
pub const APPLIED: &str = "hawkeye.bytebot.ai/applied";

/// Remembers what was applied last, for objects that never look exactly as we write them: a list that someone else added
/// an element to, or a volume that the API server drops. Their generation says whether they changed since.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, Memo>>);

#[derive(Debug, PartialEq, Eq)]
struct Memo {
    hash: u64,
    generation: Option<i64>,
    labels: u64,
}

/// Applies every object and removes those that are wanted no more.
///
/// # Errors
/// When a call fails in a way that another try may mend. What the API server refuses for good is in the result instead.
pub async fn apply(
    client: &Client,
    memory: &Memory,
    owner: &Owner<'_>,
    objects: &Objects,
    observed: &Observed,
) -> Result<Applied, Error> {
    let writer = Writer { client, memory, owner };
    let mut applied = Applied::default();
    let services = slice::from_ref(&objects.service);
    applied.service = !writer
        .kind(services, &observed.services, &mut applied)
        .await?
        .is_empty();
    // Before the pods that it is to protect.
    let policies = objects.network_policy.as_slice();
    let ours = writer.kind(policies, &observed.network_policies, &mut applied).await?;
    let protected = ours.len() == policies.len();
    let budgets = objects.disruption_budget.as_slice();
    writer.kind(budgets, &observed.disruption_budgets, &mut applied).await?;
    let deployments = if protected {
        writer
            .kind(&objects.deployments, &observed.deployments, &mut applied)
            .await?
    } else {
        // Without the policy that was asked for no pod is started or changed.
        observed.deployments.clone()
    };
    applied.deployments = deployments
        .into_iter()
        .map(|deployment| {
            (
                deployment.labels().get(CLASS_LABEL).cloned().unwrap_or_default(),
                deployment,
            )
        })
        .collect();
    Ok(applied)
}

/// Brings the objects of one HawkeyeDeployment to what is wanted, kind by kind.
struct Writer<'a> {
    client: &'a Client,
    memory: &'a Memory,
    owner: &'a Owner<'a>,
}

impl Writer<'_> {
    /// Every wanted object of a kind that is ours now.
    async fn kind<K: Applicable>(&self, wanted: &[K], observed: &[K], applied: &mut Applied) -> Result<Vec<K>, Error> {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.owner.namespace);
        let mut ours = Vec::new();
        for object in wanted {
            let name = object.name_any();
            let existing = observed.iter().find(|observed| observed.name_any() == name);
            match ensure(&api, self.memory, self.owner, object, existing).await? {
                Outcome::Ours(object) => ours.push(*object),
                Outcome::Conflict(message) => drop(applied.conflicts.insert(title::<K>(&name), message)),
                Outcome::Refused(message) => drop(applied.refusals.insert(title::<K>(&name), message)),
            }
        }
        for orphan in observed {
            let name = orphan.name_any();
            if wanted.iter().all(|wanted| wanted.name_any() != name) {
                prune(&api, self.owner, &name).await?;
            }
        }
        Ok(ours)
    }
}

enum Outcome<K> {
    Ours(Box<K>),
    Conflict(String),
    Refused(String),
}

trait Applicable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug
{
}

impl Applicable for Deployment {}
impl Applicable for Service {}
impl Applicable for PodDisruptionBudget {}
impl Applicable for NetworkPolicy {}

async fn ensure<K: Applicable>(
    api: &Api<K>,
    memory: &Memory,
    owner: &Owner<'_>,
    desired: &K,
    observed: Option<&K>,
) -> Result<Outcome<K>, Error> {
    let name = desired.name_any();
    let kind = K::kind(&()).into_owned();
    let mut wanted = serde_json::to_value(desired)?;
    wanted["metadata"]["annotations"][APPLIED] = Value::from(format!("{:016x}", hash(&wanted.to_string())));
    if let Some(observed) = observed.filter(|observed| owned_by(*observed, owner.uid))
        && memory.unchanged(&kind, observed, &wanted)?
    {
        return Ok(Outcome::Ours(Box::new(observed.clone())));
    }
    let live = api
        .get_opt(&name)
        .await
        .map_err(Error::api(format!("reading {kind} {name}")))?;
    if let Some(live) = &live {
        if !owned_by(live, owner.uid) {
            return Ok(Outcome::Conflict(conflict(&kind, owner.namespace, &name, live)));
        }
        if memory.unchanged(&kind, live, &wanted)? {
            return Ok(Outcome::Ours(Box::new(live.clone())));
        }
    }
    if let (Some(live), Some(metadata)) = (&live, wanted.pointer_mut("/metadata").and_then(Value::as_object_mut)) {
        // Whoever replaced the object since the read gets a conflict instead of our fields.
        metadata.insert("uid".to_owned(), Value::from(live.uid()));
    }
    let params = PatchParams::apply(MANAGER).force();
    match api.patch(&name, &params, &Patch::Apply(&wanted)).await {
        Ok(written) => {
            tracing::info!(%kind, namespace = owner.namespace, %name, "applied");
            memory.remember(&kind, &written, &wanted)?;
            Ok(Outcome::Ours(Box::new(written)))
        }
        Err(kube::Error::Api(status)) if refused(status.code) => Ok(Outcome::Refused(status.message.clone())),
        Err(source) => Err(Error::api(format!("applying {kind} {name}"))(source)),
    }
}

/// Codes that say that the same request will be refused again: bad, forbidden, unprocessable.
const fn refused(code: u16) -> bool {
    matches!(code, 400 | 403 | 422)
}

async fn prune<K: Applicable>(api: &Api<K>, owner: &Owner<'_>, name: &str) -> Result<(), Error> {
    let kind = K::kind(&());
    let live = api
        .get_metadata_opt(name)
        .await
        .map_err(Error::api(format!("reading {kind} {name}")))?;
    let Some(live) = live.filter(|live| owned_by(live, owner.uid) && live.metadata.deletion_timestamp.is_none()) else {
        return Ok(());
    };
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions {
            uid: live.uid(),
            resource_version: live.resource_version(),
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => tracing::info!(%kind, namespace = owner.namespace, name, "removed what is wanted no more"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(source) => return Err(Error::api(format!("deleting {kind} {name}"))(source)),
    }
    Ok(())
}

/// True when the object's controller has this UID.
pub fn owned_by(object: &impl Resource, uid: &str) -> bool {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

fn conflict(kind: &str, namespace: &str, name: &str, object: &impl Resource) -> String {
    let owner = object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    let whose = owner.map_or("has no controller".to_owned(), |owner| {
        format!("is controlled by {} {} (UID {})", owner.kind, owner.name, owner.uid)
    });
    format!(
        "{kind} {namespace}/{name} exists, {whose} and is left as it is. Remove or rename it, or give the \
         HawkeyeDeployment another name"
    )
}

impl Memory {
    /// True when the object needs no write: it has everything that we want, or it is as it was after our last write.
    fn unchanged<K: Applicable>(&self, kind: &str, observed: &K, wanted: &Value) -> Result<bool, Error> {
        if covers(wanted, &serde_json::to_value(observed)?, false) {
            return Ok(true);
        }
        let memo = Memo::of(observed, wanted)?;
        Ok(self.lock().get(&key(kind, observed)) == Some(&memo))
    }

    fn remember<K: Applicable>(&self, kind: &str, written: &K, wanted: &Value) -> Result<(), Error> {
        let memo = Memo::of(written, wanted)?;
        self.lock().insert(key(kind, written), memo);
        Ok(())
    }

    /// Forgets everything about a UID's objects that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|key, _| key.rsplit('/').next().is_some_and(&exists));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memo {
    fn of<K: Applicable>(object: &K, wanted: &Value) -> Result<Self, Error> {
        let mut wanted = wanted.clone();
        if let Some(metadata) = wanted.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.remove("uid");
        }
        // A Service has no generation, so its spec stands in for it.
        let spec = match object.meta().generation {
            Some(_) => Value::Null,
            None => serde_json::to_value(object)?.get("spec").cloned().unwrap_or_default(),
        };
        Ok(Self {
            hash: hash(&wanted.to_string()),
            generation: object.meta().generation,
            labels: hash(&format!(
                "{:?}{:?}{spec}",
                object.meta().labels,
                object.meta().owner_references
            )),
        })
    }
}

fn key(kind: &str, object: &impl Resource) -> String {
    let meta = object.meta();
    format!("{kind}/{}", meta.uid.as_deref().unwrap_or_default())
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// True when `actual` has everything that `wanted` says. Fields that only `actual` has are defaults or someone else's.
/// Lists must have the same length. Quantities are compared by value, since the API server writes `1024Mi` as `1Gi`.
pub(super) fn covers(wanted: &Value, actual: &Value, quantities: bool) -> bool {
    match (wanted, actual) {
        (Value::Object(wanted), Value::Object(actual)) => wanted.iter().all(|(key, value)| {
            let quantities = quantities || matches!(key.as_str(), "limits" | "requests" | "sizeLimit");
            match actual.get(key) {
                Some(actual) => covers(value, actual, quantities),
                None => value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty),
            }
        }),
        (Value::Array(wanted), Value::Array(actual)) => {
            wanted.len() == actual.len()
                && wanted
                    .iter()
                    .zip(actual)
                    .all(|(wanted, actual)| covers(wanted, actual, false))
        }
        (Value::String(wanted), Value::String(actual)) if quantities => {
            let value = |text: &str| Quantity::from(text).milli();
            wanted == actual || (value(wanted).is_some() && value(wanted) == value(actual))
        }
        _ => wanted == actual,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{covers, refused};

    #[test]
    fn defaults_and_foreign_fields_are_no_difference() {
        let wanted = json!({"spec": {"replicas": 2, "template": {"limits": {"memory": "1024Mi", "cpu": "0.5"}}}});
        let actual = json!({
            "metadata": {"uid": "x"},
            "spec": {"replicas": 2, "paused": false, "template": {"limits": {"memory": "1Gi", "cpu": "500m"}}},
        });
        assert!(covers(&wanted, &actual, false));
    }

    #[test]
    fn a_changed_field_or_list_is_a_difference() {
        let wanted = json!({"replicas": 2, "env": [{"name": "A"}]});
        assert!(!covers(&wanted, &json!({"replicas": 5, "env": [{"name": "A"}]}), false));
        assert!(!covers(
            &wanted,
            &json!({"replicas": 2, "env": [{"name": "A"}, {"name": "B"}]}),
            false
        ));
        assert!(!covers(&wanted, &json!({"replicas": 2}), false));
        assert!(!covers(
            &json!({"limits": {"memory": "1Gi"}}),
            &json!({"limits": {"memory": "2Gi"}}),
            false
        ));
        assert!(!covers(&json!({"image": "1024Mi"}), &json!({"image": "1Gi"}), false));
    }

    #[test]
    fn only_what_will_be_refused_again_is_a_refusal() {
        assert!(refused(422) && refused(403) && refused(400));
        for code in [404, 409, 410, 429, 500, 503, 504] {
            assert!(!refused(code), "{code}");
        }
    }
}
