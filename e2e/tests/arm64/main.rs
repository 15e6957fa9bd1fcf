//! Hawkeye on a cluster of two architectures: this machine's node and one whose kubelet and pods are arm64.
//!
//! `make test-arm64` runs it. Without `HAWKEYE_ARM64=1` every scenario is reported as ignored, and so it is, with the
//! reason, on a machine that cannot have such a node. `HAWKEYE_KEEP=1` leaves the cluster up for a look.

// The runner of the scenarios talks to the terminal.
#![allow(clippy::print_stderr)]

mod elements;
mod registry;
mod scenarios;
#[allow(dead_code, reason = "the other suite's helpers; this one needs a part of them")]
#[path = "../e2e/support.rs"]
mod support;

use std::{
    fs,
    future::Future,
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hawkeye_e2e::{
    Cache, Cluster, NodeChoice, Progress, ProviderChoice, UpOptions,
    images::{self, Arch, Image, Layout, Variant},
    install,
};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::{
    registry::{AMD64_ONLY, BOTH, Registry},
    support::{Suite, repository},
};

const CLUSTER: &str = "arm64";
/// An emulated parser needs minutes to start and minutes for a screenshot.
const LIMIT: Duration = Duration::from_mins(25);
/// What has programs; the model comes from a folder.
const IMAGES: [Image; 2] = [Image::Operator, Image::Inference(Variant::Cpu)];
const ARCHITECTURES: [Arch; 2] = [Arch::Amd64, Arch::Arm64];

/// The cluster with Hawkeye in it, and the registry beside it.
pub struct Arm64 {
    /// Cluster, client and tools.
    pub suite: Suite,
    /// Serves the index of the inference image.
    pub registry: Registry,
    /// The OCI layouts of the images, in their order.
    pub indexes: Vec<PathBuf>,
    /// What this machine showed of such clusters before.
    pub before: Vec<String>,
}

type Scenario = for<'a> fn(&'a Arm64) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        [$((stringify!($name), (|cluster| Box::pin(scenarios::$name(cluster))) as Scenario)),+]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One cluster, and the order counts: what follows uses what was made before.
    arguments.test_threads = Some(1);
    let scenarios = scenarios![
        each_image_holds_programs_of_one_architecture,
        services_reach_across_both_nodes,
        the_operator_runs_on_the_arm64_node,
        one_reference_gets_pools_on_both_architectures,
        both_architectures_find_the_same_elements,
        an_image_for_amd64_alone_is_reported,
        a_node_that_changes_class_gets_another_pool,
        everything_is_removed,
    ];
    let differences = Trial::test("differences_are_seen", || {
        elements::differences_are_seen().map_err(|error| format!("{error:#}").into())
    });
    let skipped = skipped();
    if arguments.list || skipped.is_some() {
        if let Some(reason) = &skipped
            && !arguments.list
        {
            eprintln!("ignored: {reason}");
        }
        let trials = scenarios.iter().map(|(name, _)| {
            Trial::test(*name, || Err("it needs an arm64 node".into())).with_ignored_flag(skipped.is_some())
        });
        return libtest_mimic::run(&arguments, std::iter::once(differences).chain(trials).collect()).exit_code();
    }
    let runtime = match Runtime::new() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("no async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let cluster = match set_up(&runtime) {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => {
            eprintln!("the cluster for the tests did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = scenarios.map(|(name, scenario)| {
        let (cluster, runtime) = (cluster.clone(), runtime.clone());
        Trial::test(name, move || {
            let started = Instant::now();
            let ended = runtime.block_on(async { tokio::time::timeout(LIMIT, scenario(&cluster)).await });
            eprintln!("    {name}: {:.1} s", started.elapsed().as_secs_f64());
            match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{error:#}").into()),
                Err(_) => Err(format!("took longer than {} s", LIMIT.as_secs()).into()),
            }
        })
    });
    let conclusion = libtest_mimic::run(&arguments, std::iter::once(differences).chain(trials).collect());
    if std::env::var_os("HAWKEYE_KEEP").is_some() {
        eprintln!("left up: hawkeye-e2e cluster down --name {CLUSTER}");
    } else if let Err(error) = cluster.suite.cluster.down() {
        eprintln!("the cluster for the tests did not go away: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Why the scenarios cannot run here.
fn skipped() -> Option<String> {
    if std::env::var_os("HAWKEYE_ARM64").is_none() {
        return Some("these scenarios need HAWKEYE_ARM64=1; `make test-arm64` sets it".to_owned());
    }
    let reason = || -> Result<()> {
        let (cache, cluster) = (Cache::from_env()?, cluster()?);
        cluster.check_arm64()?;
        for arch in ARCHITECTURES {
            images::can_build_for(&cache, arch)?;
        }
        Ok(())
    };
    reason().err().map(|error| format!("{error:#}"))
}

fn cluster() -> Result<Cluster> {
    Ok(Cluster::new(CLUSTER, ProviderChoice::Local, Progress::new())?)
}

fn set_up(runtime: &Runtime) -> Result<Arm64> {
    let (cache, progress, repository) = (Cache::from_env()?, Progress::new(), repository());
    for arch in ARCHITECTURES {
        images::build_for(&cache, &repository, arch, &IMAGES, progress)?;
    }
    images::bundle(&cache, &repository, progress)?;
    let indexes = IMAGES
        .iter()
        .map(|&image| images::join(&cache, image, &ARCHITECTURES, progress))
        .collect::<Result<Vec<_>, _>>()?;

    let (cluster, before) = (cluster()?, scenarios::traces()?);
    cluster.up(UpOptions {
        arm64: true,
        ..UpOptions::default()
    })?;
    // The host's end of the link to the first node: the one address of this machine that both nodes reach.
    let route = cluster.output(NodeChoice::First, &["ip", "route", "show", "default"])?;
    let address = route.split(' ').nth(2).context("the node has no default route")?;
    let layout = Layout::open(&indexes[1])?;
    let registry = runtime.block_on(Registry::start(address.parse()?, layout))?;
    load(&cluster, &registry, &indexes)?;

    let suite = Suite {
        client: runtime.block_on(cluster.client())?,
        tools: cache.tools().join("bin"),
        repository,
        cluster,
    };
    progress.step("Hawkeye, with Helm, the operator on the arm64 node");
    let registries = json!([registry.host]);
    let values = [
        "--set=imageVerification.enabled=true".to_owned(),
        format!("--set-json=imageVerification.registries={registries}"),
        format!("--set-json=imageVerification.insecureRegistries={registries}"),
        "--set=operator.replicas=1".to_owned(),
        r#"--set-json=operator.nodeSelector={"kubernetes.io/arch":"arm64"}"#.to_owned(),
        // Each node has half of the machine.
        r#"--set-json=hardwareClassDefaults.cpu={"request":"250m"}"#.to_owned(),
    ];
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    if let Err(error) = install::charts(&suite.cluster, &suite.repository, &values) {
        let state = suite
            .tool("kubectl", &["-n", "hawkeye-system", "describe", "pods"])
            .unwrap_or_default();
        bail!("{error:#}\n{state}");
    }
    Ok(Arm64 {
        suite,
        registry,
        indexes,
        before,
    })
}

/// Gives each node the images for its architecture, from the indexes: a container runtime below an emulated node would take
/// the machine's own from an index.
fn load(cluster: &Cluster, registry: &Registry, indexes: &[PathBuf]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let child = folder.path().join("child.tar");
    let references = [Image::Operator.reference(), registry.image(BOTH)];
    for (node, arch) in [(NodeChoice::First, Arch::Amd64), (NodeChoice::Arm64, Arch::Arm64)] {
        for (index, reference) in indexes.iter().zip(&references) {
            Layout::open(index)?.write_child(arch, reference, &child)?;
            cluster.load_image_on(node, &child)?;
            fs::remove_file(&child)?;
        }
    }
    // Were it not held back, it would run on the emulated node as well: the kernel below is an x86-64 one.
    Layout::open(&indexes[1])?.write_child(Arch::Amd64, &registry.image(AMD64_ONLY), &child)?;
    Ok(cluster.load_image_on(NodeChoice::First, &child)?)
}
