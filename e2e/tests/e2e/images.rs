//! Images that were not built for the node: what a registry says before a pod is made, and what a pod's own end says.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use hawkeye_crds::v1alpha1::{ConditionStatus, HawkeyeDeployment};
use hawkeye_e2e::archive::Image;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::support::{REAL_CLASS, Scope, Suite, condition, expect, web_server, within};

const NAMESPACE: &str = "images";
/// The only registry that the operator of these tests may ask, without TLS: a web server in the cluster.
pub const REGISTRY: &str = "registry.images.svc:8080";

/// This node's architecture and another one, as images name them.
const ARCHITECTURES: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("arm64", "amd64")
} else {
    ("amd64", "arm64")
};

/// Numbers of machines in ELF headers: the other architecture's, and one that nobody has.
const MACHINES: [u16; 2] = [if cfg!(target_arch = "aarch64") { 62 } else { 183 }, 0xfefe];

/// A program that this kernel refuses, as it does those of other architectures: an ELF header with one segment. Where an
/// emulator of the other architecture is registered, it is one for a machine that does not exist.
fn foreign_program(folder: &Path) -> Result<PathBuf> {
    const NO_PROGRAM: i32 = 8;
    for machine in MACHINES {
        let path = folder.join(format!("machine-{machine}"));
        fs::write(&path, elf(machine))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let refused = Command::new(&path).stdin(Stdio::null()).output().err();
        if refused.is_some_and(|error| error.raw_os_error() == Some(NO_PROGRAM)) {
            return Ok(path);
        }
    }
    bail!("this kernel runs everything")
}

fn elf(machine: u16) -> Vec<u8> {
    const EXECUTABLE: u16 = 2;
    // 64 bits, little-endian, version 1.
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend(EXECUTABLE.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    // Entry, then the offsets of program headers and sections.
    for place in [0x40_0078_u64, 64, 0] {
        elf.extend(place.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    // Sizes of the header and of a program header, their number; no sections.
    for size in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(size.to_le_bytes());
    }
    // A segment to load, read and execute: offset, addresses, sizes, alignment.
    for word in [1_u32, 5] {
        elf.extend(word.to_le_bytes());
    }
    for number in [0_u64, 0x40_0000, 0x40_0000, 120, 120, 0x1000] {
        elf.extend(number.to_le_bytes());
    }
    elf
}

/// An index of images for these architectures.
fn index(architectures: &[&str]) -> Value {
    let entry = |architecture: &&str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
            "digest": format!("sha256:{}", "0".repeat(64)),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": architectures.iter().map(entry).collect::<Vec<_>>(),
    })
}

/// Serves the indexes as a registry does; of what it serves, nothing is pulled.
async fn registry(scope: &Scope<'_>, folder: &Path) -> Result<()> {
    let (here, other) = ARCHITECTURES;
    let mut files = Vec::new();
    for (place, architectures) in [
        ("parser/manifests/foreign", [other].as_slice()),
        ("parser/manifests/both", &[here, other]),
        ("bundle/manifests/both", &[here, other]),
    ] {
        let file = folder.join(place.replace('/', "-"));
        fs::write(&file, index(architectures).to_string())?;
        files.push((format!("v2/{place}"), file));
    }
    web_server(scope, "registry", files).await
}

/// Puts an image onto the node whose config says that it is for this node.
fn load(
    suite: &Suite,
    folder: &Path,
    name: &str,
    entrypoint: &[&str],
    files: Vec<(String, PathBuf, u32)>,
) -> Result<()> {
    let archive = folder.join("image.tar");
    Image {
        reference: format!("{REGISTRY}/{name}"),
        entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
        user: "65532:65532".into(),
        files,
    }
    .write(&archive)?;
    Ok(suite.cluster.load_image(&archive)?)
}

fn missing(object: &HawkeyeDeployment) -> bool {
    condition(object, "ImageVerified")
        .is_some_and(|it| it.status == ConditionStatus::False && it.reason == "ImageArchitectureMissing")
}

fn message(object: &HawkeyeDeployment) -> &str {
    condition(object, "ImageVerified").map_or("", |it| &it.message)
}

fn says(object: &HawkeyeDeployment, parts: &[&str]) -> Result<()> {
    let message = message(object);
    for part in parts {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    Ok(())
}

fn restarts(pods: &[Pod]) -> i32 {
    let statuses = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
    statuses
        .flatten()
        .map(|container| container.restart_count)
        .max()
        .unwrap_or(0)
}

pub async fn an_image_for_another_architecture_is_told_and_mended(suite: &Suite) -> Result<()> {
    let scope = suite.namespace(NAMESPACE).await?;
    let (here, other) = ARCHITECTURES;
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    registry(&scope, at).await?;
    let empty = at.join("empty");
    fs::write(&empty, "")?;
    load(
        suite,
        at,
        "bundle:both",
        &[],
        vec![("bundle.json".into(), empty, 0o644)],
    )?;
    let model = json!({"image": {"reference": format!("{REGISTRY}/bundle:both"), "pullPolicy": "Never"}});
    let spec =
        |tag: &str| json!({"classes": [REAL_CLASS], "image": format!("{REGISTRY}/parser:{tag}"), "model": model});

    // The index tells it: no pod is made, and the replica has no place.
    scope.apply("parser", spec("foreign")).await?;
    let object = scope.until("parser", "told by the registry", 60, missing).await?;
    let only = format!("not built for linux/{here}, only for linux/{other}");
    says(
        &object,
        &[&format!("{REGISTRY}/parser:foreign"), &only, "It would run on "],
    )?;
    expect(
        "Placed",
        &condition(&object, "Placed").map(|it| (&it.status, it.reason.as_str())),
        &Some((&ConditionStatus::False, "ImageArchitectureMissing")),
    )?;
    let made = scope.api::<Deployment>().list(&ListParams::default()).await?;
    ensure!(made.items.is_empty(), "a pool was made for an image that does not fit");

    // An index that names the wrong platform: the pod itself tells, with what the kernel says.
    let program = foreign_program(at)?;
    load(
        suite,
        at,
        "parser:both",
        &["/parser"],
        vec![("parser".into(), program, 0o755)],
    )?;
    scope.apply("parser", spec("both")).await?;
    let failed = |object: &HawkeyeDeployment| missing(object) && message(object).contains("cannot execute");
    let object = scope.until("parser", "told by the pod", 60, failed).await?;
    let node = scope
        .pods("parser")
        .await?
        .pop()
        .and_then(|pod| pod.spec?.node_name)
        .context("no node")?;
    says(
        &object,
        &[
            &format!("{REGISTRY}/parser:both was not built for linux/{here}"),
            &format!("node {node} cannot execute its program"),
            "exec format error",
        ],
    )?;
    // However often it is tried again.
    within(90, async || {
        Ok((restarts(&scope.pods("parser").await?) >= 2).then_some(()))
    })
    .await?
    .context("the container is not started again")?;
    let object = scope.until("parser", "still told", 10, missing).await?;
    let status = object.status.as_ref().context("no status")?;
    expect(
        "the summary",
        &status.summary.as_deref(),
        &Some("ImageArchitectureMissing"),
    )?;
    expect(
        "the pool's reason",
        &status.pools[0].reason.as_str(),
        &"ImageArchitectureMissing",
    )?;

    // The image is put right under the same name, and the kubelet's next try takes it.
    let mut www = vec![("busybox".to_owned(), PathBuf::from("/bin/busybox"), 0o755)];
    for path in ["startupz", "readyz", "livez"] {
        www.push((format!("www/{path}"), at.join("empty"), 0o644));
    }
    let device = at.join("device");
    fs::write(
        &device,
        json!({"state": "ready", "device": "cpu", "device_name": "test"}).to_string(),
    )?;
    www.push(("www/device".to_owned(), device, 0o644));
    // A shell, since httpd as the first process of a container would not end when it is told to.
    let serve = "trap exit TERM; /busybox httpd -f -p 9989 -h /www & wait";
    load(suite, at, "parser:both", &["/busybox", "sh", "-c", serve], www)?;
    let object = scope.until_ready("parser", 1, 120).await?;
    says(&object, &[&format!("There is {REGISTRY}/parser:both for linux/{here}")])?;
    expect(
        "ImageVerified",
        &condition(&object, "ImageVerified").map(|it| it.status),
        &Some(ConditionStatus::True),
    )?;
    scope.delete("parser").await
}
