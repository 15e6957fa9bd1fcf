//! What a registry answers, read: index, manifest and configuration of an image. Pure.

use std::fmt;

use serde::Deserialize;

use super::reference::is_sha256;

/// Media types of what may stand behind a name; sent as `Accept`.
pub const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// Most platforms that are kept. The largest official images have about twenty.
const PLATFORMS: usize = 64;
/// Longest part of a platform: longer ones are no platform that exists.
const WORD: usize = 32;

/// A platform as the OCI image specification writes it, in Go's words: `linux`, `arm64`, `v8`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture, when one is said.
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What a registry says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Digest of what stands behind its name now, index or manifest: `sha256:…`.
    pub digest: String,
    /// The platforms that it was built for.
    pub platforms: Platforms,
}

/// The platforms that an image was built for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platforms {
    /// Sorted, each once.
    pub list: Vec<Platform>,
    /// It is an index, of which a node takes the entry of its platform. Of a single image every node takes that one.
    pub index: bool,
    /// There is an entry that does not say its platform, so that what is not in the list may be there all the same.
    pub open: bool,
}

impl Platforms {
    /// True when there is one for Linux on this architecture, in whatever variant.
    pub fn has(&self, architecture: &str) -> bool {
        self.list
            .iter()
            .any(|platform| platform.os == "linux" && platform.architecture == architecture)
    }

    /// "linux/amd64, linux/arm64/v8".
    pub fn describe(&self) -> String {
        const SHOWN: usize = 8;
        let mut shown: Vec<String> = self.list.iter().take(SHOWN).map(ToString::to_string).collect();
        if self.list.len() > SHOWN {
            shown.push(format!("{} more", self.list.len() - SHOWN));
        }
        shown.join(", ")
    }
}

/// What stood behind the name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// An index: the platforms are known.
    Index(Platforms),
    /// A single image: its configuration, a blob of this digest, says the platform.
    Image {
        /// `sha256:…`.
        config: String,
    },
    /// An artifact whose configuration says nothing of platforms.
    Artifact,
}

/// The answer is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a manifest: {0}")]
pub struct Malformed(pub &'static str);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<u32>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    digest: String,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: RawAnnotations,
}

#[derive(Default, Deserialize)]
struct RawAnnotations {
    #[serde(rename = "vnd.docker.reference.type")]
    about: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// Reads an index or a manifest, OCI's or Docker's.
///
/// # Errors
/// When it is neither.
pub fn parse_manifest(body: &[u8]) -> Result<Manifest, Malformed> {
    let raw: RawManifest = serde_json::from_slice(body).map_err(|_| Malformed("it is not JSON of that form"))?;
    if raw.schema_version == Some(1) {
        return Err(Malformed(
            "it is in Docker's schema 1, which containerd no longer pulls",
        ));
    }
    if let Some(entries) = raw.manifests {
        let mut platforms = Platforms {
            index: true,
            ..Platforms::default()
        };
        for entry in &entries {
            // Attestations and the like stand beside the images that they are about.
            if entry.annotations.about.is_some() {
                continue;
            }
            match entry.platform.as_ref().map(platform) {
                Some(Some(platform)) if platform.os == "unknown" => {}
                Some(Some(platform)) => platforms.list.push(platform),
                Some(None) | None => platforms.open = true,
            }
        }
        return Ok(Manifest::Index(sorted(platforms)));
    }
    let Some(config) = raw.config else {
        return Err(Malformed("it lists neither manifests nor a configuration"));
    };
    if !matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    ) {
        return Ok(Manifest::Artifact);
    }
    if !is_sha256(&config.digest) {
        return Err(Malformed("its configuration has no SHA-256 digest"));
    }
    Ok(Manifest::Image { config: config.digest })
}

/// Reads the configuration of a single image.
///
/// # Errors
/// When it is not one.
pub fn parse_config(body: &[u8]) -> Result<Platforms, Malformed> {
    let raw: RawPlatform = serde_json::from_slice(body).map_err(|_| Malformed("the configuration is not JSON"))?;
    let platform = platform(&raw);
    Ok(Platforms {
        index: false,
        open: platform.is_none(),
        list: platform.into_iter().collect(),
    })
}

fn platform(raw: &RawPlatform) -> Option<Platform> {
    // These words come from outside and end up in a status.
    let word = |text: &str| {
        let good = !text.is_empty()
            && text.len() <= WORD
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        good.then(|| text.to_owned())
    };
    Some(Platform {
        os: word(&raw.os)?,
        architecture: word(&raw.architecture)?,
        variant: raw.variant.as_deref().and_then(word),
    })
}

fn sorted(mut platforms: Platforms) -> Platforms {
    platforms.list.sort();
    platforms.list.dedup();
    if platforms.list.len() > PLATFORMS {
        platforms.list.truncate(PLATFORMS);
        platforms.open = true;
    }
    platforms
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(manifests: &serde_json::Value) -> Platforms {
        let body = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        match parse_manifest(body.as_bytes()) {
            Ok(Manifest::Index(platforms)) => platforms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_index_tells_its_platforms_without_the_attestations() {
        let platforms = index(&json!([
            {"digest": "d", "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"digest": "d", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "d", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "d", "platform": {"os": "windows", "architecture": "arm"}},
            {"digest": "d", "platform": {"os": "unknown", "architecture": "unknown"},
             "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        ]));
        assert_eq!(platforms.describe(), "linux/amd64, linux/arm64/v8, windows/arm");
        assert!(platforms.index && !platforms.open);
        assert!(platforms.has("arm64") && platforms.has("amd64"));
        assert!(!platforms.has("arm"), "that one is for another operating system");
    }

    #[test]
    fn an_entry_without_a_platform_leaves_the_list_open() {
        let platforms = index(&json!([
            {"digest": "d"}, {"digest": "d", "platform": {"os": "linux", "architecture": "amd64"}},
        ]));
        assert!(platforms.open && platforms.has("amd64"));
        let bent = index(&json!([{"platform": {"os": "linux", "architecture": "arm64\n\u{1b}[31m"}}]));
        assert!(bent.open && bent.list.is_empty(), "no control characters in a status");
        let many: Vec<_> = (0..100)
            .map(|n| json!({"platform": {"os": "linux", "architecture": format!("a{n:03}")}}))
            .collect();
        let many = index(&json!(many));
        assert!(many.open && many.list.len() == PLATFORMS);
        assert!(many.describe().ends_with("56 more"), "{}", many.describe());
    }

    #[test]
    fn a_single_image_points_to_its_configuration() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for media in [
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        ] {
            let body = json!({"schemaVersion": 2, "config": {"mediaType": media, "digest": digest}, "layers": []});
            assert_eq!(
                parse_manifest(body.to_string().as_bytes()),
                Ok(Manifest::Image { config: digest.clone() })
            );
        }
        let platforms = parse_config(br#"{"os": "linux", "architecture": "amd64", "history": []}"#).unwrap();
        assert_eq!(platforms.describe(), "linux/amd64");
        assert!(!platforms.index && !platforms.open);
        assert!(parse_config(b"{}").unwrap().open);
        let artifact = json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.empty.v1+json"}});
        assert_eq!(parse_manifest(artifact.to_string().as_bytes()), Ok(Manifest::Artifact));
    }

    #[test]
    fn anything_else_is_malformed() {
        for body in [
            "",
            "<html></html>",
            "{}",
            "[]",
            r#"{"manifests": 1}"#,
            r#"{"schemaVersion": 1, "architecture": "amd64"}"#,
            r#"{"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:../../x"}}"#,
        ] {
            assert!(parse_manifest(body.as_bytes()).is_err(), "{body}");
        }
    }
}
