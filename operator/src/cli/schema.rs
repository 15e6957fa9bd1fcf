//! What the API server would say of an object: the definition's schema and its CEL rules, checked without a server.
//!
//! The definitions are those that the operator installs, so there is one source for both. A test in `tests/api_server`
//! holds the two against each other.

use std::fmt::Write as _;

use hawkeye_crds::crd;
use kube_cel::{CompiledSchema, Validator, apply_defaults, compile_schema};
use regex::Regex;
use serde_json::{Map, Value};

use super::error::Error;

/// Something that the API server would not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, e.g. `spec.classes[0]`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The keywords of a schema that are checked here or that check nothing. A test holds the definitions to them.
pub const KEYWORDS: [&str; 24] = [
    "type",
    "properties",
    "additionalProperties",
    "items",
    "required",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
    "x-kubernetes-map-type",
    "default",
    "description",
    "title",
    "format",
    "nullable",
];

/// The schema of one kind.
pub struct Schema {
    kind: String,
    version: String,
    tree: Value,
    rules: CompiledSchema,
    validator: Validator,
}

impl Schema {
    /// The schema of HawkeyeDeployment or HardwareClass.
    ///
    /// # Errors
    /// When there is no definition of that kind.
    pub fn of(kind: &str) -> Result<Self, Error> {
        let definitions = crd::definitions().map_err(|error| Error::BuiltIn(error.to_string()))?;
        let missing = || Error::BuiltIn(format!("no definition of {kind}"));
        let definition = definitions
            .into_iter()
            .map(|(_, definition)| definition)
            .find(|definition| definition.spec.names.kind == kind)
            .ok_or_else(missing)?;
        let group = definition.spec.group;
        let version = definition.spec.versions.into_iter().next().ok_or_else(missing)?;
        let schema = version.schema.and_then(|schema| schema.open_api_v3_schema);
        let schema =
            serde_json::to_value(schema.ok_or_else(missing)?).map_err(|error| Error::BuiltIn(error.to_string()))?;
        Ok(Self {
            kind: kind.to_owned(),
            version: format!("{group}/{}", version.name),
            rules: compile_schema(&schema),
            tree: schema,
            validator: Validator::new(),
        })
    }

    /// The schema itself.
    pub fn json(&self) -> &Value {
        &self.tree
    }

    /// The object as the API server would store it: without null and status, with every default.
    ///
    /// # Errors
    /// Everything that it would refuse.
    pub fn admit(&self, mut object: Value) -> Result<Value, Vec<Violation>> {
        drop_null(&mut object);
        // Users do not write it, and what `kubectl get` gave may be of another version.
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        let mut violations = Vec::new();
        self.check_head(&object, &mut violations);
        check(&self.tree, &object, "", &mut violations);
        let object = apply_defaults(&self.tree, &object);
        // As on a server, rules see only what fits the schema.
        if violations.is_empty()
            && let Err(errors) = self.validator.validate_compiled(&self.rules, &object, None)
        {
            violations.extend(errors.into_iter().map(|error| Violation {
                path: error.field_path,
                message: error.message,
            }));
        }
        if violations.is_empty() {
            Ok(object)
        } else {
            Err(violations)
        }
    }

    fn check_head(&self, object: &Value, out: &mut Vec<Violation>) {
        for (key, wanted) in [("apiVersion", &self.version), ("kind", &self.kind)] {
            if object.get(key).and_then(Value::as_str) != Some(wanted) {
                say(out, key, format!("must be {wanted}"));
            }
        }
        if object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            say(out, "metadata.name", "is required");
        }
    }
}

/// A server drops null where the schema does not allow it, and none of ours does.
fn drop_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_null);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null),
        _ => {}
    }
}

fn say(out: &mut Vec<Violation>, path: &str, message: impl Into<String>) {
    out.push(Violation {
        path: path.to_owned(),
        message: message.into(),
    });
}

fn check(schema: &Value, value: &Value, path: &str, out: &mut Vec<Violation>) {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let words: Vec<String> = allowed.iter().map(plain).collect();
        say(
            out,
            path,
            format!("{} is not one of {}", plain(value), words.join(", ")),
        );
        return;
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        match value {
            Value::String(text) => check_text(schema, text, path, out),
            Value::Number(number) if number.is_i64() => {}
            _ => say(out, path, format!("{value} is neither an integer nor text")),
        }
        return;
    }
    let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    match (wanted, value) {
        ("object", Value::Object(map)) => check_object(schema, map, path, out),
        ("array", Value::Array(items)) => check_array(schema, items, path, out),
        ("string", Value::String(text)) => check_text(schema, text, path, out),
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
            check_number(schema, number, path, out);
        }
        ("number", Value::Number(number)) => check_number(schema, number, path, out),
        ("boolean", Value::Bool(_)) | ("", _) => {}
        _ => say(out, path, format!("must be of type {wanted}, not {}", type_of(value))),
    }
}

fn check_object(schema: &Value, map: &Map<String, Value>, path: &str, out: &mut Vec<Violation>) {
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let values = schema.get("additionalProperties").filter(|values| values.is_object());
    // Every kind has these, so definitions do not repeat them; `check_head` looks at what matters.
    let implied = |name: &str| path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name);
    for (name, value) in map {
        if implied(name) {
            continue;
        }
        if let Some(schema) = properties.and_then(|properties| properties.get(name)).or(values) {
            check(schema, value, &join(name), out);
        } else if let Some(properties) = properties {
            say(out, &join(name), unknown(name, properties));
        }
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if let Some(name) = name.as_str()
            && !map.contains_key(name)
        {
            say(out, &join(name), "is required");
        }
    }
    at_most(schema, "maxProperties", map.len(), "entries", path, out);
}

fn unknown(name: &str, properties: &Map<String, Value>) -> String {
    let mut text = "unknown field".to_owned();
    let near = properties
        .keys()
        .map(|known| (strsim::osa_distance(&known.to_lowercase(), &name.to_lowercase()), known))
        .min();
    if let Some((distance, known)) = near
        && distance <= 2
    {
        // Writing to a string cannot fail.
        write!(text, "; did you mean {known}?").unwrap_or_default();
    }
    text
}

fn check_array(schema: &Value, items: &[Value], path: &str, out: &mut Vec<Violation>) {
    if let Some(item_schema) = schema.get("items") {
        for (at, item) in items.iter().enumerate() {
            check(item_schema, item, &format!("{path}[{at}]"), out);
        }
    }
    at_least(schema, "minItems", items.len(), "items", path, out);
    at_most(schema, "maxItems", items.len(), "items", path, out);
    let keys: Vec<&str> = match schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array) {
        Some(keys) => keys.iter().filter_map(Value::as_str).collect(),
        None if schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set") => Vec::new(),
        None => return,
    };
    let mut seen = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let identity: Vec<Value> = if keys.is_empty() {
            vec![item.clone()]
        } else {
            keys.iter()
                .map(|key| item.get(key).cloned().unwrap_or_default())
                .collect()
        };
        if seen.contains(&identity) {
            let words: Vec<String> = identity.iter().map(plain).collect();
            say(
                out,
                &format!("{path}[{at}]"),
                format!("{} is there twice", words.join(", ")),
            );
        } else {
            seen.push(identity);
        }
    }
}

fn check_text(schema: &Value, text: &str, path: &str, out: &mut Vec<Violation>) {
    let length = text.chars().count();
    at_least(schema, "minLength", length, "characters", path, out);
    at_most(schema, "maxLength", length, "characters", path, out);
    let Some(pattern) = schema.get("pattern").and_then(Value::as_str) else {
        return;
    };
    // Patterns are tested with the definitions; one that this crate cannot read is left to the server.
    if Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text)) {
        say(out, path, format!("{text:?} does not match {pattern}"));
    }
}

fn check_number(schema: &Value, number: &serde_json::Number, path: &str, out: &mut Vec<Violation>) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let value = number.as_f64().unwrap_or(f64::NAN);
    if bound("minimum").is_some_and(|least| value < least) || bound("maximum").is_some_and(|most| value > most) {
        let text = |key: &str| bound(key).map_or("any".to_owned(), |bound| bound.to_string());
        say(
            out,
            path,
            format!("{number} is not within {} to {}", text("minimum"), text("maximum")),
        );
    }
}

fn at_least(schema: &Value, key: &str, length: usize, what: &str, path: &str, out: &mut Vec<Violation>) {
    if let Some(least) = schema.get(key).and_then(Value::as_u64)
        && (length as u64) < least
    {
        say(out, path, format!("must have at least {least} {what}"));
    }
}

fn at_most(schema: &Value, key: &str, length: usize, what: &str, path: &str, out: &mut Vec<Violation>) {
    if let Some(most) = schema.get(key).and_then(Value::as_u64)
        && length as u64 > most
    {
        say(out, path, format!("must have at most {most} {what}"));
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(spec: &str) -> Vec<String> {
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        let object = serde_json::json!({
            "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
            "metadata": {"name": "parser"}, "spec": spec,
        });
        match Schema::of("HawkeyeDeployment").unwrap().admit(object) {
            Ok(_) => Vec::new(),
            Err(violations) => violations.iter().map(Violation::to_string).collect(),
        }
    }

    #[test]
    fn every_keyword_of_the_definitions_is_checked() {
        fn visit(schema: &Value) {
            let map = schema.as_object().unwrap();
            for key in map.keys() {
                assert!(KEYWORDS.contains(&key.as_str()), "the plugin does not know {key}");
            }
            for nested in ["items", "additionalProperties"] {
                map.get(nested)
                    .into_iter()
                    .filter(|schema| schema.is_object())
                    .for_each(visit);
            }
            map.get("properties")
                .into_iter()
                .flat_map(|map| map.as_object().unwrap().values())
                .for_each(visit);
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            if let Some(pattern) = text("pattern") {
                Regex::new(pattern).unwrap();
            }
            assert!(matches!(
                text("x-kubernetes-list-type"),
                None | Some("map" | "set" | "atomic")
            ));
        }
        for kind in ["HawkeyeDeployment", "HardwareClass"] {
            visit(Schema::of(kind).unwrap().json());
        }
    }

    #[test]
    fn defaults_are_filled_in_and_null_is_nothing() {
        let object = serde_json::json!({
            "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
            "metadata": {"name": "parser"}, "spec": {"image": null, "profile": null},
        });
        let object = Schema::of("HawkeyeDeployment").unwrap().admit(object).unwrap();
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(object["spec"]["profile"], "Balanced");
        assert_eq!(object["spec"].get("image"), None);
    }

    #[test]
    fn each_violation_names_its_field() {
        for (spec, expected) in [
            ("{replica: 2}", "spec.replica: unknown field; did you mean replicas?"),
            ("{Profile: Speed}", "spec.Profile: unknown field; did you mean profile?"),
            ("{colour: red}", "spec.colour: unknown field"),
            (
                "{profile: Fast}",
                "spec.profile: Fast is not one of Speed, Balanced, Quality",
            ),
            ("{replicas: -1}", "spec.replicas: -1 is not within 0 to 1000"),
            ("{replicas: two}", "spec.replicas: must be of type integer, not string"),
            ("{classes: []}", "spec.classes: must have at least 1 items"),
            (
                "{classes: [A]}",
                "spec.classes[0]: \"A\" does not match ^[a-z]([-a-z0-9]*[a-z0-9])?$",
            ),
            ("{model: {image: {}}}", "spec.model.image.reference: is required"),
            (
                "{overrides: {a: {memory: lots}}}",
                "spec.overrides.a.memory: \"lots\" does not match",
            ),
            (
                "{overrides: {a: {env: [{name: A, value: x}, {name: A, value: y}]}}}",
                "spec.overrides.a.env[1]: A is there twice",
            ),
            // What only a rule says.
            ("{classes: [a, a]}", "spec.classes: classes must not name a class twice"),
            ("{model: {}}", "spec.model: model must have exactly one of"),
            ("{device: Cpu, dtype: Float16}", "spec.dtype: dtype must be"),
            ("{device: Cuda, dtype: Int8}", "spec.dtype: dtype must be"),
            (
                "{overrides: {a: {memory: 1Mi}}}",
                "spec.overrides.a.memory: memory must be at least 256Mi",
            ),
            (
                "{overrides: {a: {env: [{name: OMNIPARSER_PORT, value: x}]}}}",
                "spec.overrides.a.env[0].name: env must not set",
            ),
        ] {
            let found = violations(spec);
            assert!(found.iter().any(|one| one.starts_with(expected)), "{spec}: {found:?}");
        }
        assert_eq!(violations("{}"), Vec::<String>::new());
    }

    #[test]
    fn the_built_in_classes_are_valid() {
        let schema = Schema::of("HardwareClass").unwrap();
        for (file, text) in hawkeye_crds::classes::FILES {
            let object: Value = serde_saphyr::from_str(text).unwrap();
            assert!(schema.admit(object).is_ok(), "{file}");
        }
    }
}
