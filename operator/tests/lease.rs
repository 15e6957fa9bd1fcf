//! The election, simulated: replicas with clocks of their own, requests that are late or lost, pauses and crashes. Whatever
//! happens, no two replicas have a current claim at the same time.

#![allow(missing_docs, clippy::unwrap_used, clippy::struct_excessive_bools)]

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use hawkeye_operator::lease::{Decision, Moment, Record, Seen, Terms, decide};
use proptest::prelude::*;

const REPLICAS: usize = 3;
/// Tries of each replica in one run.
const TRIES: usize = 40;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn terms() -> Terms {
    Terms::new(ms(20_000), ms(15_000), ms(2_000)).unwrap()
}

/// What happens to one try: how long each way takes, in milliseconds, what gets lost, and what comes after it.
#[derive(Clone, Debug)]
struct Luck {
    read: u64,
    there: u64,
    back: u64,
    lost_there: bool,
    lost_back: bool,
    pause: u64,
    /// The process ends and starts again, and knows nothing any more.
    crash: bool,
    /// It frees the Lease first.
    free: bool,
}

fn luck() -> impl Strategy<Value = Luck> {
    let slow = || prop_oneof![8 => 0..200_u64, 2 => 0..8_000_u64, 1 => 0..40_000_u64];
    let rare = || prop::bool::weighted(0.1);
    (slow(), slow(), slow(), rare(), rare(), slow(), rare(), rare()).prop_map(
        |(read, there, back, lost_there, lost_back, pause, crash, free)| Luck {
            read,
            there,
            back,
            lost_there,
            lost_back,
            pause,
            crash,
            free,
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Read,
    Seen,
    Written,
    Answered,
}

struct Replica {
    name: String,
    /// How far its clock is ahead of true time.
    clock: u64,
    tries: Vec<Luck>,
    tried: usize,
    seen: Option<Seen>,
    /// Version of the Lease that the coming write is based on.
    based_on: u64,
    read: Option<Record>,
    sent: u64,
    written: bool,
    frees: bool,
}

impl Replica {
    fn moment(&self, now: u64) -> Moment {
        Moment::at(ms(now + self.clock))
    }
}

/// A claim in true time: from when it was known to its deadline, or when the process ended.
#[derive(Clone, Copy, Debug)]
struct Held {
    replica: usize,
    from: u64,
    until: u64,
}

struct World {
    lease: Option<Record>,
    version: u64,
    replicas: Vec<Replica>,
    queue: BinaryHeap<Reverse<(u64, usize, Step)>>,
    held: Vec<Held>,
    /// The deadline of a claim whose write was sent then.
    deadline: fn(Moment) -> Moment,
}

impl World {
    fn new(clocks: &[u64], luck: Vec<Vec<Luck>>) -> Self {
        let replicas = luck
            .into_iter()
            .zip(clocks)
            .enumerate()
            .map(|(index, (tries, clock))| Replica {
                name: format!("r{index}"),
                clock: *clock,
                tries,
                tried: 0,
                seen: None,
                based_on: 0,
                read: None,
                sent: 0,
                written: false,
                frees: false,
            })
            .collect();
        let mut world = Self {
            lease: None,
            version: 0,
            replicas,
            queue: BinaryHeap::new(),
            held: Vec::new(),
            deadline: |sent| terms().deadline(sent),
        };
        for index in 0..REPLICAS {
            world.queue.push(Reverse((0, index, Step::Read)));
        }
        world
    }

    fn run(&mut self) {
        while let Some(Reverse((now, index, step))) = self.queue.pop() {
            match step {
                Step::Read => {
                    let replica = &mut self.replicas[index];
                    let Some(luck) = replica.tries.get(replica.tried) else {
                        continue;
                    };
                    replica.based_on = self.version;
                    replica.read.clone_from(&self.lease);
                    self.queue.push(Reverse((now + luck.read, index, Step::Seen)));
                }
                Step::Seen => self.seen(now, index),
                Step::Written => self.written(index),
                Step::Answered => self.answered(now, index),
            }
        }
    }

    fn seen(&mut self, now: u64, index: usize) {
        let replica = &mut self.replicas[index];
        let luck = replica.tries[replica.tried].clone();
        let local = replica.moment(now);
        let before = replica.seen.take();
        replica.seen = replica.read.take().map(|record| Seen::update(before, record, local));
        let mine = decide(replica.seen.as_ref(), &replica.name, local);
        replica.sent = now;
        replica.frees = luck.free && mine == Decision::Renew;
        if replica.frees {
            // It sends nothing from here on, so its claims end before the Lease is free.
            for held in self.held.iter_mut().filter(|held| held.replica == index) {
                held.until = held.until.min(now);
            }
        }
        match mine {
            Decision::Wait(_) => self.next(now, index),
            Decision::Acquire | Decision::Renew if luck.lost_there => {
                self.queue
                    .push(Reverse((now + luck.there + luck.back, index, Step::Answered)));
            }
            Decision::Acquire | Decision::Renew => self.queue.push(Reverse((now + luck.there, index, Step::Written))),
        }
    }

    fn written(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let luck = &replica.tries[replica.tried];
        if replica.based_on == self.version {
            self.version += 1;
            replica.written = true;
            self.lease = Some(Record {
                holder: (!replica.frees).then(|| replica.name.clone()),
                duration: terms().duration(),
                renewal: self.version.to_string(),
            });
        }
        let answered = replica.sent + luck.there + luck.back;
        self.queue.push(Reverse((answered, index, Step::Answered)));
    }

    fn answered(&mut self, now: u64, index: usize) {
        let replica = &mut self.replicas[index];
        let luck = &replica.tries[replica.tried];
        if replica.written && !luck.lost_back && !replica.frees {
            let deadline = (self.deadline)(replica.moment(replica.sent));
            let until = now + u64::try_from(deadline.left(replica.moment(now)).as_millis()).unwrap();
            if until > now {
                let held = Held {
                    replica: index,
                    from: now,
                    until,
                };
                self.held.push(held);
            }
        }
        replica.written = false;
        self.next(now, index);
    }

    fn next(&mut self, now: u64, index: usize) {
        let replica = &mut self.replicas[index];
        let luck = &replica.tries[replica.tried];
        if luck.crash || replica.frees {
            replica.seen = None;
            for held in self.held.iter_mut().filter(|held| held.replica == index) {
                held.until = held.until.min(now);
            }
        }
        replica.frees = false;
        let period = u64::try_from(terms().period().as_millis()).unwrap();
        let then = now + period + luck.pause;
        replica.tried += 1;
        self.queue.push(Reverse((then, index, Step::Read)));
    }
}

fn overlap(a: Held, b: Held) -> bool {
    a.replica != b.replica && a.from < b.until && b.from < a.until
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_two_replicas_have_a_claim_at_once(
        clocks in prop::collection::vec(0..10_000_000_u64, REPLICAS),
        luck in prop::collection::vec(prop::collection::vec(luck(), TRIES), REPLICAS),
    ) {
        let mut world = World::new(&clocks, luck);
        world.run();
        for (at, a) in world.held.iter().enumerate() {
            for b in &world.held[at + 1..] {
                prop_assert!(!overlap(*a, *b), "{a:?} and {b:?}");
            }
        }
    }

    /// Without trouble somebody leads at once, and the one who leads goes on.
    #[test]
    fn without_trouble_one_replica_leads_all_the_time(
        clocks in prop::collection::vec(0..10_000_000_u64, REPLICAS),
        ways in prop::collection::vec(prop::collection::vec(0..300_u64, TRIES), REPLICAS),
    ) {
        let calm = |way: u64| Luck {
            read: way, there: way, back: way, lost_there: false, lost_back: false, pause: 0, crash: false, free: false,
        };
        let luck = ways.iter().map(|ways| ways.iter().map(|way| calm(*way)).collect()).collect();
        let mut world = World::new(&clocks, luck);
        world.run();
        prop_assert!(world.held.len() >= TRIES - 1);
        let leader = world.held[0].replica;
        prop_assert!(world.held.iter().all(|held| held.replica == leader));
        prop_assert!(world.held.windows(2).all(|pair| pair[1].from < pair[0].until), "a gap: {:?}", world.held);
    }
}

/// The simulation finds what it looks for: a leader that stands still while others wait for its Lease to run out.
#[test]
fn a_claim_that_is_longer_than_the_lease_overlaps() {
    let calm = |pause| Luck {
        read: 10,
        there: 10,
        back: 10,
        lost_there: false,
        lost_back: false,
        pause,
        crash: false,
        free: false,
    };
    let luck = vec![vec![calm(60_000)], vec![calm(0); TRIES], vec![calm(0); TRIES]];
    let overlaps = |deadline: fn(Moment) -> Moment| {
        let mut world = World::new(&[0, 5, 500], luck.clone());
        world.deadline = deadline;
        world.run();
        let held = &world.held;
        assert!(
            held.iter().any(|held| held.replica != held_by_first(&world)),
            "nobody took over: {held:?}"
        );
        held.iter().any(|a| held.iter().any(|b| overlap(*a, *b)))
    };
    assert!(overlaps(|sent| sent + ms(25_000)));
    assert!(!overlaps(|sent| terms().deadline(sent)));
}

fn held_by_first(world: &World) -> usize {
    world.held[0].replica
}
