//! The other APIs beside OmniParser's: the Open Inference Protocol, omnitool's, and the OpenAPI document, which must say the
//! truth about all of them.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use common::{FAIL_WIDTH, Gate, Service, body, eventually, limits, png, start, start_gated, start_with, with};
use hawkeye_inference::metrics::Route;
use hawkeye_inference::routes::{RequestLimits, document};
use reqwest::StatusCode;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const INFER: &str = "/v2/models/omniparser/infer";

fn infer_body(file: &[u8]) -> Value {
    let data = body(file)["image"].clone();
    json!({ "id": "7", "inputs": [{ "name": "image", "datatype": "BYTES", "shape": [1], "data": [data] }] })
}

async fn error(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let document: Value = response.json().await.unwrap();
    assert_eq!(document.as_object().unwrap().len(), 1, "{document}");
    (status, document["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_inference_request_gets_the_document_and_tensors() {
    let service = start().await;
    let parsed: Value = service
        .post("/parse", &body(&png(200, 120)))
        .await
        .json()
        .await
        .unwrap();
    let response = service.post(INFER, &infer_body(&png(200, 120))).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("server-timing"));
    let answer: Value = response.json().await.unwrap();
    assert_eq!(
        (&answer["model_name"], &answer["model_version"], &answer["id"]),
        (&json!("omniparser"), &json!("icons"), &json!("7"))
    );
    let [response, boxes, scores] = answer["outputs"].as_array().unwrap().as_slice() else {
        panic!("three outputs: {answer}");
    };
    let inner: Value = serde_json::from_str(response["data"][0].as_str().unwrap()).unwrap();
    assert_eq!(
        (&inner["elements"], &inner["som_image"]),
        (&parsed["elements"], &parsed["som_image"])
    );
    assert_eq!((&boxes["datatype"], &boxes["shape"]), (&json!("INT32"), &json!([3, 4])));
    assert_eq!(
        boxes["data"].as_array().unwrap()[..4],
        inner["elements"][0]["bbox"].as_array().unwrap()[..]
    );
    assert_eq!((&scores["datatype"], &scores["shape"]), (&json!("FP32"), &json!([3])));
    assert_eq!(scores["data"][1], inner["elements"][1]["score"]);

    // Pixels instead of a file, with options and one output.
    let pixels = json!({
        "inputs": [{ "name": "image", "datatype": "UINT8", "shape": [120, 200, 3], "data": vec![240; 120 * 200 * 3] }],
        "parameters": { "min_confidence": 0.5, "include_som": false },
        "outputs": [{ "name": "boxes" }],
    });
    let answer: Value = service.post(INFER, &pixels).await.json().await.unwrap();
    assert_eq!(answer["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(answer["outputs"][0]["shape"], json!([2, 4]));
    assert!(answer.get("id").is_none());
}

#[tokio::test]
async fn inference_errors_have_the_protocols_form() {
    let service = start().await;
    let mut bad = infer_body(&png(200, 120));
    bad["parameters"] = json!({ "min_confidence": 3 });
    for (path, request, status, wanted) in [
        (
            "/v2/models/gpt/infer",
            infer_body(&png(9, 9)),
            404,
            "There is no model \"gpt\"",
        ),
        (INFER, json!([]), 400, "InferRequest"),
        (
            INFER,
            bad,
            400,
            "min_confidence: Input should be less than or equal to 1",
        ),
        (INFER, infer_body(b"no picture"), 400, "Invalid image"),
        (INFER, infer_body(&png(600, 600)), 413, "250000"),
        (INFER, infer_body(&png(FAIL_WIDTH, 20)), 500, "out of memory"),
    ] {
        let (found, text) = error(service.post(path, &request).await).await;
        assert_eq!(found, status, "{text}");
        assert!(text.contains(wanted), "{text}");
    }
    let binary = service
        .client
        .post(format!("{}{INFER}", service.url))
        .header("inference-header-content-length", "10")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(error(binary).await.0, 400);
    assert_eq!(error(service.get("/v2/nowhere").await).await.0, 404);
    assert_eq!(error(service.get("/v2/models/gpt").await).await.0, 404);
    assert_eq!(error(service.get("/v2/models/gpt/ready").await).await.0, 404);
    let method = service.get(INFER).await;
    assert_eq!(method.headers()["allow"], "POST");
    assert_eq!(error(method).await.0, 405);
    let outcome = "hawkeye_parse_requests_total{outcome=\"Failed\"}";
    assert!((service.metric(outcome).await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn the_protocol_says_whether_it_is_ready() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let load = move || {
        wait.recv()?;
        Ok((common::parser(&Gate::new(true)), common::model_info()))
    };
    let service = start_with(Box::new(load), limits()).await;
    let live: Value = service.get("/v2/health/live").await.json().await.unwrap();
    assert_eq!(live, json!({ "live": true }));
    for path in ["/v2/health/ready", "/v2/models/omniparser/ready"] {
        let response = service.get(path).await;
        assert!(response.headers().contains_key("retry-after"));
        let (status, text) = error(response).await;
        assert_eq!((status, text.as_str()), (503, "The models are still being loaded"));
    }
    assert_eq!(error(service.post(INFER, &infer_body(&png(9, 9))).await).await.0, 503);
    release.send(()).unwrap();
    eventually("the models are loaded", || {
        matches!(service.engine.state(), hawkeye_inference::engine::ModelState::Ready(_))
    })
    .await;
    let get = async |path: &str| service.get(path).await.json::<Value>().await.unwrap();
    assert_eq!(get("/v2/health/ready").await, json!({ "ready": true }));
    assert_eq!(
        get("/v2/models/omniparser/ready").await,
        json!({ "name": "omniparser", "ready": true })
    );
    assert_eq!(get("/v2").await["name"], "hawkeye");
    let model = get("/v2/models/omniparser").await;
    assert_eq!(model["versions"], json!(["icons"]));
    assert_eq!(
        model["inputs"][0],
        json!({ "name": "image", "datatype": "BYTES", "shape": [1] })
    );
    assert_eq!(
        model["outputs"][1],
        json!({ "name": "boxes", "datatype": "INT32", "shape": [-1, 4] })
    );
}

#[tokio::test]
async fn omnitools_clients_find_their_fields() {
    let service = start().await;
    assert_eq!(
        service.get("/probe/").await.json::<Value>().await.unwrap(),
        json!({ "message": "Omniparser API ready" })
    );
    let request = json!({ "base64_image": body(&png(200, 120))["image"] });
    let answer: Value = service.post("/parse/", &request).await.json().await.unwrap();
    assert!(answer["latency"].as_f64().unwrap() > 0.0);
    assert!(answer["som_image_base64"].as_str().unwrap().starts_with("iVBOR"));
    let icon = answer["parsed_content_list"]
        .as_array()
        .unwrap()
        .iter()
        .find(|element| element["source"] == "box_yolo_content_ocr")
        .unwrap();
    assert_eq!((&icon["type"], &icon["content"]), (&json!("icon"), &json!("Save")));
    assert_eq!(icon["interactivity"], true);
    let shares: Vec<f64> = icon["bbox"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share.as_f64().unwrap())
        .collect();
    for (found, wanted) in shares.iter().zip([0.05, 10.0 / 120.0, 0.25, 0.25]) {
        assert!((found - wanted).abs() < 1e-6, "{shares:?}");
    }
    let missing = service.post("/parse/", &body(&png(9, 9))).await;
    assert_eq!(missing.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let detail: Value = missing.json().await.unwrap();
    assert_eq!(detail["detail"][0]["loc"], json!(["body", "base64_image"]));
}

fn openapi() -> Value {
    serde_json::to_value(document()).unwrap()
}

#[tokio::test]
async fn every_route_is_in_the_document() {
    let service = start().await;
    let answered: Value = service.get("/openapi.json").await.json().await.unwrap();
    let document = openapi();
    assert_eq!(answered, document);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let documented: BTreeSet<&str> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();

    // What the router itself serves: it lists its paths only in its debug form.
    let debug = format!("{:?}", service.router);
    let paths = debug
        .split_once("node: Node { paths: {")
        .unwrap()
        .1
        .split_once("} }")
        .unwrap()
        .0;
    let served: BTreeSet<&str> = paths.split('"').skip(1).step_by(2).collect();
    assert!(
        served.contains("/parse") && served.contains("/v2/models/{model}"),
        "{served:?}"
    );
    assert_eq!(served, documented);

    // Each has a label of its own in the metrics, and a description of what it can answer.
    for (path, item) in document["paths"].as_object().unwrap() {
        assert_ne!(Route::of(path), Route::Other, "{path}");
        for operation in item.as_object().unwrap().values() {
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{path}"
            );
            assert!(
                operation["tags"].as_array().is_some_and(|tags| tags.len() == 1),
                "{path}"
            );
            for (status, answer) in operation["responses"].as_object().unwrap() {
                assert!(!answer["description"].as_str().unwrap().is_empty(), "{path} {status}");
            }
        }
    }
}

/// Fails unless the document has this answer, and its schema fits.
async fn documented(document: &Value, path: &str, response: reqwest::Response) {
    let method = if path.ends_with("/infer") || path.starts_with("/parse") {
        "post"
    } else {
        "get"
    };
    let status = response.status();
    let answer = &document["paths"][path][method]["responses"][status.as_str()];
    assert!(answer.is_object(), "{path} answers {status}");
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    for (name, _) in answer["headers"].as_object().into_iter().flatten() {
        assert!(
            response.headers().contains_key(name.as_str()),
            "{path} {status} has no {name}"
        );
    }
    let (media, content) = answer["content"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(kind.split(';').next(), media.split(';').next(), "{path} {status}");
    let value = if media == "application/json" {
        response.json().await.unwrap()
    } else {
        Value::from(response.text().await.unwrap())
    };
    // The components come along, for the references.
    let schema = json!({ "allOf": [content["schema"]], "components": document["components"] });
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{path} {status}: {errors:?}\n{value}");
}

/// As [`documented`], for schemas that must not allow more than is answered.
fn allows_nothing_else(document: &Value, schema: &str, value: &Value) {
    let known: BTreeSet<&String> = document["components"]["schemas"][schema]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    let found: BTreeSet<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(known, found, "{schema}");
}

async fn upload(service: &Service, form: Form) -> reqwest::Response {
    let url = format!("{}/parse/upload", service.url);
    service.client.post(url).multipart(form).send().await.unwrap()
}

#[tokio::test]
async fn real_answers_are_as_documented() {
    let document = openapi();
    let service = start().await;
    let picture = body(&png(200, 120));
    for path in [
        "/",
        "/health",
        "/device",
        "/models/status",
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
        "/probe/",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
        "/docs",
    ] {
        documented(&document, path, service.get(path).await).await;
    }
    documented(
        &document,
        "/v2/models/{model}",
        service.get("/v2/models/omniparser").await,
    )
    .await;
    documented(&document, "/v2/models/{model}", service.get("/v2/models/gpt").await).await;
    documented(
        &document,
        "/v2/models/{model}/ready",
        service.get("/v2/models/omniparser/ready").await,
    )
    .await;

    let full: Value = service.post("/parse", &picture).await.json().await.unwrap();
    allows_nothing_else(&document, "ParseResponse", &full);
    allows_nothing_else(&document, "Element", &full["elements"][0]);
    allows_nothing_else(&document, "TimingsMs", &full["timings_ms"]);
    for (name, value) in [
        ("include_captions", json!(true)),
        ("use_full_pipeline", json!(false)),
        ("include_som", json!("perhaps")),
        ("iou_threshold", json!(-1)),
        ("image", json!("no picture")),
        ("image", body(&png(600, 600))["image"].clone()),
        ("image", body(&png(FAIL_WIDTH, 9))["image"].clone()),
    ] {
        documented(
            &document,
            "/parse",
            service.post("/parse", &with(picture.clone(), name, value)).await,
        )
        .await;
    }
    let file = || Form::new().part("file", Part::bytes(png(200, 120)).file_name("shot.png"));
    documented(&document, "/parse/upload", upload(&service, file()).await).await;
    documented(
        &document,
        "/parse/upload",
        upload(&service, file().text("include_som", "perhaps")).await,
    )
    .await;
    let omnitool = json!({ "base64_image": picture["image"] });
    documented(&document, "/parse/", service.post("/parse/", &omnitool).await).await;
    documented(&document, "/parse/", service.post("/parse/", &json!({})).await).await;
    let v2 = "/v2/models/{model}/infer";
    for request in [
        infer_body(&png(200, 120)),
        infer_body(b""),
        infer_body(&png(600, 600)),
        infer_body(&png(FAIL_WIDTH, 9)),
    ] {
        documented(&document, v2, service.post(INFER, &request).await).await;
    }
    documented(&document, v2, service.post("/v2/models/gpt/infer", &json!({})).await).await;
}

#[tokio::test]
async fn refusals_under_load_are_as_documented() {
    let document = openapi();
    let gate = Gate::new(false);
    let tight = RequestLimits {
        queue: 1,
        timeout: Duration::from_millis(1500),
        ..limits()
    };
    let service = start_gated(&gate, tight).await;
    let picture = body(&png(200, 120));
    let (late, busy) = tokio::join!(service.post("/parse", &picture), async {
        while service.metric("hawkeye_parse_requests_held").await < 0.5 {}
        let parse = service.post("/parse", &picture).await;
        let infer = service.post(INFER, &infer_body(&png(200, 120))).await;
        [("/parse", parse), ("/v2/models/{model}/infer", infer)]
    });
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    documented(&document, "/parse", late).await;
    for (path, response) in busy {
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        documented(&document, path, response).await;
    }
    gate.open();

    // Never loaded.
    let (_keep, wait) = std::sync::mpsc::channel::<()>();
    let load = move || Err(wait.recv().map_or_else(Into::into, |()| "released".into()));
    let service = start_with(Box::new(load), limits()).await;
    for path in ["/readyz", "/startupz", "/v2/health/ready"] {
        documented(&document, path, service.get(path).await).await;
    }
    documented(&document, "/parse", service.post("/parse", &body(&png(9, 9))).await).await;
    for path in ["/device", "/models/status", "/health"] {
        documented(&document, path, service.get(path).await).await;
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let service = start().await;
    let page = service.get("/docs").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("http"),
        "{policy}"
    );
    assert!(
        page.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    let page = page.text().await.unwrap();
    assert!(page.contains("fetch(\"openapi.json\")"));
    for foreign in ["http://", "https://", "src=\"//", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let redoc = client.get(format!("{}/redoc", service.url)).send().await.unwrap();
    assert_eq!(
        (redoc.status().as_u16(), &redoc.headers()["location"]),
        (307, &"docs".parse().unwrap())
    );
}

/// A good thousand of requests made up from the document: no server error, and no answer that the document does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() {
    let service = start().await;
    let url = format!("{}/openapi.json", service.url);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                  response_schema_conformance,unsupported_method";
    let folder = tempfile::tempdir().unwrap();
    // In setup's Python environment; elsewhere it must be on PATH.
    let program = std::env::var_os("HAWKEYE_PYTHON").map_or_else(
        || PathBuf::from("schemathesis"),
        |python| Path::new(&python).with_file_name("schemathesis"),
    );
    let run = tokio::process::Command::new(&program)
        .current_dir(folder.path())
        .args([
            "run",
            &url,
            "--checks",
            checks,
            "--max-examples",
            "100",
            "--seed",
            "1",
            "--no-color",
        ])
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}; `make setup` installs it", program.display()));
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
}
