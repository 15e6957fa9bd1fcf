//! Who may be asked for a token, and with which credentials. Pure.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use serde::Deserialize;

use super::reference::{ImageRef, Scope};

/// A user's name and password for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// Of a user.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }

    /// The value of a header `Authorization`.
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// Never says the password, so that no log does.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The credentials for an image in a `.dockerconfigjson`: of the entries for its registry the one that says most of its
/// repository, as the kubelet chooses. `None` when there is none, or it is not such a file.
pub fn credentials(docker_config: &[u8], image: &ImageRef) -> Option<Credentials> {
    let config: DockerConfig = serde_json::from_slice(docker_config).ok()?;
    let entry = config
        .auths
        .iter()
        .filter_map(|(key, entry)| Some((reach(key, image)?, entry)))
        .max_by_key(|(reach, _)| *reach)?
        .1;
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        return Some(Credentials::new(user, password));
    }
    let decoded = STANDARD.decode(entry.auth.as_ref()?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials::new(user, password))
}

/// How much of the image's name a key says: `https://index.docker.io/v1/`, `ghcr.io`, `ghcr.io/team`.
fn reach(key: &str, image: &ImageRef) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    let scope = Scope::parse(key).ok()?;
    if scope.registry() != image.registry {
        return None;
    }
    scope.reach(&image.repository)
}

/// A challenge of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The credentials themselves.
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        /// Its address.
        realm: String,
        /// What it calls the registry.
        service: Option<String>,
    },
}

/// Reads a header `WWW-Authenticate`: the first challenge that is known.
pub fn parse_challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    Some(Challenge::Bearer {
        realm: parameters.remove("realm")?,
        service: parameters.remove("service"),
    })
}

/// `key="value",key=value`, where a quoted value may hold commas and escapes.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        let key: String = std::iter::from_fn(|| chars.next_if(|c| *c != '=')).collect();
        if chars.next().is_none() {
            return found;
        }
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(chars.next()),
                    other => value.push(other),
                }
            }
            while chars.next_if(|c| *c != ',').is_some() {}
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                value.push(c);
            }
        }
        chars.next();
        found.insert(key.trim().to_ascii_lowercase(), value);
    }
}

/// True when a registry may send the operator to this address, be it for a token or for a blob that lies elsewhere: to
/// itself, else to a named host on the internet and over TLS only. So no answer of a registry makes the operator speak
/// to an address inside the cluster or on its node.
pub fn may_follow(to: &Uri, registry: &Uri) -> bool {
    let Some(authority) = to.authority() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    if (to.scheme(), to.authority()) == (registry.scheme(), registry.authority()) {
        return true;
    }
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    // The last label of a name on the internet is never a number; `127.1` is an address for many resolvers.
    let numeric = host
        .rsplit('.')
        .next()
        .is_none_or(|label| label.starts_with(|c: char| c.is_ascii_digit()));
    let inside = ["localhost", "local", "internal", "svc"]
        .iter()
        .any(|end| host == *end || host.ends_with(&format!(".{end}")));
    to.scheme_str() == Some("https") && host.contains('.') && !is_address && !numeric && !inside
}

/// True when the service may be given the credentials for the registry: it is on the registry's own host, on the parent
/// domain or on a sibling (`auth.docker.io` for `registry-1.docker.io`, `gitlab.com` for `registry.gitlab.com`).
pub fn may_know_credentials(service: &Uri, registry: &Uri) -> bool {
    if service.scheme() != registry.scheme() {
        return false;
    }
    if service.authority() == registry.authority() {
        return true;
    }
    let (Some(service), Some(registry)) = (service.host(), registry.host()) else {
        return false;
    };
    let (service, registry) = (service.to_ascii_lowercase(), registry.to_ascii_lowercase());
    if registry.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return false;
    }
    let Some((_, parent)) = registry.split_once('.') else {
        return false;
    };
    parent.contains('.') && (service == parent || service.ends_with(&format!(".{parent}"))) || service == registry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageRef {
        ImageRef::parse(name).unwrap()
    }

    #[test]
    fn the_entry_that_says_most_is_taken() {
        let encoded = STANDARD.encode("team:secret:with:colons");
        let config = format!(
            r#"{{"auths": {{
                "ghcr.io": {{"username": "all", "password": "1"}},
                "https://ghcr.io/team": {{"auth": "{encoded}"}},
                "https://index.docker.io/v1/": {{"username": "hub", "password": "2"}},
                "quay.io": {{"auth": "not base64"}}
            }}}}"#
        );
        let find = |name: &str| credentials(config.as_bytes(), &image(name));
        assert_eq!(
            find("ghcr.io/team/app"),
            Some(Credentials::new("team", "secret:with:colons"))
        );
        assert_eq!(find("ghcr.io/teams/app"), Some(Credentials::new("all", "1")));
        assert_eq!(find("alpine"), Some(Credentials::new("hub", "2")));
        assert_eq!(find("quay.io/a/b"), None);
        assert_eq!(find("example.com/a"), None, "credentials go to their own registry only");
        assert_eq!(credentials(b"{", &image("ghcr.io/a/b")), None);
    }

    #[test]
    fn a_password_is_not_in_debug_output() {
        let text = format!("{:?}", Credentials::new("me", "hunter2"));
        assert!(text.contains("me") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        assert_eq!(
            parse_challenge(r#"Bearer realm="https://a.example/t",service="s, t",scope="repository:x:pull""#),
            bearer("https://a.example/t", Some("s, t"))
        );
        assert_eq!(
            parse_challenge("bearer realm=https://a.example/t , service=x"),
            bearer("https://a.example/t ", Some("x"))
        );
        assert_eq!(parse_challenge(r#"Bearer realm="a\"b""#), bearer("a\"b", None));
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(parse_challenge("Bearer service=\"x\""), None);
        assert_eq!(parse_challenge("Negotiate"), None);
        assert_eq!(parse_challenge(""), None);
        assert_eq!(parse_challenge("Bearer realm=\"open"), bearer("open", None));
    }

    #[test]
    fn a_registry_leads_to_itself_or_to_named_hosts_outside() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let registry = uri("https://registry.example.com/v2/");
        for good in [
            "https://registry.example.com/token",
            "https://auth.example.com/token",
            "https://cdn.example.net/blob?signature=x",
        ] {
            assert!(may_follow(&uri(good), &registry), "{good}");
        }
        for bad in [
            "http://registry.example.com/token",
            "http://cdn.example.net/blob",
            "https://127.0.0.1/x",
            "https://127.1/x",
            "https://0x7f.1/x",
            "https://169.254.169.254/latest",
            "https://[::1]/x",
            "https://localhost/x",
            "https://kubernetes.default.svc/api",
            "https://kubernetes.default.svc.cluster.local./api",
            "https://metadata.google.internal/x",
            "https://intranet/x",
            "https://user:pw@cdn.example.net/x",
            "ftp://cdn.example.net/x",
            "/relative",
        ] {
            assert!(!may_follow(&uri(bad), &registry), "{bad}");
        }
        // A registry in plain text on loopback is one that the administrator allowed by name: to itself, and no further.
        let loopback = uri("http://127.0.0.1:5000/v2/");
        assert!(may_follow(&uri("http://127.0.0.1:5000/token"), &loopback));
        assert!(!may_follow(&uri("http://127.0.0.1:5001/token"), &loopback));
    }

    #[test]
    fn credentials_stay_in_the_registrys_domain() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        for (service, registry, may) in [
            ("https://ghcr.io/token", "https://ghcr.io", true),
            ("https://auth.docker.io/token", "https://registry-1.docker.io", true),
            ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com", true),
            ("https://evil.example/token", "https://ghcr.io", false),
            ("https://auth.io/token", "https://ghcr.io", false),
            ("https://notdocker.io/token", "https://registry-1.docker.io", false),
            ("http://ghcr.io/token", "https://ghcr.io", false),
            ("http://127.0.0.1:5000/t", "http://127.0.0.1:5000", true),
            ("http://127.0.0.1:5001/t", "http://127.0.0.1:5000", false),
            ("http://9.0.0.1:5000/t", "http://127.0.0.1:5000", false),
        ] {
            assert_eq!(
                may_know_credentials(&uri(service), &uri(registry)),
                may,
                "{service} {registry}"
            );
        }
    }
}
