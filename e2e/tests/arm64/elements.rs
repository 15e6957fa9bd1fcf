//! Whether two parses of one screenshot on different processors found the same.
//!
//! Sums of floating point numbers are formed in another order on each processor, so numbers differ in their last digits. What
//! an element is and what is written in it may not; docs/src/platforms.md names these tolerances.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Pixels by which a side of a box may lie elsewhere.
pub const PIXELS: i64 = 2;
/// By how much a score may differ.
pub const SCORE: f64 = 0.02;

/// Fails with the first element of `expected` that `actual` lacks, or when the numbers of elements differ.
pub fn same(expected: &Value, actual: &Value) -> Result<usize> {
    let (expected, actual) = (list(expected)?, list(actual)?);
    ensure!(
        expected.len() == actual.len(),
        "{} elements on one node, {} on the other",
        expected.len(),
        actual.len()
    );
    let mut left: Vec<&Value> = actual.iter().collect();
    for element in expected {
        let found = left
            .iter()
            .position(|other| matches(element, other))
            .with_context(|| format!("the other node lacks {element}; it has {left:?}"))?;
        left.remove(found);
    }
    Ok(expected.len())
}

fn list(answer: &Value) -> Result<&Vec<Value>> {
    answer["elements"]
        .as_array()
        .with_context(|| format!("no elements in {answer}"))
}

fn matches(one: &Value, other: &Value) -> bool {
    let same = ["type", "content", "interactable", "source"]
        .iter()
        .all(|field| one[field] == other[field]);
    same && boxes(one, other) && scores(one, other)
}

fn boxes(one: &Value, other: &Value) -> bool {
    let numbers = |element: &Value| -> Option<Vec<i64>> {
        let all = element["bbox"].as_array()?.iter().map(Value::as_i64);
        all.collect()
    };
    let (Some(one), Some(other)) = (numbers(one), numbers(other)) else {
        return false;
    };
    one.len() == 4 && other.len() == 4 && one.iter().zip(&other).all(|(a, b)| (a - b).abs() <= PIXELS)
}

fn scores(one: &Value, other: &Value) -> bool {
    match (one["score"].as_f64(), other["score"].as_f64()) {
        (Some(one), Some(other)) => (one - other).abs() <= SCORE,
        (one, other) => one == other,
    }
}

/// The comparison is of use only if it can fail.
pub fn differences_are_seen() -> Result<()> {
    let element = |x: i64, content: &str, score: f64| serde_json::json!({"type": "text", "content": content, "bbox": [x, 20, 30, 40], "score": score});
    let answer = |elements: Vec<Value>| serde_json::json!({"elements": elements});
    let expected = answer(vec![element(10, "Save", 0.9), element(90, "Open", 0.8)]);
    let near = answer(vec![element(92, "Open", 0.79), element(9, "Save", 0.9)]);
    ensure!(same(&expected, &near)? == 2, "the order counts");
    for (what, other) in [
        ("a box", vec![element(13, "Save", 0.9), element(90, "Open", 0.8)]),
        ("a text", vec![element(10, "Safe", 0.9), element(90, "Open", 0.8)]),
        ("a score", vec![element(10, "Save", 0.8), element(90, "Open", 0.8)]),
        ("the number", vec![element(10, "Save", 0.9)]),
        (
            "which is there twice",
            vec![element(10, "Save", 0.9), element(10, "Save", 0.9)],
        ),
    ] {
        ensure!(same(&expected, &answer(other)).is_err(), "{what} differs and passes");
    }
    Ok(())
}
