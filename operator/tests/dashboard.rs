//! The chart's dashboard asks for metrics that exist.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every expression of every panel.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("charts/hawkeye/files/dashboards/hawkeye.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// Names of metrics in an expression, as they are registered: without what the text format adds.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("hawkeye_") && *word != "hawkeye_bytebot_ai_class");
    let bare = |word: &str| {
        let ends = ["_total", "_bucket", "_sum", "_count"];
        let bare = ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
        bare.to_owned()
    };
    metrics.map(bare).collect()
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    // Families show up in the text only once they have a value, so the place where they are named is read.
    let operator = read("operator/src/metrics.rs");
    let service = read("inference/server/src/metrics/mod.rs") + &read("inference/server/src/metrics/devices.rs");
    let mut found = BTreeSet::new();
    for expression in expressions() {
        let names = names(&expression);
        assert_eq!(names.len(), 1, "{expression}");
        for name in names {
            let (source, registered) = match name.strip_prefix("hawkeye_operator_") {
                Some(registered) => (&operator, registered),
                // The unit is added to the name.
                None => (
                    &service,
                    name.trim_start_matches("hawkeye_").trim_end_matches("_seconds"),
                ),
            };
            let exists = source.contains(&format!("\"{registered}\""));
            assert!(exists, "{name} in {expression}");
            found.insert(name);
        }
    }
    assert!(found.len() >= 12, "{found:?}");
}
