//! A registry on loopback, as small as one can be. What a repository does is told by its name; what it holds, by `put`.

#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The user, the password and the token of repositories that are private.
const BASIC: &str = "Basic dGVhbTpzZWNyZXQ="; // team:secret
const TOKEN: &str = "a-token";

pub struct FakeRegistry {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    /// Where the repositories that send one elsewhere send one.
    elsewhere: Mutex<String>,
    /// By path: media type and body.
    content: Mutex<BTreeMap<String, (String, Bytes)>>,
    /// Path, and the header Authorization where there was one.
    requests: Mutex<Vec<(String, Option<String>)>>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn digest(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
}

/// An index of these platforms, such as `linux/arm64/v8`.
pub fn index(platforms: &[&str]) -> Value {
    let entry = |platform: &&str| {
        let parts: Vec<&str> = platform.split('/').collect();
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1, "digest": digest(platform.as_bytes()),
            "platform": {"os": parts[0], "architecture": parts[1]},
        });
        if let Some(variant) = parts.get(2) {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    };
    json!({"schemaVersion": 2, "manifests": platforms.iter().map(entry).collect::<Vec<_>>()})
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            elsewhere: Mutex::default(),
            content: Mutex::default(),
            requests: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, task }
    }

    /// The name of an image in it.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn send_elsewhere(&self, to: &str) {
        to.clone_into(&mut self.shared.elsewhere.lock().unwrap());
    }

    /// Puts an index under a tag and under its digest, which it returns.
    pub fn put(&self, repository: &str, tag: &str, media_type: &str, manifest: &Value) -> String {
        let body = Bytes::from(manifest.to_string());
        let digest = digest(&body);
        for reference in [tag, &digest] {
            self.write(
                &format!("/v2/{repository}/manifests/{reference}"),
                media_type,
                body.clone(),
            );
        }
        digest
    }

    /// Puts a single image with this configuration.
    pub fn put_single(&self, repository: &str, tag: &str, config: &Value) {
        let config = Bytes::from(config.to_string());
        let name = digest(&config);
        self.write(
            &format!("/v2/{repository}/blobs/{name}"),
            "application/octet-stream",
            config,
        );
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": [],
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": name, "size": 1},
        });
        self.put(
            repository,
            tag,
            "application/vnd.docker.distribution.manifest.v2+json",
            &manifest,
        );
    }

    /// Takes everything of a repository away.
    pub fn remove(&self, repository: &str) {
        let prefix = format!("/v2/{repository}/");
        self.shared
            .content
            .lock()
            .unwrap()
            .retain(|path, _| !path.starts_with(&prefix));
    }

    pub fn write(&self, path: &str, media_type: &str, body: Bytes) {
        let mut content = self.shared.content.lock().unwrap();
        content.insert(path.to_owned(), (media_type.to_owned(), body));
    }

    /// Paths that were asked for, and with which authorization.
    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        self.shared.requests.lock().unwrap().clone()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let sent = authorization(request.headers());
    let asked = request
        .uri()
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    shared.requests.lock().unwrap().push((asked, sent.clone()));
    let sent = sent.as_deref();
    let here = format!("http://{}", shared.address);
    let elsewhere = shared.elsewhere.lock().unwrap().clone();
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let private = query.contains("private");
        return if private && sent != Some(BASIC) {
            StatusCode::UNAUTHORIZED.into_response()
        } else {
            axum::Json(json!({"token": TOKEN, "query": query})).into_response()
        };
    }
    let challenge =
        |challenge: String| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    let to = |place: String| (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place)]).into_response();
    let repository = path.trim_start_matches("/v2/").split('/').next().unwrap_or_default();
    match repository {
        "private" | "tokens" if sent != Some(&format!("Bearer {TOKEN}")) => {
            challenge(format!("Bearer realm=\"{here}/token\",service=\"fake\",scope=\"x\""))
        }
        "basic" if sent != Some(BASIC) => challenge("Basic realm=\"fake\"".to_owned()),
        "leak" => challenge(format!("Bearer realm=\"{elsewhere}/token\",service=\"fake\"")),
        "away" => to(format!("{elsewhere}{path}")),
        "circle" => to(path),
        "moved" => to(path.replace("/v2/moved/", "/v2/both/")),
        "limited" => StatusCode::TOO_MANY_REQUESTS.into_response(),
        "broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "slow" => {
            sleep(Duration::from_mins(2)).await;
            StatusCode::OK.into_response()
        }
        "endless" => {
            let piece = Bytes::from(vec![b' '; 1 << 16]);
            Body::from_stream(stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()))).into_response()
        }
        "garbage" => "<html>Sign in</html>".into_response(),
        _ => match shared.content.lock().unwrap().get(&path) {
            Some((media_type, body)) => ([(header::CONTENT_TYPE, media_type.clone())], body.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::AUTHORIZATION)?.to_str().ok()?.to_owned())
}
