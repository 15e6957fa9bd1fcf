//! One HawkeyeDeployment, from what is planned for it to what its status says.

use std::{sync::Arc, time::Duration};

use hawkeye_crds::v1alpha1::{Condition, ConditionStatus, ConditionType, HawkeyeDeployment, Reason};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::error_boundary::InvalidObject,
    runtime::controller::Action,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, debug_span, field};

use super::{
    apply::{Applied, apply},
    build::{MANAGER, Owner, build},
    observe::{GuardedDeployment, pods_of},
    plan::Plan,
    status::{Facts, shorten, status},
    strategy,
};
use crate::{context::Context, error::Error, events};

/// A reconcile that takes longer is ended and tried again: a dozen calls to an API server that answers slowly.
const LIMIT: Duration = Duration::from_secs(30);
/// When to look again for an object of someone else that stood in the way: nothing watches it.
const CONFLICT: Duration = Duration::from_secs(30);

/// Reconciles one object.
///
/// # Errors
/// Whatever another try may mend.
pub async fn reconcile(guarded: Arc<GuardedDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let object = match &guarded.0 {
        Ok(object) => object,
        Err(invalid) => return undecodable(invalid, &context).await,
    };
    if object.metadata.deletion_timestamp.is_some() {
        // Everything that was made for it has an owner reference and goes with it.
        return Ok(Action::await_change());
    }
    let uid = object.uid().ok_or(Error::Incomplete("UID"))?;
    if let Some(left) = context.backoff.remaining(&uid) {
        return Ok(Action::requeue(left));
    }
    let start = Instant::now();
    let span = tracing::info_span!(
        "reconcile",
        namespace = object.namespace(),
        name = object.name_any(),
        generation = object.metadata.generation,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    );
    let result = match timeout(LIMIT, steps(object, &uid, &context).instrument(span.clone())).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(LIMIT)),
    };
    if let Err(error) = &result {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", report(error));
    }
    context.metrics.reconciled(start.elapsed().as_secs_f64());
    if result.is_ok() {
        context.backoff.succeeded(&uid);
    }
    result
}

/// Says when to try again.
#[allow(clippy::needless_pass_by_value)] // the controller wants it so
pub fn error_policy(guarded: Arc<GuardedDeployment>, error: &Error, context: Arc<Context>) -> Action {
    let key = guarded.meta().uid.clone().unwrap_or_default();
    let wait = context.backoff.failed(&key, error.retry_after());
    context.metrics.failed(error.kind());
    let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
    tracing::warn!(%namespace, %name, error = shorten(&report(error)), wait_s = wait.as_secs_f64(), "a reconcile failed");
    Action::requeue(wait)
}

/// An error with its causes.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Says in the status of an object that does not decode why nothing happens; once for each generation, since what its
/// status says now cannot be read either.
async fn undecodable(invalid: &InvalidObject, context: &Context) -> Result<Action, Error> {
    let meta = &invalid.metadata;
    let (Some(namespace), Some(name), Some(uid)) = (&meta.namespace, &meta.name, &meta.uid) else {
        return Err(Error::Incomplete("name"));
    };
    if let Some(left) = context.backoff.remaining(uid) {
        return Ok(Action::requeue(left));
    }
    if !context.invalid.is_new(uid, meta.generation) {
        return Ok(Action::await_change());
    }
    tracing::warn!(%namespace, %name, error = shorten(&invalid.error), "a HawkeyeDeployment does not decode");
    let message = format!(
        "The stored object does not decode: {}. Apply it again as `kubectl explain hkd.spec` describes it. What runs \
         already is left as it is.",
        invalid.error
    );
    let condition = Condition {
        type_: ConditionType::Accepted.as_str().to_owned(),
        status: ConditionStatus::False,
        observed_generation: meta.generation,
        last_transition_time: now(),
        reason: Reason::InvalidSpec.as_str().to_owned(),
        message: shorten(&message),
    };
    let status = json!({
        "observedGeneration": meta.generation,
        "summary": condition.reason,
        "message": condition.message,
        "conditions": [condition],
    });
    write_status(context, namespace, name, uid, &status).await?;
    context.invalid.note(uid, meta.generation);
    Ok(Action::await_change())
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn steps(object: &HawkeyeDeployment, uid: &str, context: &Context) -> Result<Action, Error> {
    let namespace = object.namespace().ok_or(Error::Incomplete("namespace"))?;
    let name = object.name_any();
    let owner = Owner {
        namespace: &namespace,
        name: &name,
        uid,
        spec: &object.spec,
    };

    let plan = planned(object, uid, context).instrument(debug_span!("plan")).await?;
    let model = context.models.of(&object.spec);
    let applied = match model.filter(|_| plan.refused.is_none()) {
        Some(model) => {
            let mut objects = build(&owner, &plan, &context.images, model, context.namespace.as_deref());
            let observed = context.world.observed(&owner)?;
            strategy::keep(&mut objects, &observed.deployments)?;
            let applied = apply(&context.client, &context.memory, &owner, &objects, &observed);
            Some(applied.instrument(debug_span!("apply")).await?)
        }
        None => None,
    };
    report_status(object, &owner, context, &plan, applied.as_ref())
        .instrument(debug_span!("status"))
        .await?;

    match applied {
        Some(applied) if !applied.refusals.is_empty() => {
            let messages: Vec<String> = applied
                .refusals
                .into_iter()
                .map(|(name, message)| format!("{name}: {message}"))
                .collect();
            Err(Error::Refused(messages.join("; ")))
        }
        Some(applied) if !applied.conflicts.is_empty() => Ok(Action::requeue(CONFLICT)),
        _ => Ok(Action::await_change()),
    }
}

/// The plan for this generation; asks for one and waits when the planner has not seen it yet.
async fn planned(object: &HawkeyeDeployment, uid: &str, context: &Context) -> Result<Arc<Plan>, Error> {
    let mut plans = context.plans.clone();
    let mut asked = false;
    loop {
        if let Some(plan) = plans.borrow_and_update().get(uid, object.metadata.generation) {
            return Ok(plan);
        }
        // Once: a pass that sees it may hold its plan back until it is known whether its images fit.
        if !asked {
            context.dirty.notify_one();
            asked = true;
        }
        plans.changed().await.map_err(|_| Error::PlannerEnded)?;
    }
}

async fn report_status(
    object: &HawkeyeDeployment,
    owner: &Owner<'_>,
    context: &Context,
    plan: &Plan,
    applied: Option<&Applied>,
) -> Result<(), Error> {
    let pods = pods_of(&context.world.pods, owner.namespace, owner.name);
    let now = now();
    let facts = Facts {
        owner,
        generation: object.metadata.generation,
        plan,
        applied,
        pods: &pods,
        verdict: &|pod| context.devices.verdict(pod),
        image_volume: context.models.of(owner.spec).is_some_and(|model| model.image.is_some()),
        blind_spot: context.blind_spot.as_deref(),
        now: &now,
    };
    let new = status(&facts, object.status.as_ref());
    if object.status.as_ref() == Some(&new) {
        return Ok(());
    }
    write_status(
        context,
        owner.namespace,
        owner.name,
        owner.uid,
        &serde_json::to_value(&new)?,
    )
    .await?;
    let notices = events::notices(object.status.as_ref(), &new);
    context.metrics.noticed(context.events.publish(object, notices).await);
    Ok(())
}

async fn write_status(context: &Context, namespace: &str, name: &str, uid: &str, status: &Value) -> Result<(), Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(
        context.client.clone(),
        namespace,
        &ApiResource::erase::<HawkeyeDeployment>(&()),
    );
    let body = json!({
        "apiVersion": HawkeyeDeployment::api_version(&()),
        "kind": HawkeyeDeployment::kind(&()),
        // With the UID, a status never reaches a successor of the same name.
        "metadata": {"name": name, "uid": uid},
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match api.patch_status(name, &params, &Patch::Apply(&body)).await {
        Ok(_) => Ok(()),
        // Deleted meanwhile: nobody is left to read it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(Error::api("writing the status")(source)),
    }
}
