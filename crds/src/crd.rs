//! The CustomResourceDefinitions, made from the types and put into the form that API servers take best.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::v1alpha1::{HardwareClass, HawkeyeDeployment};

/// Why a CustomResourceDefinition could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The definition does not turn into JSON and back.
    #[error("the definition is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The definition does not turn into YAML.
    #[error("the definition does not serialise to YAML: {0}")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// Both definitions with their file names, in the order in which they are applied.
///
/// # Errors
/// When a definition does not survive its way through JSON, which only a defect in the types can cause.
pub fn definitions() -> Result<[(&'static str, CustomResourceDefinition); 2], Error> {
    Ok([
        ("hawkeyedeployments.yaml", normalise(&HawkeyeDeployment::crd())?),
        ("hardwareclasses.yaml", normalise(&HardwareClass::crd())?),
    ])
}

/// One definition as YAML, with a head that says where it comes from.
///
/// # Errors
/// When it does not serialise, which only a defect in the types can cause.
pub fn to_yaml(definition: &CustomResourceDefinition) -> Result<String, Error> {
    // By way of JSON, whose keys are sorted: the committed file changes only where the schema does.
    let mut value = serde_json::to_value(definition)?;
    // The client's type holds bounds as floats.
    make_integral(&mut value);
    Ok(format!(
        "# Made from crds/src by `make gen`; do not edit.\n{}",
        serde_saphyr::to_string(&value)?
    ))
}

/// schemars writes optional fields as nullable. API servers drop null from a field that is not
/// nullable before they validate, so that `has(...)` in a rule means what it says.
fn normalise(definition: &CustomResourceDefinition) -> Result<CustomResourceDefinition, Error> {
    let mut value = serde_json::to_value(definition)?;
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy_schema(schema);
            }
        }
    }
    Ok(serde_json::from_value(value)?)
}

fn tidy_schema(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            // What the rewrite to a structural schema leaves of "integer or string", which the extension already says.
            if map.contains_key("x-kubernetes-int-or-string") {
                map.remove("anyOf");
            }
            if let Some(Value::Array(allowed)) = map.get_mut("enum") {
                allowed.retain(|item| !item.is_null());
            }
            map.values_mut().for_each(tidy_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        _ => {}
    }
}

fn make_integral(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
            {
                *value = Value::from(float as i64);
            }
        }
        Value::Object(map) => map.values_mut().for_each(make_integral),
        Value::Array(items) => items.iter_mut().for_each(make_integral),
        _ => {}
    }
}
