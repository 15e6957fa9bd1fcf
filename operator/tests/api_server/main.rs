//! The operator's binary against a real etcd and kube-apiserver on loopback: what only an API server can tell, such as
//! the cost of rules, server-side apply, and whether pods pass Pod Security. No kubelet, no controllers: pods do not run.
//!
//! Scenarios of one lane share a cluster and run one after the other; lanes run side by side, each on a cluster of its own.
//!
//! Needs `etcd` and `kube-apiserver` in `$HAWKEYE_CACHE/tools/bin`; `make tools` builds them.

#![allow(missing_docs, clippy::print_stderr, clippy::too_many_lines)]

mod crash;
mod devices;
mod digests;
mod events;
#[path = "../fake_registry/mod.rs"]
mod fake_registry;
mod faults;
mod handover;
mod images;
mod life;
mod manners;
mod models;
mod operator;
mod plugin;
mod proxy;
mod recognition;
mod replicas;
mod scenarios;
mod server;
mod snapshot;
mod stored;
mod traces;
mod validation;

use std::{
    process::ExitCode,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use server::Cluster;
use tokio::runtime::{Handle, Runtime};

type Scenario = fn(&'static Cluster) -> scenarios::Outcome;
type Lane = &'static [(&'static str, Scenario)];

/// What is taken, and what becomes of it.
const SCHEMA: Lane = &[
    ("definitions_and_classes_apply_and_invalid_specs_name_the_field", |c| {
        Box::pin(scenarios::validation(c))
    }),
    ("every_rule_is_enforced_by_the_field_s_name", |c| {
        Box::pin(validation::every_rule(c))
    }),
    ("no_field_of_a_class_is_immutable", |c| Box::pin(validation::changes(c))),
    ("defaults_and_scale_subresource", |c| Box::pin(scenarios::defaults(c))),
    ("a_spec_without_a_model_says_what_to_do", |c| {
        Box::pin(scenarios::model_missing(c))
    }),
    ("a_model_volume_that_the_api_server_drops_is_an_error", |c| {
        Box::pin(models::without_image_volumes(c))
    }),
];

/// They share nodes, objects and the operator's counters, so their order counts.
const CALM: Lane = &[
    ("labels_that_vanish_move_nothing_for_a_while", |c| {
        Box::pin(recognition::grace(c))
    }),
    ("classes_that_share_nodes_say_so", |c| {
        Box::pin(recognition::overlaps(c))
    }),
    ("each_platform_gets_its_pool", |c| Box::pin(scenarios::pools(c))),
    ("the_plugin_plans_what_the_operator_does", |c| Box::pin(plugin::live(c))),
    ("pods_pass_pod_security_restricted", |c| {
        Box::pin(scenarios::restricted(c))
    }),
    ("a_changed_model_changes_the_template", |c| Box::pin(models::changes(c))),
    ("drift_is_undone_and_foreign_fields_are_not", |c| {
        Box::pin(scenarios::drift(c))
    }),
    ("an_object_of_someone_else_is_left_alone", |c| {
        Box::pin(scenarios::conflict(c))
    }),
    ("scaling_to_zero_leaves_the_service", |c| Box::pin(scenarios::zero(c))),
    ("each_text_is_an_event_of_its_own", |c| {
        Box::pin(events::each_text_is_an_event(c))
    }),
    ("an_object_that_does_not_decode_says_so", |c| {
        Box::pin(stored::deployment(c))
    }),
    ("a_hardware_class_that_does_not_decode_says_so", |c| {
        Box::pin(stored::class(c))
    }),
    ("a_replica_is_handed_over_and_comes_back_across_restarts", |c| {
        Box::pin(handover::there_and_back(c))
    }),
    ("nodes_that_change_without_changing_the_plan_lead_to_no_write", |c| {
        Box::pin(handover::nothing_to_write(c))
    }),
    ("pods_are_asked_what_they_compute_on", |c| {
        Box::pin(devices::verified(c))
    }),
    ("idle_and_after_a_restart_nothing_is_written", |c| {
        Box::pin(scenarios::idle(c))
    }),
    ("policy_and_budget_follow_the_spec", |c| {
        Box::pin(manners::policy_and_budget(c))
    }),
    ("options_of_pods_come_and_go", |c| Box::pin(manners::pod_options(c))),
    ("an_autoscaler_is_not_fought", |c| Box::pin(manners::autoscaler(c))),
    ("a_flapping_pod_makes_few_events", |c| Box::pin(manners::flapping(c))),
    ("every_right_is_used_and_none_is_missing", |c| {
        Box::pin(manners::rights(c))
    }),
    // After the rights: single Secrets are granted beside the list of rights.
    ("a_class_whose_image_is_missing_is_passed_over", |c| {
        Box::pin(images::passed_over(c))
    }),
    ("what_is_not_known_of_an_image_blocks_nothing", |c| {
        Box::pin(images::known_and_unknown(c))
    }),
    ("a_private_image_is_read_where_the_values_allow_it", |c| {
        Box::pin(images::private(c))
    }),
    ("a_pods_own_failure_tells_on_its_image", |c| {
        Box::pin(images::pods_own_words(c))
    }),
    ("a_moved_tag_of_a_model_changes_the_template", |c| {
        Box::pin(digests::followed(c))
    }),
    ("it_works_with_rights_in_its_namespaces_only", |c| {
        Box::pin(manners::namespaced(c))
    }),
    ("spans_reach_a_collector", |c| Box::pin(traces::reach_a_collector(c))),
    ("two_replicas_take_turns", |c| Box::pin(replicas::take_turns(c))),
];

/// An operator that is killed.
const KILLED: Lane = &[("kill_9_after_every_write_ends_the_same", |c| {
    Box::pin(crash::after_every_write(c))
})];

/// An API server that goes wrong, in lanes that take about as long as one another.
const FAILING: Lane = &[("errors_after_the_commit_end_the_same", |c| {
    Box::pin(faults::error_after_commit(c))
})];
const REFUSING: Lane = &[
    ("conflicts_end_the_same", |c| Box::pin(faults::conflict(c))),
    ("too_many_requests_end_the_same", |c| {
        Box::pin(faults::too_many_requests(c))
    }),
];
const SLOW: Lane = &[("five_seconds_of_latency_end_the_same", |c| Box::pin(faults::latency(c)))];
const BROKEN: Lane = &[
    ("requests_without_an_answer_end_the_same", |c| {
        Box::pin(faults::no_answer(c))
    }),
    ("versions_that_are_gone_end_the_same", |c| Box::pin(faults::gone(c))),
    ("cut_watches_end_the_same", |c| Box::pin(faults::cut_watches(c))),
    ("an_outage_of_thirty_seconds_ends_the_same", |c| {
        Box::pin(faults::outage(c))
    }),
];

const LANES: [Lane; 7] = [SCHEMA, CALM, KILLED, FAILING, REFUSING, SLOW, BROKEN];

/// Where the results of a scenario arrive.
type Results = Receiver<Result<()>>;

/// Runs scenarios of a lane in order, and says what came of each.
fn run(handle: &Handle, scenarios: Vec<(&'static str, Scenario, Sender<Result<()>>)>) {
    let cluster: &'static Cluster = match handle.block_on(Cluster::start()) {
        Ok(cluster) => Box::leak(Box::new(cluster)),
        Err(error) => {
            let said = format!("no API server: {error:#}");
            for (_, _, result) in scenarios {
                // Who waits for it waits until the end.
                let _received = result.send(Err(anyhow!("{said}")));
            }
            return;
        }
    };
    let mut failed = false;
    for (name, scenario, result) in scenarios {
        let start = Instant::now();
        let outcome = handle.block_on(scenario(cluster));
        eprintln!("    {name}: {:.1} s", start.elapsed().as_secs_f64());
        failed |= outcome.is_err();
        let _received = result.send(outcome);
    }
    if failed {
        eprintln!("the operator's log:\n{}", cluster.operator_log());
    }
    cluster.stop();
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A trial only waits for the result, which comes from its lane.
    arguments.test_threads = Some(1);
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut trials, mut lanes) = (Vec::new(), Vec::new());
    for lane in LANES {
        let mut scenarios = Vec::new();
        for (name, scenario) in lane {
            let (sender, receiver) = channel();
            let trial = Trial::test(*name, move || waited(&receiver));
            if !arguments.is_filtered_out(&trial) {
                scenarios.push((*name, *scenario, sender));
            }
            trials.push(trial);
        }
        if !arguments.list && !scenarios.is_empty() {
            let handle = runtime.handle().clone();
            lanes.push(thread::spawn(move || run(&handle, scenarios)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for lane in lanes {
        if lane.join().is_err() {
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

fn waited(result: &Results) -> Result<(), Failed> {
    match result.recv() {
        Ok(outcome) => outcome.map_err(|error| Failed::from(format!("{error:#}"))),
        Err(_) => Err(Failed::from("its lane ended before its turn")),
    }
}
