//! The client of registries against one on loopback: what it understands, and what it does not let a registry do to it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod fake_registry;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake_registry::{DOCKER_LIST, FakeRegistry, OCI_INDEX, digest, index};
use hawkeye_operator::registry::{
    ImageRef, Platforms, RegistryClient,
    auth::Credentials,
    client::{Error, SetupError},
};
use rstest::rstest;
use serde_json::json;

async fn registry() -> FakeRegistry {
    let registry = FakeRegistry::start().await;
    let both = index(&["linux/amd64", "linux/arm64/v8"]);
    for repository in ["both", "private", "tokens", "basic"] {
        registry.put(repository, "v1", OCI_INDEX, &both);
    }
    registry.put("list", "v1", DOCKER_LIST, &index(&["linux/amd64", "linux/s390x"]));
    registry.put_single(
        "single",
        "v1",
        &json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
    );
    registry
}

fn client(registry: &FakeRegistry) -> RegistryClient {
    RegistryClient::new("", [registry.address.to_string()]).unwrap()
}

async fn ask_as(registry: &FakeRegistry, rest: &str, credentials: Option<Credentials>) -> Result<Platforms, Error> {
    let image = ImageRef::parse(&registry.name(rest)).unwrap();
    let found = client(registry).look_up(&image, credentials.as_ref()).await?;
    Ok(found.platforms)
}

async fn ask(registry: &FakeRegistry, rest: &str) -> Result<Platforms, Error> {
    ask_as(registry, rest, None).await
}

fn team() -> Credentials {
    Credentials::new("team", "secret")
}

#[rstest]
#[case::oci_index("both:v1", "linux/amd64, linux/arm64/v8", true)]
#[case::docker_manifest_list("list:v1", "linux/amd64, linux/s390x", true)]
#[case::single_image("single:v1", "linux/arm64/v8", false)]
#[case::anonymous_token("tokens:v1", "linux/amd64, linux/arm64/v8", true)]
#[case::redirect_within_the_registry("moved:v1", "linux/amd64, linux/arm64/v8", true)]
#[tokio::test]
async fn platforms_are_read(#[case] image: &str, #[case] platforms: &str, #[case] is_index: bool) {
    let registry = registry().await;
    let found = ask(&registry, image).await.unwrap();
    assert_eq!(
        (found.describe().as_str(), found.index, found.open),
        (platforms, is_index, false)
    );
}

#[tokio::test]
async fn an_image_is_also_found_by_its_digest_which_has_to_match() {
    let registry = registry().await;
    let good = registry.put("both", "v2", OCI_INDEX, &index(&["linux/arm64"]));
    assert!(ask(&registry, &format!("both@{good}")).await.unwrap().has("arm64"));
    registry.write(
        &format!("/v2/both/manifests/{good}"),
        OCI_INDEX,
        Bytes::from_static(b"{}"),
    );
    let error = ask(&registry, &format!("both@{good}")).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest(_)), "{error}");
}

#[tokio::test]
async fn the_digest_behind_a_tag_is_that_of_the_index_or_the_manifest() {
    let registry = registry().await;
    let digest_of = async |name: &str| {
        let image = ImageRef::parse(&registry.name(name)).unwrap();
        client(&registry).look_up(&image, None).await.unwrap().digest
    };
    let first = registry.put("model", "v1", OCI_INDEX, &index(&["linux/arm64"]));
    assert_eq!(digest_of("model:v1").await, first);
    assert_eq!(digest_of(&format!("model@{first}")).await, first);
    let moved = registry.put("model", "v1", OCI_INDEX, &index(&["linux/amd64"]));
    assert_ne!(first, moved);
    assert_eq!(digest_of("model:v1").await, moved);
    let single = digest_of("single:v1").await;
    assert_eq!(
        digest_of(&format!("single@{single}")).await,
        single,
        "a manifest is there by its own digest"
    );
}

#[tokio::test]
async fn a_configuration_has_to_match_its_digest() {
    let registry = registry().await;
    let config = json!({"os": "linux", "architecture": "arm64"});
    registry.put_single("single", "v2", &config);
    let blob = digest(config.to_string().as_bytes());
    registry.write(
        &format!("/v2/single/blobs/{blob}"),
        "application/json",
        Bytes::from_static(br#"{"os": "linux", "architecture": "amd64"}"#),
    );
    let error = ask(&registry, "single:v2").await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest(_)), "{error}");
}

#[tokio::test]
async fn a_private_image_needs_credentials() {
    let registry = registry().await;
    for image in ["private:v1", "basic:v1"] {
        let error = ask(&registry, image).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{image}: {error}");
        let wrong = Some(Credentials::new("team", "wrong"));
        let error = ask_as(&registry, image, wrong).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{image}: {error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
        assert!(
            ask_as(&registry, image, Some(team())).await.unwrap().has("arm64"),
            "{image}"
        );
    }
    let tokens: Vec<String> = registry
        .requests()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("/token"))
        .collect();
    assert_eq!(tokens[0], "/token?service=fake&scope=repository%3Aprivate%3Apull");
}

#[rstest]
#[case::not_there("nothing:v1", "has no such image")]
#[case::no_such_tag("both:v9", "has no such image")]
#[case::an_html_page("garbage:v1", "is not JSON")]
#[case::too_many_requests("limited:v1", "fewer requests")]
#[case::server_error("broken:v1", "answers 500")]
#[case::a_body_without_end("endless:v1", "too large")]
#[case::a_redirect_without_end("circle:v1", "answers 307")]
#[tokio::test]
async fn failures_say_what_happened(#[case] image: &str, #[case] words: &str) {
    let registry = registry().await;
    let error = ask(&registry, image).await.unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
    assert!(
        error.contains(&registry.address.to_string()),
        "it names the registry: {error}"
    );
    assert!(registry.requests().len() <= 5, "{:?}", registry.requests());
}

#[tokio::test]
async fn a_registry_that_does_not_answer_costs_fifteen_seconds() {
    let registry = registry().await;
    let start = Instant::now();
    let error = ask(&registry, "slow:v1").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(14) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

#[tokio::test]
async fn nothing_listening_is_said_as_such() {
    let closed = {
        let registry = registry().await;
        registry.address
    };
    tokio::task::yield_now().await;
    let image = ImageRef::parse(&format!("{closed}/both:v1")).unwrap();
    let client = RegistryClient::new("", [closed.to_string()]).unwrap();
    let error = client.look_up(&image, None).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_registry_cannot_send_the_operator_or_credentials_elsewhere() {
    let registry = registry().await;
    let other = FakeRegistry::start().await;
    for place in [
        format!("http://{}", other.address),
        "http://169.254.169.254".to_owned(),
        "https://kubernetes.default.svc".to_owned(),
    ] {
        registry.send_elsewhere(&place);
        for image in ["away:v1", "leak:v1"] {
            for credentials in [None, Some(team())] {
                let error = ask_as(&registry, image, credentials).await.unwrap_err();
                assert!(matches!(error, Error::Forbidden { .. }), "{image} to {place}: {error}");
            }
        }
    }
    assert_eq!(other.requests(), [], "the other host was asked");
    // A token service on the internet may be asked for a token, but not with credentials for someone else's registry.
    registry.send_elsewhere("https://tokens.example.com");
    let error = ask_as(&registry, "leak:v1", Some(team())).await.unwrap_err();
    assert!(matches!(error, Error::Forbidden { .. }), "{error}");
}

#[tokio::test]
async fn without_leave_a_registry_is_spoken_to_with_tls_only() {
    let registry = registry().await;
    let image = ImageRef::parse(&registry.name("both:v1")).unwrap();
    let client = RegistryClient::new("", []).unwrap();
    let error = client.look_up(&image, Some(&team())).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(registry.requests(), []);
}

#[test]
fn certificates_are_checked_when_the_operator_starts() {
    for bad in [
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let error = RegistryClient::new(bad, []).unwrap_err();
        assert!(
            matches!(error, SetupError::Pem(_) | SetupError::Certificate(_)),
            "{error}"
        );
    }
}
