//! How parses share devices: batches across requests, several devices, memory that is short, captions that are known.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use common::{
    Captions, Gate, Service, body, captioning, eventually, expectation, limits, model_info, parser, start_each, with,
};
use hawkeye_inference::crop_cache::CropCache;
use hawkeye_inference::engine::{ModelInfo, ModelState};
use hawkeye_inference::routes::RequestLimits;
use image::{Rgb, RgbImage};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A service with a captioner on one device.
async fn start(
    gate: &Arc<Gate>,
    captions: &Arc<Captions>,
    batch_size: usize,
    cache: Option<CropCache>,
    limits: RequestLimits,
) -> Service {
    let (gate, captions) = (Arc::clone(gate), Arc::clone(captions));
    let info = ModelInfo {
        batch_size,
        ..model_info()
    };
    let load = move |_| Ok((captioning(&gate, &captions, batch_size), info.clone()));
    ready(start_each(Box::new(load), cache, limits, expectation()).await).await
}

async fn ready(service: Service) -> Service {
    eventually("the models are loaded", || {
        matches!(service.engine.state(), ModelState::Ready(_))
    })
    .await;
    service
}

/// A file with one crop to describe (two in the basic mode), which looks like no other shade's.
fn shot(shade: u8) -> Vec<u8> {
    let picture = RgbImage::from_pixel(200, 120, Rgb([shade; 3]));
    let mut bytes = Vec::new();
    picture
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    bytes
}

fn send(service: &Service, body: &Value) -> JoinHandle<(StatusCode, Value)> {
    let request = service.client.post(format!("{}/parse", service.url)).json(body);
    tokio::spawn(async move {
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    })
}

async fn until(service: &Service, series: &str, value: f64) {
    for _ in 0..2000 {
        if (service.metric(series).await - value).abs() < 0.5 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{series} is {} and not {value}", service.metric(series).await);
}

/// The captions of icons without text.
fn captions_of(document: &Value) -> Vec<&str> {
    let elements = document["elements"].as_array().unwrap();
    let described = elements
        .iter()
        .filter(|element| element["source"] == "box_yolo_content_yolo");
    described.map(|element| element["caption"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn crops_of_requests_that_wait_together_share_a_batch() {
    let gate = Gate::new(true);
    let held = Gate::new(false);
    let captions = Captions::new(&held, 100);
    let service = start(&gate, &captions, 8, None, limits()).await;
    let first = send(&service, &body(&shot(1)));
    eventually("the first is being described", || held.entered() == 1).await;
    let others: Vec<_> = (2..5).map(|shade| send(&service, &body(&shot(shade)))).collect();
    // They are decoded while the device describes the first.
    until(&service, "hawkeye_device_queue_screenshots", 3.0).await;
    held.open();
    for (request, shade) in std::iter::once(first).chain(others).zip(1..) {
        let (status, document) = request.await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            captions_of(&document),
            [format!("icon {}", 64 * shade)],
            "each gets its own"
        );
        assert!(document["timings_ms"]["caption"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        captions.calls(),
        [1, 3],
        "one at once, since nothing else was there; then all that waited"
    );
    assert!((service.metric("hawkeye_captioner_crops_total").await - 4.0).abs() < 0.1);
    assert!((service.metric("hawkeye_captioner_batch_crops_count").await - 2.0).abs() < 0.1);
    assert!((service.metric("hawkeye_captioner_batch_fill_ratios_sum").await - 0.5).abs() < 0.01);
    assert!(service.metric("hawkeye_parse_crops_held").await.abs() < 0.1);
}

#[tokio::test]
async fn crops_of_a_client_that_left_are_not_described() {
    let gate = Gate::new(true);
    let held = Gate::new(false);
    let captions = Captions::new(&held, 100);
    let service = start(&gate, &captions, 1, None, limits()).await;
    // Two crops, of which the device has one while the client leaves.
    let basic = with(body(&shot(1)), "use_full_pipeline", false);
    let gone = send(&service, &basic);
    eventually("its first crop is being described", || held.entered() == 1).await;
    until(&service, "hawkeye_device_queue_crops", 1.0).await;
    gone.abort();
    until(&service, "hawkeye_parse_requests_held", 0.0).await;
    held.open();
    let (status, _) = send(&service, &body(&shot(2))).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(captions.calls(), [1, 1], "one of each");
    assert!((service.metric("hawkeye_parse_abandoned_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_batch_that_memory_does_not_hold_is_halved_and_that_is_shown() {
    let gate = Gate::new(true);
    let captions = Captions::new(&gate, 1);
    let service = start(&gate, &captions, 16, None, limits()).await;
    let (status, document) = send(&service, &with(body(&shot(3)), "use_full_pipeline", false))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(captions_of(&document), ["icon 192", "icon 192"]);
    assert_eq!(captions.calls(), [2, 1, 1]);
    let report: Value = service.get("/device").await.json().await.unwrap();
    assert_eq!((&report["batch_size"], &report["matches"]), (&json!(1), &json!(false)));
    assert_eq!(
        report["cause"],
        "the device's memory does not hold batches of 16, so they are of 1"
    );
    assert!((service.metric("hawkeye_captioner_batch_shrinks_total").await - 1.0).abs() < 0.1);
    // It stays that small.
    let (status, _) = send(&service, &with(body(&shot(4)), "use_full_pipeline", false))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(captions.calls()[3..], [1, 1]);
    assert_eq!(service.get("/readyz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_batch_that_fails_fails_its_requests_and_no_other() {
    let gate = Gate::new(true);
    let held = Gate::new(false);
    // Not even one crop fits.
    let captions = Captions::new(&held, 0);
    let service = start(&gate, &captions, 8, None, limits()).await;
    let failing = send(&service, &body(&shot(1)));
    eventually("it is being described", || held.entered() == 1).await;
    let icons_only = send(&service, &with(body(&shot(2)), "include_captions", false));
    held.open();
    let (status, document) = failing.await.unwrap();
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        document["detail"],
        "Error parsing screenshot: captioner: CUDA out of memory"
    );
    assert_eq!(icons_only.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn what_was_described_is_known() {
    let gate = Gate::new(true);
    let captions = Captions::new(&gate, 100);
    let service = start(&gate, &captions, 8, Some(CropCache::new(100)), limits()).await;
    for _ in 0..2 {
        let (status, document) = send(&service, &body(&shot(5))).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(captions_of(&document), ["icon 320"]);
    }
    let (_, other) = send(&service, &body(&shot(6))).await.unwrap();
    assert_eq!(captions_of(&other), ["icon 384"]);
    assert_eq!(captions.calls(), [1, 1], "the second request asked nothing");
    assert!((service.metric("hawkeye_crop_cache_hits_total").await - 1.0).abs() < 0.1);
    assert!((service.metric("hawkeye_crop_cache_misses_total").await - 2.0).abs() < 0.1);
    assert!((service.metric("hawkeye_captions_total").await - 3.0).abs() < 0.1);
}

#[tokio::test]
async fn more_crops_than_may_be_held_are_a_429() {
    let gate = Gate::new(false);
    let captions = Captions::new(&Gate::new(true), 100);
    let bounds = RequestLimits {
        // The profile may have 25 in each, and nothing else is known yet.
        queue_crops: Some(60),
        ..limits()
    };
    let service = start(&gate, &captions, 8, None, bounds).await;
    let held: Vec<_> = (1..3).map(|shade| send(&service, &body(&shot(shade)))).collect();
    until(&service, "hawkeye_parse_crops_held", 50.0).await;
    let refused = service.post("/parse", &body(&shot(9))).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    gate.open();
    for request in held {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(service.post("/parse", &body(&shot(9))).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn all_devices_take_from_one_queue() {
    let gates = [Gate::new(false), Gate::new(false)];
    let each = gates.clone();
    let info = ModelInfo {
        devices: 2,
        ..model_info()
    };
    let load = move |number: usize| Ok((parser(&each[number]), info.clone()));
    let service = ready(start_each(Box::new(load), None, limits(), expectation()).await).await;
    let requests: Vec<_> = (1..6).map(|shade| send(&service, &body(&shot(shade)))).collect();
    eventually("both are at work", || gates.iter().all(|gate| gate.entered() == 1)).await;
    until(&service, "hawkeye_device_queue_screenshots", 3.0).await;
    // One hangs; the other does all the rest.
    gates[1].open();
    eventually("the rest is done", || gates[1].entered() == 4).await;
    assert_eq!(gates[0].entered(), 1);
    gates[0].open();
    for request in requests {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    let report: Value = service.get("/device").await.json().await.unwrap();
    assert_eq!(report["devices"], 2);
}

#[tokio::test]
async fn a_second_device_that_cannot_be_loaded_is_a_failed_load() {
    let info = ModelInfo {
        devices: 2,
        ..model_info()
    };
    let load = move |number: usize| match number {
        0 => Ok((parser(&Gate::new(true)), info.clone())),
        other => Err(format!("GPU {other} has fallen off the bus").into()),
    };
    let service = start_each(Box::new(load), None, limits(), expectation()).await;
    let reason = service.engine.load_failure().await;
    assert_eq!(&*reason, "GPU 1 has fallen off the bus");
    tokio::time::timeout(std::time::Duration::from_secs(10), async move {
        drop((service.router, service.ended.abort()));
        service.engine.ended().await;
    })
    .await
    .expect("the threads end");
}
