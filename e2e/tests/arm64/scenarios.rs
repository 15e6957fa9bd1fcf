//! The scenarios, in the order in which they run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hawkeye_crds::v1alpha1::ConditionStatus;
use hawkeye_e2e::{
    Cache, NodeChoice,
    images::{self, Arch, Descriptor, Image, Layout, Variant},
    install::OPERATOR_NAMESPACE,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    Arm64, CLUSTER, elements,
    registry::{AMD64_ONLY, BOTH},
    support::{Scope, condition, expect, pretty, within},
};

const NAMESPACE: &str = "both";
const NAME: &str = "parser";
/// Seconds that an emulated parser may need until it is ready, and for one screenshot.
const READY: u64 = 900;
const PARSE: u64 = 900;
/// Small: under emulation every line of text costs seconds.
const SCREENSHOT: &str = "inference/export/testdata/screens/dialog.png";
/// What a Graviton3 on EC2 is labelled with.
const INSTANCE_TYPE: (&str, &str) = ("node.kubernetes.io/instance-type", "c7g.large");

fn node_name(node: NodeChoice) -> String {
    match node {
        NodeChoice::First => format!("hawkeye-{CLUSTER}"),
        NodeChoice::Arm64 => format!("hawkeye-{CLUSTER}.arm64"),
    }
}

/// What this machine shows of the tests' cluster and of arm64 nodes.
pub fn traces() -> Result<Vec<String>> {
    let name = node_name(NodeChoice::First);
    let mut traces = BTreeSet::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        if line.contains(&name) || line.contains("binfmt_misc") {
            traces.insert(format!("mount {point}"));
        }
        for cgroup in [name.clone(), node_name(NodeChoice::Arm64)] {
            if line.contains(" - cgroup") && Path::new(point).join(&cgroup).exists() {
                traces.insert(format!("cgroup {cgroup} in {point}"));
            }
        }
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&format!("/run/{name}")) {
            traces.insert(format!("process {}", process.path().display()));
        }
    }
    for folder in ["/sys/class/net", "/proc/sys/fs/binfmt_misc"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let entry = entry.file_name().to_string_lossy().into_owned();
            if folder.ends_with("binfmt_misc") || entry.contains(CLUSTER) {
                traces.insert(format!("{folder}/{entry}"));
            }
        }
    }
    Ok(traces.into_iter().collect())
}

pub async fn each_image_holds_programs_of_one_architecture(cluster: &Arm64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let child = folder.path().join("child.tar");
    for (image, index) in crate::IMAGES.iter().zip(&cluster.indexes) {
        let layout = Layout::open(index)?;
        ensure!(
            layout.digests_match(),
            "{}: a blob has another digest",
            image.reference()
        );
        let named: Vec<_> = layout.children()?.iter().filter_map(Descriptor::arch).collect();
        expect("platforms of the index", &named, &crate::ARCHITECTURES.to_vec())?;
        for arch in crate::ARCHITECTURES {
            layout.write_child(arch, &image.reference(), &child)?;
            let contents = images::inspect(&child)?;
            eprintln!("    {}", images::describe(*image, &contents));
            expect("the image's architecture", &contents.arch, &arch)?;
            let foreign: Vec<_> = contents.foreign().collect();
            ensure!(foreign.is_empty(), "{} for {arch} holds {foreign:?}", image.reference());
            let program = if *image == Image::Operator {
                "operator"
            } else {
                "inference"
            };
            let program = format!("usr/local/bin/hawkeye-{program}");
            ensure!(
                contents.binaries.iter().any(|(path, _)| *path == program),
                "no {program}"
            );
            let libtorch = contents
                .binaries
                .iter()
                .any(|(path, _)| path.ends_with("libtorch_cpu.so"));
            expect(
                "libtorch is in it",
                &libtorch,
                &(*image == Image::Inference(Variant::Cpu)),
            )?;
            let most = image.most().context("no limit")?;
            ensure!(contents.size < most, "{} bytes, and {most} are the most", contents.size);
        }
    }
    Ok(())
}

pub async fn services_reach_across_both_nodes(cluster: &Arm64) -> Result<()> {
    let nodes = cluster.suite.nodes().await?;
    let archs: BTreeSet<_> = nodes
        .iter()
        .map(|node| {
            (
                node.name_any(),
                node.labels().get("kubernetes.io/arch").cloned().unwrap_or_default(),
            )
        })
        .collect();
    let wanted = [(NodeChoice::First, "amd64"), (NodeChoice::Arm64, "arm64")];
    expect(
        "nodes and their kubelets' architecture",
        &archs,
        &wanted.map(|(node, arch)| (node_name(node), arch.to_owned())).into(),
    )?;
    // The operator's pod is on the arm64 node and CoreDNS's on the first; each Service is asked on the other node.
    for (namespace, name, port, path, from) in [
        ("kube-system", "coredns-health", 8080, "health", NodeChoice::Arm64),
        (OPERATOR_NAMESPACE, "operator-health", 8080, "livez", NodeChoice::First),
    ] {
        let services: Api<Service> = Api::namespaced(cluster.suite.client.clone(), namespace);
        let selector = match namespace {
            OPERATOR_NAMESPACE => json!({"app.kubernetes.io/name": "hawkeye-operator"}),
            _ => json!({"k8s-app": "kube-dns"}),
        };
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": selector, "ports": [{"port": port}]},
        }))?;
        let made = services.create(&PostParams::default(), &service).await?;
        let address = made.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
        let url = format!("http://{address}:{port}/{path}");
        // kube-proxy needs a moment for a new Service.
        let answer = within(30, async || {
            let words = ["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "3", &url];
            Ok(cluster.suite.cluster.output(from, &words).ok())
        })
        .await?;
        services.delete(name, &DeleteParams::default()).await?;
        answer.with_context(|| format!("{url} does not answer on {}", node_name(from)))?;
    }
    Ok(())
}

pub async fn the_operator_runs_on_the_arm64_node(cluster: &Arm64) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.suite.client.clone(), OPERATOR_NAMESPACE);
    let found = pods.list(&ListParams::default()).await?.items;
    expect("pods of the operator", &found.len(), &1)?;
    runs_as(
        cluster,
        &found[0],
        NodeChoice::Arm64,
        Arch::Arm64,
        "/usr/local/bin/hawkeye-operator",
    )
}

/// Fails unless the pod is on the node and its first process is a program for `arch`, by the header of the file that the
/// running container sees.
fn runs_as(cluster: &Arm64, pod: &Pod, node: NodeChoice, arch: Arch, program: &str) -> Result<()> {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    expect("the pod's node", &on, &Some(node_name(node)))?;
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let id = statuses
        .and_then(|all| all.first()?.container_id.as_deref()?.strip_prefix("containerd://"))
        .context("the pod's container has no id")?;
    let ctr = cluster.suite.tools.join("ctr").display().to_string();
    let socket = format!("/run/{}/containerd.sock", node_name(node));
    let output = |words: &[&str]| cluster.suite.cluster.output(node, words);
    let tasks = output(&[&ctr, "--address", &socket, "-n", "k8s.io", "tasks", "ls"])?;
    let pid = tasks
        .lines()
        .find_map(|line| line.strip_prefix(id)?.split_whitespace().next())
        .with_context(|| format!("no process of {id} among\n{tasks}"))?;
    // An emulator stands before the program, in the list of arguments as well as in /proc/PID/exe.
    let words = output(&["cat", &format!("/proc/{pid}/cmdline")])?;
    ensure!(
        words.split('\0').take(2).any(|word| word == program),
        "process {pid} runs {words:?}"
    );
    let file = format!("/proc/{pid}/root{program}");
    let machine = output(&[
        "od",
        "--address-radix=n",
        "--format=u2",
        "--skip-bytes=18",
        "--read-bytes=2",
        &file,
    ])?;
    expect(
        "the ELF header's machine",
        &machine.trim(),
        &arch.elf_machine().to_string().as_str(),
    )
}

/// The demo's models, told to look at smaller pictures: an emulated processor takes minutes for one of the usual size. What is
/// found in [`SCREENSHOT`] stays the same. Returns the bundle's folder, which both nodes see.
fn small_bundle() -> Result<PathBuf> {
    let bundles = Cache::from_env()?.root().join("bundles");
    let (demo, small) = (bundles.join("demo"), bundles.join("small"));
    if small.exists() {
        fs::remove_dir_all(&small)?;
    }
    fs::create_dir(&small)?;
    for file in fs::read_dir(&demo)? {
        let file = file?;
        fs::copy(file.path(), small.join(file.file_name()))?;
    }
    let description = small.join("bundle.json");
    let mut bundle: Value = serde_json::from_slice(&fs::read(&description)?)?;
    for (role, setting, value) in [
        ("detector", "/imageSize", json!(320)),
        ("ocr-detector", "/limits/limitType", json!("max")),
        ("ocr-detector", "/limits/limitSideLen", json!(640)),
    ] {
        let mut models = bundle["models"].as_array_mut().into_iter().flatten();
        let model = models.find(|model| model["role"] == role);
        let known = model.and_then(|model| model.pointer_mut(setting));
        *known.with_context(|| format!("the bundle's {role} has no {setting}"))? = value;
    }
    fs::write(&description, bundle.to_string())?;
    Ok(small)
}

/// A claim on a bundle's folder.
async fn claim(scope: &Scope<'_>, folder: &Path) -> Result<()> {
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "hawkeye-bundle"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": folder, "type": "Directory"},
            "claimRef": {"namespace": scope.name, "name": "bundle"},
        },
    }))?;
    let volumes: Api<PersistentVolume> = Api::all(scope.suite.client.clone());
    volumes.create(&PostParams::default(), &volume).await?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "bundle"},
        "spec": {
            "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": "hawkeye-bundle",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }))?;
    let claims = scope.api::<PersistentVolumeClaim>();
    claims.create(&PostParams::default(), &claim).await?;
    Ok(())
}

/// A HawkeyeDeployment with one pod on each of `classes`, or with one pod on the first of them that has room.
fn spec(image: &str, classes: &[&str], each: bool) -> Value {
    // Emulation is some fifty times slower than the processor. Without SVE and bfloat16 it has less to do, and a Graviton2
    // is the oldest that counts.
    let env = json!([
        {"name": "HAWKEYE_REQUEST_TIMEOUT", "value": format!("{PARSE}s")},
        {"name": "HAWKEYE_DEVICE_TIMEOUT", "value": "30m"},
        {"name": "QEMU_CPU", "value": "neoverse-n1"},
    ]);
    let overrides: serde_json::Map<_, _> = classes
        .iter()
        .map(|class| {
            let mut change = json!({"env": env});
            if each {
                change["replicas"] = json!(1);
            }
            ((*class).to_owned(), change)
        })
        .collect();
    let replicas = if each { classes.len() } else { 1 };
    json!({
        "image": image, "classes": classes, "replicas": replicas, "overrides": overrides, "profile": "Balanced",
        "handOverAfter": "Never", "model": {"persistentVolumeClaim": {"claimName": "bundle"}},
    })
}

pub async fn one_reference_gets_pools_on_both_architectures(cluster: &Arm64) -> Result<()> {
    let scope = cluster.suite.namespace(NAMESPACE).await?;
    claim(&scope, &small_bundle()?).await?;
    let image = cluster.registry.image(BOTH);
    scope
        .apply(NAME, spec(&image, &["cpu-amd64", "cpu-arm64"], true))
        .await?;
    let object = scope.until_ready(NAME, 2, READY).await?;
    let verified = condition(&object, "ImageVerified").context("no condition ImageVerified")?;
    expect(&verified.message, &verified.status, &ConditionStatus::True)?;
    for words in ["linux/amd64", "linux/arm64", image.as_str()] {
        ensure!(
            verified.message.contains(words),
            "{words} is not in: {}",
            verified.message
        );
    }
    for (class, node, arch) in [
        ("cpu-amd64", NodeChoice::First, Arch::Amd64),
        ("cpu-arm64", NodeChoice::Arm64, Arch::Arm64),
    ] {
        let pod = pod_of(&scope, class).await?;
        runs_as(cluster, &pod, node, arch, "/usr/local/bin/hawkeye-inference").context(class)?;
    }
    Ok(())
}

/// The only pod of a class's pool.
async fn pod_of(scope: &Scope<'_>, class: &str) -> Result<Pod> {
    let pool = format!("{NAME}-{class}-");
    let mut pods = scope.pods(NAME).await?;
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none() && pod.name_any().starts_with(&pool));
    match pods.pop() {
        Some(pod) if pods.is_empty() => Ok(pod),
        _ => bail!("not one pod of {class}"),
    }
}

async fn parse(scope: &Scope<'_>, class: &str) -> Result<Value> {
    let pod = pod_of(scope, class).await?;
    let address = pod.status.and_then(|status| status.pod_ip).context("no address")?;
    let picture = fs::read(scope.suite.path(SCREENSHOT))?;
    let part = reqwest::multipart::Part::bytes(picture).file_name("screenshot.png");
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(PARSE))
        .build()?;
    let answer = http
        .post(format!("http://{address}:9989/parse/upload?include_som=false"))
        .multipart(reqwest::multipart::Form::new().part("file", part))
        .send()
        .await?;
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.is_success(), "{class} answered {status}: {text}");
    let answer: Value = serde_json::from_str(&text)?;
    eprintln!(
        "    {class}: {} elements on {} in {} ms",
        answer["count"], answer["device_name"], answer["processing_time_ms"]
    );
    Ok(answer)
}

pub async fn both_architectures_find_the_same_elements(cluster: &Arm64) -> Result<()> {
    let scope = cluster.suite.namespace(NAMESPACE).await?;
    let (amd64, arm64) = (parse(&scope, "cpu-amd64").await?, parse(&scope, "cpu-arm64").await?);
    expect("the arm64 pod's device", &arm64["device_name"], &json!("CPU (aarch64)"))?;
    let elements = elements::same(&amd64, &arm64)?;
    ensure!(elements >= 5, "only {elements} elements: nothing was compared");
    Ok(())
}

pub async fn an_image_for_amd64_alone_is_reported(cluster: &Arm64) -> Result<()> {
    let scope = cluster.suite.namespace(NAMESPACE).await?;
    let image = cluster.registry.image(AMD64_ONLY);
    let name = "narrow";
    scope.apply(name, spec(&image, &["cpu-arm64"], true)).await?;
    let object = scope
        .until(name, "reported", 60, |object| {
            condition(object, "ImageVerified").is_some_and(|found| found.reason == "ImageArchitectureMissing")
        })
        .await?;
    let verified = condition(&object, "ImageVerified").context("no condition ImageVerified")?;
    expect("ImageVerified", &verified.status, &ConditionStatus::False)?;
    for words in [
        &image,
        "linux/arm64",
        "only for linux/amd64",
        &node_name(NodeChoice::Arm64),
    ] {
        ensure!(
            verified.message.contains(words),
            "{words} is not in: {}",
            verified.message
        );
    }
    ensure!(scope.pods(name).await?.is_empty(), "a pod was made that could not run");
    scope.delete(name).await
}

/// The node is labelled as a Graviton, as a cloud controller does that comes late.
pub async fn a_node_that_changes_class_gets_another_pool(cluster: &Arm64) -> Result<()> {
    let scope = cluster.suite.namespace(NAMESPACE).await?;
    let image = cluster.registry.image(BOTH);
    scope
        .apply(NAME, spec(&image, &["graviton", "cpu-arm64"], false))
        .await?;
    scope.until_ready(NAME, 1, READY).await?;
    let before = pod_of(&scope, "cpu-arm64").await?;
    restarts(&before)?;

    let nodes: Api<Node> = Api::all(cluster.suite.client.clone());
    let labels = json!({"metadata": {"labels": {INSTANCE_TYPE.0: INSTANCE_TYPE.1}}});
    nodes
        .patch(
            &node_name(NodeChoice::Arm64),
            &PatchParams::default(),
            &Patch::Merge(labels),
        )
        .await?;
    let on = |class: &str, object: &hawkeye_crds::v1alpha1::HawkeyeDeployment| {
        let pools = object
            .status
            .as_ref()
            .map(|status| status.pools.as_slice())
            .unwrap_or_default();
        pools
            .iter()
            .find(|pool| pool.class == class)
            .map(|pool| (pool.replicas, pool.ready))
    };
    let object = scope
        .until(NAME, "ready on graviton alone", READY, |object| {
            on("graviton", object) == Some((1, 1)) && on("cpu-arm64", object).is_none_or(|(replicas, _)| replicas == 0)
        })
        .await?;
    let available = condition(&object, "Available").context("no condition Available")?;
    expect(&available.message, &available.status, &ConditionStatus::True)?;
    let after = pod_of(&scope, "graviton").await?;
    runs_as(
        cluster,
        &after,
        NodeChoice::Arm64,
        Arch::Arm64,
        "/usr/local/bin/hawkeye-inference",
    )?;
    // Nothing ended on its own: neither the pods of the new class nor the operator.
    restarts(&after)?;
    let operator: Api<Pod> = Api::namespaced(cluster.suite.client.clone(), OPERATOR_NAMESPACE);
    for pod in operator.list(&ListParams::default()).await?.items {
        restarts(&pod)?;
    }
    scope.delete(NAME).await
}

fn restarts(pod: &Pod) -> Result<()> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let total: i32 = statuses
        .into_iter()
        .flatten()
        .map(|container| container.restart_count)
        .sum();
    ensure!(
        total == 0,
        "{} restarted {total} times: {}",
        pod.name_any(),
        pretty(&pod.status)
    );
    Ok(())
}

pub async fn everything_is_removed(cluster: &Arm64) -> Result<()> {
    if std::env::var_os("HAWKEYE_KEEP").is_some() {
        return Ok(());
    }
    let running = traces()?;
    ensure!(
        running.len() > cluster.before.len(),
        "a running cluster shows nothing: {running:?}"
    );
    cluster.suite.cluster.down()?;
    expect("what the machine shows", &traces()?, &cluster.before)
}
