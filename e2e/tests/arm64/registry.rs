//! A registry that answers from OCI layouts, so that the operator asks a real index which platforms an image is for.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
    routing::get,
};
use hawkeye_e2e::images::{Arch, Descriptor, Layout};
use tokio::net::TcpListener;

/// The tag of the index, and that of its amd64 image alone.
pub const BOTH: &str = "both";
pub const AMD64_ONLY: &str = "amd64-only";

/// A registry on one of this machine's addresses; it ends with the runtime.
pub struct Registry {
    /// Host and port, as image references name it.
    pub host: String,
}

struct Contents {
    layout: Layout,
    /// Tag to what it stands for.
    tags: HashMap<&'static str, Descriptor>,
}

impl Registry {
    /// Serves the index of `layout` as [`BOTH`] and its image for amd64 as [`AMD64_ONLY`], under any name.
    pub async fn start(address: IpAddr, layout: Layout) -> Result<Self> {
        let amd64 = layout
            .children()?
            .into_iter()
            .find(|child| child.arch() == Some(Arch::Amd64))
            .context("the index has no image for amd64")?;
        let tags = HashMap::from([(BOTH, layout.top()?), (AMD64_ONLY, amd64)]);
        let listener = TcpListener::bind((address, 0)).await?;
        let host = listener.local_addr()?.to_string();
        let router = Router::new()
            .fallback(get(answer))
            .with_state(Arc::new(Contents { layout, tags }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { host })
    }

    /// A reference to an image of the release, under this registry's name.
    pub fn image(&self, tag: &str) -> String {
        format!("{}/hawkeye-inference:{tag}", self.host)
    }
}

async fn answer(State(contents): State<Arc<Contents>>, uri: Uri) -> Response<Body> {
    let found = find(&contents, uri.path());
    let (status, kind, digest, body) = match found {
        Some((kind, digest, body)) => (StatusCode::OK, kind, digest, body),
        None if uri.path() == "/v2/" => (StatusCode::OK, String::new(), String::new(), Vec::new()),
        None => (StatusCode::NOT_FOUND, String::new(), String::new(), Vec::new()),
    };
    Response::builder()
        .status(status)
        .header("content-type", kind)
        .header("docker-content-digest", digest)
        .body(Body::from(body))
        .unwrap_or_default()
}

/// Media type, digest and bytes of a manifest, or of a configuration.
fn find(contents: &Contents, path: &str) -> Option<(String, String, Vec<u8>)> {
    let (rest, reference) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (digest, kind) = match contents.tags.get(reference) {
        Some(tagged) => (tagged.digest.as_str(), tagged.media_type.clone()),
        None => (reference, String::new()),
    };
    let bytes = contents.layout.blob(digest).ok()?.to_vec();
    let kind = if rest.ends_with("/manifests") && kind.is_empty() {
        let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        json["mediaType"].as_str()?.to_owned()
    } else {
        kind
    };
    Some((kind, digest.to_owned(), bytes))
}
