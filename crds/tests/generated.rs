//! What is committed is what the types and tables say.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use hawkeye_crds::{
    classes, crd, reference,
    v1alpha1::{Arch, ConditionType, Device, ImageVariant, Reason, deployment::RESERVED_ENV},
};
use serde_json::Value;

/// Largest object that `kubectl apply` can annotate is 256 KiB; 200 KB leaves room for what is to come.
const LARGEST: usize = 200_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_committed_definitions_are_up_to_date_and_small() {
    for (file, definition) in crd::definitions().unwrap() {
        let made = crd::to_yaml(&definition).unwrap();
        let committed = fs::read_to_string(root().join("yaml").join(file)).unwrap();
        assert_eq!(committed, made, "{file} is out of date: run `make gen`");
        assert!(made.len() < LARGEST, "{file} has {} bytes", made.len());
    }
}

#[test]
fn the_committed_reference_is_up_to_date() {
    for (_, definition) in crd::definitions().unwrap() {
        let name = definition.spec.names.singular.clone().unwrap();
        let committed = fs::read_to_string(root().join(format!("../docs/src/reference/{name}.md"))).unwrap();
        assert_eq!(
            committed,
            reference::page(&definition).unwrap(),
            "{name}.md is out of date: run `make gen`"
        );
    }
}

#[test]
fn the_reference_names_every_condition_and_reason() {
    let (_, definition) = crd::definitions().unwrap().into_iter().next().unwrap();
    let page = reference::page(&definition).unwrap();
    let words = ConditionType::ALL.iter().map(|t| (t.as_str(), t.meaning()));
    for (word, meaning) in words.chain(Reason::ALL.iter().map(|r| (r.as_str(), r.meaning()))) {
        assert!(meaning.ends_with('.') && meaning.len() > 10, "{word}: {meaning}");
        assert!(page.contains(&format!("| `{word}` | {meaning} |")), "{word}");
    }
}

#[test]
fn the_committed_lists_are_up_to_date() {
    for (file, text) in classes::FILES {
        assert_eq!(
            classes::fill_lists(text).unwrap(),
            text,
            "{file} is out of date: run `make gen`"
        );
    }
}

#[test]
fn every_class_file_is_built_in() {
    let on_disk: BTreeSet<String> = fs::read_dir(root().join("classes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    let built_in: BTreeSet<String> = classes::FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(on_disk, built_in);
}

#[test]
fn built_in_classes_are_sound() {
    let classes = classes::built_in().unwrap();
    let priorities: Vec<i32> = classes.iter().map(|class| class.spec.priority).collect();
    assert!(
        priorities.is_sorted_by(|a, b| a > b),
        "each its own priority, highest first: {priorities:?}"
    );
    for class in classes {
        let name = class.metadata.name.unwrap();
        let spec = class.spec;
        assert!(name.len() <= 20, "{name}");
        assert_eq!(spec.device == Device::Cuda, spec.resource.is_some(), "{name}");
        assert_eq!(
            spec.device == Device::Cuda,
            spec.image_variant == ImageVariant::Cuda,
            "{name}"
        );
        assert!(spec.memory.limit.units().unwrap() >= 4 << 30, "{name}");
        assert!(spec.cpu.request.milli().unwrap() > 0, "{name}");
        // GKE taints every Arm node; a class for Arm that does not tolerate it would never place anything there.
        let tolerates_arm = spec
            .tolerations
            .iter()
            .any(|t| t.key.as_deref() == Some("kubernetes.io/arch"));
        assert_eq!(tolerates_arm, spec.arch == Arch::Arm64, "{name}");
    }
}

#[test]
fn graviton_tables_have_no_doubles_and_keep_g5g_apart() {
    let cpu = classes::instance_types("tables/graviton.csv").unwrap();
    let gpu = classes::instance_types("tables/graviton-gpu.csv").unwrap();
    let all: BTreeSet<&String> = cpu.iter().chain(&gpu).collect();
    assert_eq!(all.len(), cpu.len() + gpu.len());
    assert!(gpu.iter().all(|name| name.starts_with("g5g.")));
    assert!(!cpu.iter().any(|name| name.starts_with("g5g.")));
    for expected in ["t4g.micro", "m6g.metal", "c7g.2xlarge", "r8g.metal-48xl", "m9g.large"] {
        assert!(cpu.iter().any(|name| name == expected), "{expected}");
    }
    // Graviton names end their family with g and optional letters; g4dn and g6e do not.
    for name in &cpu {
        let family = name.split('.').next().unwrap();
        let generation = family.find(|c: char| c.is_ascii_digit()).unwrap();
        let rest = family[generation..].trim_start_matches(|c: char| c.is_ascii_digit());
        assert!(rest.starts_with('g'), "{name}");
    }
}

fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, value);
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), visit);
        }
    }
    if let Some(items) = value.get("items") {
        walk(items, &format!("{path}[]"), visit);
    }
    if let Some(values) = value.get("additionalProperties") {
        walk(values, &format!("{path}{{}}"), visit);
    }
}

/// Spec of each definition, with its name.
fn specs() -> Vec<(String, Value)> {
    parts("spec")
}

/// Part of each definition that has it, with its name.
fn parts(part: &str) -> Vec<(String, Value)> {
    crd::definitions()
        .unwrap()
        .into_iter()
        .filter_map(|(_, definition)| {
            let value = serde_json::to_value(&definition).unwrap();
            let schema = value
                .pointer(&format!("/spec/versions/0/schema/openAPIV3Schema/properties/{part}"))?
                .clone();
            Some((definition.spec.names.kind, schema))
        })
        .collect()
}

#[test]
fn every_field_is_documented() {
    for (kind, spec) in specs().into_iter().chain(parts("status")) {
        walk(&spec, &kind, &mut |path, schema| {
            let is_property = !path.ends_with("[]") && !path.ends_with("{}");
            assert!(
                !is_property || schema["description"].as_str().is_some_and(|text| text.len() > 8),
                "{path}"
            );
        });
    }
}

#[test]
fn everything_in_a_spec_is_bounded() {
    // The cost of a rule is estimated from these bounds; without them the API server refuses the definition.
    for (kind, spec) in specs() {
        walk(&spec, &kind, &mut |path, schema| {
            let closed = schema.get("enum").is_some() || schema.get("format").is_some();
            match schema["type"].as_str() {
                Some("array") => assert!(schema.get("maxItems").is_some(), "{path}"),
                Some("string") => assert!(closed || schema.get("maxLength").is_some(), "{path}"),
                Some("integer") => assert!(
                    schema.get("minimum").is_some() && schema.get("maximum").is_some(),
                    "{path}"
                ),
                Some("object") if schema.get("additionalProperties").is_some() => {
                    assert!(schema.get("maxProperties").is_some(), "{path}");
                }
                _ => {}
            }
        });
    }
}

#[test]
fn only_formats_that_api_servers_know() {
    for (kind, spec) in specs() {
        walk(&spec, &kind, &mut |path, schema| {
            let format = schema.get("format").and_then(Value::as_str);
            assert!(
                format.is_none_or(|format| ["int32", "int64", "date-time"].contains(&format)),
                "{path}: {format:?}"
            );
            assert!(schema.get("nullable").is_none(), "{path}");
        });
    }
}

#[test]
fn the_rule_on_env_names_every_reserved_variable() {
    let (_, spec) = specs().remove(0);
    let rule = spec.to_string();
    for name in RESERVED_ENV {
        assert!(rule.contains(&format!("'{name}'")), "{name}");
    }
}
