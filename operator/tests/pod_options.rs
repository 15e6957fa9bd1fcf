//! Budgets, policies and options of pods; and that nothing a user may say makes a pod more than it should be.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{images, index, model, node, plan, spec};
use hawkeye_crds::v1alpha1::{HawkeyeDeploymentSpec, ModelClaim, ModelSource};
use hawkeye_operator::controller::build::{self, Objects, Owner};
use serde_json::{Value, json};

fn built(spec: &HawkeyeDeploymentSpec, yaml: &str, model: &ModelSource, operator: Option<&str>) -> Objects {
    let plan = plan(yaml, &index(&[node("cpu-amd64"), node("x86-rtx")]));
    let owner = Owner {
        namespace: "screens",
        name: "demo",
        uid: "0b7d-uid",
        spec,
    };
    build::build(&owner, &plan, &images(), model, operator)
}

fn objects(yaml: &str, operator: Option<&str>) -> Objects {
    built(&spec(yaml), yaml, &model(), operator)
}

fn policy(yaml: &str, operator: Option<&str>) -> Value {
    let objects = objects(&format!("{{networkPolicy: {yaml}}}"), operator);
    let policy = serde_json::to_value(objects.network_policy.unwrap()).unwrap();
    assert_eq!(policy["metadata"]["name"], "demo");
    assert_eq!(policy["metadata"]["ownerReferences"][0]["uid"], "0b7d-uid");
    policy["spec"].clone()
}

const OPERATOR: &str = "hawkeye-system";

fn operators_pods() -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OPERATOR}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "hawkeye-operator"}},
    })
}

#[test]
fn there_is_no_policy_unless_it_is_asked_for() {
    assert_eq!(objects("{}", Some(OPERATOR)).network_policy, None);
}

#[test]
fn a_policy_lets_every_pod_and_the_operator_in_and_everything_out() {
    let spec = policy("{}", Some(OPERATOR));
    let port = json!([{"protocol": "TCP", "port": 9989}]);
    assert_eq!(
        spec,
        json!({
            "podSelector": {"matchLabels": {
                "app.kubernetes.io/instance": "demo", "app.kubernetes.io/managed-by": "hawkeye-operator",
                "app.kubernetes.io/name": "hawkeye-inference",
            }},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}}, operators_pods()], "ports": port}],
        })
    );
}

#[test]
fn a_policy_without_peers_admits_no_one_rather_than_everyone() {
    let spec = policy("{from: []}", Some(OPERATOR));
    assert_eq!(spec["ingress"][0]["from"], json!([operators_pods()]));
    assert_eq!(policy("{from: []}", None).get("ingress"), None);
}

#[test]
fn peers_and_egress_are_taken_over_and_dns_stays_open() {
    let spec = policy(
        "{from: [{podSelector: {matchLabels: {app: agent}}, namespaceSelector: {matchExpressions: [{key: team, \
         operator: In, values: [a, b]}]}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], \
         egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}, {port: 53, protocol: UDP}]}, {}]}",
        None,
    );
    assert_eq!(
        spec["ingress"][0]["from"],
        json!([
            {
                "podSelector": {"matchLabels": {"app": "agent"}},
                "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]},
            },
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        ])
    );
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    let dns = json!({"ports": [
        {"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53},
        {"protocol": "UDP", "port": 5353}, {"protocol": "TCP", "port": 5353},
    ]});
    let said = json!({
        "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "UDP", "port": 53}],
    });
    assert_eq!(spec["egress"], json!([dns, said, {}]));
    assert_eq!(policy("{egress: []}", None)["egress"], json!([dns]));
}

#[test]
fn a_budget_comes_with_the_second_pod_and_never_holds_the_last_one() {
    assert_eq!(objects("{replicas: 1}", None).disruption_budget, None);
    assert_eq!(objects("{replicas: 0}", None).disruption_budget, None);
    assert_eq!(
        objects("{replicas: 3, disruptionBudget: {enabled: false}}", None).disruption_budget,
        None
    );
    let budget = objects("{replicas: 2}", None).disruption_budget.unwrap().spec.unwrap();
    let budget = serde_json::to_value(budget).unwrap();
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget.get("minAvailable"), None);
    assert_eq!(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    // Over the pods of all pools.
    assert_eq!(budget["selector"]["matchLabels"].as_object().unwrap().len(), 3);
    assert_eq!(budget["selector"]["matchLabels"].get("hawkeye.bytebot.ai/class"), None);
    let more = objects("{replicas: 4, disruptionBudget: {maxUnavailable: 2}}", None);
    let more = serde_json::to_value(more.disruption_budget).unwrap();
    assert_eq!(more["spec"]["maxUnavailable"], 2);
}

#[test]
fn the_budget_counts_what_is_planned_not_what_is_asked_for() {
    // One GPU: the second replica has no place.
    let spec = "{replicas: 2, device: Cuda, fallback: Deny}";
    let objects = objects(spec, None);
    assert_eq!(objects.deployments.len(), 1);
    assert_eq!(objects.disruption_budget, None);
}

#[test]
fn a_reserved_label_that_gets_past_the_schema_changes_nothing() {
    let yaml = "{podMetadata: {labels: {app.kubernetes.io/instance: other, team: vision}}}";
    let deployment = objects(yaml, None).deployments.remove(0);
    let labels = deployment.spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels["app.kubernetes.io/instance"], "demo");
    assert_eq!(labels["team"], "vision");
    assert_eq!(deployment.spec.selector.match_labels.unwrap().get("team"), None);
}

#[test]
fn variables_are_taken_literally() {
    let yaml = "{overrides: {cpu-amd64: {env: [{name: A, value: '$(OMNIPARSER_PORT) $$ 5$'}]}}, device: Cpu}";
    let deployment = objects(yaml, None).deployments.remove(0);
    let env = deployment.spec.template.spec.unwrap().containers[0]
        .env
        .clone()
        .unwrap();
    let value = env.iter().find(|var| var.name == "A").unwrap().value.clone();
    assert_eq!(value.as_deref(), Some("$$(OMNIPARSER_PORT) $$$$ 5$$"));
}

#[test]
fn egress_leaves_the_download_of_a_model_open() {
    let yaml = "{networkPolicy: {egress: []}}";
    let model: ModelSource = serde_json::from_value(json!({"http": {
        "url": "https://models.example.com:8443/bundle.tar", "sha256": "0".repeat(64),
    }}))
    .unwrap();
    let policy = built(&spec(yaml), yaml, &model, None).network_policy;
    let policy = serde_json::to_value(policy).unwrap();
    assert_eq!(
        policy["spec"]["egress"][1],
        json!({"ports": [{"protocol": "TCP", "port": 8443}]})
    );
    assert_eq!(policy["spec"]["egress"].as_array().unwrap().len(), 2);
}

/// Strings that would break out of quotes, lines, paths, lists or templates, wherever the schema takes free text.
const HOSTILE: [&str; 6] = [
    "a\", \"hostPath\": {\"path\": \"/\"}, \"b\": \"",
    "x\nhostNetwork: true\n",
    "../../etc/shadow",
    "{{ .Values }} $(HOSTNAME) `id`",
    "\u{1b}[2J\u{0}\u{7f}",
    "privileged",
];

#[test]
fn nothing_that_a_user_says_reaches_beyond_his_namespace_or_gains_a_privilege() {
    for hostile in HOSTILE {
        let mut spec = spec("{replicas: 2, device: Cpu, networkPolicy: {from: []}}");
        let clean = built(&spec, "{replicas: 2, device: Cpu}", &model(), None);
        spec.image = Some(hostile.to_owned());
        spec.priority_class_name = Some(hostile.to_owned());
        spec.image_pull_secrets = vec![hawkeye_crds::v1alpha1::PullSecret {
            name: hostile.to_owned(),
        }];
        let mut said = hawkeye_crds::v1alpha1::PodMetadata::default();
        said.labels.insert("team".to_owned(), hostile.to_owned());
        said.annotations.insert(hostile.to_owned(), hostile.to_owned());
        spec.pod_metadata = Some(said);
        let change = hawkeye_crds::v1alpha1::PoolOverride {
            env: vec![hawkeye_crds::v1alpha1::EnvVar {
                name: "MINE".to_owned(),
                value: hostile.to_owned(),
            }],
            ..Default::default()
        };
        spec.overrides = Some([("cpu-amd64".to_owned(), change)].into());
        let claim = ModelSource {
            persistent_volume_claim: Some(ModelClaim {
                claim_name: hostile.to_owned(),
            }),
            ..ModelSource::default()
        };
        let made = built(&spec, "{replicas: 2, device: Cpu}", &claim, None);
        assert_eq!(made.service, clean.service);
        assert_eq!(made.network_policy, clean.network_policy);
        assert_eq!(made.disruption_budget, clean.disruption_budget);
        let mut pod = made.deployments[0].spec.template.clone();
        assert_eq!(made.deployments[0].metadata, clean.deployments[0].metadata);

        // Taken back field by field, nothing of it is left.
        let before = &clean.deployments[0].spec.template;
        pod.metadata = before.metadata.clone();
        let spec = pod.spec.as_mut().unwrap();
        let clean_spec = before.spec.as_ref().unwrap();
        assert_eq!(spec.image_pull_secrets.take().unwrap()[0].name, hostile);
        assert_eq!(spec.priority_class_name.take().as_deref(), Some(hostile));
        let container = &mut spec.containers[0];
        container.image.clone_from(&clean_spec.containers[0].image);
        container.env.as_mut().unwrap().retain(|var| var.name != "MINE");
        let volume = &mut spec.volumes.as_mut().unwrap()[0];
        assert_eq!(volume.persistent_volume_claim.take().unwrap().claim_name, hostile);
        volume.image.clone_from(&clean_spec.volumes.as_ref().unwrap()[0].image);
        assert_eq!(&pod, before);
    }
}

#[test]
fn pods_have_no_account_no_host_and_no_privilege() {
    for device in ["Cpu", "Cuda"] {
        let deployment = objects(&format!("{{device: {device}}}"), None).deployments.remove(0);
        let pod = serde_json::to_value(deployment.spec.template.spec.unwrap()).unwrap();
        assert_eq!(pod["automountServiceAccountToken"], false);
        for never in [
            "serviceAccountName",
            "serviceAccount",
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "hostUsers",
            "nodeName",
        ] {
            assert_eq!(pod.get(never), None, "{never}");
        }
        for volume in pod["volumes"].as_array().unwrap() {
            let kinds: Vec<&String> = volume
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| *key != "name")
                .collect();
            assert!(
                kinds
                    .iter()
                    .all(|kind| ["image", "persistentVolumeClaim", "emptyDir"].contains(&kind.as_str())),
                "{kinds:?}"
            );
        }
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                let security = &container["securityContext"];
                assert_eq!(security.get("privileged"), None);
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert_eq!(container.get("envFrom"), None);
                for var in container["env"].as_array().into_iter().flatten() {
                    assert_eq!(var.get("valueFrom"), None, "{var}");
                }
                for port in container["ports"].as_array().into_iter().flatten() {
                    assert_eq!(port.get("hostPort"), None, "{port}");
                }
            }
        }
    }
}
