//! The rights that the chart grants are those that the operator needs, and none of them reaches further.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeSet, fs, path::Path};

use hawkeye_operator::rules::{LEASE, Place, RULES};
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every single right of the role that the rendered chart binds the operator to, as `group/resource verb`.
fn granted() -> BTreeSet<String> {
    let install = read("manifests/install.yaml");
    let documents = install
        .split("\n---\n")
        .filter(|text| text.contains("kind: ClusterRole\n"));
    let roles: Vec<Value> = documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let named = |role: &&Value| role["metadata"]["name"] == "hawkeye-operator";
    let role = roles.iter().find(named).unwrap();
    let words = |value: &Value| -> Vec<String> {
        let items = value.as_array().unwrap().iter();
        items.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    assert!(all.insert(format!("{group}/{resource} {verb}")), "twice: {rule}");
                }
            }
        }
    }
    all
}

#[test]
fn the_chart_grants_what_the_operator_needs_and_no_more() {
    let needed: BTreeSet<String> = RULES
        .iter()
        .flat_map(|rule| {
            rule.verbs
                .iter()
                .map(|verb| format!("{}/{} {verb}", rule.group, rule.resource))
        })
        .collect();
    assert_eq!(granted(), needed);
}

#[test]
fn the_lease_is_granted_by_name_in_one_namespace() {
    let install = read("manifests/install.yaml");
    let roles: Vec<Value> = install
        .split("\n---\n")
        .filter(|text| text.contains("\nkind: Role\n"))
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect();
    let [role] = &roles[..] else { panic!("{roles:?}") };
    assert_eq!(role["metadata"]["namespace"], "hawkeye-system");
    let mut verbs = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["apiGroups"][0], LEASE.group);
        assert_eq!(rule["resources"], serde_json::json!([LEASE.resource]));
        let these: Vec<&str> = rule["verbs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert!(rule.get("resourceNames").is_some() || these == ["create"], "{rule}");
        verbs.extend(these.into_iter().map(str::to_owned));
    }
    assert_eq!(verbs, LEASE.verbs.iter().map(|verb| (*verb).to_owned()).collect());
}

#[test]
fn no_right_reaches_further_than_its_purpose() {
    for rule in RULES {
        let text = format!("{rule:?}");
        assert!(!text.contains('*'), "{text}");
        for never in [
            "secrets",
            "configmaps",
            "serviceaccounts",
            "pods/",
            "nodes/",
            "roles",
            "bindings",
        ] {
            assert!(!rule.resource.contains(never), "{text}");
        }
        for never in ["escalate", "bind", "impersonate", "deletecollection", "approve"] {
            assert!(!rule.verbs.contains(&never), "{text}");
        }
        // What it did not make, and what decides for the whole cluster, it only reads.
        let made = [
            "deployments",
            "services",
            "networkpolicies",
            "poddisruptionbudgets",
            "events",
        ];
        let said = [
            "hardwareclasses/status",
            "hawkeyedeployments/status",
            "hawkeyedeployments/finalizers",
        ];
        if !made.contains(&rule.resource) && !said.contains(&rule.resource) {
            assert_eq!(rule.verbs, ["list", "watch"], "{text}");
        }
        let whole = rule.resource == "hardwareclasses/status";
        assert_eq!(rule.place == Place::Whole, whole, "{text}");
        assert_eq!(
            rule.place == Place::Cluster,
            ["nodes", "hardwareclasses"].contains(&rule.resource),
            "{text}"
        );
    }
}

#[test]
fn the_table_of_rights_in_the_documentation_is_complete() {
    let page = read("docs/src/security.md");
    for rule in RULES.iter().chain([&LEASE]) {
        let group = if rule.group.is_empty() { "core" } else { rule.group };
        let place = match rule.place {
            Place::Cluster => "cluster",
            Place::Whole => "cluster, unless `watch.namespaces` is set",
            Place::Namespace => "watched namespaces",
            Place::Own => "its own namespace",
        };
        let row = format!("| {group} | {} | {} | {place} |", rule.resource, rule.verbs.join(", "));
        assert!(page.contains(&row), "docs/src/security.md lacks {row}");
    }
}
