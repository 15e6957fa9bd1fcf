//! The REST API against a fake backend.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use common::{
    FAIL_WIDTH, Gate, PANIC_WIDTH, Service, body, eventually, limits, model_info, parser, png, start, start_gated,
    start_with, with,
};
use hawkeye_inference::routes::RequestLimits;
use hawkeye_inference::serve::Ended;
use hawkeye_inference::shutdown::Phase;
use reqwest::StatusCode;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

async fn detail(response: reqwest::Response) -> (StatusCode, Value) {
    let status = response.status();
    let document: Value = response.json().await.unwrap();
    assert_eq!(document.as_object().unwrap().len(), 1, "{document}");
    (status, document["detail"].clone())
}

/// The document without what differs between runs.
async fn stable(response: reqwest::Response) -> Value {
    assert_eq!(response.status(), StatusCode::OK);
    let mut document: Value = response.json().await.unwrap();
    assert!(document["processing_time_ms"].as_f64().unwrap() > 0.0);
    document["processing_time_ms"] = json!("[time]");
    let steps = document["timings_ms"].as_object_mut().unwrap();
    for took in steps.values_mut().filter(|took| !took.is_null()) {
        assert!(took.as_f64().unwrap() >= 0.0, "{took}");
        *took = json!("[time]");
    }
    if let Some(picture) = document["som_image"].as_str() {
        let size = annotated(picture);
        document["som_image"] = json!(format!("[png {}x{}]", size.0, size.1));
    }
    document
}

/// Size of a base64 PNG that must not be the plain screenshot.
fn annotated(picture: &str) -> (u32, u32) {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(picture).unwrap();
    let picture = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .unwrap()
        .into_rgb8();
    assert!(
        picture.pixels().any(|pixel| pixel.0 != [240, 240, 240]),
        "nothing is drawn"
    );
    picture.dimensions()
}

#[tokio::test]
async fn a_parse_answers_with_the_whole_document() {
    let service = start().await;
    let response = service.post("/parse", &body(&png(200, 120))).await;
    let timing = response.headers()["server-timing"].to_str().unwrap().to_owned();
    assert!(
        ["queue", "decode", "detect", "ocr", "merge", "encode"]
            .iter()
            .all(|step| timing.contains(&format!("{step};dur="))),
        "{timing}"
    );
    assert!(response.headers().contains_key("x-request-id"));
    insta::assert_json_snapshot!(stable(response).await);
}

#[tokio::test]
async fn the_basic_mode_has_icons_only_and_null_counts() {
    let service = start().await;
    let request = with(
        with(body(&png(200, 120)), "use_full_pipeline", false),
        "include_som",
        false,
    );
    insta::assert_json_snapshot!(stable(service.post("/parse", &request).await).await);
    let without_captions = with(body(&png(200, 120)), "include_captions", false);
    let document = stable(service.post("/parse", &without_captions).await).await;
    assert_eq!(document["ocr_detected"], Value::Null);
    assert_eq!(document["elements"][0]["type"], "interactive_element");
}

#[tokio::test]
async fn options_of_the_request_reach_the_pipeline() {
    let service = start().await;
    let picture = body(&png(200, 120));
    let all = stable(service.post("/parse", &picture).await).await;
    let confident = stable(
        service
            .post("/parse", &with(picture.clone(), "min_confidence", 0.5))
            .await,
    )
    .await;
    assert_eq!(all["icon_detected"], 2);
    assert_eq!(confident["icon_detected"], 1);
    let silent = stable(
        service
            .post("/parse", &with(picture.clone(), "include_ocr", false))
            .await,
    )
    .await;
    assert_eq!(
        (&silent["ocr_detected"], &silent["text_detected"]),
        (&json!(0), &json!(0))
    );
    let plain = stable(service.post("/parse", &with(picture, "include_som", false)).await).await;
    assert_eq!(plain["som_image"], Value::Null);
}

#[tokio::test]
async fn a_data_url_and_line_breaks_are_understood() {
    let service = start().await;
    let request = body(&png(200, 120));
    let text = request["image"].as_str().unwrap();
    let (head, tail) = text.split_at(20);
    for image in [format!("data:image/png;base64,{text}"), format!("{head}\n{tail}")] {
        let response = service.post("/parse", &with(request.clone(), "image", image)).await;
        assert_eq!(stable(response).await["count"], 3);
    }
}

#[tokio::test]
async fn an_upload_takes_options_from_query_and_form() {
    let service = start().await;
    let form = |extra: &[(&'static str, &'static str)]| {
        let file = Part::bytes(png(200, 120)).file_name("shot.png");
        extra
            .iter()
            .fold(Form::new().part("file", file), |form, (name, value)| {
                form.text(*name, *value)
            })
    };
    let send = async |query: &str, form: Form| {
        let url = format!("{}/parse/upload{query}", service.url);
        service.client.post(url).multipart(form).send().await.unwrap()
    };
    let same = stable(service.post("/parse", &body(&png(200, 120))).await).await;
    assert_eq!(stable(send("", form(&[])).await).await, same);
    assert_eq!(
        stable(send("?include_som=false", form(&[])).await).await["som_image"],
        Value::Null
    );
    assert_eq!(
        stable(send("", form(&[("min_confidence", "0.5")])).await).await["icon_detected"],
        1
    );
    assert_eq!(
        stable(send("?min_confidence=0.5", form(&[("min_confidence", "0.1")])).await).await["icon_detected"],
        2
    );

    let (status, errors) = detail(send("?include_ocr=perhaps", form(&[])).await).await;
    assert_eq!(
        (status.as_u16(), &errors[0]["loc"]),
        (422, &json!(["query", "include_ocr"]))
    );
    let (status, errors) = detail(send("", Form::new().text("include_ocr", "true")).await).await;
    assert_eq!((status.as_u16(), &errors[0]["loc"]), (422, &json!(["body", "file"])));
    let (status, errors) = detail(service.post("/parse/upload", &json!({})).await).await;
    assert_eq!((status.as_u16(), &errors[0]["loc"]), (422, &json!(["body", "file"])));
    let broken = Form::new().part("file", Part::bytes(b"no picture".to_vec()).file_name("shot.png"));
    let (status, text) = detail(send("", broken).await).await;
    assert_eq!(status.as_u16(), 400, "{text}");
}

#[tokio::test]
async fn a_form_that_breaks_off_is_a_400() {
    let service = start().await;
    let response = service
        .client
        .post(format!("{}/parse/upload", service.url))
        .header("content-type", "multipart/form-data; boundary=x")
        .body("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc")
        .send()
        .await
        .unwrap();
    let (status, text) = detail(response).await;
    assert_eq!(status.as_u16(), 400);
    assert!(
        text.as_str()
            .unwrap()
            .starts_with("There was an error parsing the body"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_no_image_is_a_400_that_says_why() {
    let service = start().await;
    let mut cut = png(200, 120);
    cut.truncate(60);
    for (image, wanted) in [
        ("&&&not base64&&&".to_owned(), "not base64"),
        (String::new(), "no data"),
        (
            body(b"just some text, no picture")["image"]
                .as_str()
                .unwrap()
                .to_owned(),
            "PNG",
        ),
        (body(&cut)["image"].as_str().unwrap().to_owned(), ""),
    ] {
        let (status, text) = detail(service.post("/parse", &json!({ "image": image })).await).await;
        let text = text.as_str().unwrap().to_owned();
        assert_eq!(status.as_u16(), 400, "{text}");
        assert!(text.starts_with("Invalid image: ") && text.contains(wanted), "{text}");
    }
}

#[tokio::test]
async fn what_breaks_the_schema_is_a_422_as_fastapi_words_it() {
    let service = start().await;
    let (status, errors) = detail(service.post("/parse", &json!({ "include_som": "maybe" })).await).await;
    assert_eq!(status.as_u16(), 422);
    insta::assert_json_snapshot!(errors);
    let response = service
        .client
        .post(format!("{}/parse", service.url))
        .body("{\"image\": ")
        .send()
        .await
        .unwrap();
    let (status, errors) = detail(response).await;
    assert_eq!((status.as_u16(), &errors[0]["type"]), (422, &json!("json_invalid")));
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let service = start().await;
    let url = format!("{}/parse", service.url);
    let announced = service
        .client
        .post(&url)
        .body(vec![b' '; 3 << 20])
        .send()
        .await
        .unwrap();
    // Chunked: no length is announced, the limit falls while reading.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    let chunked = tokio::task::spawn_blocking(move || {
        stream
            .write_all(b"POST /parse HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        for _ in 0..20 {
            stream.write_all(b"10000\r\n").unwrap();
            stream.write_all(&vec![b' '; 0x10000]).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    });
    let (status, text) = detail(announced).await;
    assert_eq!(status.as_u16(), 413, "{text}");
    assert!(chunked.await.unwrap().starts_with("HTTP/1.1 413"));
    assert!(
        (service
            .metric("hawkeye_parse_requests_total{outcome=\"TooLarge\"}")
            .await
            - 2.0)
            .abs()
            < 0.1
    );
}

/// A PNG of a few hundred bytes that would unpack to 3.6 GB.
fn bomb() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 16_000, 16_000);
    encoder.set_color(png::ColorType::Rgba);
    let mut writer = encoder.write_header().unwrap();
    writer
        .write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0x03, 0, 0, 0, 0, 1])
        .unwrap();
    drop(writer);
    bytes
}

#[tokio::test]
async fn a_picture_of_too_many_pixels_is_a_413_before_it_is_unpacked() {
    let service = start().await;
    assert!(bomb().len() < 1000);
    for picture in [bomb(), png(1000, 251)] {
        let (status, text) = detail(service.post("/parse", &body(&picture)).await).await;
        assert_eq!(status.as_u16(), 413, "{text}");
        assert!(text.as_str().unwrap().contains("250000"), "{text}");
    }
    assert_eq!(
        service.post("/parse", &body(&png(1000, 250))).await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn information_routes_have_the_python_services_fields() {
    let service = start().await;
    insta::assert_json_snapshot!("root", service.get("/").await.json::<Value>().await.unwrap());
    insta::assert_json_snapshot!("health", service.get("/health").await.json::<Value>().await.unwrap());
    insta::assert_json_snapshot!(
        "models_status",
        service.get("/models/status").await.json::<Value>().await.unwrap()
    );
    assert_eq!(service.get("/livez").await.status(), StatusCode::OK);
    assert_eq!(service.get("/readyz").await.status(), StatusCode::OK);
    let metrics = service.get("/metrics").await;
    assert!(
        metrics.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(metrics.text().await.unwrap().ends_with("# EOF\n"));
}

#[tokio::test]
async fn unknown_paths_and_methods_have_a_detail_too() {
    let service = start().await;
    assert_eq!(
        detail(service.get("/nowhere").await).await,
        (StatusCode::NOT_FOUND, json!("Not Found"))
    );
    let (status, text) = detail(service.get("/parse").await).await;
    assert_eq!(
        (status, text),
        (StatusCode::METHOD_NOT_ALLOWED, json!("Method Not Allowed"))
    );
}

#[tokio::test]
async fn any_origin_may_ask() {
    let service = start().await;
    let url = format!("{}/parse", service.url);
    let preflight = service
        .client
        .request(reqwest::Method::OPTIONS, &url)
        .header("origin", "http://example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), StatusCode::OK);
    for name in [
        "access-control-allow-origin",
        "access-control-allow-methods",
        "access-control-allow-headers",
    ] {
        assert_eq!(preflight.headers()[name], "*", "{name}");
    }
    let refused = service
        .client
        .post(&url)
        .header("origin", "http://example.com")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.headers()["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn while_models_load_the_port_answers_and_says_so() {
    let (release, wait) = mpsc::channel::<()>();
    let load = move || {
        wait.recv()?;
        Ok((parser(&Gate::new(true)), model_info()))
    };
    let service = start_with(Box::new(load), limits()).await;
    assert_eq!(service.get("/livez").await.status(), StatusCode::OK);
    let ready = service.get("/readyz").await;
    assert_eq!(ready.headers()["retry-after"], "5");
    assert_eq!(
        detail(ready).await,
        (
            StatusCode::SERVICE_UNAVAILABLE,
            json!("The models are still being loaded")
        )
    );
    let parse = service.post("/parse", &body(&png(200, 120))).await;
    assert!(parse.headers().contains_key("retry-after"));
    assert_eq!(parse.status(), StatusCode::SERVICE_UNAVAILABLE);
    let health = service.get("/health").await;
    assert_eq!(health.status(), StatusCode::OK);
    let wanted = json!({ "status": "unhealthy", "version": "1.0.0", "device": "auto", "models_loaded": false,
                         "device_mismatch": null });
    assert_eq!(health.json::<Value>().await.unwrap(), wanted);
    let status: Value = service.get("/models/status").await.json().await.unwrap();
    assert_eq!(status["icon_detector"]["loaded"], false);

    release.send(()).unwrap();
    for _ in 0..500 {
        if service.get("/readyz").await.status() == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        service.post("/parse", &body(&png(200, 120))).await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_failed_load_is_reported_with_its_causes() {
    let service = start_with(Box::new(|| Err("detector.float32.pt: sha256 differs".into())), limits()).await;
    let reason = tokio::time::timeout(Duration::from_secs(5), service.engine.load_failure())
        .await
        .unwrap();
    assert_eq!(&*reason, "detector.float32.pt: sha256 differs");
    let (status, text) = detail(service.get("/readyz").await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.as_str().unwrap().contains("sha256 differs"), "{text}");

    let service = start_with(Box::new(|| panic!("libtorch is not there")), limits()).await;
    let reason = tokio::time::timeout(Duration::from_secs(5), service.engine.load_failure())
        .await
        .unwrap();
    assert!(reason.contains("libtorch is not there"), "{reason}");
}

/// Sends a parse in the background and waits until it is held.
async fn hold(service: &Service, held: usize) -> tokio::task::JoinHandle<reqwest::Result<reqwest::Response>> {
    let request = service
        .client
        .post(format!("{}/parse", service.url))
        .json(&body(&png(200, 120)));
    let task = tokio::spawn(request.send());
    for _ in 0..500 {
        if service.metric("hawkeye_parse_requests_held").await as usize >= held {
            return task;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("request {held} was not admitted within 5 s");
}

#[tokio::test]
async fn health_answers_while_a_parse_runs() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, limits()).await;
    let parse = hold(&service, 1).await;
    eventually("the parse is on the device", || gate.entered() == 1).await;
    for path in ["/health", "/models/status", "/livez", "/readyz", "/metrics", "/"] {
        let started = Instant::now();
        assert_eq!(service.get(path).await.status(), StatusCode::OK, "{path}");
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{path} took {:?}",
            started.elapsed()
        );
    }
    gate.open();
    assert_eq!(parse.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_full_queue_is_a_429_with_retry_after() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, RequestLimits { queue: 2, ..limits() }).await;
    let first = hold(&service, 1).await;
    let second = hold(&service, 2).await;
    let refused = service.post("/parse", &body(&png(200, 120))).await;
    assert!(
        refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    gate.open();
    for held in [first, second] {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(
        service.post("/parse", &body(&png(200, 120))).await.status(),
        StatusCode::OK
    );
    assert!(service.metric("hawkeye_parse_requests_held").await.abs() < 0.1);
}

#[tokio::test]
async fn a_client_that_left_costs_nothing() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, limits()).await;
    let first = hold(&service, 1).await;
    eventually("the parse is on the device", || gate.entered() == 1).await;
    let second = hold(&service, 2).await;
    let third = hold(&service, 3).await;
    second.abort();
    third.abort();
    for _ in 0..500 {
        if service
            .metric("hawkeye_parse_requests_total{outcome=\"ClientLeft\"}")
            .await
            > 1.5
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        (service.metric("hawkeye_parse_requests_held").await - 1.0).abs() < 0.1,
        "the others gave their places back"
    );
    gate.open();
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(
        service.post("/parse", &body(&png(200, 120))).await.status(),
        StatusCode::OK
    );
    assert_eq!(gate.entered(), 2, "the first and the last");
}

#[tokio::test]
async fn a_parse_over_the_time_limit_is_a_504() {
    let gate = Gate::new(false);
    let service = start_gated(
        &gate,
        RequestLimits {
            timeout: Duration::from_millis(200),
            ..limits()
        },
    )
    .await;
    let (status, _) = detail(service.post("/parse", &body(&png(200, 120))).await).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    gate.open();
}

#[tokio::test]
async fn failures_and_panics_of_the_backend_are_500s_and_the_service_goes_on() {
    let service = start().await;
    for (width, wanted) in [
        (PANIC_WIDTH, "the fake was told to panic"),
        (FAIL_WIDTH, "out of memory"),
    ] {
        let (status, text) = detail(service.post("/parse", &body(&png(width, 50))).await).await;
        let text = text.as_str().unwrap().to_owned();
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(
            text.starts_with("Error parsing screenshot: ") && text.contains(wanted),
            "{text}"
        );
    }
    assert_eq!(
        service.post("/parse", &body(&png(200, 120))).await.status(),
        StatusCode::OK
    );
    assert!((service.metric("hawkeye_device_panics_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_device_that_only_fails_is_reported_dead_until_it_recovers() {
    let service = start().await;
    for _ in 0..5 {
        assert_eq!(service.get("/livez").await.status(), StatusCode::OK);
        service.post("/parse", &body(&png(FAIL_WIDTH, 50))).await;
    }
    assert_eq!(service.get("/livez").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        service.get("/health").await.json::<Value>().await.unwrap()["status"],
        "unhealthy"
    );
    service.post("/parse", &body(&png(200, 120))).await;
    assert_eq!(service.get("/livez").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn stopping_says_unready_first_and_finishes_what_is_in_flight() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, limits()).await;
    let parse = hold(&service, 1).await;
    service.stop(Phase::LameDuck);
    let (status, text) = detail(service.get("/readyz").await).await;
    assert_eq!(
        (status, text),
        (StatusCode::SERVICE_UNAVAILABLE, json!("The service is stopping"))
    );
    let refused = async || {
        reqwest::Client::new()
            .get(format!("{}/livez", service.url))
            .send()
            .await
            .is_err()
    };
    for _ in 0..500 {
        if refused().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused().await, "the port is closed");
    assert!(!service.ended.is_finished(), "a parse is in flight");
    gate.open();
    assert_eq!(parse.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(service.ended.await.unwrap(), Ended::Drained);
}

#[tokio::test]
async fn a_second_signal_cuts_what_is_in_flight() {
    let gate = Gate::new(false);
    let service = start_gated(&gate, limits()).await;
    let parse = hold(&service, 1).await;
    service.stop(Phase::Draining);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!service.ended.is_finished());
    service.stop(Phase::AtOnce);
    assert_eq!(service.ended.await.unwrap(), Ended::Cut);
    parse.abort();
    gate.open();
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_headers_is_dropped() {
    let service = start().await;
    let port = service.port;
    let read = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: ").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map(|_| rest)
    });
    let started = Instant::now();
    let rest = read
        .await
        .unwrap()
        .expect("closed by the server, not by our own time-out");
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    assert!(started.elapsed() < Duration::from_secs(8));
}
