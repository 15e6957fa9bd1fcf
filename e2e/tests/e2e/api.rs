//! The API server itself refuses what cannot work, and says which field.

use anyhow::{Result, ensure};
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
    for path in [
        "hkd.spec",
        "hkd.spec.model",
        "hkd.spec.overrides",
        "hkd.status.pools",
        "hwc.spec",
        "hwc.spec.batchSize",
    ] {
        let text = suite.tool("kubectl", &["explain", path])?;
        ensure!(!text.contains("<no description>"), "kubectl explain {path}:\n{text}");
    }
    Ok(())
}
