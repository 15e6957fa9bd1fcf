//! Names of images: which registry, which repository, which tag or digest. As containerd reads them, Docker's defaults
//! included.

use std::fmt;

/// What Docker Hub is called in names of images, and the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Longest repository, as the distribution specification's implementations take it.
const REPOSITORY: usize = 255;
/// Longest tag.
const TAG: usize = 128;

/// A name that is not one of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an image: {0}")]
pub struct InvalidReference(&'static str);

/// The parsed name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// Host and port of the registry as they stand in the name; `docker.io` where it has none.
    pub registry: String,
    /// Repository, without a leading slash.
    pub repository: String,
    /// Tag or digest.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A tag, which may point elsewhere tomorrow.
    Tag(String),
    /// A digest, `sha256:` and 64 hexadecimal digits.
    Digest(String),
}

impl ImageRef {
    /// Parses `[registry/]repository[:tag][@digest]`. With both a tag and a digest the digest counts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let colon = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
        let (name, tag) = match colon {
            Some(colon) => (&name[..colon], Some(&name[colon + 1..])),
            None => (name, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        let registry = canonical(registry);
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        check_host(&registry)?;
        if repository.len() > REPOSITORY || !repository.split('/').all(is_component) {
            return Err(InvalidReference("its repository has a character that is not allowed"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) if is_sha256(digest) => Version::Digest(digest.to_owned()),
            (Some(_), _) => return Err(InvalidReference("its digest is not a SHA-256")),
            (None, Some(tag)) if is_tag(tag) => Version::Tag(tag.to_owned()),
            (None, Some(_)) => return Err(InvalidReference("its tag has a character that is not allowed")),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self {
            registry,
            repository,
            version,
        })
    }

    /// Host and port that serve the registry.
    pub fn host(&self) -> &str {
        if self.registry == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            &self.registry
        }
    }

    /// The last part of a manifest's address.
    pub fn reference(&self) -> &str {
        match &self.version {
            Version::Tag(text) | Version::Digest(text) => text,
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        };
        write!(f, "{}/{}{sign}{}", self.registry, self.repository, self.reference())
    }
}

/// A registry, or a part of one, whose images may be looked up: `ghcr.io` or `ghcr.io/bytebot-ai`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    registry: String,
    prefix: String,
}

impl Scope {
    /// Parses host, port and the leading parts of repositories.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let (registry, prefix) = text.split_once('/').unwrap_or((text, ""));
        let (registry, prefix) = if is_registry(registry) {
            (registry, prefix)
        } else {
            (DOCKER_HUB, text)
        };
        check_host(registry)?;
        if !prefix.is_empty() && !prefix.split('/').all(is_component) {
            return Err(InvalidReference("its repository has a character that is not allowed"));
        }
        Ok(Self {
            registry: canonical(registry),
            prefix: prefix.to_owned(),
        })
    }

    /// True when the image lies in it. Parts of a repository count as wholes: `ghcr.io/team` does not hold `ghcr.io/teams/x`.
    pub fn holds(&self, image: &ImageRef) -> bool {
        self.registry == image.registry && self.reach(&image.repository).is_some()
    }

    /// How many characters of a repository it says; `None` when it says another one.
    pub fn reach(&self, repository: &str) -> Option<usize> {
        let rest = repository.strip_prefix(self.prefix.as_str())?;
        (self.prefix.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(self.prefix.len())
    }

    /// Host and port, as in names of images.
    pub fn registry(&self) -> &str {
        &self.registry
    }
}

fn canonical(registry: &str) -> String {
    match registry {
        "index.docker.io" | DOCKER_HUB_HOST => DOCKER_HUB.to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

/// Docker's rule for what is a host in front of a repository and what is a part of the repository.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

fn check_host(registry: &str) -> Result<(), InvalidReference> {
    let authority: http::uri::Authority = registry
        .parse()
        .map_err(|_| InvalidReference("its registry is not a host"))?;
    let named_port = registry.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    if authority.host().is_empty() || registry.contains('@') || named_port != authority.port_u16().is_some() {
        return Err(InvalidReference("its registry is not a host"));
    }
    Ok(())
}

fn is_component(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG && tag.starts_with(word) && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// True for `sha256:` and 64 hexadecimal digits in lower case.
pub fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_containerd_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, repository, reference) in [
            ("alpine", "docker.io", "library/alpine", "latest"),
            ("docker.io/alpine", "docker.io", "library/alpine", "latest"),
            ("team/app:v1", "docker.io", "team/app", "v1"),
            ("index.docker.io/team/app", "docker.io", "team/app", "latest"),
            (
                "ghcr.io/bytebot-ai/hawkeye:0.1.0-cpu",
                "ghcr.io",
                "bytebot-ai/hawkeye",
                "0.1.0-cpu",
            ),
            ("localhost/app", "localhost", "app", "latest"),
            ("localhost:5000/a/b/c:x", "localhost:5000", "a/b/c", "x"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000", "app", "latest"),
            ("[::1]:5000/app:v", "[::1]:5000", "app", "v"),
            ("Example.com/app", "example.com", "app", "latest"),
            (&format!("example.com/app:v1@{digest}"), "example.com", "app", &digest),
        ] {
            let parsed = ImageRef::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(
                (parsed.registry.as_str(), parsed.repository.as_str(), parsed.reference()),
                (registry, repository, reference),
                "{text}"
            );
        }
        assert_eq!(ImageRef::parse("alpine").unwrap().host(), "registry-1.docker.io");
        assert_eq!(
            ImageRef::parse("alpine:3").unwrap().to_string(),
            "docker.io/library/alpine:3"
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "@",
            "example.com/",
            "example.com/../../x",
            "example.com/a//b",
            "example.com/UPPER",
            "example.com/a:",
            "example.com/a:b?c",
            "example.com/a@sha256:12",
            "example.com/a@sha512:12",
            "user:pw@example.com/a",
            "example.com:port/a/b",
            "exa mple.com/a",
            "example.com/a?x=y",
            "example.com/a#b",
        ] {
            assert!(ImageRef::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_scope_holds_whole_parts_only() {
        let image = ImageRef::parse("ghcr.io/team/app:v1").unwrap();
        for (text, holds) in [
            ("ghcr.io", true),
            ("ghcr.io/team", true),
            ("ghcr.io/team/app", true),
            ("ghcr.io/tea", false),
            ("ghcr.io/team/app/x", false),
            ("quay.io", false),
            ("ghcr.io:443", false),
        ] {
            assert_eq!(Scope::parse(text).unwrap().holds(&image), holds, "{text}");
        }
        assert!(
            Scope::parse("docker.io")
                .unwrap()
                .holds(&ImageRef::parse("alpine").unwrap())
        );
        assert!(Scope::parse("ghcr.io/../x").is_err());
        assert!(Scope::parse("https://ghcr.io").is_err());
    }
}
