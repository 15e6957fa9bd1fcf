//! The program itself. What needs models is tested where the models are; here it is exit codes, messages and signals.

#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawkeye-inference"));
    command.env_remove("RUST_LOG");
    command
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, stdout } = program().args(args).output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn png(path: &Path) -> String {
    image::RgbImage::new(64, 48).save(path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn errors_have_a_message_and_a_code_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let shot = png(&folder.path().join("shot.png"));
    let bundle = folder.path().to_str().unwrap();
    for (args, code, wanted) in [
        (
            &["parse", &shot, "--bundle", bundle][..],
            1,
            "cannot load the models: cannot read",
        ),
        (
            &["serve", "--host", "127.0.0.1", "--port", "0", "--bundle", bundle],
            1,
            "bundle.json: No such file",
        ),
        (
            &["serve", "--host", "192.0.2.1"],
            1,
            "cannot listen on 192.0.2.1 port 9989",
        ),
        (
            &["parse", &shot, "--device", "tpu"],
            2,
            "expected auto, cuda, mps or cpu",
        ),
        (&["parse"], 2, "<IMAGE>"),
        (&["parse", "nowhere.png"], 3, "nowhere.png: No such file"),
        (&["parse", "Cargo.toml"], 3, "Cargo.toml: bad image: not a PNG"),
    ] {
        let (found, message) = run(args);
        assert_eq!(found, Some(code), "{args:?}: {message}");
        assert!(message.contains(wanted), "{args:?}: {message}");
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
}

#[test]
fn a_json_log_holds_the_reason_of_the_end() {
    let (code, message) = run(&[
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--bundle",
        "/nonexistent",
        "--log-format",
        "json",
    ]);
    assert_eq!(code, Some(1), "{message}");
    let last: serde_json::Value = serde_json::from_str(message.lines().last().unwrap()).unwrap();
    assert_eq!((&last["level"], &last["message"]), (&"ERROR".into(), &"ended".into()));
    assert!(
        last["error"].as_str().unwrap().contains("/nonexistent/bundle.json"),
        "{last}"
    );
}

#[test]
fn a_damaged_bundle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shot = png(&folder.path().join("shot.png"));
    let zeros = "0".repeat(64);
    let manifest = format!(
        r#"{{"formatVersion":1,"name":"t","models":[{{"role":"detector","name":"n","architecture":"yolo11m","licence":"MIT",
            "imageSize":1280,"stride":32,"files":[{{"dtype":"float32","path":"d.pt","sha256":"{zeros}"}}]}}]}}"#
    );
    std::fs::write(folder.path().join("bundle.json"), manifest).unwrap();
    std::fs::write(folder.path().join("d.pt"), b"other bytes").unwrap();
    let (code, message) = run(&[
        "parse",
        &shot,
        "--device",
        "cpu",
        "--bundle",
        folder.path().to_str().unwrap(),
    ]);
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains("d.pt has sha256") && message.contains(&zeros),
        "{message}"
    );
}

#[test]
fn a_bundle_of_random_weights_is_refused_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let shot = png(&folder.path().join("shot.png"));
    std::fs::write(
        folder.path().join("bundle.json"),
        r#"{"formatVersion":1,"name":"t","testOnly":true,"models":[]}"#,
    )
    .unwrap();
    let bundle = folder.path().to_str().unwrap();
    let parse = &["parse", &shot, "--device", "cpu", "--bundle", bundle][..];
    let serve = &[
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--device",
        "cpu",
        "--bundle",
        bundle,
    ][..];
    for command in [parse, serve] {
        let (code, message) = run(command);
        assert_eq!(code, Some(1), "{message}");
        assert!(
            message.contains("testOnly") && message.contains("--allow-test-bundle"),
            "{message}"
        );
        // The next thing to be missed is the detector.
        let (code, message) = run(&[command, &["--allow-test-bundle"]].concat());
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains("no model for the role detector"), "{message}");
    }
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn the_port_answers_while_models_load_and_sigterm_ends_it_with_success() {
    let folder = tempfile::tempdir().unwrap();
    // A pipe that nobody writes to: loading never ends.
    let pipe = folder.path().join("bundle.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut service = program()
        .args(["serve", "--log-format", "json", "--lame-duck", "200ms"])
        .env("OMNIPARSER_HOST", "127.0.0.1")
        .env("OMNIPARSER_PORT", port.to_string())
        .env("HAWKEYE_BUNDLE", folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let alive = loop {
        if let Some(answer) = get(port, "/livez") {
            break answer;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the port does not answer");
        std::thread::sleep(Duration::from_millis(20));
    };
    let unready = get(port, "/readyz");
    assert!(
        Command::new("kill")
            .arg(service.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    let status = service.wait().unwrap();
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    assert!(unready.is_some_and(|answer| answer.starts_with("HTTP/1.1 503") && answer.contains("still being loaded")));
    assert_eq!(status.code(), Some(0));
    let mut log = String::new();
    service.stderr.unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |message: &str| lines.iter().any(|line| line["message"] == message);
    assert!(
        said("listening; models are being loaded") && said("stopping") && said("stopped"),
        "{log}"
    );
}

/// Answers one request with these bytes and gives back its first line.
fn answer_once(bytes: &'static [u8]) -> (u16, std::thread::JoinHandle<String>) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        stream.write_all(bytes).unwrap();
        String::from_utf8(head).unwrap().lines().next().unwrap().to_owned()
    });
    (port, thread)
}

#[test]
fn a_fetch_goes_through_the_proxies_of_the_environment_and_leaves_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (out, message) = (folder.path().join("bundle"), folder.path().join("message"));
    let fetch = |url: &str, proxy: &str, port: u16| {
        let Output { status, stderr, .. } = program()
            .args(["fetch", "--attempts", "1", "--sha256", &"0".repeat(64), "--url", url])
            .arg("--out")
            .arg(&out)
            .arg("--message-file")
            .arg(&message)
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .env(proxy, format!("http://127.0.0.1:{port}"))
            .output()
            .unwrap();
        let said = String::from_utf8(stderr).unwrap();
        let left = std::fs::read_to_string(&message).unwrap();
        let last = said.lines().last().unwrap().trim_start_matches("hawkeye-inference: ");
        assert!(left.ends_with(last), "{left}\n{said}");
        (status.code(), left)
    };
    let (port, proxy) = answer_once(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    let (code, left) = fetch("http://models.example/b.tar?signature=secret", "http_proxy", port);
    assert_eq!(
        proxy.join().unwrap(),
        "GET http://models.example/b.tar?signature=secret HTTP/1.1"
    );
    assert_eq!(code, Some(3), "{left}");
    assert!(
        left.contains("http://models.example/b.tar answers 404") && !left.contains("secret"),
        "{left}"
    );

    let (port, proxy) = answer_once(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    let (code, left) = fetch("https://models.example/b.tar", "https_proxy", port);
    assert_eq!(proxy.join().unwrap(), "CONNECT models.example:443 HTTP/1.1");
    assert_eq!(code, Some(1), "{left}");
    assert!(left.contains("makes no tunnel: HTTP/1.1 403 Forbidden"), "{left}");

    // What speaks no TLS is not spoken to.
    let (port, proxy) = answer_once(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n");
    let (code, left) = fetch("https://models.example/b.tar", "https_proxy", port);
    proxy.join().unwrap();
    assert_eq!(code, Some(1), "{left}");
    assert!(left.contains("no secure connection to models.example"), "{left}");
    assert!(!out.exists());
}

#[test]
fn a_fetch_ends_at_once_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut fetch = program()
        .args(["fetch", "--sha256", &"0".repeat(64), "--url"])
        .arg(format!("http://{}/b", listener.local_addr().unwrap()))
        .arg("--out")
        .arg(folder.path().join("bundle"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It has connected, and waits for an answer that never comes.
    let _silent = listener.accept().unwrap();
    let pid = fetch.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert_eq!(fetch.wait().unwrap().code(), Some(143));
}
