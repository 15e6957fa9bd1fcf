//! The API server itself refuses what cannot work, and says which field.

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::crd;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::json;

use crate::support::Suite;

pub async fn invalid_specs_are_refused_by_field(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("api").await?;
    let image = json!({"image": {"reference": "localhost/hawkeye-bundle:demo"}});
    for (spec, field) in [
        (json!({"replicas": -1}), "spec.replicas"),
        (json!({"replicas": 1001}), "spec.replicas"),
        (json!({"profile": "Fast"}), "spec.profile"),
        (json!({"device": "Tpu"}), "spec.device"),
        (json!({"dtype": "Int4"}), "spec.dtype"),
        (json!({"fallback": "Maybe"}), "spec.fallback"),
        (json!({"model": {}}), "spec.model"),
        (
            json!({"model": {"image": image["image"], "persistentVolumeClaim": {"claimName": "x"}}}),
            "spec.model",
        ),
        (
            json!({"model": {"persistentVolumeClaim": {"claimName": "Not A Name"}}}),
            "claimName",
        ),
        (json!({"classes": []}), "spec.classes"),
        (json!({"classes": ["graviton", "graviton"]}), "classes"),
        (
            json!({"classes": ["graviton"], "overrides": {"dgx-spark": {"replicas": 1}}}),
            "spec.overrides",
        ),
        (json!({"overrides": {"graviton": {"batchSize": 0}}}), "batchSize"),
        (json!({"overrides": {"graviton": {"memory": "1Mi"}}}), "memory"),
        (
            json!({"overrides": {"graviton": {"env": [{"name": "OMNIPARSER_DEVICE", "value": "cpu"}]}}}),
            "env",
        ),
        (json!({"device": "Cpu", "dtype": "Float16"}), "dtype"),
    ] {
        let message = scope
            .refusal("wrong", spec.clone())
            .await
            .map_err(|e| e.context(spec.to_string()))?;
        ensure!(
            message.contains(field),
            "{spec}: the message does not name {field}: {message}"
        );
    }
    let message = scope.refusal(&"long".repeat(11), json!({})).await?;
    ensure!(message.contains("metadata.name"), "a name of 44 characters: {message}");
    Ok(())
}

pub async fn explain_describes_every_field(suite: &Suite) -> Result<()> {
    for (_, definition) in crd::definitions()? {
        let short = definition
            .spec
            .names
            .short_names
            .iter()
            .flatten()
            .next()
            .context("no short name")?;
        let version = definition.spec.versions.first().context("no version")?;
        let schema = version
            .schema
            .as_ref()
            .and_then(|schema| schema.open_api_v3_schema.as_ref());
        let mut paths = Vec::new();
        for part in ["spec", "status"] {
            let properties = schema.and_then(|schema| schema.properties.as_ref());
            if let Some(schema) = properties.and_then(|properties| properties.get(part)) {
                objects(schema, &format!("{short}.{part}"), &mut paths);
            }
        }
        ensure!(paths.len() > 4, "{paths:?}");
        for (path, fields) in paths {
            let text = suite.tool("kubectl", &["explain", &path])?;
            ensure!(!text.contains("<no description>"), "kubectl explain {path}:\n{text}");
            // kubectl breaks lines where it likes.
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = words(&text);
            for (name, description) in fields {
                ensure!(
                    said.contains(&words(&description)),
                    "kubectl explain {path}: {name} lacks: {description}\n{text}"
                );
            }
        }
    }
    Ok(())
}

type Described = (String, Vec<(String, String)>);

/// Every object of a schema that `kubectl explain` shows, with its fields and their descriptions. Maps have no path of
/// their own: kubectl looks through them.
fn objects(schema: &JSONSchemaProps, path: &str, out: &mut Vec<Described>) {
    let inner = match (&schema.items, &schema.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(inner)), _) | (_, Some(JSONSchemaPropsOrBool::Schema(inner))) => inner,
        _ => schema,
    };
    let Some(properties) = &inner.properties else { return };
    let described =
        |(name, field): (&String, &JSONSchemaProps)| (name.clone(), field.description.clone().unwrap_or_default());
    out.push((path.to_owned(), properties.iter().map(described).collect()));
    for (name, field) in properties {
        objects(field, &format!("{path}.{name}"), out);
    }
}
