//! Asks registries for the digests and the platforms of images, by the OCI distribution specification: a manifest, and of a single image
//! its configuration. Never a layer.
//!
//! A registry is not trusted further than its answer: every body and every wait has a bound, what has a digest is
//! compared with it, redirects are followed only to where [`may_follow`] allows, and never with credentials.

use std::{collections::BTreeSet, error::Error as StdError, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, LOCATION, USER_AGENT, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{
    auth::{Challenge, Credentials, may_follow, may_know_credentials, parse_challenge},
    manifest::{Found, MANIFEST_TYPES, Malformed, Manifest, Platforms, parse_config, parse_manifest},
    reference::{ImageRef, Version},
};

/// Longest time until a connection stands, before TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for everything that one image needs, five requests at most.
const TOTAL: Duration = Duration::from_secs(15);
/// Largest manifest and configuration: registries have to take manifests up to 4 MiB, and real ones have a few KiB.
const BODY: usize = 4 << 20;
/// Largest answer of a token service.
const TOKEN: usize = 256 << 10;
/// Redirects that are followed.
const REDIRECTS: usize = 3;
/// Idle connections that are kept for each host; the next question comes half an hour later.
const IDLE: usize = 0;
/// How the operator names itself to registries.
const AGENT: &str = concat!("hawkeye-operator/", env!("CARGO_PKG_VERSION"));

/// Why nothing is known of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{host} cannot be reached: {cause}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the network said.
        cause: String,
    },
    /// It took too long.
    #[error("{host} did not answer within {} s", TOTAL.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
    },
    /// 404.
    #[error("{0} has no such image")]
    NotFound(String),
    /// 401 or 403.
    #[error("{0} refuses access")]
    Denied(String),
    /// 429.
    #[error("{0} asks for fewer requests")]
    TooManyRequests(String),
    /// Any other status that is not a success.
    #[error("{host} answers {status}")]
    Status {
        /// Host and port.
        host: String,
        /// The status.
        status: StatusCode,
    },
    /// More than an answer may have.
    #[error("the answer of {0} is too large")]
    TooLarge(String),
    /// Not what it should be.
    #[error("{host}: {malformed}")]
    Malformed {
        /// Host and port.
        host: String,
        /// In which way.
        malformed: Malformed,
    },
    /// The content is not what its digest says.
    #[error("the answer of {0} does not have the digest that was asked for")]
    WrongDigest(String),
    /// A redirect or a token service where the operator does not go.
    #[error("{from} sends the operator to {to}, where it does not go")]
    Forbidden {
        /// Host and port of the registry.
        from: String,
        /// Host and port that it named.
        to: String,
    },
}

/// The certificates to trust are not usable.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Not PEM.
    #[error("the CA certificates are not PEM: {0}")]
    Pem(String),
    /// Not certificates.
    #[error("a CA certificate is not usable: {0}")]
    Certificate(rustls::Error),
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

/// A client of registries.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    http: legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    insecure: BTreeSet<String>,
}

impl RegistryClient {
    /// A client that trusts the public certificate authorities and those in `ca`, PEM text that may be empty. Registries
    /// in `insecure` (host and port) are spoken to without TLS.
    ///
    /// # Errors
    /// When the certificates are not usable.
    pub fn new(ca: &str, insecure: impl IntoIterator<Item = String>) -> Result<Self, SetupError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        let public = roots.len();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            let certificate = certificate.map_err(|error| SetupError::Pem(error.to_string()))?;
            roots.add(certificate).map_err(SetupError::Certificate)?;
        }
        if roots.len() == public && !ca.trim().is_empty() {
            return Err(SetupError::Pem("there is no certificate in it".to_owned()));
        }
        let provider = rustls::crypto::ring::default_provider();
        let tls = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(SetupError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Self {
            http: legacy::Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(IDLE)
                .build(connector),
            insecure: insecure.into_iter().collect(),
        })
    }

    /// What the registry of an image says of it. The credentials are given to that registry only.
    ///
    /// # Errors
    /// When the registry does not tell.
    pub async fn look_up(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Result<Found, Error> {
        let ask = Lookup {
            client: self,
            image,
            credentials,
            host: image.host(),
        };
        timeout(TOTAL, ask.found()).await.map_err(|_| Error::Timeout {
            host: ask.host.to_owned(),
        })?
    }
}

/// One image being asked for.
struct Lookup<'a> {
    client: &'a RegistryClient,
    image: &'a ImageRef,
    credentials: Option<&'a Credentials>,
    host: &'a str,
}

impl Lookup<'_> {
    async fn found(&self) -> Result<Found, Error> {
        let mut authorization = None;
        let manifest = self
            .fetch("manifests", self.image.reference(), MANIFEST_TYPES, &mut authorization)
            .await?;
        if let Version::Digest(digest) = &self.image.version {
            self.check(digest, &manifest)?;
        }
        let platforms = match parse_manifest(&manifest).map_err(|malformed| self.malformed(malformed))? {
            Manifest::Index(platforms) => platforms,
            // An artifact runs nowhere and can be mounted everywhere.
            Manifest::Artifact => Platforms {
                open: true,
                ..Platforms::default()
            },
            Manifest::Image { config } => {
                let body = self.fetch("blobs", &config, "*/*", &mut authorization).await?;
                self.check(&config, &body)?;
                parse_config(&body).map_err(|malformed| self.malformed(malformed))?
            }
        };
        // Counted, not taken from a header: of this very content the platforms were read.
        Ok(Found {
            digest: digest(&manifest),
            platforms,
        })
    }

    fn check(&self, expected: &str, body: &[u8]) -> Result<(), Error> {
        if digest(body) == expected {
            return Ok(());
        }
        Err(Error::WrongDigest(self.host.to_owned()))
    }

    /// Gets a manifest or a blob; with a token when the registry asks for one, which is kept for the next.
    async fn fetch(
        &self,
        kind: &str,
        reference: &str,
        accept: &'static str,
        authorization: &mut Option<HeaderValue>,
    ) -> Result<Bytes, Error> {
        let scheme = if self.client.insecure.contains(&self.image.registry) {
            "http"
        } else {
            "https"
        };
        let origin: Uri = format!(
            "{scheme}://{}/v2/{}/{kind}/{reference}",
            self.host, self.image.repository
        )
        .parse()
        .map_err(|_| self.malformed(Malformed("the name of the image makes no address")))?;
        let mut answer = self.get(&origin, accept, authorization.as_ref()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && authorization.is_none() {
            *authorization = self.authorize(&origin, &answer).await?;
            if authorization.is_some() {
                answer = self.get(&origin, accept, authorization.as_ref()).await?;
            }
        }
        let mut at = origin.clone();
        for _ in 0..REDIRECTS {
            if !answer.status().is_redirection() {
                break;
            }
            let target = target(&at, &answer).ok_or_else(|| self.malformed(Malformed("a redirect to nowhere")))?;
            if !may_follow(&target, &origin) {
                return Err(self.forbidden(&target));
            }
            // Blobs often lie with another host, under an address that is signed. Credentials are not for it.
            let home = (target.scheme(), target.authority()) == (origin.scheme(), origin.authority());
            answer = self
                .get(&target, accept, authorization.as_ref().filter(|_| home))
                .await?;
            at = target;
        }
        self.body(answer, BODY).await
    }

    /// What the challenge of a registry asks for: a token of its service, or the credentials themselves.
    async fn authorize<B>(&self, origin: &Uri, answer: &Response<B>) -> Result<Option<HeaderValue>, Error> {
        let challenge = answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(parse_challenge);
        let (realm, service) = match challenge {
            Some(Challenge::Bearer { realm, service }) => (realm, service),
            Some(Challenge::Basic) => return Ok(self.credentials.and_then(basic)),
            None => return Ok(None),
        };
        let mut query = format!("scope=repository%3A{}%3Apull", escaped(&self.image.repository));
        if let Some(service) = service {
            query = format!("service={}&{query}", escaped(&service));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let address: Uri = format!("{}{separator}{query}", realm.trim())
            .parse()
            .map_err(|_| self.malformed(Malformed("the token service has no address")))?;
        if !may_follow(&address, origin) {
            return Err(self.forbidden(&address));
        }
        let credentials = match self.credentials {
            Some(_) if !may_know_credentials(&address, origin) => return Err(self.forbidden(&address)),
            Some(credentials) => basic(credentials),
            None => None,
        };
        let answer = self.get(&address, "application/json", credentials.as_ref()).await?;
        let body = self.body(answer, TOKEN).await?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| self.malformed(Malformed("its token service sends no token")))?;
        Ok(token
            .token
            .or(token.access_token)
            .and_then(|token| secret(&format!("Bearer {token}"))))
    }

    /// One request, whatever it is answered with.
    async fn get(
        &self,
        address: &Uri,
        accept: &'static str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = address.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.client
            .http
            .request(request)
            .await
            .map_err(|error| Error::Unreachable {
                host: host(address),
                cause: innermost(&error),
            })
    }

    /// The body of a success, as far as it is within the limit.
    async fn body(&self, answer: Response<Incoming>, limit: usize) -> Result<Bytes, Error> {
        let host = || self.host.to_owned();
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => return Err(Error::NotFound(host())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Error::Denied(host())),
            StatusCode::TOO_MANY_REQUESTS => return Err(Error::TooManyRequests(host())),
            status => return Err(Error::Status { host: host(), status }),
        }
        match Limited::new(answer.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Error::TooLarge(host())),
            Err(error) => Err(Error::Unreachable {
                host: host(),
                cause: innermost(&*error),
            }),
        }
    }

    fn malformed(&self, malformed: Malformed) -> Error {
        Error::Malformed {
            host: self.host.to_owned(),
            malformed,
        }
    }

    fn forbidden(&self, to: &Uri) -> Error {
        Error::Forbidden {
            from: self.host.to_owned(),
            to: host(to),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// `sha256:…` of a body.
fn digest(body: &[u8]) -> String {
    use std::fmt::Write;
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(body) {
        // Writing to a string cannot fail.
        let _infallible = write!(digest, "{byte:02x}");
    }
    digest
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    secret(&credentials.basic())
}

/// A header that no log shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Host and port of an address, as far as a status may show it.
fn host(address: &Uri) -> String {
    address.authority().map_or_else(String::new, |authority| {
        authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
    })
}

/// Where a redirect leads, relative addresses resolved.
fn target<B>(at: &Uri, answer: &Response<B>) -> Option<Uri> {
    let location: Uri = answer.headers().get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if location.authority().is_some() {
        return Some(location);
    }
    let mut parts = at.clone().into_parts();
    parts.path_and_query = Some(location.path_and_query()?.clone());
    Uri::from_parts(parts).ok()
}

/// Percent-encodes whatever is not plainly allowed in a query.
fn escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// The cause at the bottom: what is above it says only that a request failed.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
