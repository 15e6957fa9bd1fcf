//! Which device a service runs on, and what it says and does when that is not the expected one.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use common::{Gate, Service, WARM_UP_TIME, body, expectation, limits, model_info, parser, png, start_expecting};
use hawkeye_inference::device::{Denied, Expectation, OnMismatch, choose};
use hawkeye_inference::engine::{ModelEntry, ModelInfo, ModelState};
use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};
use reqwest::StatusCode;
use serde_json::{Value, json};

async fn json_of(service: &Service, path: &str) -> Value {
    let response = service.get(path).await;
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    response.json().await.unwrap()
}

#[derive(Debug, thiserror::Error)]
#[error("the device cuda is not there: {0}")]
struct NoGpu(&'static str);

const NO_LIBRARY: &str = "libtorch_cuda.so cannot be opened: no such file";

/// A service meant for a GPU on a machine that has none.
async fn without_gpu(on_mismatch: OnMismatch) -> Service {
    let expectation = Expectation {
        device: Some(DeviceKind::Cuda),
        dtype: Some(DType::BFloat16),
        batch_size: Some(128),
        on_mismatch,
    };
    let load = move || {
        let choice = choose(
            DeviceChoice::Only(DeviceKind::Cuda),
            &expectation,
            |choice| match choice {
                DeviceChoice::Only(DeviceKind::Cuda) => Err(NoGpu(NO_LIBRARY)),
                _ => Ok(DeviceKind::Cpu),
            },
        )?;
        let mut info = model_info();
        (info.device, info.mismatch) = (choice.kind, choice.mismatch);
        Ok((parser(&Gate::new(true)), info))
    };
    let service = start_expecting(Box::new(load), limits(), expectation).await;
    common::eventually("it is settled what runs", || {
        !matches!(service.engine.state(), ModelState::Loading)
    })
    .await;
    service
}

#[tokio::test]
async fn the_report_has_everything_and_a_measured_warm_up() {
    let expected = Expectation {
        device: Some(DeviceKind::Cpu),
        batch_size: Some(16),
        ..expectation()
    };
    let load = || Ok((parser(&Gate::new(true)), model_info()));
    let service = start_expecting(Box::new(load), limits(), expected).await;
    let loading = json_of(&service, "/device").await;
    assert!(
        loading["state"] == "loading" && loading["device"].is_null() && loading["matches"].is_null()
            || loading["state"] == "ready",
        "{loading}"
    );
    common::eventually("the models are loaded", || {
        matches!(service.engine.state(), ModelState::Ready(_))
    })
    .await;
    let mut report = json_of(&service, "/device").await;
    let warm_up = report["warm_up_ms"].as_f64().unwrap();
    assert!(warm_up >= WARM_UP_TIME.as_secs_f64() * 1e3, "{warm_up} ms");
    report["warm_up_ms"] = json!("[time]");
    insta::assert_json_snapshot!("device", report);
    assert!(service.metric("hawkeye_warm_up_seconds").await >= WARM_UP_TIME.as_secs_f64());
    assert!(service.metric("hawkeye_device_mismatch").await.abs() < f64::EPSILON);
}

#[tokio::test]
async fn degrade_serves_on_the_processor_and_says_so_everywhere() {
    let service = without_gpu(OnMismatch::Degrade).await;
    let report = json_of(&service, "/device").await;
    assert_eq!(
        (&report["state"], &report["device"]),
        (&json!("ready"), &json!("cpu")),
        "{report}"
    );
    assert_eq!(
        (&report["matches"], &report["expected"]["device"]),
        (&json!(false), &json!("cuda"))
    );
    assert!(report["cause"].as_str().unwrap().contains(NO_LIBRARY), "{report}");
    let health = json_of(&service, "/health").await;
    assert_eq!(
        (&health["status"], &health["device"]),
        (&json!("healthy"), &json!("cpu"))
    );
    assert!(
        health["device_mismatch"].as_str().unwrap().contains(NO_LIBRARY),
        "{health}"
    );
    assert!((service.metric("hawkeye_device_mismatch").await - 1.0).abs() < f64::EPSILON);
    for path in ["/readyz", "/startupz", "/livez"] {
        assert_eq!(service.get(path).await.status(), StatusCode::OK, "{path}");
    }
    let parsed = service.post("/parse", &body(&png(200, 120))).await;
    assert_eq!(parsed.status(), StatusCode::OK);
}

#[tokio::test]
async fn deny_stays_alive_but_is_never_ready() {
    let service = without_gpu(OnMismatch::Deny).await;
    let report = json_of(&service, "/device").await;
    assert_eq!(
        (&report["state"], &report["matches"]),
        (&json!("denied"), &json!(false))
    );
    assert!(report["device"].is_null(), "{report}");
    assert!(report["cause"].as_str().unwrap().contains(NO_LIBRARY), "{report}");

    let unready = service.get("/readyz").await;
    assert_eq!(unready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(unready.text().await.unwrap().contains(NO_LIBRARY));
    let refused = service.post("/parse", &body(&png(200, 120))).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Neither probe that would start it again in vain.
    for path in ["/startupz", "/livez"] {
        assert_eq!(service.get(path).await.status(), StatusCode::OK, "{path}");
    }
    let health = json_of(&service, "/health").await;
    assert_eq!(
        (&health["status"], &health["models_loaded"]),
        (&json!("unhealthy"), &json!(false))
    );
    assert!(
        health["device_mismatch"].as_str().unwrap().contains(NO_LIBRARY),
        "{health}"
    );
    assert!((service.metric("hawkeye_device_mismatch").await - 1.0).abs() < f64::EPSILON);
    let forever = tokio::time::timeout(std::time::Duration::from_millis(200), service.engine.load_failure());
    assert!(forever.await.is_err(), "a denial must not end the process");
}

#[tokio::test]
async fn another_number_format_than_asked_for_is_told() {
    let expected = Expectation {
        dtype: Some(DType::BFloat16),
        ..expectation()
    };
    let with_captioner = |info: ModelInfo| ModelInfo {
        captioner: Some(ModelEntry {
            name: "florence".to_owned(),
            ..info.detector.clone()
        }),
        ..info
    };
    let load = move || Ok((parser(&Gate::new(true)), with_captioner(model_info())));
    let service = start_expecting(Box::new(load), limits(), expected).await;
    common::eventually("the models are loaded", || {
        matches!(service.engine.state(), ModelState::Ready(_))
    })
    .await;
    let report = json_of(&service, "/device").await;
    assert_eq!(
        (&report["dtype"], &report["matches"]),
        (&json!("float32"), &json!(false))
    );
    assert_eq!(
        report["cause"],
        "the bundle has no bfloat16 file of florence, so float32 runs"
    );
    // The device is the right one.
    assert!(json_of(&service, "/health").await["device_mismatch"].is_null());
}

/// Detector and text models exist in one format only, so there is nothing that could differ.
#[tokio::test]
async fn without_a_captioner_no_number_format_is_missed() {
    let expected = Expectation {
        dtype: Some(DType::BFloat16),
        ..expectation()
    };
    let load = || Ok((parser(&Gate::new(true)), model_info()));
    let service = start_expecting(Box::new(load), limits(), expected).await;
    common::eventually("the models are loaded", || {
        matches!(service.engine.state(), ModelState::Ready(_))
    })
    .await;
    let report = json_of(&service, "/device").await;
    assert_eq!((&report["dtype"], &report["matches"]), (&json!(null), &json!(true)));
}

#[tokio::test]
async fn a_device_that_fails_the_first_parse_is_never_ready() {
    struct Broken;
    impl hawkeye_pipeline::model::Detector for Broken {
        fn detect(
            &mut self,
            _: &image::RgbImage,
            _: f32,
        ) -> Result<Vec<hawkeye_pipeline::model::Detection>, hawkeye_pipeline::model::ModelError> {
            Err(hawkeye_pipeline::model::ModelError::Backend {
                model: "detector",
                message: "no kernel image is available".to_owned(),
            })
        }
    }
    let load = || {
        let parser = hawkeye_pipeline::parser::Parser::new(Box::new(Broken), None, None);
        Ok((parser, model_info()))
    };
    let service = start_expecting(Box::new(load), limits(), expectation()).await;
    let reason = tokio::time::timeout(std::time::Duration::from_secs(5), service.engine.load_failure())
        .await
        .unwrap();
    assert!(reason.contains("no kernel image is available"), "{reason}");
    assert_eq!(service.get("/startupz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn a_denial_is_told_apart_from_other_errors() {
    let denied = Denied {
        expected: DeviceKind::Cuda,
        cause: NO_LIBRARY.to_owned(),
    };
    assert_eq!(denied.to_string(), format!("expected the device cuda: {NO_LIBRARY}"));
}

/// The program with libtorch, on a machine whose GPUs, if any, are hidden from it.
#[cfg(feature = "torch")]
mod program {
    use serde_json::Value;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    struct Program {
        child: Child,
        url: String,
    }

    impl Drop for Program {
        fn drop(&mut self) {
            // It may have ended already.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }

    fn serve(bundle: &Path, on_mismatch: &str) -> Program {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new(env!("CARGO_BIN_EXE_hawkeye-inference"))
            .arg("serve")
            .env_remove("RUST_LOG")
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("OMNIPARSER_HOST", "127.0.0.1")
            .env("OMNIPARSER_PORT", port.to_string())
            .env("OMNIPARSER_DEVICE", "cuda")
            .env("OMNIPARSER_MODEL_DTYPE", "bfloat16")
            .env("OMNIPARSER_BATCH_SIZE", "128")
            .env("HAWKEYE_EXPECT_DEVICE", "cuda")
            .env("HAWKEYE_ON_MISMATCH", on_mismatch)
            .env("HAWKEYE_BUNDLE", bundle)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Program {
            child,
            url: format!("http://127.0.0.1:{port}"),
        }
    }

    impl Program {
        /// The report, once its state is `wanted`.
        async fn report(&mut self, wanted: &str) -> Value {
            let started = Instant::now();
            loop {
                if let Ok(answer) = reqwest::get(format!("{}/device", self.url)).await {
                    let report: Value = answer.json().await.unwrap();
                    if report["state"] == wanted {
                        return report;
                    }
                    assert_eq!(report["state"], "loading", "{report}");
                }
                assert!(self.child.try_wait().unwrap().is_none(), "it has ended");
                assert!(started.elapsed() < Duration::from_mins(2), "never {wanted}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }

        async fn status(&self, path: &str) -> u16 {
            let answer = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
            answer.status().as_u16()
        }
    }

    #[tokio::test]
    async fn without_a_gpu_deny_waits_for_someone_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = format!(
            r#"{{"formatVersion":1,"name":"t","models":[{{"role":"detector","name":"n","architecture":"yolo11m","licence":"MIT",
                "imageSize":1280,"stride":32,"files":[{{"dtype":"float32","path":"d.pt","sha256":"{}"}}]}}]}}"#,
            "0".repeat(64)
        );
        std::fs::write(folder.path().join("bundle.json"), manifest).unwrap();
        let mut program = serve(folder.path(), "deny");
        let report = program.report("denied").await;
        let cause = report["cause"].as_str().unwrap();
        assert!(cause.contains("the device cuda is not there"), "{cause}");
        assert!(
            cause.contains("libtorch_cuda.so cannot be opened") || cause.contains("CUDA_VISIBLE_DEVICES=\"\""),
            "{cause}"
        );
        assert_eq!(program.status("/readyz").await, 503);
        assert_eq!(program.status("/livez").await, 200);
        assert_eq!(program.status("/startupz").await, 200);
    }

    #[tokio::test]
    async fn without_a_gpu_degrade_serves_the_real_models_on_the_processor() {
        let cache = std::env::var_os("HAWKEYE_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/hawkeye"),
            PathBuf::from,
        );
        let bundle = std::env::var_os("HAWKEYE_TEST_BUNDLE").map_or_else(|| cache.join("bundles/demo"), PathBuf::from);
        assert!(
            bundle.join("bundle.json").exists(),
            "this test needs the demo bundle: run `make bundle`"
        );
        let mut program = serve(&bundle, "degrade");
        let report = program.report("ready").await;
        assert_eq!(report["device"], "cpu", "{report}");
        // The demo's bundle has no captioner.
        assert!(report["dtype"].is_null(), "{report}");
        assert_eq!(report["batch_size"], 16, "{report}");
        assert_eq!(report["matches"], false, "{report}");
        assert!(report["threads"].as_u64().unwrap() >= 1, "{report}");
        // The detector alone needs more than this on any processor.
        assert!(report["warm_up_ms"].as_f64().unwrap() > 1.0, "{report}");
        assert!(
            report["cause"]
                .as_str()
                .unwrap()
                .contains("the device cuda is not there"),
            "{report}"
        );
        assert_eq!(program.status("/readyz").await, 200);
    }
}
