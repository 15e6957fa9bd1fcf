//! HTTP requests: proxies from the environment, TLS, redirects, and a limit on every wait.
//!
//! hyper itself, since a client library brings its TLS settings into every other program that is built with this one.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

/// A connection has to be there within this time. Four tries and the waits between them come to less than the 30 seconds
/// within which the operator's status has to say what is wrong.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence of a server.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// Longest answer of a proxy that is asked for a tunnel, bytes.
const PROXY_HEAD: usize = 8192;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("cannot connect to {host}: {source}")]
    Connect {
        /// Host and port, of the proxy where there is one.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The proxy makes no tunnel.
    #[error("the proxy {proxy} makes no tunnel: {answer}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// What it said.
        answer: String,
    },
    /// The certificate or the protocol is not to be trusted.
    #[error("no secure connection to {host}: {source}")]
    Tls {
        /// The host.
        host: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("the server is silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// Redirects without end, to nowhere, to another scheme, or from https to http.
    #[error("redirected in a way that is not followed: {0}")]
    Redirect(String),
    /// A URL that no request can be made of.
    #[error("not a usable address: {0}")]
    Address(String),
}

impl HttpError {
    /// True where another try gets the same answer.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Redirect(_) | Self::Address(_))
    }
}

/// What every request needs.
pub struct Http {
    tls: TlsConnector,
    proxies: Matcher,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Http {
    /// With the certificate authorities of Mozilla's programme, for the image has none of a distribution, and with the
    /// proxies of the environment.
    ///
    /// # Errors
    /// When TLS cannot be set up, which only a defect can cause.
    pub fn new() -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            proxies: Matcher::from_env(),
        })
    }

    /// The answer to a GET, after redirects.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn get(&self, url: &Url, headers: &[(HeaderName, HeaderValue)]) -> Result<Response<Incoming>, HttpError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self
                .open(&url)
                .await?
                .send(Method::GET, &url, headers, Bytes::new(), SILENCE)
                .await?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION),
                _ => return Ok(response),
            };
            let to = location.and_then(|location| url.join(location.to_str().ok()?).ok());
            let to = to.ok_or_else(|| HttpError::Redirect("to nowhere".to_owned()))?;
            match (url.scheme(), to.scheme()) {
                (_, "https") | ("http", "http") => url = to,
                ("https", "http") => return Err(HttpError::Redirect("from https to http".to_owned())),
                (_, other) => return Err(HttpError::Redirect(format!("to {other}:"))),
            }
        }
        Err(HttpError::Redirect(format!("more than {REDIRECTS} times")))
    }

    /// A connection to the host of a URL, for one request after another.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn open(&self, url: &Url) -> Result<Connection, HttpError> {
        let uri: Uri = url.as_str().parse().map_err(|error| unusable(&error))?;
        let secure = url.scheme() == "https";
        let host = url.host_str().ok_or_else(|| unusable(&"no host"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let proxy = self.proxies.intercept(&uri);
        let authorization = proxy.as_ref().and_then(|proxy| proxy.basic_auth().cloned());

        let stream = match &proxy {
            None => connect(&format!("{host}:{port}")).await?,
            Some(proxy) => {
                let uri = proxy.uri();
                if uri.scheme_str() != Some("http") {
                    return Err(unusable(&"only proxies that speak http are supported"));
                }
                let at = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
                let stream = connect(&at).await?;
                if secure {
                    let target = format!("{host}:{port}");
                    let tunnel = tunnel(stream, &at, &target, authorization.as_ref());
                    timeout(SILENCE, tunnel)
                        .await
                        .map_err(|_| HttpError::Silent(SILENCE))??
                } else {
                    stream
                }
            }
        };
        let stream: Box<dyn Stream> = if secure {
            self.secured(stream, host).await?
        } else {
            Box::new(stream)
        };

        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the last answer, whose body it drives.
        tokio::spawn(connection);
        Ok(Connection {
            sender,
            plain_proxy: proxy.is_some() && !secure,
            authorization: authorization.filter(|_| !secure),
        })
    }

    async fn secured(&self, stream: TcpStream, host: &str) -> Result<Box<dyn Stream>, HttpError> {
        let failed = |source| HttpError::Tls {
            host: host.to_owned(),
            source,
        };
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|error| failed(io::Error::other(error)))?;
        match timeout(SILENCE, self.tls.connect(name, stream)).await {
            Ok(stream) => Ok(Box::new(stream.map_err(failed)?)),
            Err(_) => Err(HttpError::Silent(SILENCE)),
        }
    }
}

fn unusable(error: &dyn std::fmt::Display) -> HttpError {
    HttpError::Address(error.to_string())
}

/// A connection to one host.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Whether a proxy reads the requests: it has to be told the whole address.
    plain_proxy: bool,
    /// What such a proxy asks for.
    authorization: Option<HeaderValue>,
}

impl Connection {
    /// The answer to one request to a URL of the same host, which must begin within `silence`.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(
        &mut self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        silence: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        let target = if self.plain_proxy {
            &url[..Position::AfterQuery]
        } else {
            &url[Position::BeforePath..Position::AfterQuery]
        };
        // With the port, if it is not the scheme's.
        let authority = &url[Position::BeforeHost..Position::AfterPort];
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, authority)
            .header(USER_AGENT, concat!("hawkeye-inference/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| unusable(&error))?;
        let sent = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let response = timeout(silence, sent).await;
        Ok(response.map_err(|_| HttpError::Silent(silence))??)
    }
}

async fn connect(host: &str) -> Result<TcpStream, HttpError> {
    let connected = match timeout(CONNECT, TcpStream::connect(host)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    connected.map_err(|source| HttpError::Connect {
        host: host.to_owned(),
        source,
    })
}

/// Asks a proxy for a connection to the target, through which TLS then runs.
async fn tunnel(
    mut stream: TcpStream,
    proxy: &str,
    target: &str,
    authorization: Option<&HeaderValue>,
) -> Result<TcpStream, HttpError> {
    let failed = |answer: String| HttpError::Proxy {
        proxy: proxy.to_owned(),
        answer,
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(value) = authorization {
        request.extend([b"Proxy-Authorization: ", value.as_bytes(), b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    stream
        .write_all(&request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is TLS's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= PROXY_HEAD {
            return Err(failed("its answer has no end".to_owned()));
        }
        head.push(stream.read_u8().await.map_err(|error| failed(error.to_string()))?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(stream)
    } else {
        Err(failed(status.to_owned()))
    }
}
