//! Slow clients, a device that hangs, and what stays quick meanwhile.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use clap::Parser as _;
use common::{Gate, body, eventually, limits, model_info, parser, png, start, start_gated};
use hawkeye_inference::config::{Cli, Command};
use hawkeye_inference::routes::RequestLimits;
use hawkeye_inference::service::{ServiceError, run};
use reqwest::StatusCode;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the issue promises of `/health` while the device is saturated.
const QUICK: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_takes_less_than_ten_milliseconds_while_the_device_is_saturated() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, limits()).await;
    let parses: Vec<_> = (0..limits().queue)
        .map(|_| {
            let request = service.client.post(format!("{}/parse", service.url));
            tokio::spawn(request.json(&body(&png(200, 120))).send())
        })
        .collect();
    eventually("the device is at work", || gate.entered() == 1).await;
    while service.metric("hawkeye_parse_requests_held").await < limits().queue as f64 {}
    let mut times = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(service.get("/health").await.status(), StatusCode::OK);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    // The median: the other tests of this program share the processor.
    assert!(times[25] < QUICK, "{times:?}");
    gate.open();
    for parse in parses {
        assert_eq!(parse.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_body_loses_its_place() {
    let bounds = RequestLimits {
        queue: 1,
        body_timeout: Duration::from_millis(300),
        ..limits()
    };
    let service = start_gated(&Gate::new(true), bounds).await;
    let port = service.port;
    let slow = tokio::task::spawn_blocking(move || {
        let mut stream = connect(port);
        stream
            .write_all(b"POST /parse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"image\": \"")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    while service.metric("hawkeye_parse_requests_held").await < 0.5 {}
    let refused = service.post("/parse", &body(&png(200, 120))).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    // The connection ends with the answer, or reading to its end would have failed.
    let answer = slow.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(
        answer.ends_with("{\"detail\":\"The request body was not received within 0.3 s\"}"),
        "{answer}"
    );
    assert_eq!(
        service.post("/parse", &body(&png(200, 120))).await.status(),
        StatusCode::OK
    );
    for series in [
        "hawkeye_slow_clients_cut_total{at=\"Body\"}",
        "hawkeye_parse_requests_total{outcome=\"SlowClient\"}",
    ] {
        assert!((service.metric(series).await - 1.0).abs() < 0.1, "{series}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let service = start().await;
    let port = service.port;
    let mut stream = connect(port);
    // More answers than the kernel buffers.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2000);
    let writer = tokio::task::spawn_blocking(move || {
        // It is cut while it writes, perhaps.
        drop(stream.write_all(requests.as_bytes()));
        stream
    });
    let started = Instant::now();
    while service.metric("hawkeye_slow_clients_cut_total{at=\"Answer\"}").await < 0.5 {
        assert!(started.elapsed() < Duration::from_secs(20), "it is never cut");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _stream = writer.await.unwrap();
    // Only the one that asks is left.
    while service.metric("hawkeye_connections").await > 1.5 {
        assert!(started.elapsed() < Duration::from_secs(20), "it is never closed");
    }
}

#[tokio::test]
async fn a_device_that_hangs_makes_the_service_unready_and_then_ends_it() {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port_text = port.to_string();
    let line = [
        "x",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        &port_text,
        "--device-timeout",
        "2s",
    ];
    let Command::Serve(args) = Cli::parse_from(line).command else {
        unreachable!("asked for serve");
    };
    let gate = Gate::new(false);
    let held = Arc::clone(&gate);
    let service = tokio::spawn(async move { run(&args, move |_| Ok((parser(&held), model_info()))).await });
    let url = format!("http://127.0.0.1:{port}");
    let readiness = async || match reqwest::get(format!("{url}/readyz")).await {
        Ok(response) => (response.status().as_u16(), response.text().await.unwrap_or_default()),
        Err(error) => (0, error.to_string()),
    };
    while readiness().await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let parse = reqwest::Client::new()
        .post(format!("{url}/parse"))
        .json(&body(&png(200, 120)));
    let parse = tokio::spawn(parse.send());
    eventually("the parse is on the device", || gate.entered() == 1).await;
    let hung = Instant::now();
    assert_eq!(readiness().await.0, 200, "a parse may take its time");
    let reason = loop {
        match readiness().await {
            (200, _) => tokio::time::sleep(Duration::from_millis(20)).await,
            (503, reason) => break reason,
            (status, reason) => panic!("{status}: {reason}"),
        }
    };
    assert!(hung.elapsed() >= Duration::from_millis(900), "{:?}", hung.elapsed());
    assert!(reason.contains("does not answer"), "{reason}");
    let health: Value = reqwest::get(format!("{url}/health"))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(health["status"], "unhealthy");
    let refused = reqwest::Client::new()
        .post(format!("{url}/parse"))
        .json(&body(&png(200, 120)));
    assert_eq!(refused.send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);

    let ended = tokio::time::timeout(Duration::from_secs(10), service)
        .await
        .expect("ends")
        .unwrap();
    assert!(
        matches!(ended, Err(ServiceError::Wedged(bound)) if bound == Duration::from_secs(2)),
        "{ended:?}"
    );
    assert!(hung.elapsed() >= Duration::from_millis(1900), "{:?}", hung.elapsed());
    parse.abort();
    gate.open();
}

#[tokio::test]
async fn a_parse_that_ends_after_all_makes_the_service_ready_again() {
    let gate = Gate::new(false);
    let bounds = RequestLimits {
        device_timeout: Duration::from_millis(200),
        ..limits()
    };
    let service = start_gated(&gate, bounds).await;
    let request = service.client.post(format!("{}/parse", service.url));
    let parse = tokio::spawn(request.json(&body(&png(200, 120))).send());
    eventually("the parse is on the device", || gate.entered() == 1).await;
    while service.get("/readyz").await.status() == StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    assert_eq!(parse.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(service.get("/readyz").await.status(), StatusCode::OK);
    assert!(service.metric("hawkeye_device_busy_seconds_total").await > 0.1);
}
