//! Manners: budgets and policies, options of pods, autoscalers, rights, and how much is written.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use hawkeye_operator::rules::{LEASE, Place, RULES};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Node, Pod},
    events::v1::Event,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    scenarios::{MODEL, create, deployments, names, namespace, nodes, parsers, until_status},
    server::{Cluster, create as post, wait},
};

/// A node that CPU pods can be planned on, whichever scenarios ran before.
async fn cpu_node(cluster: &Cluster) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    if api.get_opt("cpu-amd64").await?.is_none() {
        nodes(cluster, &["cpu-amd64"]).await?;
    }
    Ok(())
}

async fn change(cluster: &Cluster, namespace: &str, name: &str, spec: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    let api = parsers(cluster, namespace);
    api.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

pub async fn policy_and_budget(cluster: &'static Cluster) -> Result<()> {
    cpu_node(cluster).await?;
    namespace(cluster, "policy").await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), "policy");
    let policies: Api<NetworkPolicy> = Api::namespaced(cluster.client.clone(), "policy");
    let foreign: NetworkPolicy =
        serde_json::from_value(json!({"metadata": {"name": "demo"}, "spec": {"podSelector": {}}}))?;
    policies.create(&PostParams::default(), &foreign).await?;
    let spec = format!("{{replicas: 2, classes: [cpu-amd64], networkPolicy: {{}}, model: {MODEL}}}");
    create(cluster, "policy", "demo", &spec, false).await?;
    let status = until_status(cluster, "policy", "demo", "NameConflict", |status| {
        status.summary.as_deref() == Some("NameConflict")
    })
    .await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.contains("NetworkPolicy policy/demo"), "{message}");
    let made = names(cluster, "policy").await?;
    ensure!(
        made.is_empty(),
        "pods without the policy that they were to have: {made:?}"
    );
    policies.delete("demo", &DeleteParams::default()).await?;
    let owner = parsers(cluster, "policy").get("demo").await?.uid();
    let policy = wait("the policy", async || {
        let found = policies.get_opt("demo").await?;
        Ok(found.filter(|policy| policy.owner_references().iter().any(|o| Some(&o.uid) == owner.as_ref())))
    })
    .await?;
    let rules = serde_json::to_value(policy.spec)?;
    ensure!(rules["policyTypes"] == json!(["Ingress"]), "{rules}");
    ensure!(
        rules["ingress"][0]["from"][1]["namespaceSelector"]["matchLabels"]
            == json!({"kubernetes.io/metadata.name": "hawkeye-system"}),
        "{rules}"
    );
    let budget = budgets.get("demo").await?;
    ensure!(budget.owner_references().iter().any(|o| Some(&o.uid) == owner.as_ref()));
    let budget_spec = serde_json::to_value(&budget.spec)?;
    ensure!(budget_spec["maxUnavailable"] == json!(1), "{budget_spec}");

    // What someone else deletes comes back, and nothing else is written.
    budgets.delete("demo", &DeleteParams::default()).await?;
    wait("the budget to come back", async || {
        Ok(budgets
            .get_opt("demo")
            .await?
            .filter(|found| found.uid() != budget.uid()))
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    let before = cluster.writes().await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(cluster.writes().await? == before, "it goes on writing");

    change(
        cluster,
        "policy",
        "demo",
        json!({"networkPolicy": {"from": [], "egress": []}}),
    )
    .await?;
    wait("the policy to change", async || {
        let spec = serde_json::to_value(policies.get("demo").await?.spec)?;
        let from = spec["ingress"][0]["from"].as_array().map_or(0, Vec::len);
        Ok((from == 1 && spec["policyTypes"] == json!(["Ingress", "Egress"])).then_some(()))
    })
    .await?;
    change(cluster, "policy", "demo", json!({"networkPolicy": null, "replicas": 1})).await?;
    wait("policy and budget to go", async || {
        let left = (policies.get_opt("demo").await?, budgets.get_opt("demo").await?);
        Ok(matches!(left, (None, None)).then_some(()))
    })
    .await?;
    parsers(cluster, "policy")
        .delete("demo", &DeleteParams::default())
        .await?;
    Ok(())
}

pub async fn pod_options(cluster: &'static Cluster) -> Result<()> {
    cpu_node(cluster).await?;
    namespace(cluster, "options").await?;
    let spec = format!(
        "{{classes: [cpu-amd64], model: {MODEL}, priorityClassName: urgent, imagePullSecrets: [{{name: mirror}}], \
         podMetadata: {{labels: {{team: vision}}, annotations: {{example.com/note: \"a\\nb\"}}}}}}"
    );
    create(cluster, "options", "demo", &spec, false).await?;
    let api = deployments(cluster, "options");
    let template = async |what: &str, good: fn(&Value) -> bool| {
        wait(what, async || {
            let Some(found) = api.get_opt("demo-cpu-amd64").await? else {
                return Ok(None);
            };
            let template = serde_json::to_value(found.spec.template)?;
            Ok(good(&template).then_some(template))
        })
        .await
    };
    let made = template("the options to be there", |t| {
        t["metadata"]["labels"]["team"] == "vision"
    })
    .await?;
    ensure!(made["metadata"]["annotations"]["example.com/note"] == "a\nb", "{made}");
    ensure!(made["spec"]["priorityClassName"] == "urgent", "{made}");
    ensure!(
        made["spec"]["imagePullSecrets"] == json!([{"name": "mirror"}]),
        "{made}"
    );
    // What is said no more is gone from the pods, too, although nothing that is wanted has changed.
    change(
        cluster,
        "options",
        "demo",
        json!({"priorityClassName": null, "imagePullSecrets": null, "podMetadata": null}),
    )
    .await?;
    let made = template("the options to be gone", |t| t["metadata"]["labels"]["team"].is_null()).await?;
    ensure!(made["spec"]["priorityClassName"].is_null(), "{made}");
    ensure!(made["spec"]["imagePullSecrets"].is_null(), "{made}");
    // The schema does not count the parts of a key; the API server does, and the status repeats what it says.
    change(
        cluster,
        "options",
        "demo",
        json!({"podMetadata": {"labels": {"k".repeat(64): "x"}}}),
    )
    .await?;
    let status = until_status(cluster, "options", "demo", "ApplyFailed", |status| {
        status.summary.as_deref() == Some("ApplyFailed")
    })
    .await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.contains("Deployment demo-cpu-amd64"), "{message}");
    ensure!(!message.chars().any(char::is_control), "{message}");
    parsers(cluster, "options")
        .delete("demo", &DeleteParams::default())
        .await?;
    Ok(())
}

pub async fn autoscaler(cluster: &'static Cluster) -> Result<()> {
    cpu_node(cluster).await?;
    namespace(cluster, "autoscaler").await?;
    let api = parsers(cluster, "autoscaler");
    let model: Value = serde_json::from_str(MODEL)?;
    let mut object = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "metadata": {"name": "demo"},
        "spec": {"classes": ["cpu-amd64"], "model": model},
    });
    let user = PatchParams::apply("user");
    api.patch("demo", &user, &Patch::Apply(&object)).await?;
    let target = json!({
        "metadata": {"name": "demo"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "name": "demo"},
            "minReplicas": 3, "maxReplicas": 5,
        },
    });
    let hpas: Api<HorizontalPodAutoscaler> = Api::namespaced(cluster.client.clone(), "autoscaler");
    hpas.create(&PostParams::default(), &serde_json::from_value(target)?)
        .await?;
    // No controller acts on it here, so this is what it would do: write the scale subresource.
    let by = PatchParams {
        field_manager: Some("autoscaler".to_owned()),
        ..PatchParams::default()
    };
    api.patch_scale("demo", &by, &Patch::Merge(json!({"spec": {"replicas": 3}})))
        .await?;
    let scaled = async |what: &str| {
        wait(what, async || {
            let pool = deployments(cluster, "autoscaler").get_opt("demo-cpu-amd64").await?;
            Ok((pool.and_then(|pool| pool.spec.replicas) == Some(3)).then_some(()))
        })
        .await
    };
    scaled("three replicas").await?;
    // The user applies again, without replicas, as from a repository; the operator is started again.
    object["spec"]["profile"] = json!("Speed");
    api.patch("demo", &user, &Patch::Apply(&object)).await?;
    until_status(cluster, "autoscaler", "demo", "the new generation", |_| true).await?;
    cluster.kill_operator();
    cluster.start_operator().await?;
    sleep(Duration::from_secs(3)).await;
    let found = api.get("demo").await?;
    ensure!(found.spec.replicas == 3, "replicas: {}", found.spec.replicas);
    scaled("still three replicas").await?;
    for entry in found.managed_fields() {
        let fields = serde_json::to_value(&entry.fields_v1)?;
        let manager = entry.manager.clone().unwrap_or_default();
        ensure!(
            manager != "hawkeye-operator"
                || (fields["f:spec"].is_null() && entry.subresource.as_deref() == Some("status")),
            "the operator wrote {fields}"
        );
    }
    api.delete("demo", &DeleteParams::default()).await?;
    Ok(())
}

pub async fn flapping(cluster: &'static Cluster) -> Result<()> {
    cpu_node(cluster).await?;
    namespace(cluster, "flapping").await?;
    let spec = format!("{{classes: [cpu-amd64], model: {MODEL}}}");
    create(cluster, "flapping", "demo", &spec, false).await?;
    until_status(cluster, "flapping", "demo", "NotReady", |s| {
        s.summary.as_deref() == Some("NotReady")
    })
    .await?;
    // A pod of the pool, as its ReplicaSet would make it.
    let template = deployments(cluster, "flapping")
        .get("demo-cpu-amd64")
        .await?
        .spec
        .template;
    let mut pod: Value = json!({"spec": template.spec, "metadata": template.metadata});
    pod["metadata"]["name"] = json!("demo-cpu-amd64-1-a");
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-cpu-amd64-1", "uid": "1", "controller": true,
    }]);
    pod["spec"]["serviceAccountName"] = json!("default");
    post(
        &cluster.client,
        "/api/v1/namespaces/flapping/serviceaccounts",
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    )
    .await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "flapping");
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let before = cluster.writes().await?;
    for round in 0..30 {
        let ready = if round % 2 == 0 { "True" } else { "False" };
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let name = "demo-cpu-amd64-1-a";
        pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await?;
        until_status(cluster, "flapping", "demo", "the pod's state", |s| {
            s.ready_replicas == 1 - round % 2
        })
        .await?;
    }
    let writes = cluster.writes().await? - before;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "flapping");
    let list = events.list(&ListParams::default()).await?.items;
    let said: i32 = list
        .iter()
        .map(|event| event.series.as_ref().map_or(1, |series| series.count))
        .sum();
    let reasons: BTreeSet<_> = list.iter().filter_map(|event| event.reason.clone()).collect();
    ensure!(
        reasons.contains("Available") && reasons.contains("Unavailable"),
        "{reasons:?}"
    );
    ensure!(list.len() == reasons.len(), "one event for each reason: {list:?}");
    ensure!(said <= 12, "{said} events of {reasons:?} for 30 changes");
    // One status for each change, and few events.
    ensure!(writes <= 30 + 12, "{writes} writes for 30 changes");
    parsers(cluster, "flapping")
        .delete("demo", &DeleteParams::default())
        .await?;
    pods.delete("demo-cpu-amd64-1-a", &DeleteParams::default().grace_period(0))
        .await?;
    Ok(())
}

pub async fn rights(cluster: &'static Cluster) -> Result<()> {
    // Everything that the operator does with objects: made, changed, removed.
    cpu_node(cluster).await?;
    namespace(cluster, "rights").await?;
    let spec = format!("{{replicas: 2, classes: [cpu-amd64], networkPolicy: {{}}, model: {MODEL}}}");
    create(cluster, "rights", "demo", &spec, false).await?;
    let made = |found: usize| async move {
        wait("the pool", async || {
            Ok((names(cluster, "rights").await?.len() == found).then_some(()))
        })
        .await
    };
    made(1).await?;
    // Twice of the same reason, so that an event is written again.
    for replicas in [0, 2, 0] {
        change(
            cluster,
            "rights",
            "demo",
            json!({"replicas": replicas, "networkPolicy": null}),
        )
        .await?;
        until_status(cluster, "rights", "demo", "the scale", |_| true).await?;
        made(usize::from(replicas > 0)).await?;
    }
    parsers(cluster, "rights")
        .delete("demo", &DeleteParams::default())
        .await?;
    let granted: BTreeSet<String> = RULES
        .iter()
        .chain([&LEASE])
        // Asked for by an admission plugin, not by a request.
        .filter(|rule| rule.resource != "hawkeyedeployments/finalizers")
        .flat_map(|rule| {
            let line = |verb: &&str| format!("{verb} {} {}", rule.group, rule.resource);
            rule.verbs.iter().map(line).collect::<Vec<_>>()
        })
        .collect();
    let mut unused = Vec::new();
    let outcome = wait("every right to be used", async || {
        let requests = cluster.requests()?;
        if let Some(denied) = requests.iter().find(|(_, code)| matches!(code, 401 | 403)) {
            bail!("denied: {denied:?}");
        }
        let used: BTreeSet<String> = requests.into_iter().map(|(request, _)| request).collect();
        let more: Vec<_> = used.difference(&granted).collect();
        ensure!(more.is_empty(), "used, but not granted: {more:?}");
        unused = granted.difference(&used).cloned().collect();
        Ok(unused.is_empty().then_some(()))
    })
    .await;
    outcome.with_context(|| format!("never used: {unused:?}"))
}

pub async fn namespaced(cluster: &'static Cluster) -> Result<()> {
    for name in ["team-a", "team-b", "team-c"] {
        namespace(cluster, name).await?;
    }
    cpu_node(cluster).await?;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = |place: Place| -> Vec<Value> {
        let rules = RULES.iter().filter(|rule| rule.place == place);
        rules
            .map(|rule| json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": rule.verbs}))
            .collect()
    };
    let subject = json!([{"kind": "User", "name": "scoped", "apiGroup": "rbac.authorization.k8s.io"}]);
    let grant = async |path: &str, kind: &str, rules: Vec<Value>| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "scoped"}, "rules": rules});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"),
            "metadata": {"name": "scoped"}, "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "scoped"}});
        let plural = kind.to_lowercase();
        post(&cluster.client, &format!("{path}/{plural}s"), &role).await?;
        post(&cluster.client, &format!("{path}/{plural}bindings"), &binding).await
    };
    grant(rbac, "ClusterRole", rules(Place::Cluster)).await?;
    for name in ["team-a", "team-b"] {
        grant(&format!("{rbac}/namespaces/{name}"), "Role", rules(Place::Namespace)).await?;
    }
    cluster.kill_operator();
    // No rights in team-gone, as after the namespace was deleted.
    cluster.start_operator_as("scoped", "team-b,team-a,team-gone").await?;
    let outcome = scoped(cluster).await;
    cluster.kill_operator();
    cluster.start_operator().await?;
    outcome
}

async fn scoped(cluster: &'static Cluster) -> Result<()> {
    let spec = format!("{{replicas: 2, networkPolicy: {{}}, classes: [cpu-amd64], model: {MODEL}}}");
    for name in ["team-a", "team-b", "team-c"] {
        create(cluster, name, "demo", &spec, false).await?;
    }
    for name in ["team-a", "team-b"] {
        until_status(cluster, name, "demo", "its pool", |s| {
            s.replicas == 0 && s.endpoint.is_some()
        })
        .await?;
        ensure!(names(cluster, name).await? == ["demo-cpu-amd64"]);
    }
    // A change is seen, and what is deleted is seen to be gone.
    let api: Api<Deployment> = deployments(cluster, "team-b");
    let uid = api.get("demo-cpu-amd64").await?.uid();
    api.delete("demo-cpu-amd64", &DeleteParams::default()).await?;
    wait("the pool to come back", async || {
        Ok(api.get_opt("demo-cpu-amd64").await?.filter(|found| found.uid() != uid))
    })
    .await?;
    ensure!(
        names(cluster, "team-c").await?.is_empty(),
        "team-c is none of its business"
    );
    let other: HawkeyeDeployment = parsers(cluster, "team-c").get("demo").await?;
    ensure!(other.status.is_none(), "{:?}", other.status);
    let pods: Api<Node> = Api::all(cluster.client.clone());
    if pods.get_opt("x86-rtx").await?.is_none() {
        nodes(cluster, &["x86-rtx"]).await?;
    }
    change(
        cluster,
        "team-a",
        "demo",
        json!({"replicas": 1, "classes": ["cuda-amd64"]}),
    )
    .await?;
    let status = until_status(cluster, "team-a", "demo", "a GPU", |s| {
        s.pools
            .iter()
            .any(|pool| pool.class == "cuda-amd64" && pool.replicas == 1)
    })
    .await?;
    let placed = status.conditions.iter().find(|condition| condition.type_ == "Placed");
    let message = placed.map(|condition| condition.message.clone()).unwrap_or_default();
    ensure!(
        message.contains("sees pods of team-a, team-b, team-gone only"),
        "{message}"
    );
    for name in ["team-a", "team-b", "team-c"] {
        parsers(cluster, name).delete("demo", &DeleteParams::default()).await?;
    }
    Ok(())
}
