//! Placement, sentence 4 of the design: "A current-revision pod that stays unschedulable for `handOverAfter`, outside a
//! rollout, gives its replica to the next class. Its class is tried again only after its capacity visibly changed, with
//! backoff kept in status."

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::{at, bare, built_in, index, offering, plan_at, shares, spec};
use hawkeye_crds::v1alpha1::{HawkeyeDeploymentSpec, Reason};
use hawkeye_operator::{
    controller::plan::{
        Plan, PoolPlan, Request,
        handover::{HandOver, PoolPods, Rollout, backoff},
    },
    hardware::{ClassIndex, NodeFacts},
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

const GPU: &str = "nvidia.com/gpu";
const CLASS: &str = "cuda-amd64";

fn gpus(units: u64) -> NodeFacts {
    offering(bare("gpu", "amd64", &["nvidia.com/gpu.present=true"]), GPU, units)
}

fn cluster(units: u64) -> ClassIndex {
    index(&[gpus(units), bare("cpu", "amd64", &[])])
}

/// Pods of the GPU pool: so many have a node and are ready, the others wait since these seconds.
fn pods(bound: u32, waiting: &[i64]) -> PoolPods {
    PoolPods {
        active: bound + u32::try_from(waiting.len()).unwrap(),
        bound,
        ready: bound,
        waiting: waiting.iter().map(|seconds| at(*seconds)).collect(),
        rollout: Rollout::Done,
        leaving: None,
    }
}

/// Plans again and again for one HawkeyeDeployment, with the records that the plan before has left.
struct Planning {
    spec: HawkeyeDeploymentSpec,
    records: BTreeMap<String, HandOver>,
}

impl Planning {
    fn of(yaml: &str) -> Self {
        Self {
            spec: spec(yaml),
            records: BTreeMap::new(),
        }
    }

    fn plan(&mut self, index: &ClassIndex, pods: PoolPods, now: Timestamp) -> Plan {
        let request = Request {
            pods: [(CLASS.to_owned(), pods)].into(),
            hand_overs: self.records.clone(),
            ..Request::new("u", "t", &self.spec)
        };
        let plan = plan_at(request, index, now);
        self.records = plan
            .pools
            .iter()
            .filter_map(|pool| Some((pool.class.clone(), pool.hand_over.clone()?)))
            .collect();
        plan
    }

    /// A replica of two is handed over at second 120.
    fn handed_over() -> Self {
        let mut planning = Self::of("{replicas: 2}");
        planning.plan(&cluster(2), pods(1, &[0]), at(0));
        let plan = planning.plan(&cluster(2), pods(1, &[0]), at(120));
        assert_eq!(shares(&plan), [(CLASS, 1), ("cpu-amd64", 1)]);
        planning
    }

    fn record(&self) -> &HandOver {
        &self.records[CLASS]
    }
}

fn gpu_pool(plan: &Plan) -> &PoolPlan {
    plan.pools.iter().find(|pool| pool.class == CLASS).unwrap()
}

#[test]
fn a_pod_that_finds_no_node_for_long_gives_its_replica_to_the_next_class() {
    let mut planning = Planning::of("{replicas: 2}");
    let waits = planning.plan(&cluster(2), pods(1, &[0]), at(1));
    assert_eq!(shares(&waits), [(CLASS, 2)]);
    assert_eq!(planning.record().since, Some(at(1)));
    assert_eq!(waits.next, Some(at(121)), "the planner wakes by itself");
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[0]), at(120))),
        [(CLASS, 2)]
    );

    let moved = planning.plan(&cluster(2), pods(1, &[0]), at(121));
    assert_eq!(
        shares(&moved),
        [(CLASS, 1), ("cpu-amd64", 1)],
        "the pod that has a node keeps its place"
    );
    assert_eq!((moved.unplaced, moved.stuck), (0, 0));
    let message = &gpu_pool(&moved).message;
    assert!(message.contains("Other classes have 1 of its 2 replicas"), "{message}");
    assert!(message.contains("found no node for 2m"), "{message}");
    let degraded = moved.degraded.unwrap();
    assert!(
        degraded.contains("1 on cpu-amd64 instead of Cuda") && degraded.contains("found no node"),
        "{degraded}"
    );
    // The pod that was handed over goes; nothing else changes.
    let record = planning.record().clone();
    let after = planning.plan(&cluster(2), pods(1, &[]), at(125));
    assert_eq!(shares(&after), [(CLASS, 1), ("cpu-amd64", 1)]);
    assert_eq!(planning.record(), &HandOver { since: None, ..record });
}

#[test]
fn an_empty_pool_says_that_its_replicas_were_handed_over() {
    let mut planning = Planning::of("{}");
    planning.plan(&cluster(1), pods(0, &[0]), at(0));
    let plan = planning.plan(&cluster(1), pods(0, &[0]), at(120));
    assert_eq!(shares(&plan), [("cpu-amd64", 1)]);
    let pool = gpu_pool(&plan);
    assert_eq!((pool.replicas, pool.reason), (0, Reason::HandedOver));
    assert!(
        pool.message
            .contains("more free nvidia.com/gpu or more schedulable nodes"),
        "{}",
        pool.message
    );
    assert!(
        pool.message.contains("not before 2026-01-01T12:04:00Z"),
        "{}",
        pool.message
    );
}

#[test]
fn each_pod_has_its_own_time() {
    let mut planning = Planning::of("{replicas: 3}");
    planning.plan(&cluster(3), pods(1, &[0]), at(0));
    planning.plan(&cluster(3), pods(1, &[0, 60]), at(60));
    assert_eq!(
        shares(&planning.plan(&cluster(3), pods(1, &[0, 60]), at(120))),
        [(CLASS, 2), ("cpu-amd64", 1)]
    );
    let both = planning.plan(&cluster(3), pods(1, &[60]), at(180));
    assert_eq!(shares(&both), [(CLASS, 1), ("cpu-amd64", 2)]);
    assert_eq!(planning.record().attempts, 1, "one try");
}

#[test]
fn a_rollout_starts_the_wait_anew_and_hands_nothing_over() {
    let mut planning = Planning::of("{replicas: 2}");
    let rolling = || PoolPods {
        rollout: Rollout::Running,
        ..pods(1, &[0])
    };
    planning.plan(&cluster(2), pods(1, &[0]), at(0));
    for seconds in [100, 200, 300] {
        assert_eq!(
            shares(&planning.plan(&cluster(2), rolling(), at(seconds))),
            [(CLASS, 2)]
        );
    }
    // It has ended, and the pod that waits since long has its whole time from now on.
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[0]), at(310))),
        [(CLASS, 2)]
    );
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[0]), at(429))),
        [(CLASS, 2)]
    );
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[0]), at(430))),
        [(CLASS, 1), ("cpu-amd64", 1)]
    );
}

#[test]
fn a_predecessor_that_still_ends_counts_as_a_rollout_but_not_for_ever() {
    let mut planning = Planning::of("{}");
    let leaving = || PoolPods {
        leaving: Some(at(90)),
        ..pods(0, &[0])
    };
    let plan = planning.plan(&cluster(1), leaving(), at(0));
    assert_eq!(plan.next, Some(at(90)), "on a node that is lost it would end never");
    assert_eq!(shares(&planning.plan(&cluster(1), leaving(), at(90))), [(CLASS, 1)]);
    assert_eq!(shares(&planning.plan(&cluster(1), leaving(), at(209))), [(CLASS, 1)]);
    assert_eq!(
        shares(&planning.plan(&cluster(1), leaving(), at(210))),
        [("cpu-amd64", 1)]
    );
}

#[test]
fn a_deployment_that_was_scaled_a_moment_ago_neither_hands_over_nor_starts_anew() {
    let mut planning = Planning::of("{replicas: 2}");
    let unknown = || PoolPods {
        rollout: Rollout::Unknown,
        ..pods(1, &[0])
    };
    planning.plan(&cluster(2), pods(1, &[0]), at(0));
    assert_eq!(shares(&planning.plan(&cluster(2), unknown(), at(200))), [(CLASS, 2)]);
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[0]), at(201))),
        [(CLASS, 1), ("cpu-amd64", 1)]
    );
}

#[test]
fn a_rollout_whose_new_pod_finds_no_node_ends_an_old_pod_first() {
    let mut planning = Planning::of("{replicas: 1, classes: [cuda-amd64]}");
    let rolling = || PoolPods {
        rollout: Rollout::Running,
        ..pods(1, &[0])
    };
    let early = planning.plan(&cluster(2), rolling(), at(60));
    assert!(gpu_pool(&early).surge);
    assert_eq!(early.next, Some(at(120)));
    assert!(!gpu_pool(&planning.plan(&cluster(2), rolling(), at(120))).surge);
    // Also where replicas are never handed over.
    let mut never = Planning::of("{replicas: 1, classes: [cuda-amd64], handOverAfter: Never}");
    assert!(!gpu_pool(&never.plan(&cluster(2), rolling(), at(120))).surge);
}

#[test]
fn the_class_is_tried_again_only_after_its_capacity_grew() {
    let mut planning = Planning::handed_over();
    for seconds in [200, 2_000, 200_000] {
        let plan = planning.plan(&cluster(2), pods(1, &[]), at(seconds));
        assert_eq!(shares(&plan), [(CLASS, 1), ("cpu-amd64", 1)]);
        assert_eq!(plan.next, None, "time alone is no reason");
    }
    // Less is no reason, more than the least is one: the node may have been replaced.
    planning.plan(&cluster(1), pods(1, &[]), at(200_001));
    let tried = planning.plan(&cluster(2), pods(1, &[]), at(200_002));
    assert_eq!(shares(&tried), [(CLASS, 2), ("cpu-amd64", 1)]);
    assert_eq!(gpu_pool(&tried).extra, 1);
    // More schedulable nodes are a reason as well.
    let mut planning = Planning::handed_over();
    let mut second = gpus(0);
    second.name = "second".into();
    second.allocatable.insert(GPU.into(), 1);
    let mut first = gpus(1);
    first.name = "first".into();
    let more_nodes = index(&[first, second, bare("cpu", "amd64", &[])]);
    assert_eq!(
        shares(&planning.plan(&more_nodes, pods(1, &[]), at(300))),
        [(CLASS, 2), ("cpu-amd64", 1)]
    );
}

#[test]
fn a_try_interrupts_nothing_and_ends_when_its_pods_are_ready() {
    let mut planning = Planning::handed_over();
    let early = planning.plan(&cluster(3), pods(1, &[]), at(150));
    assert_eq!(
        shares(&early),
        [(CLASS, 1), ("cpu-amd64", 1)],
        "not before the wait is over"
    );
    assert_eq!(early.next, Some(at(240)));
    let tried = planning.plan(&cluster(3), pods(1, &[]), at(240));
    assert_eq!(shares(&tried), [(CLASS, 2), ("cpu-amd64", 1)]);
    assert!(
        gpu_pool(&tried).message.contains("1 pod beyond spec.replicas tries it"),
        "{}",
        gpu_pool(&tried).message
    );
    let starting = PoolPods {
        ready: 1,
        ..pods(2, &[])
    };
    assert_eq!(
        shares(&planning.plan(&cluster(3), starting, at(245))),
        [(CLASS, 2), ("cpu-amd64", 1)]
    );
    let back = planning.plan(&cluster(3), pods(2, &[]), at(300));
    assert_eq!(shares(&back), [(CLASS, 2)]);
    assert_eq!(
        (back.degraded, planning.records.len()),
        (None, 0),
        "and nothing is left of it"
    );
}

#[test]
fn each_try_that_fails_makes_the_next_wait_longer() {
    let mut planning = Planning::handed_over();
    planning.plan(&cluster(3), pods(1, &[]), at(240));
    planning.plan(&cluster(3), pods(1, &[241]), at(241));
    let failed = planning.plan(&cluster(3), pods(1, &[241]), at(361));
    assert_eq!(shares(&failed), [(CLASS, 1), ("cpu-amd64", 1)]);
    let record = planning.record();
    assert_eq!((record.attempts, record.retry_after), (2, Some(at(361 + 240))));
    assert_eq!(
        planning.plan(&cluster(3), pods(1, &[]), at(1_000)).next,
        None,
        "it has not grown since"
    );
    let after = SignedDuration::from_mins(2);
    let waits: Vec<i64> = (1..8).map(|attempts| backoff(after, attempts).as_mins()).collect();
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(backoff(after, u32::MAX).as_mins(), 60);
    assert_eq!(backoff(SignedDuration::from_hours(3), 1).as_hours(), 3);
}

#[test]
fn what_an_older_one_gives_back_is_more_capacity() {
    let spec = spec("{replicas: 1}");
    let older = common::spec("{replicas: 1, device: Cuda}");
    let record = |records: &BTreeMap<String, Plan>| gpu_pool(&records["b"]).hand_over.clone().unwrap();
    let plans = |with: bool, waiting: &[i64], record: Option<HandOver>, now| {
        let mut requests = vec![Request {
            pods: [(CLASS.to_owned(), pods(0, waiting))].into(),
            hand_overs: record.into_iter().map(|record| (CLASS.to_owned(), record)).collect(),
            ..Request::new("b", "2", &spec)
        }];
        if with {
            requests.push(Request::new("a", "1", &older));
        }
        hawkeye_operator::controller::plan::plan_all(&requests, &cluster(2), &common::models(), now)
    };
    let first = plans(true, &[0], None, at(0));
    let second = plans(true, &[0], Some(record(&first)), at(120));
    assert_eq!(shares(&second["b"]), [("cpu-amd64", 1)]);
    let third = plans(false, &[], Some(record(&second)), at(300));
    assert_eq!(shares(&third["b"]), [(CLASS, 1), ("cpu-amd64", 1)], "tried again");
}

#[test]
fn under_deny_the_replica_stays_where_it_is_and_placed_says_why() {
    let mut planning = Planning::of("{replicas: 2, fallback: Deny}");
    planning.plan(&cluster(2), pods(1, &[0]), at(0));
    for seconds in [120, 1_000] {
        let plan = planning.plan(&cluster(2), pods(1, &[0]), at(seconds));
        assert_eq!(shares(&plan), [(CLASS, 2)], "the scheduler may find room at any time");
        assert_eq!((plan.stuck, plan.placed.0), (1, Reason::FallbackDenied));
        let message = &plan.placed.1;
        assert!(
            message.contains("The pods of 1 on cuda-amd64 found no node for 2m"),
            "{message}"
        );
        assert!(message.contains("fallback: Degrade to use cpu-amd64"), "{message}");
        assert_eq!(planning.record().attempts, 0, "nothing was handed over");
    }
    let found = planning.plan(&cluster(2), pods(2, &[]), at(1_001));
    assert_eq!((found.stuck, found.placed.0), (0, Reason::Placed));
    assert!(planning.records.is_empty());
}

#[test]
fn under_deny_another_class_of_the_same_device_takes_it() {
    let mut planning = Planning::of("{fallback: Deny, classes: [cuda-amd64, dgx-spark, cpu-amd64]}");
    let index = index(&[gpus(1), common::node("dgx-spark"), bare("cpu", "amd64", &[])]);
    planning.plan(&index, pods(0, &[0]), at(0));
    assert_eq!(
        shares(&planning.plan(&index, pods(0, &[0]), at(120))),
        [("dgx-spark", 1)]
    );
}

#[test]
fn without_another_class_it_stays_until_one_has_room() {
    let mut planning = Planning::of("{classes: [cuda-amd64, dgx-spark]}");
    let alone = index(&[gpus(1)]);
    planning.plan(&alone, pods(0, &[0]), at(0));
    let stuck = planning.plan(&alone, pods(0, &[0]), at(120));
    assert_eq!(shares(&stuck), [(CLASS, 1)]);
    assert_eq!((stuck.stuck, stuck.placed.0), (1, Reason::Unschedulable));
    assert!(
        gpu_pool(&stuck).message.contains("no other class can take its replica"),
        "{}",
        gpu_pool(&stuck).message
    );
    let both = index(&[gpus(1), common::node("dgx-spark")]);
    assert_eq!(
        shares(&planning.plan(&both, pods(0, &[0]), at(130))),
        [("dgx-spark", 1)],
        "at once"
    );
    // The other class goes away again: back to waiting, and a node that is found after all is kept.
    let back = planning.plan(&alone, pods(0, &[]), at(140));
    assert_eq!((shares(&back), back.stuck), (vec![(CLASS, 1)], 1));
    planning.plan(&alone, pods(1, &[]), at(150));
    let kept = planning.plan(&both, pods(1, &[]), at(160));
    assert_eq!((shares(&kept), kept.stuck), (vec![(CLASS, 1)], 0));
}

#[test]
fn never_means_never() {
    let mut planning = Planning::of("{replicas: 2, handOverAfter: Never}");
    let plan = planning.plan(&cluster(2), pods(1, &[0]), at(1_000_000));
    assert_eq!((shares(&plan), plan.next), (vec![(CLASS, 2)], None));
    // What was handed over before comes back.
    let mut planning = Planning::handed_over();
    planning.spec = spec("{replicas: 2, handOverAfter: Never}");
    assert_eq!(shares(&planning.plan(&cluster(2), pods(1, &[]), at(130))), [(CLASS, 2)]);
}

#[test]
fn an_autoscaled_class_is_handed_over_too_and_tried_again_after_the_wait() {
    let mut classes = built_in();
    let class = classes
        .iter_mut()
        .find(|class| class.metadata.name.as_deref() == Some(CLASS));
    class.unwrap().spec.autoscaled = true;
    let nothing = ClassIndex::new(&classes, &[bare("cpu", "amd64", &[])], |_, _| 0);
    let mut planning = Planning::of("{}");
    assert_eq!(shares(&planning.plan(&nothing, pods(0, &[0]), at(0))), [(CLASS, 1)]);
    let moved = planning.plan(&nothing, pods(0, &[0]), at(120));
    assert_eq!(shares(&moved), [("cpu-amd64", 1)]);
    // Without a pod that waits an autoscaler brings nothing, so capacity would never grow.
    assert_eq!(planning.plan(&nothing, pods(0, &[]), at(130)).next, Some(at(240)));
    let tried = planning.plan(&nothing, pods(0, &[]), at(240));
    assert_eq!(
        shares(&tried),
        [(CLASS, 1), ("cpu-amd64", 1)],
        "while the CPU pod goes on"
    );
    planning.plan(&nothing, pods(0, &[241]), at(241));
    assert_eq!(
        shares(&planning.plan(&nothing, pods(0, &[241]), at(361))),
        [("cpu-amd64", 1)]
    );
    // The node comes late: it counts once the wait is over.
    let arrived = ClassIndex::new(&classes, &[gpus(1), bare("cpu", "amd64", &[])], |_, _| 0);
    assert_eq!(planning.plan(&arrived, pods(0, &[]), at(400)).next, Some(at(601)));
    planning.plan(&arrived, pods(0, &[]), at(601));
    assert_eq!(shares(&planning.plan(&arrived, pods(1, &[]), at(630))), [(CLASS, 1)]);
}

#[test]
fn a_pod_that_asks_for_something_else_is_tried_at_once() {
    let mut planning = Planning::handed_over();
    planning.spec = spec("{replicas: 2, overrides: {cuda-amd64: {memory: 3Gi}}}");
    assert_eq!(shares(&planning.plan(&cluster(2), pods(1, &[]), at(130))), [(CLASS, 2)]);
    // Scaling is no such change: an autoscaler that scales every minute must not bring the pods back each time.
    let mut planning = Planning::handed_over();
    planning.spec = spec("{replicas: 4}");
    assert_eq!(
        shares(&planning.plan(&cluster(2), pods(1, &[]), at(130))),
        [(CLASS, 1), ("cpu-amd64", 3)]
    );
    planning.spec = spec("{replicas: 1}");
    assert_eq!(shares(&planning.plan(&cluster(2), pods(1, &[]), at(140))), [(CLASS, 1)]);
}

#[test]
fn it_survives_a_restart_in_the_status() {
    let mut planning = Planning::handed_over();
    let mut restarted = Planning::handed_over();
    restarted.records = restarted
        .records
        .iter()
        .map(|(class, record)| {
            let stored = serde_json::to_string(&record.to_status()).unwrap();
            (
                class.clone(),
                HandOver::from_status(&serde_json::from_str(&stored).unwrap()),
            )
        })
        .collect();
    assert_eq!(restarted.records, planning.records);
    for (units, seconds) in [(2, 130), (3, 140), (3, 240), (3, 250)] {
        let plans = [&mut planning, &mut restarted].map(|p| p.plan(&cluster(units), pods(1, &[]), at(seconds)));
        assert_eq!(plans[0], plans[1]);
    }
    let status = planning.record().to_status();
    assert_eq!((status.keeps, status.units, status.nodes), (Some(1), Some(2), Some(1)));
    assert_eq!(status.asks.as_deref(), Some("cpu 2, memory 4Gi"));
}

/// A cluster in which fewer GPUs can be reached than there seem to be, with a Deployment's controller and a scheduler that
/// act once a second.
struct Simulation {
    planning: Planning,
    units: u64,
    index: ClassIndex,
    reachable: u32,
    /// Pods of the GPU pool: since when they exist, since when they have a node.
    pods: Vec<(i64, Option<i64>)>,
    moves: u32,
    before: Vec<(String, u32)>,
}

impl Simulation {
    fn calm(&self, second: i64) -> bool {
        self.pods
            .iter()
            .all(|pod| pod.1.is_some_and(|since| second - since >= 10))
    }

    fn tick(&mut self, second: i64) -> Plan {
        let ready = |pod: &&(i64, Option<i64>)| pod.1.is_some_and(|since| second - since >= 5);
        let waiting = self
            .pods
            .iter()
            .filter(|pod| pod.1.is_none())
            .map(|pod| at(pod.0))
            .collect();
        let observed = PoolPods {
            active: u32::try_from(self.pods.len()).unwrap(),
            bound: u32::try_from(self.pods.iter().filter(|pod| pod.1.is_some()).count()).unwrap(),
            ready: u32::try_from(self.pods.iter().filter(ready).count()).unwrap(),
            waiting,
            rollout: Rollout::Done,
            leaving: None,
        };
        let plan = self.planning.plan(&self.index, observed, at(second));
        let shares: Vec<(String, u32)> = shares(&plan)
            .into_iter()
            .map(|(class, n)| (class.to_owned(), n))
            .collect();
        self.moves += u32::from(shares != self.before);
        self.before = shares;
        let wanted = gpu_pool(&plan).replicas as usize;
        // Pods without a node go first.
        self.pods.sort_by_key(|pod| pod.1.is_none());
        self.pods.truncate(wanted);
        self.pods.resize(wanted, (second, None));
        let mut bound = self.pods.iter().filter(|pod| pod.1.is_some()).count();
        for pod in self.pods.iter_mut().filter(|pod| pod.1.is_none()) {
            if bound < self.reachable as usize {
                pod.1 = Some(second);
                bound += 1;
            }
        }
        plan
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever can be reached: every replica has a place all the time, it ends with as many on GPUs as can be reached, it
    /// does so in few moves, and then it stays.
    #[test]
    fn it_settles_and_neither_flaps_nor_loses_a_replica(
        replicas in 1_u32..6,
        units in 1_u64..6,
        reachable in 0_u32..6,
        more in prop::collection::vec((0_u64..3, 0_u32..3), 0..4),
    ) {
        let mut simulation = Simulation {
            planning: Planning::of(&format!("{{replicas: {replicas}}}")),
            units,
            index: cluster(units),
            reachable: reachable.min(u32::try_from(units).unwrap()),
            pods: Vec::new(),
            moves: 0,
            before: Vec::new(),
        };
        let mut second = 0;
        let most_moves = 3 + 5 * u32::try_from(more.len()).unwrap();
        let mut run = |simulation: &mut Simulation, seconds: i64| -> Result<(), TestCaseError> {
            let end = second + seconds;
            while second < end {
                let plan = simulation.tick(second);
                // Long times in which nothing happens are seen from time to time only.
                let calm = plan.next.is_none_or(|next| next > at(second + 60)) && simulation.calm(second);
                second += if calm { 60 } else { 1 };
                let counted: u32 = plan.pools.iter().map(|pool| pool.replicas - pool.extra).sum();
                prop_assert_eq!(counted, replicas);
                prop_assert_eq!((plan.unplaced, plan.stuck), (0, 0));
                let elsewhere: u32 = plan.pools.iter().filter(|p| p.class != CLASS).map(|p| p.replicas).sum();
                let on_gpu = simulation.pods.iter().filter(|pod| pod.1.is_some()).count();
                let trying = simulation.planning.records.get(CLASS).is_some_and(|record| record.trying);
                prop_assert!(!trying || elsewhere as usize + on_gpu >= replicas as usize, "a try interrupts nothing");
            }
            Ok(())
        };
        run(&mut simulation, 300)?;
        for (units, reachable) in more {
            simulation.units += units;
            simulation.index = cluster(simulation.units);
            let most = u32::try_from(simulation.units).unwrap();
            simulation.reachable = (simulation.reachable + reachable).min(most);
            run(&mut simulation, 4_000)?;
        }
        let moves = simulation.moves;
        prop_assert!(moves <= most_moves, "{} moves", moves);
        run(&mut simulation, 8_000)?;
        prop_assert_eq!(simulation.moves, moves, "it moves although nothing changes");
        let plan = simulation.tick(second);
        prop_assert_eq!(gpu_pool(&plan).extra, 0);
        let on_gpu = gpu_pool(&plan).replicas;
        prop_assert!(on_gpu <= simulation.reachable.min(replicas));
    }
}
