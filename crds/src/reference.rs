//! The API reference in the documentation, made from the definitions: what `kubectl explain` says, on one page.

use std::fmt::{self, Write};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use crate::v1alpha1::{ClassConditionType, ConditionType, Reason};

/// A page in Markdown: every field with its type, default, bounds and description, and the rules that fields obey
/// together.
///
/// # Errors
/// When formatting fails.
pub fn page(definition: &CustomResourceDefinition) -> Result<String, fmt::Error> {
    let names = &definition.spec.names;
    let mut out = String::new();
    writeln!(
        out,
        "<!-- Made from crds/src by `make gen`; do not edit. -->\n# {}\n",
        names.kind
    )?;
    let Some(version) = definition.spec.versions.first() else {
        return Ok(out);
    };
    let Some(schema) = version
        .schema
        .as_ref()
        .and_then(|schema| schema.open_api_v3_schema.as_ref())
    else {
        return Ok(out);
    };
    writeln!(out, "{}\n", schema.description.as_deref().unwrap_or_default())?;
    let short = names.short_names.as_deref().unwrap_or_default().join("`, `");
    writeln!(
        out,
        "`apiVersion: {}/{}`, `kind: {}`, {}, short name `{short}`. `kubectl explain {short}.spec` shows the same.\n",
        definition.spec.group,
        version.name,
        names.kind,
        definition.spec.scope.to_lowercase()
    )?;
    let properties = schema.properties.as_ref();
    for part in ["spec", "status"] {
        if let Some(schema) = properties.and_then(|properties| properties.get(part)) {
            writeln!(
                out,
                "## {part}\n\n{}\n",
                schema.description.as_deref().unwrap_or_default()
            )?;
            writeln!(out, "| field | type | |\n|---|---|---|")?;
            fields(&mut out, schema, "")?;
            out.push('\n');
        }
    }
    if names.kind == "HardwareClass" {
        let types = ClassConditionType::ALL.iter().map(|t| (t.as_str(), t.meaning()));
        conditions(&mut out, types)?;
        out.push_str(
            "\nTheir reasons are in the list of [those of a HawkeyeDeployment](hawkeyedeployment.md#reasons).\n\n",
        );
    } else {
        conditions(&mut out, ConditionType::ALL.iter().map(|t| (t.as_str(), t.meaning())))?;
        reasons(&mut out)?;
    }
    let mut rules = Vec::new();
    gather(schema, "", &mut rules);
    if !rules.is_empty() {
        writeln!(
            out,
            "## Rules\n\nThe API server refuses what breaks one of these, with this message:\n"
        )?;
        for (path, message) in rules {
            let place = if path.is_empty() {
                "the object"
            } else {
                path.trim_start_matches('.')
            };
            writeln!(out, "- `{place}`: {}", escape(&message))?;
        }
    }
    Ok(out)
}

/// The words that a schema leaves open, since an older client has to read newer ones.
fn conditions(out: &mut String, types: impl Iterator<Item = (&'static str, &'static str)>) -> fmt::Result {
    writeln!(
        out,
        "## Conditions\n\nEach is `True`, `False`, or `Unknown` where it cannot be told.\n\n| type | is True when |\n|---|---|"
    )?;
    for (type_, meaning) in types {
        writeln!(out, "| `{type_}` | {} |", escape(meaning))?;
    }
    Ok(())
}

fn reasons(out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "\n## Reasons\n\nOf conditions, of `status.pools[]`, and in `status.summary`. What to do about each: \
         [Troubleshooting](../troubleshooting.md#by-reason).\n\n| reason | |\n|---|---|"
    )?;
    for reason in Reason::ALL {
        writeln!(out, "| `{reason}` | {} |", escape(reason.meaning()))?;
    }
    out.push('\n');
    Ok(())
}

fn fields(out: &mut String, schema: &JSONSchemaProps, path: &str) -> fmt::Result {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, property) in schema.properties.iter().flatten() {
        let here = format!("{path}{name}");
        let mut text = escape(property.description.as_deref().unwrap_or_default());
        if required.contains(name) {
            text.push_str(" Required.");
        }
        if let Some(default) = &property.default {
            write!(text, " Default: `{}`.", default.0)?;
        }
        writeln!(out, "| `{here}` | {} | {} |", kind(property), text.trim())?;
        if let Some((inner, suffix)) = nested(property) {
            fields(out, inner, &format!("{here}{suffix}."))?;
        }
    }
    Ok(())
}

/// What holds a field's own fields, and how a path into it is written.
fn nested(schema: &JSONSchemaProps) -> Option<(&JSONSchemaProps, &'static str)> {
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        return Some((items, "[]"));
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
        return Some((values, ".NAME"));
    }
    schema.properties.is_some().then_some((schema, ""))
}

fn kind(schema: &JSONSchemaProps) -> String {
    let limit = |at_most: Option<i64>| at_most.map_or(String::new(), |n| format!(" (at most {n})"));
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "quantity".to_owned();
    }
    if let Some(allowed) = &schema.enum_ {
        let words: Vec<String> = allowed
            .iter()
            .map(|word| format!("`{}`", word.0.as_str().unwrap_or_default()))
            .collect();
        return words.join(", ");
    }
    match (schema.type_.as_deref().unwrap_or_default(), nested(schema)) {
        ("array", Some((items, _))) => format!("list{} of {}", limit(schema.max_items), kind(items)),
        ("object", Some((values, ".NAME"))) => {
            format!("map{} of {}", limit(schema.max_properties), kind(values))
        }
        ("string", _) => schema
            .max_length
            .map_or("string".to_owned(), |n| format!("string of at most {n} characters")),
        ("integer", _) => match (schema.minimum, schema.maximum) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => "integer".to_owned(),
        },
        (other, _) => other.to_owned(),
    }
}

fn gather(schema: &JSONSchemaProps, path: &str, rules: &mut Vec<(String, String)>) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        rules.push((
            path.to_owned(),
            rule.message.clone().unwrap_or_else(|| rule.rule.clone()),
        ));
    }
    for (name, property) in schema.properties.iter().flatten() {
        gather(property, &format!("{path}.{name}"), rules);
    }
    if let Some((inner, suffix)) = nested(schema).filter(|(_, suffix)| !suffix.is_empty()) {
        gather(inner, &format!("{path}{suffix}"), rules);
    }
}

/// A `|` ends a table's cell, and a `<` begins a tag.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
