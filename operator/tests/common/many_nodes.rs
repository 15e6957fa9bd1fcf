//! A cluster's nodes as `kubectl get nodes` writes them: the fixtures over and over, ready, with as many labels, images
//! and conditions as nodes of a real cluster have.

use serde_json::{Map, Value, json};

/// Labels of a node in a cluster with Node Feature Discovery and a cloud's controllers.
const LABELS: usize = 60;
/// The kubelet reports at most this many images.
const IMAGES: usize = 50;

/// A List of `count` nodes made from the fixtures' texts.
pub fn list(fixtures: &[String], count: usize) -> Value {
    let templates: Vec<Value> = fixtures
        .iter()
        .map(|text| serde_saphyr::from_str(text).expect("a fixture is a node"))
        .collect();
    let items: Vec<Value> = (0..count)
        .map(|at| node(&templates[at % templates.len()], at))
        .collect();
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

fn node(template: &Value, at: usize) -> Value {
    let mut node = template.clone();
    let kind = template["metadata"]["name"].as_str().unwrap_or("node");
    let name = format!("{kind}-{at:05}.compute.example.internal");
    node["metadata"]["name"] = json!(name);
    node["metadata"]["uid"] = json!(format!("5f0c3a1e-0000-4000-8000-{at:012}"));
    node["metadata"]["resourceVersion"] = json!((1000 + at).to_string());
    node["metadata"]["creationTimestamp"] = json!("2026-06-01T10:00:00Z");
    node["metadata"]["annotations"] = json!({
        "csi.volume.kubernetes.io/nodeid": "{\"ebs.csi.example.com\":\"i-0123456789abcdef0\"}",
        "nfd.node.kubernetes.io/feature-labels": (0..40).map(|n| format!("cpu-cpuid.F{n:02}")).collect::<Vec<_>>().join(","),
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    });
    let labels = node["metadata"]["labels"]
        .as_object_mut()
        .expect("a fixture has labels");
    labels.insert("kubernetes.io/hostname".to_owned(), json!(name));
    let mut more = 0;
    while labels.len() < LABELS {
        labels.insert(
            format!("feature.node.kubernetes.io/cpu-cpuid.F{more:02}"),
            json!("true"),
        );
        more += 1;
    }
    node["spec"] = json!({
        "podCIDR": format!("10.{}.{}.0/24", at / 256, at % 256),
        "providerID": format!("example:///zone-a/{name}"),
    });
    let images: Vec<Value> = (0..IMAGES)
        .map(|n| {
            json!({
                "names": [
                    format!("registry.example.com/team/image-{n}@sha256:{:064x}", at * IMAGES + n),
                    format!("registry.example.com/team/image-{n}:v1.{n}.0"),
                ],
                "sizeBytes": 20_000_000 + n,
            })
        })
        .collect();
    let condition = |type_: &str, status: &str, reason: &str| {
        json!({
            "lastHeartbeatTime": "2026-07-01T10:00:00Z", "lastTransitionTime": "2026-06-01T10:00:00Z",
            "message": format!("the kubelet says: {reason}"), "reason": reason, "status": status, "type": type_,
        })
    };
    node["status"]["images"] = json!(images);
    node["status"]["addresses"] =
        json!([{"address": "10.0.0.1", "type": "InternalIP"}, {"address": name, "type": "Hostname"}]);
    node["status"]["conditions"] = json!([
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        condition("Ready", "True", "KubeletReady"),
    ]);
    node
}

/// YAML as kubectl writes it: block style, lists at the column of their key, text quoted where it would be something else.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(map) = value {
        mapping(&mut out, map, 0);
    }
    out
}

fn mapping(out: &mut String, map: &Map<String, Value>, column: usize) {
    for (key, value) in map {
        out.extend([" ".repeat(column).as_str(), key.as_str(), ":"]);
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                mapping(out, map, column + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                for item in items {
                    match item {
                        Value::Object(map) => {
                            let mut nested = String::new();
                            mapping(&mut nested, map, column + 2);
                            out.extend([" ".repeat(column).as_str(), "- ", nested.trim_start_matches(' ')]);
                        }
                        other => out.extend([" ".repeat(column).as_str(), "- ", &scalar(other), "\n"]),
                    }
                }
            }
            other => out.extend([" ", &scalar(other), "\n"]),
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
                && !text.contains(": ")
                && !["true", "false"].contains(&text.to_lowercase().as_str());
            if plain { text.clone() } else { value.to_string() }
        }
        other => other.to_string(),
    }
}
