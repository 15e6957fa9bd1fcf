//! `parse` without a server, against the fake backend.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use clap::Parser as _;
use common::{FAIL_WIDTH, Gate, body, model_info, parser, png, start};
use hawkeye_inference::config::{Cli, Command, ParseArgs};
use hawkeye_inference::one_shot::{OneShotError, run};
use serde_json::Value;
use std::path::Path;

fn args(image: &Path, more: &[&str]) -> ParseArgs {
    let mut line = vec!["hawkeye-inference", "parse", image.to_str().unwrap()];
    line.extend(more);
    match Cli::parse_from(line).command {
        Command::Parse(args) => *args,
        _ => unreachable!("asked for parse"),
    }
}

fn parse(image: &Path, more: &[&str]) -> Result<String, OneShotError> {
    let mut out = Vec::new();
    run(
        &args(image, more),
        || Ok((parser(&Gate::new(true)), model_info())),
        &mut out,
    )?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn the_table_is_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let shot = folder.path().join("shot.png");
    std::fs::write(&shot, png(200, 120)).unwrap();
    let marked = folder.path().join("marked.png");
    let text = parse(&shot, &["-o", marked.to_str().unwrap()]).unwrap();
    let (table, summary) = text.trim_end().rsplit_once("\n\n").unwrap();
    insta::assert_snapshot!(table);
    assert!(
        summary.contains("shot.png: 200x120, 3 elements, 2 interactable; "),
        "{summary}"
    );
    let picture = image::open(marked).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (200, 120));
    assert_ne!(picture.get_pixel(10, 10).0, [240, 240, 240]);
}

#[tokio::test]
async fn the_json_is_the_document_of_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let shot = folder.path().join("shot.png");
    std::fs::write(&shot, png(200, 120)).unwrap();
    let mut ours: Value = serde_json::from_str(&parse(&shot, &["--json"]).unwrap()).unwrap();
    let service = start().await;
    let mut theirs: Value = service
        .post("/parse", &body(&png(200, 120)))
        .await
        .json()
        .await
        .unwrap();
    for document in [&mut ours, &mut theirs] {
        document.as_object_mut().unwrap().remove("processing_time_ms").unwrap();
        assert!(document.as_object_mut().unwrap().remove("timings_ms").unwrap()["decode"].is_number());
    }
    assert_eq!(ours, theirs);
    let without: Value = serde_json::from_str(&parse(&shot, &["--json", "--no-som"]).unwrap()).unwrap();
    assert_eq!(without["som_image"], Value::Null);
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let text = |error: &OneShotError| hawkeye_inference::engine::with_causes(error);

    let missing = parse(&folder.path().join("none.png"), &[]).unwrap_err();
    assert!(text(&missing).contains("none.png: No such file"), "{}", text(&missing));
    let broken = parse(&file("notes.txt", b"hello"), &[]).unwrap_err();
    assert!(
        text(&broken).contains("notes.txt: ") && text(&broken).contains("PNG"),
        "{}",
        text(&broken)
    );
    let large = parse(&file("large.png", &png(300, 300)), &["--max-pixels", "1000"]).unwrap_err();
    assert!(text(&large).contains("1000"), "{}", text(&large));
    assert_eq!([&missing, &broken, &large].map(OneShotError::exit_code), [3, 3, 3]);

    let failed = parse(&file("fails.png", &png(FAIL_WIDTH, 20)), &[]).unwrap_err();
    assert!(text(&failed).contains("out of memory"), "{}", text(&failed));
    let shot = args(&file("shot.png", &png(200, 120)), &[]);
    let unloaded = run(&shot, || Err("no bundle.json".into()), &mut Vec::new()).unwrap_err();
    assert_eq!(text(&unloaded), "cannot load the models: no bundle.json");
    let nowhere = parse(&file("good.png", &png(200, 120)), &["-o", "/nonexistent/out.png"]).unwrap_err();
    assert!(
        text(&nowhere).contains("cannot write /nonexistent/out.png"),
        "{}",
        text(&nowhere)
    );
    assert_eq!([&failed, &unloaded, &nowhere].map(OneShotError::exit_code), [1, 1, 1]);
}
