//! End-to-end scenarios on a real cluster named `test`: the real node runs real pods, fake nodes stand in for platforms.
//!
//! `cargo test -p hawkeye-e2e --test e2e [FILTER]` brings the cluster up, installs Hawkeye with Helm, runs the scenarios
//! one after the other and takes the cluster down. `HAWKEYE_KEEP=1` leaves it up for a look.

// The runner of the scenarios talks to the terminal.
#![allow(clippy::print_stderr)]

mod api;
mod changes;
mod conditions;
mod devices;
mod flow;
mod idle;
mod images;
mod install;
mod labels;
mod leader;
mod manners;
mod models;
mod placement;
mod platforms;
mod plugin;
mod support;

use std::{
    future::Future,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use hawkeye_e2e::{
    cluster::{Cluster, ProviderChoice, UpOptions},
    images::build_for_cluster,
    install::charts,
    paths::Cache,
    progress::Progress,
};
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::{
    images::REGISTRY,
    support::{Suite, repository},
};

/// The tests' cluster; a demo of another name is never touched.
const CLUSTER: &str = "test";
/// A scenario that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(8);

type Scenario = for<'a> fn(&'a Suite) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($module:ident :: $name:ident),+ $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), (|suite| Box::pin($module::$name(suite))) as Scenario)),+]
    };
}

/// Pods of test objects may land on fake nodes; nothing else tolerates their taint.
const TOLERATIONS: &str = r#"hardwareClassDefaults.tolerations=[{"key":"kwok.x-k8s.io/node","operator":"Exists"}]"#;

/// Installs both charts as the scenarios need them. Of the images only those in the scenarios' own registry are looked up; the
/// others are on the nodes and in no registry.
fn install_charts(suite: &Suite) -> Result<()> {
    let registries =
        ["registries", "insecureRegistries"].map(|name| format!("imageVerification.{name}={{{REGISTRY}}}"));
    let more = [
        "--set-json",
        TOLERATIONS,
        "--set=imageVerification.enabled=true",
        "--set",
        &registries[0],
        "--set",
        &registries[1],
    ];
    Ok(charts(&suite.cluster, &suite.repository, &more)?)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The scenarios share one cluster with few fake GPUs.
    arguments.test_threads = Some(1);
    let scenarios = scenarios![
        install::built_in_classes_are_there,
        install::manifests_and_samples_are_valid,
        api::invalid_specs_are_refused_by_field,
        api::explain_describes_every_field,
        flow::a_screenshot_is_parsed_through_the_service,
        flow::a_bundle_on_a_persistent_volume_claim_is_served,
        flow::an_in_cluster_client_finds_it_by_name,
        models::a_bundle_from_a_web_server_is_served,
        models::a_damaged_bundle_is_told_in_the_pods_own_words,
        images::an_image_for_another_architecture_is_told_and_mended,
        conditions::what_the_spec_cannot_show_is_said_within_30_seconds,
        platforms::each_platform_gets_its_pool,
        platforms::auto_prefers_gpus_and_overflows_to_cpus,
        platforms::deny_leaves_the_rest_unplaced_and_says_so,
        plugin::kubectl_hawkeye_tells_every_platform_and_what_runs,
        placement::a_pod_that_finds_no_node_is_handed_over_and_comes_back,
        labels::a_label_publisher_that_restarts_moves_no_pod,
        changes::only_the_pool_that_changed_rolls,
        changes::it_scales_by_the_scale_subresource,
        changes::deletion_leaves_nothing,
        changes::a_foreign_object_of_the_same_name_is_left_alone,
        changes::what_others_change_is_put_right,
        changes::a_missing_model_is_explained,
        manners::an_update_interrupts_no_request,
        manners::an_autoscaler_is_let_do_its_work,
        manners::a_drain_takes_one_pod_at_a_time,
        devices::a_gpu_that_the_pod_does_not_see_is_denied_or_degrades,
        leader::the_other_replica_takes_over,
        idle::two_idle_minutes_write_nothing_but_the_lease,
        install::removal_keeps_definitions_and_objects,
    ];
    if arguments.list {
        let trials = scenarios
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let runtime = match Runtime::new() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("no async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let suite = match set_up(&runtime) {
        Ok(suite) => suite,
        Err(error) => {
            eprintln!("the cluster for the tests did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let suite = Arc::new(suite);
    let trials = scenarios.map(|(name, scenario)| {
        let (suite, runtime) = (suite.clone(), runtime.clone());
        Trial::test(name, move || {
            let started = Instant::now();
            let ended = runtime.block_on(async { tokio::time::timeout(LIMIT, scenario(&suite)).await });
            eprintln!("    {name}: {:.1} s", started.elapsed().as_secs_f64());
            if !matches!(ended, Ok(Ok(())))
                && let Err(error) = runtime.block_on(suite.clear())
            {
                eprintln!("    after {name}: {error:#}");
            }
            match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{error:#}").into()),
                Err(_) => Err(format!("took longer than {} s", LIMIT.as_secs()).into()),
            }
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    if std::env::var_os("HAWKEYE_KEEP").is_some() {
        eprintln!("left up: hawkeye-e2e cluster down --name {CLUSTER}");
    } else if let Err(error) = suite.cluster.down() {
        eprintln!("the cluster for the tests did not go away: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn set_up(runtime: &Runtime) -> Result<Suite> {
    let (cache, progress, repository) = (Cache::from_env()?, Progress::new(), repository());
    let archives = build_for_cluster(&cache, &repository, progress)?;
    let cluster = Cluster::new(CLUSTER, ProviderChoice::Auto, progress)?;
    cluster.up(UpOptions {
        fake_nodes: true,
        ..UpOptions::default()
    })?;
    for archive in &archives {
        cluster.load_image(archive)?;
    }
    let suite = Suite {
        client: runtime.block_on(cluster.client())?,
        tools: cache.tools().join("bin"),
        repository,
        cluster,
    };
    progress.step("Hawkeye, with Helm");
    if let Err(error) = install_charts(&suite) {
        let state = suite
            .tool("kubectl", &["-n", "hawkeye-system", "describe", "pods"])
            .unwrap_or_default();
        bail!("{error:#}\n{state}");
    }
    runtime.block_on(suite.make_real_class())?;
    Ok(suite)
}
