//! When who is asked, and what becomes of the answers.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use hawkeye_crds::v1alpha1::Reason;
use kube::runtime::{reflector, watcher::Event};
use serde_json::json;

use super::*;

/// A pod of ours that runs, ready or not, on its n-th start.
fn pod(name: &str, ready: bool, starts: i32) -> Pod {
    let status = if ready { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "screens", "uid": name,
            "labels": {
                "app.kubernetes.io/managed-by": "hawkeye-operator",
                "app.kubernetes.io/instance": "demo",
                "hawkeye.bytebot.ai/class": "cuda-amd64",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-cuda-amd64-7c9f", "uid": "rs",
                "controller": true,
            }],
        },
        "spec": {"containers": [
            {"name": "side", "env": [{"name": "OMNIPARSER_DEVICE", "value": "cpu"}]},
            {"name": "inference", "env": [
                {"name": "OMNIPARSER_DEVICE", "value": "cuda"},
                {"name": "OMNIPARSER_BATCH_SIZE", "value": "128"},
                {"name": "FROM_ELSEWHERE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]},
        ]},
        "status": {
            "phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": status}],
            "containerStatuses": [
                {"name": "side", "state": {"running": {}}, "restartCount": 7},
                {"name": "inference", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "restartCount": starts,
                 "containerID": format!("containerd://{starts}")},
            ],
        },
    }))
    .unwrap()
}

fn target(name: &str, ready: bool, starts: i32) -> Target {
    Target::of(&pod(name, ready, starts)).unwrap()
}

fn right() -> Report {
    serde_json::from_value(json!({"state": "ready", "device": "cuda", "batch_size": 128})).unwrap()
}

fn on_cpu() -> Report {
    serde_json::from_value(json!({"state": "ready", "device": "cpu", "cause": "no GPU"})).unwrap()
}

fn loading() -> Report {
    serde_json::from_value(json!({"state": "loading"})).unwrap()
}

#[test]
fn only_a_container_of_ours_that_runs_and_has_an_address_is_asked() {
    let found = target("a", true, 2);
    assert_eq!((found.start.as_str(), found.ready), ("containerd://2/2", true));
    assert_eq!(found.owner, ("screens".to_owned(), "demo".to_owned()));
    assert_eq!(found.asked.device, "cuda");
    assert_eq!((found.asked.dtype, found.asked.batch_size), (None, Some(128)));

    let mut starting = pod("a", false, 0);
    starting.status.container_statuses[1].state.running = None;
    assert_eq!(Target::of(&starting), None);
    let mut without = pod("a", false, 0);
    without.status.pod_ip = None;
    assert_eq!(Target::of(&without), None);
    let mut odd = pod("a", false, 0);
    odd.status.pod_ip = Some("example.com".into());
    assert_eq!(Target::of(&odd), None, "only addresses, never names");
    let mut foreign = pod("a", true, 0);
    foreign.metadata.owner_references = None;
    assert_eq!(Target::of(&foreign), None);
    let mut ended = pod("a", false, 0);
    ended.status.phase = "Failed".into();
    assert_eq!(Target::of(&ended), None);
}

#[test]
fn a_container_is_asked_once_for_each_start() {
    let mut checks = Checks::default();
    let start = Instant::now();
    checks.see(vec![target("a", false, 0)], start);
    let asked = checks.take(start).unwrap();
    assert_eq!(checks.take(start), None, "it is being asked");
    assert!(checks.answered(&asked, Ok(right()), start));
    assert_eq!(checks.next(), None, "it is known");
    // Neither readiness nor another look asks again.
    checks.see(vec![target("a", true, 0)], start);
    assert_eq!(checks.next(), None);
    assert_eq!(checks.entries["a"].verdict, Verdict::Verified);
    // A new start does, and nothing is known of it before.
    checks.see(vec![target("a", false, 1)], start);
    assert_eq!(checks.entries["a"].verdict, Verdict::Pending);
    let again = checks.take(start).unwrap();
    assert_eq!(again.start, "containerd://1/1");
    // What the old start answers late is nothing.
    assert!(!checks.answered(&asked, Ok(on_cpu()), start));
    assert!(checks.answered(&again, Ok(on_cpu()), start));
    assert!(matches!(
        &checks.entries["a"].verdict,
        Verdict::Differs(found) if found.reason == Reason::DeviceMismatch
    ));
    // A pod that is gone is forgotten, also while it is asked.
    checks.see(vec![target("a", false, 2)], start);
    let last = checks.take(start).unwrap();
    checks.see(Vec::new(), start);
    assert!(!checks.answered(&last, Ok(right()), start));
    assert!(checks.entries.is_empty() && checks.due.is_empty());
}

#[test]
fn silence_is_unknown_and_tried_ever_more_rarely() {
    let mut checks = Checks::default();
    let mut now = Instant::now();
    checks.see(vec![target("a", true, 0)], now);
    let mut waits = Vec::new();
    for number in 0..20 {
        let asked = checks.take(now).unwrap();
        let changed = checks.answered(&asked, Err(AskError::NoAnswer), now);
        assert_eq!(changed, number == 0, "only the first silence is news");
        let next = checks.next().unwrap();
        waits.push(next - now);
        now = next;
    }
    assert!(waits[0] >= FIRST && waits[0] <= FIRST * 2, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST), "{waits:?}");
    assert!(waits[12..].iter().all(|wait| *wait >= LONGEST / 2), "{waits:?}");
    // It speaks at last.
    let asked = checks.take(now).unwrap();
    assert!(checks.answered(&asked, Ok(right()), now));
    assert_eq!(checks.next(), None);
}

#[test]
fn a_pod_that_becomes_ready_is_asked_at_once() {
    let mut checks = Checks::default();
    let now = Instant::now();
    checks.see(vec![target("a", false, 0), target("b", false, 0)], now);
    for _ in 0..2 {
        let asked = checks.take(now).unwrap();
        let answer = if asked.uid == "a" {
            Ok(loading())
        } else {
            Err(AskError::NoAnswer)
        };
        checks.answered(&asked, answer, now);
    }
    assert_eq!(checks.entries["a"].verdict, Verdict::Loading);
    assert!(checks.next().unwrap() > now);
    checks.see(vec![target("a", true, 0), target("b", true, 0)], now);
    assert_eq!(checks.next(), Some(now));
    assert_eq!(checks.due.len(), 2, "one date for each");
    assert_eq!(
        checks.entries["b"].verdict,
        Verdict::Pending,
        "the silence was of a start"
    );
}

#[test]
fn one_that_is_ready_and_loads_for_ever_is_unknown() {
    let mut checks = Checks::default();
    let mut now = Instant::now();
    checks.see(vec![target("a", true, 0)], now);
    for _ in 0..=LOADING {
        let asked = checks.take(now).unwrap();
        checks.answered(&asked, Ok(loading()), now);
        now = checks.next().unwrap();
    }
    assert_eq!(checks.entries["a"].verdict, Verdict::Unknown(AskError::Loading));
}

struct Bed {
    writer: reflector::store::Writer<Pod>,
    changed: Arc<Notify>,
    devices: Arc<Devices>,
    triggered: UnboundedReceiver<ObjectRef<GuardedDeployment>>,
}

/// A verifier over these pods, not yet running.
fn bed(pods: &[Pod], concurrency: usize) -> (Verifier, Bed) {
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Init);
    for pod in pods {
        writer.apply_watcher_event(&Event::InitApply(pod.clone()));
    }
    writer.apply_watcher_event(&Event::InitDone);
    let (changed, devices) = (Arc::new(Notify::new()), Arc::new(Devices::new(concurrency == 0)));
    let (triggers, triggered) = unbounded();
    let verifier = Verifier {
        pods: store,
        changed: Arc::clone(&changed),
        devices: Arc::clone(&devices),
        triggers,
        concurrency,
        metrics: Metrics::default(),
    };
    let bed = Bed {
        writer,
        changed,
        devices,
        triggered,
    };
    (verifier, bed)
}

#[tokio::test(start_paused = true)]
async fn many_pods_are_asked_few_at_a_time_and_each_in_the_end() {
    let pods: Vec<Pod> = (0..50).map(|number| pod(&format!("p{number}"), true, 0)).collect();
    let (verifier, mut bed) = bed(&pods, 4);
    let (now, most, all) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let ask = |_: IpAddr| {
        let (now, most, all) = (&now, &most, &all);
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            all.fetch_add(1, Ordering::SeqCst);
            Ok(right())
        }
    };
    tokio::select! {
        ended = verifier.run(ask) => panic!("{ended:?}"),
        () = tokio::time::sleep(Duration::from_mins(1)) => {}
    }
    assert_eq!((most.into_inner(), all.into_inner()), (4, 50));
    assert!(pods.iter().all(|pod| bed.devices.verdict(pod) == Verdict::Verified));
    assert!(bed.triggered.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_is_found_and_idle_pods_are_left_alone() {
    let (verifier, mut bed) = bed(&[], 4);
    let asked = AtomicUsize::new(0);
    let ask = |_: IpAddr| {
        asked.fetch_add(1, Ordering::SeqCst);
        async { Ok(on_cpu()) }
    };
    let late = pod("late", true, 0);
    let life = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(bed.devices.verdict(&late), Verdict::Pending);
        bed.writer.apply_watcher_event(&Event::Apply(late.clone()));
        bed.changed.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(bed.devices.verdict(&late), Verdict::Differs(_)));
        // Its next start is another question.
        assert_eq!(bed.devices.verdict(&pod("late", true, 1)), Verdict::Pending);
        tokio::time::sleep(Duration::from_hours(1)).await;
    };
    tokio::select! {
        ended = verifier.run(ask) => panic!("{ended:?}"),
        () = life => {}
    }
    assert_eq!(asked.into_inner(), 1);
    assert_eq!(
        bed.triggered.try_recv().map(|object| object.name).ok().as_deref(),
        Some("demo")
    );
    assert!(bed.triggered.try_recv().is_err(), "told once");
}

#[test]
fn one_that_cannot_be_asked_is_unknown_once_it_is_ready() {
    let devices = Devices::default();
    let mut odd = pod("a", true, 0);
    odd.spec.containers[1].asked = None;
    assert_eq!(devices.verdict(&odd), Verdict::Unknown(AskError::NoTarget));
    let mut starting = pod("a", false, 0);
    starting.status.pod_ip = None;
    assert_eq!(devices.verdict(&starting), Verdict::Loading);
}

#[tokio::test(start_paused = true)]
async fn with_no_concurrency_nobody_is_asked() {
    let pods = [pod("a", true, 0)];
    let (verifier, bed) = bed(&pods, 0);
    let ask = |_: IpAddr| async { panic!("asked") };
    tokio::select! {
        ended = verifier.run(ask) => panic!("{ended:?}"),
        () = tokio::time::sleep(Duration::from_mins(1)) => {}
    }
    assert_eq!(bed.devices.verdict(&pods[0]), Verdict::Unknown(AskError::Off));
}

/// Answers every connection on an address of this test's own with these bytes, then closes it.
async fn answering(host: u8, answer: Vec<u8>) -> IpAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // Every process and every test has another address, so that they may run at the same time.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high.max(1), low, host);
    let listener = tokio::net::TcpListener::bind((address, PORT as u16)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap_or(0);
            assert!(request[..read].starts_with(b"GET /device HTTP/1.1\r\n"));
            // A client that has seen enough hangs up.
            drop(stream.write_all(&answer).await);
        }
    });
    address.into()
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_report_is_read_over_http() {
    let body = r#"{"state": "ready", "device": "cuda", "batch_size": 128, "warm_up_ms": 12.5}"#;
    assert_eq!(ask(answering(1, answer("200 OK", body)).await).await, Ok(right()));
}

#[tokio::test]
async fn whatever_else_answers_is_told_apart() {
    let missing = answering(2, answer("404 Not Found", "{}")).await;
    assert_eq!(ask(missing).await, Err(AskError::Status(404)));
    let elsewhere = b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/device\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(
        ask(answering(3, elsewhere.to_vec()).await).await,
        Err(AskError::Status(302))
    );
    assert_eq!(
        ask(answering(4, answer("200 OK", "<html>")).await).await,
        Err(AskError::Unreadable)
    );
    let endless = answer("200 OK", &format!("\"{}\"", "x".repeat(10 * BODY)));
    assert_eq!(ask(answering(5, endless).await).await, Err(AskError::Unreadable));
    assert_eq!(
        ask(answering(6, b"SSH-2.0\r\n".to_vec()).await).await,
        Err(AskError::NoAnswer)
    );
    // Nobody listens there.
    assert_eq!(
        ask(Ipv4Addr::new(127, 255, 255, 254).into()).await,
        Err(AskError::NoAnswer)
    );
}

#[tokio::test]
async fn one_that_never_answers_is_given_two_seconds() {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high.max(1), low, 7);
    let listener = std::net::TcpListener::bind((address, PORT as u16)).unwrap();
    let started = Instant::now();
    assert_eq!(ask(address.into()).await, Err(AskError::NoAnswer));
    assert!(started.elapsed() >= LIMIT && started.elapsed() < LIMIT * 3);
    drop(listener);
}
