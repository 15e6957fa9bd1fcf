//! Stands between an operator and the API server: passes requests on, writes them down, and goes wrong when told to.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, future, stream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::server::lock;

/// Least time between two tries of something that failed. Less a little, for a try is seen here later than it was begun.
const APART: Duration = Duration::from_millis(950);

type Answer = UnsyncBoxBody<Bytes, io::Error>;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It is passed on this much later.
    Late(Duration),
    /// It is answered with this code and never passed on.
    Refused(u16),
    /// It is passed on, and answered 500 whatever came of it.
    FailedAfterwards,
    /// It is not passed on, and never answered.
    Swallowed,
    /// It is passed on, and its answer swallowed.
    Unanswered,
    /// It is passed on, its answer swallowed, and the operator killed.
    Kills,
    /// A watch: it begins with an event that says that its version is gone.
    Gone,
}

/// A request as it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub method: Method,
    /// Without its query.
    pub path: String,
    pub watches: bool,
    /// How often this method and path were seen before.
    pub before: usize,
    pub fate: Fate,
}

impl Seen {
    pub fn writes(&self) -> bool {
        self.method != Method::GET
    }

    /// A write that is neither an Event nor the Lease.
    pub fn counts(&self) -> bool {
        self.writes() && !self.path.contains("/events") && !self.path.contains("/leases")
    }

    pub fn within(&self, namespace: &str) -> bool {
        self.path.contains(&format!("/namespaces/{namespace}/"))
    }
}

type Policy = Box<dyn FnMut(&Seen) -> Fate + Send>;

struct State {
    client: Client,
    policy: Mutex<Policy>,
    seen: Mutex<Vec<Seen>>,
    tries: Mutex<HashMap<(Method, String), usize>>,
    kill: Mutex<Box<dyn Fn() + Send>>,
    down: AtomicBool,
    /// Ends connections.
    connections: watch::Sender<()>,
    /// Ends watches; true: in the middle of a line.
    watches: watch::Sender<bool>,
}

pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
    accepts: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
        self.state.connections.send_replace(());
    }
}

impl Proxy {
    /// Passes on with the rights of `client`.
    pub async fn start(client: Client) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            client,
            policy: Mutex::new(Box::new(|_| Fate::Pass)),
            seen: Mutex::default(),
            tries: Mutex::default(),
            kill: Mutex::new(Box::new(|| {})),
            down: AtomicBool::new(false),
            connections: watch::channel(()).0,
            watches: watch::channel(false).0,
        });
        let accepts = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { port, state, accepts })
    }

    /// What happens to requests from now on.
    pub fn policy(&self, policy: impl FnMut(&Seen) -> Fate + Send + 'static) {
        *lock(&self.state.policy) = Box::new(policy);
    }

    /// How to kill the operator.
    pub fn kills(&self, kill: impl Fn() + Send + 'static) {
        *lock(&self.state.kill) = Box::new(kill);
    }

    /// Cuts every connection and takes no new one, or takes them again.
    pub fn down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
        if down {
            self.state.connections.send_replace(());
        }
    }

    /// Ends every watch: properly, or in the middle of a line.
    pub fn cut_watches(&self, rudely: bool) {
        self.state.watches.send_replace(rudely);
    }

    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// No hot loop: what failed is tried again after at least `apart`, no object is written more than once a second, and no
    /// watch is begun more often either. Of an object that is changed again and again that holds over ten seconds.
    pub fn no_hot_loop(&self, apart: Duration) -> Result<()> {
        let mut by_target: HashMap<(Method, String, bool), Vec<Seen>> = HashMap::new();
        for seen in self.seen() {
            let target = (seen.method.clone(), seen.path.clone(), seen.watches);
            if seen.counts() || seen.watches {
                by_target.entry(target).or_default().push(seen);
            }
        }
        for ((method, path, watches), tries) in by_target {
            let times: Vec<String> = tries
                .iter()
                .map(|try_| format!("{:?} {:?}", try_.at, try_.fate))
                .collect();
            for pair in tries.windows(2) {
                let failed = !matches!(pair[0].fate, Fate::Pass | Fate::Late(_) | Fate::Kills | Fate::Gone);
                let wait = pair[1].at - pair[0].at;
                // kube's own backoff of watches starts at 0.8 s.
                let least = if watches {
                    Duration::from_millis(750)
                } else {
                    apart.mul_f64(APART.as_secs_f64())
                };
                ensure!(
                    !failed || wait >= least,
                    "{method} {path} again after {wait:?}: {times:#?}"
                );
            }
            // In ten seconds one that begins and one that ends them.
            let most = 10 + 1;
            for (at, first) in tries.iter().enumerate() {
                let within = tries[at..]
                    .iter()
                    .take_while(|try_| try_.at - first.at < Duration::from_secs(10));
                ensure!(
                    within.count() <= most,
                    "more than {most} {method} {path} in 10 s: {times:#?}"
                );
            }
        }
        Ok(())
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        if state.down.load(Ordering::SeqCst) {
            continue;
        }
        tokio::spawn(connection(stream, Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let mut cut = state.connections.subscribe();
    let service = service_fn(|request| handle(Arc::clone(&state), request));
    let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Errors are what this is for.
        _ended = serve => {}
        _cut = cut.changed() => {}
    }
}

fn note(state: &State, request: &Request<Incoming>) -> Seen {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default();
    let mut tries = lock(&state.tries);
    let watches = query.split('&').any(|part| part == "watch=true");
    // A list and a watch have the same path.
    let key = if watches { format!("{path} watch") } else { path.clone() };
    let before = tries.entry((method.clone(), key)).or_default();
    let mut seen = Seen {
        at: Instant::now(),
        method,
        path,
        watches,
        before: *before,
        fate: Fate::Pass,
    };
    *before += 1;
    seen.fate = lock(&state.policy)(&seen);
    lock(&state.seen).push(seen.clone());
    seen
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> io::Result<Response<Answer>> {
    let seen = note(&state, &request);
    match seen.fate {
        Fate::Refused(code) => return refusal(code),
        Fate::Swallowed => return std::future::pending().await,
        Fate::Late(by) => sleep(by).await,
        _ => {}
    }
    let answer = pass_on(&state, request).await?;
    match seen.fate {
        Fate::FailedAfterwards => refusal(500),
        Fate::Unanswered => std::future::pending().await,
        Fate::Kills => {
            lock(&state.kill)();
            std::future::pending().await
        }
        fate if seen.watches => Ok(watched(&state, answer, fate == Fate::Gone)),
        _ => Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync())),
    }
}

async fn pass_on(state: &State, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut onward = Request::new(Body::from(body.to_vec()));
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    copy(&parts.headers, onward.headers_mut());
    let mut answer = state.client.send(onward).await.map_err(io::Error::other)?;
    let headers = std::mem::take(answer.headers_mut());
    copy(&headers, answer.headers_mut());
    Ok(answer)
}

/// What the two ends say to each other; what a connection needs is hyper's.
fn copy(from: &http::HeaderMap, to: &mut http::HeaderMap) {
    const KEPT: [HeaderName; 4] = [
        header::ACCEPT,
        header::CONTENT_TYPE,
        header::RETRY_AFTER,
        header::USER_AGENT,
    ];
    for name in KEPT {
        if let Some(value) = from.get(&name) {
            to.insert(name, value.clone());
        }
    }
}

/// As an API server refuses.
fn refusal(code: u16) -> io::Result<Response<Answer>> {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("the proxy says {code}"), "reason": reason, "code": code,
    });
    if code == 429 {
        status["details"] = json!({"retryAfterSeconds": 2});
    }
    let body = Full::new(Bytes::from(status.to_string()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).map_err(io::Error::other)?;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == 429 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    Ok(response)
}

/// A watch that can be cut.
fn watched(state: &State, answer: Response<Body>, gone: bool) -> Response<Answer> {
    let mut cut = state.watches.subscribe();
    let (parts, body) = answer.into_parts();
    let first = gone.then(|| {
        let event = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410,
        }});
        Ok(Bytes::from(format!("{event}\n")))
    });
    let rude = Arc::new(AtomicBool::new(false));
    let is_rude = Arc::clone(&rude);
    let ended = async move {
        // An error means that the proxy is gone.
        let rudely = cut.changed().await.is_ok() && *cut.borrow();
        rude.store(rudely, Ordering::SeqCst);
    };
    let tail = stream::once(async move { is_rude.load(Ordering::SeqCst).then(|| Err(io::Error::other("cut"))) });
    let data = body.into_data_stream().map(|chunk| chunk.map_err(io::Error::other));
    let all = stream::iter(first)
        .chain(data.take_until(Box::pin(ended)))
        .chain(tail.filter_map(future::ready));
    let body = StreamBody::new(all.map(|chunk| chunk.map(Frame::data))).boxed_unsync();
    Response::from_parts(parts, body)
}
