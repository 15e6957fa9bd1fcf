//! Hand-over: a replica whose pod finds no node for long goes to the next class, and its class is tried again once it has
//! more room.
//!
//! What is free on paper may be out of a pod's reach: its memory does not fit beside what else runs there, or the autoscaler
//! brings no node. One record for each pool holds everything and is kept in the status, so it outlives the operator:
//!
//! - Nothing: every pod has a node.
//! - Waiting (`since`): pods find no node. A rollout starts the wait anew, since its pods wait for their predecessors.
//! - Handed over (`keeps`): the class keeps the replicas whose pods have a node; the others go down the order.
//! - Trying (`trying`): the class has more room than at the hand-over, and the time to wait is over. Pods beyond
//!   spec.replicas try it; only when they are ready do the replicas come back, so a try that fails interrupts nothing.
//!   Then the next wait is twice as long.

use hawkeye_crds::v1alpha1 as api;
use jiff::{SignedDuration, Timestamp};

/// Longest wait between two tries of a class.
const LONGEST: SignedDuration = SignedDuration::from_hours(1);

/// The record of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandOver {
    /// Since when pods find no node outside a rollout.
    pub since: Option<Timestamp>,
    /// Tries in a row that failed.
    pub attempts: u32,
    /// The class is not tried again before.
    pub retry_after: Option<Timestamp>,
    /// Replicas that stay with the class; `None` while none is handed over.
    pub keeps: Option<u32>,
    /// Pods beyond spec.replicas try the class.
    pub trying: bool,
    /// The class's capacity at the hand-over, or the least since.
    pub capacity: Capacity,
    /// What each pod asks for.
    pub asks: String,
}

/// Capacity of a class as far as a change of it is a reason to try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Free units of its resource, before this HawkeyeDeployment takes any.
    pub units: u64,
    /// Nodes that take new pods.
    pub nodes: u32,
}

impl Capacity {
    const fn exceeds(self, other: Self) -> bool {
        self.units > other.units || self.nodes > other.nodes
    }

    fn least(self, other: Self) -> Self {
        Self {
            units: self.units.min(other.units),
            nodes: self.nodes.min(other.nodes),
        }
    }
}

/// The pods of a pool as far as hand-over asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolPods {
    /// Pods that have not ended and are not told to.
    pub active: u32,
    /// Of these, pods that have a node.
    pub bound: u32,
    /// Of these, pods that are ready.
    pub ready: u32,
    /// Since when each active pod for which the scheduler finds no node waits.
    pub waiting: Vec<Timestamp>,
    /// Whether pods are being replaced.
    pub rollout: Rollout,
    /// Pods that were told to end hold their node until then at the latest.
    pub leaving: Option<Timestamp>,
}

/// Whether the pods of a pool are being replaced by pods of the current spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rollout {
    /// The Deployment's controller has not seen the current spec yet.
    #[default]
    Unknown,
    /// Pods of an older spec are left.
    Running,
    /// No pod of an older spec is left, or the rollout was given up.
    Done,
}

impl HandOver {
    /// From a status. Times that cannot be read count as not there.
    pub fn from_status(status: &api::HandOver) -> Self {
        let time = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
        let number = |number: i32| u32::try_from(number).unwrap_or(0);
        Self {
            since: time(&status.since),
            attempts: number(status.attempts),
            retry_after: time(&status.retry_after),
            keeps: status.keeps.map(number),
            trying: status.trying,
            capacity: Capacity {
                units: status
                    .units
                    .and_then(|units| u64::try_from(units).ok())
                    .unwrap_or(u64::MAX),
                nodes: status.nodes.map_or(u32::MAX, number),
            },
            asks: status.asks.clone().unwrap_or_default(),
        }
    }

    /// As it stands in the status.
    pub fn to_status(&self) -> api::HandOver {
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let handed = self.keeps.is_some();
        api::HandOver {
            since: self.since.map(|time| time.to_string()),
            attempts: number(self.attempts),
            retry_after: self.retry_after.map(|time| time.to_string()),
            keeps: self.keeps.map(number),
            trying: self.trying,
            units: handed.then(|| i64::try_from(self.capacity.units).unwrap_or(i64::MAX)),
            nodes: handed.then(|| number(self.capacity.nodes)),
            asks: Some(self.asks.clone()),
        }
    }
}

/// What a step decides about a pool, before replicas are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// The record as it is now.
    pub record: Option<HandOver>,
    /// The record as it was, when this step hands replicas over for the first time: if no other class can take them, it
    /// stays like that.
    pub undo: Option<HandOver>,
    /// A rollout whose new pods find no node for long: it goes on only when an old pod ends first.
    pub blocked_rollout: bool,
    /// When time alone changes the next step.
    pub wake: Option<Timestamp>,
}

/// What a step is decided from.
pub(super) struct Facts<'a> {
    pub before: Option<&'a HandOver>,
    pub pods: &'a PoolPods,
    pub capacity: Capacity,
    /// An autoscaler adds nodes for pods that wait, so the class is tried again after a time even if nothing changed.
    pub autoscaled: bool,
    /// What each pod asks for.
    pub asks: &'a str,
    /// `spec.handOverAfter`; `None` for `Never`.
    pub after: Option<SignedDuration>,
    pub now: Timestamp,
}

/// Wait after a failed try: `after`, doubled with each, up to an hour (or `after`, if that is longer).
pub fn backoff(after: SignedDuration, attempts: u32) -> SignedDuration {
    let doubled = 2_i32.saturating_pow(attempts.saturating_sub(1).min(20));
    after.saturating_mul(doubled).min(LONGEST).max(after)
}

/// One step of a pool's hand-over.
pub(super) fn step(facts: &Facts<'_>) -> Step {
    let Facts {
        before,
        pods,
        capacity,
        autoscaled,
        asks,
        after,
        now,
    } = *facts;
    let mut wakes: Vec<Timestamp> = Vec::new();
    let leaving = pods.leaving.filter(|until| *until > now);
    wakes.extend(leaving);
    let rollout = if leaving.is_some() {
        Rollout::Running
    } else {
        pods.rollout
    };
    // A rollout must not hang for ever because nothing is ever handed over.
    let patience = after.unwrap_or(DEFAULT_AFTER);
    let (blocked, not_yet): (Vec<Timestamp>, Vec<Timestamp>) = match rollout {
        Rollout::Running => pods
            .waiting
            .iter()
            .map(|since| later(*since, patience))
            .partition(|until| *until <= now),
        Rollout::Unknown | Rollout::Done => (Vec::new(), Vec::new()),
    };
    wakes.extend(not_yet);
    let mut step = Step {
        blocked_rollout: !blocked.is_empty(),
        ..Step::default()
    };
    let Some(after) = after else {
        step.wake = wakes.into_iter().min();
        return step;
    };

    let before = before.filter(|before| before.asks == asks);
    let mut record = before.cloned().unwrap_or_else(|| HandOver {
        asks: asks.to_owned(),
        ..HandOver::default()
    });
    record.since = match rollout {
        Rollout::Running => None,
        _ if pods.waiting.is_empty() => None,
        Rollout::Unknown => record.since,
        Rollout::Done => record.since.or(Some(now)),
    };
    let mut expired = 0;
    if let (Rollout::Done, Some(since)) = (rollout, record.since) {
        for waiting in &pods.waiting {
            let until = later(since.max(*waiting), after);
            if until <= now {
                expired += 1;
            } else {
                wakes.push(until);
            }
        }
    }
    if let Some(keeps) = record.keeps {
        let proven = if record.trying { pods.ready } else { pods.bound };
        record.keeps = Some(keeps.max(proven));
        record.capacity = record.capacity.least(capacity);
    }
    if expired > 0 {
        let found = pods.active.saturating_sub(expired).max(pods.bound);
        if record.keeps.is_none() {
            step.undo = Some(record.clone());
        }
        if record.keeps.is_none() || record.trying {
            record.attempts = record.attempts.saturating_add(1);
            record.retry_after = Some(later(now, backoff(after, record.attempts)));
            record.capacity = capacity;
        }
        record.keeps = Some(match record.keeps {
            Some(keeps) if !record.trying => keeps.min(found).max(pods.bound),
            _ => found,
        });
        record.trying = false;
    } else if record.keeps.is_some()
        && !record.trying
        && pods.waiting.is_empty()
        && (autoscaled || capacity.exceeds(record.capacity))
    {
        if let Some(time) = record.retry_after.filter(|time| *time > now) {
            wakes.push(time);
        } else {
            record.trying = true;
            record.since = None;
        }
    }
    step.record = (record.keeps.is_some() || record.since.is_some()).then_some(record);
    step.wake = wakes.into_iter().min();
    step
}

/// How long a rollout may wait for a node when replicas are never handed over: as long as the default of handOverAfter.
const DEFAULT_AFTER: SignedDuration = SignedDuration::from_mins(2);

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

impl Step {
    /// Settles the record once replicas are given: `wish` is what the class would have been given without a hand-over,
    /// `given` what it was given.
    pub(super) fn settle(self, wish: u32, given: u32) -> Option<HandOver> {
        let record = self.record?;
        let Some(keeps) = record.keeps else {
            return Some(record);
        };
        if let Some(undo) = self.undo
            && given >= wish
        {
            // Nobody else can take them: the pods stay and wait.
            return Some(undo);
        }
        if record.trying && keeps >= wish {
            // All are back.
            return None;
        }
        Some(record)
    }
}
