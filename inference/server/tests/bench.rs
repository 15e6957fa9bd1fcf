//! `bench`, of a service with the fake backend and of the fake backend alone.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use clap::Parser as _;
use common::{FAIL_WIDTH, Gate, limits, model_info, parser, png, start, start_gated};
use hawkeye_inference::bench::{BenchError, run};
use hawkeye_inference::config::{BenchArgs, Cli, Command};
use hawkeye_inference::routes::RequestLimits;
use serde_json::Value;
use std::path::Path;

fn args(image: &Path, more: &[&str]) -> BenchArgs {
    let mut line = vec!["x", "bench", image.to_str().unwrap(), "--duration", "400ms"];
    line.extend(more);
    match Cli::parse_from(line).command {
        Command::Bench(args) => *args,
        _ => unreachable!("asked for bench"),
    }
}

fn bench(args: &BenchArgs) -> Result<String, BenchError> {
    let mut out = Vec::new();
    run(args, || Ok((parser(&Gate::new(true)), model_info())), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// Away from the test's runtime, which serves.
async fn measured(args: BenchArgs) -> Result<String, BenchError> {
    tokio::task::spawn_blocking(move || bench(&args)).await.unwrap()
}

fn shot(folder: &tempfile::TempDir, width: u32) -> std::path::PathBuf {
    let path = folder.path().join(format!("{width}.png"));
    std::fs::write(&path, png(width, 120)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_measured_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let service = start().await;
    let line = ["--url", &service.url, "--concurrency", "2", "--json", "--name", "fake"];
    let text = measured(args(&shot(&folder, 200), &line)).await.unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["name"], &report["device"]),
        (&"fake".into(), &"CPU (fake)".into())
    );
    let parses = report["parses"].as_u64().unwrap();
    assert!(parses > 0 && report["failed"] == 0, "{report}");
    // Three more were the warm-up.
    let served = service.metric("hawkeye_parse_requests_total{outcome=\"Parsed\"}").await;
    assert!((served - parses as f64 - 3.0).abs() < 0.1, "{served} {parses}");
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(
        number("median_ms") > 0.0 && number("p99_ms") >= number("median_ms"),
        "{report}"
    );
    let rate = parses as f64 / number("seconds");
    assert!((number("throughput_per_s") / rate - 1.0).abs() < 0.05, "{report}");
    assert!(
        report["stages_ms"]["decode"].is_number() && report["stages_ms"]["encode"].is_number(),
        "{report}"
    );
    let without = measured(args(
        &shot(&folder, 200),
        &["--url", &service.url, "--json", "--no-som"],
    ))
    .await
    .unwrap();
    let without: Value = serde_json::from_str(&without).unwrap();
    assert!(without["stages_ms"]["encode"].is_null(), "{without}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_failures_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = RequestLimits { queue: 1, ..limits() };
    let service = start_gated(&Gate::new(true), bounds).await;
    let line = ["--url", &service.url, "--concurrency", "8", "--json"];
    let text = measured(args(&shot(&folder, 200), &line)).await.unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(
        report["refused"].as_u64().unwrap() > 0 && report["failed"] == 0,
        "{report}"
    );

    let failing = shot(&folder, FAIL_WIDTH);
    let error = measured(args(&failing, &["--url", &service.url])).await.unwrap_err();
    assert!(
        error.to_string().contains("500") && error.to_string().contains("out of memory"),
        "{error}"
    );
    let cold = ["--url", &service.url, "--warm-up", "0"];
    let error = measured(args(&failing, &cold)).await.unwrap_err();
    assert!(matches!(error, BenchError::Nothing { failed: 1.., .. }), "{error}");
    let error = measured(args(&failing, &["--url", "http://127.0.0.1:1"]))
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("cannot connect to 127.0.0.1:1"),
        "{error}"
    );
}

#[test]
fn models_are_measured_without_a_service() {
    let folder = tempfile::tempdir().unwrap();
    let table = bench(&args(&shot(&folder, 200), &[])).unwrap();
    assert!(
        table.starts_with("bench: models on CPU (fake) (no captioner), 1 at a time"),
        "{table}"
    );
    for row in [
        "median ms",
        "p99 ms",
        "parses per second",
        "  decode, median ms",
        "  encode, median ms",
    ] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row}: {table}");
    }
    let missing = bench(&args(&folder.path().join("none.png"), &[])).unwrap_err();
    assert!(missing.to_string().contains("none.png"), "{missing}");
    let unloaded = run(
        &args(&shot(&folder, 200), &[]),
        || Err("no bundle".into()),
        &mut Vec::new(),
    );
    assert!(matches!(unloaded, Err(BenchError::Load(_))));
}
