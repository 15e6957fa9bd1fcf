//! The log of a service. One test: subscribers of several would get in each other's way.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

mod common;

use common::{body, png, start};
use serde_json::Value;
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_requests_id_is_in_its_answer_and_in_the_log() {
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || written.clone())
        .finish();
    // The runtime has this one thread, so the service logs here, too.
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = start().await;
    let send = |id: Option<&str>| {
        let request = service
            .client
            .post(format!("{}/parse", service.url))
            .json(&body(&png(200, 120)));
        match id {
            Some(id) => request.header("x-request-id", id),
            None => request,
        }
        .send()
    };
    let own = send(Some("agent-7/step-3")).await.unwrap();
    assert_eq!(own.headers()["x-request-id"], "agent-7/step-3");
    let made = send(None).await.unwrap().headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for id in ["agent-7/step-3", &made] {
        let line = text
            .lines()
            .find(|line| line.contains(id))
            .unwrap_or_else(|| panic!("no {id} in\n{text}"));
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["message"], &line["status"]),
            (&"answered".into(), &200.into()),
            "{line}"
        );
        assert_eq!(line["span"]["path"], "/parse", "{line}");
        assert!(line["steps"].as_str().unwrap().contains("detect;dur="), "{line}");
    }
}
