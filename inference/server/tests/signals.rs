//! The whole of `serve` with real signals. One test: signals reach the whole process.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use clap::Parser as _;
use common::{Gate, body, eventually, model_info, parser, png};
use hawkeye_inference::config::{Cli, Command, ServeArgs};
use hawkeye_inference::serve::Ended;
use hawkeye_inference::service::{ServiceError, run};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn args(more: &[&str]) -> ServeArgs {
    let mut line = vec![
        "hawkeye-inference",
        "serve",
        "--host",
        "127.0.0.1",
        "--lame-duck",
        "300ms",
    ];
    line.extend(more);
    match Cli::parse_from(line).command {
        Command::Serve(args) => *args,
        _ => unreachable!("asked for serve"),
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn signal(name: &str) {
    let pid = std::process::id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_service_lives_from_its_port_to_its_signal() {
    // A load that fails ends it.
    let failed = run(&args(&["--port", "0"]), |_| Err("no bundle.json".into())).await;
    assert!(
        matches!(&failed, Err(ServiceError::Load(reason)) if &**reason == "no bundle.json"),
        "{failed:?}"
    );

    // So does a port that is taken, before anything is loaded.
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = run(&args(&["--port", &port]), |_| unreachable!("not to be loaded")).await;
    assert!(matches!(refused, Err(ServiceError::Listen { .. })), "{refused:?}");

    // SIGTERM: unready while the port still answers, then the end, with nothing cut.
    let port = free_port().to_string();
    let settings = args(&["--port", &port]);
    let service = tokio::spawn(async move { run(&settings, |_| Ok((parser(&Gate::new(true)), model_info()))).await });
    let status = async |port: &str| {
        reqwest::get(format!("http://127.0.0.1:{port}/readyz"))
            .await
            .map(|response| response.status().as_u16())
            .ok()
    };
    let until = async |port: &str, wanted: Option<u16>| {
        let started = Instant::now();
        while status(port).await != wanted {
            assert!(started.elapsed() < Duration::from_secs(10), "no {wanted:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until(&port, Some(200)).await;
    signal("TERM");
    until(&port, Some(503)).await;
    until(&port, None).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), service)
        .await
        .expect("ends")
        .unwrap();
    assert_eq!(ended.unwrap(), Ended::Drained);

    // A second one ends it at once, whatever is in flight.
    let port = free_port().to_string();
    let settings = args(&["--port", &port, "--drain-timeout", "10m"]);
    let gate = Gate::new(false);
    let held = Arc::clone(&gate);
    let service = tokio::spawn(async move { run(&settings, move |_| Ok((parser(&held), model_info()))).await });
    until(&port, Some(200)).await;
    let parse = reqwest::Client::new()
        .post(format!("http://127.0.0.1:{port}/parse"))
        .json(&body(&png(200, 120)))
        .send();
    let parse = tokio::spawn(parse);
    eventually("the parse is on the device", || gate.entered() == 1).await;
    signal("TERM");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!service.is_finished(), "a parse is in flight");
    let second = Instant::now();
    signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(10), service)
        .await
        .expect("ends")
        .unwrap();
    assert_eq!(ended.unwrap(), Ended::Cut);
    assert!(second.elapsed() < Duration::from_secs(1), "{:?}", second.elapsed());
    parse.abort();
    gate.open();
}
