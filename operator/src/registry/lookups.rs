//! What is asked when: each wanted image is looked up once at a time, few images at once, and the answer is kept for a
//! while. The planner takes what is there and never waits; it is woken when an answer changes.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{manifest::Found, policy::Subject};
use crate::metrics::Metrics;

/// How long placement may wait for the first answer about an image: most registries answer within one second, and a pod
/// takes longer to start than this.
pub const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// Lookups at the same time.
const AT_ONCE: usize = 4;
/// How long an answer holds: a tag may move, and public registries count requests (Docker Hub: 100 in six hours).
const FRESH: Duration = Duration::from_mins(30);
/// The same at first while the answer keeps pods from being placed, so that a mended image is seen soon. Doubled each time
/// that nothing has changed, up to [`RETRY_LONGEST`]: one image alone would use up what Docker Hub grants.
const HURRY: Duration = Duration::from_mins(2);
/// First wait after a failure, doubled with each further one.
const RETRY: Duration = Duration::from_secs(30);
/// Longest wait after failures.
const RETRY_LONGEST: Duration = Duration::from_mins(10);
/// How long an answer is still good when the registry does not give a newer one.
const STALE: Duration = Duration::from_hours(24);
/// Most images that are remembered. With a status of a few hundred bytes for each it is a bound, not a limit of use.
const MOST: usize = 2048;

/// Where lookups go.
pub trait Source: Send + Sync {
    /// What the image's registry says now.
    fn look_up(&self, subject: &Subject) -> impl Future<Output = Result<Found, Failure>> + Send;
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In a sentence without a full stop.
    pub message: String,
    /// The registry asked for fewer requests.
    pub patience: bool,
}

impl Failure {
    /// A failure that is tried again soon.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            patience: false,
        }
    }
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The first answer is still awaited, and may be for a moment.
    Pending,
    /// What its registry said last.
    Known(Arc<Found>),
    /// Nothing, and why.
    Unknown(Arc<str>),
}

/// Every image that is wanted, or was lately.
pub struct Lookups {
    entries: Mutex<BTreeMap<Subject, Entry>>,
    wake: Notify,
    changed: Arc<Notify>,
    metrics: Metrics,
    random: RandomState,
}

struct Entry {
    answer: Answer,
    wanted: bool,
    running: bool,
    /// When it is asked for next.
    due: Instant,
    /// When it was wanted first.
    since: Instant,
    /// When the registry last answered.
    good: Option<Instant>,
    hurried: bool,
    /// Times in a row that it was hurried for the same answer.
    hurries: u32,
    failures: u32,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            answer: Answer::Pending,
            wanted: true,
            running: false,
            due: now,
            since: now,
            good: None,
            hurried: false,
            hurries: 0,
            failures: 0,
        }
    }
}

impl Lookups {
    /// Nothing is known yet. `changed` is told of every change of an answer.
    pub fn new(changed: Arc<Notify>, metrics: Metrics) -> Self {
        Self {
            entries: Mutex::default(),
            wake: Notify::new(),
            changed,
            metrics,
            random: RandomState::new(),
        }
    }

    /// Sets what is wanted from now on. What is new is asked for at once; what is wanted no longer is forgotten when its
    /// time is over, so that a spec that goes back and forth asks no registry each time.
    pub fn want(&self, wanted: &BTreeSet<Subject>) {
        let now = Instant::now();
        let mut entries = self.lock();
        entries.retain(|subject, entry| {
            entry.wanted = wanted.contains(subject);
            entry.wanted || entry.running || entry.due > now
        });
        let mut new = false;
        for subject in wanted {
            if entries.contains_key(subject) {
                continue;
            }
            if entries.len() >= MOST {
                entries.retain(|_, entry| entry.wanted || entry.running);
            }
            if entries.len() >= MOST {
                break;
            }
            entries.insert(subject.clone(), Entry::new(now));
            new = true;
        }
        if new {
            self.wake.notify_one();
        }
    }

    /// What is known now.
    pub fn answer(&self, subject: &Subject) -> Answer {
        self.lock().get(subject).map_or_else(
            || Answer::Unknown("too many different images are in use".into()),
            |entry| entry.answer.clone(),
        )
    }

    /// Says that the answer keeps pods from being placed, so that it is asked for again soon.
    pub fn hurry(&self, subject: &Subject) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(subject) else { return };
        if entry.running || entry.hurried {
            return;
        }
        let wait = HURRY.saturating_mul(1 << entry.hurries.min(5)).min(RETRY_LONGEST);
        entry.hurried = true;
        entry.hurries = entry.hurries.saturating_add(1);
        entry.due = entry.due.min(Instant::now() + self.spread(wait));
        self.wake.notify_one();
    }

    /// Asks for ever.
    pub async fn run<S: Source>(&self, source: &S) {
        let mut running = FuturesUnordered::new();
        loop {
            let (start, next) = self.tick(AT_ONCE - running.len());
            for subject in start {
                running.push(async move {
                    let result = source.look_up(&subject).await;
                    (subject, result)
                });
            }
            tokio::select! {
                Some((subject, result)) = running.next() => self.finish(&subject, result),
                () = self.wake.notified() => {}
                () = until(next) => {}
            }
        }
    }

    /// Takes what is due, and gives up waiting for what is late. Says when to look again.
    fn tick(&self, room: usize) -> (Vec<Subject>, Option<Instant>) {
        let now = Instant::now();
        let mut entries = self.lock();
        let mut due: Vec<(Instant, &Subject)> = entries
            .iter()
            .filter(|(_, entry)| entry.wanted && !entry.running && entry.due <= now)
            .map(|(subject, entry)| (entry.due, subject))
            .collect();
        due.sort_unstable();
        let start: Vec<Subject> = due.into_iter().take(room).map(|(_, subject)| subject.clone()).collect();
        for subject in &start {
            if let Some(entry) = entries.get_mut(subject) {
                entry.running = true;
            }
        }
        let mut late = false;
        let mut next: Option<Instant> = None;
        let mut soonest = |time: Instant| next = Some(next.map_or(time, |next| next.min(time)));
        for entry in entries.values_mut() {
            let deadline = entry.since + FIRST_ANSWER;
            if entry.answer == Answer::Pending && deadline <= now {
                entry.answer = Answer::Unknown("the registry has not answered yet".into());
                late = true;
            }
            if entry.answer == Answer::Pending {
                soonest(deadline);
            }
            // What is due already waits for room, which the end of another lookup makes.
            if entry.wanted && !entry.running && entry.due > now {
                soonest(entry.due);
            }
        }
        drop(entries);
        if late {
            self.changed.notify_one();
        }
        (start, next)
    }

    fn finish(&self, subject: &Subject, result: Result<Found, Failure>) {
        let now = Instant::now();
        self.metrics.looked_up(result.is_ok());
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(subject) else { return };
        entry.running = false;
        entry.hurried = false;
        let answer = match result {
            Ok(found) => {
                entry.failures = 0;
                entry.good = Some(now);
                entry.due = now + self.spread(FRESH);
                Answer::Known(Arc::new(found))
            }
            Err(failure) => {
                tracing::debug!(
                    image = subject.image,
                    failure = failure.message,
                    "an image could not be looked up"
                );
                let wait = RETRY.saturating_mul(1 << entry.failures.min(5)).min(RETRY_LONGEST);
                entry.failures = entry.failures.saturating_add(1);
                entry.due = now + self.spread(if failure.patience { RETRY_LONGEST } else { wait });
                match entry.good {
                    // What the registry said is truer than that it says nothing now.
                    Some(good) if good + STALE > now => entry.answer.clone(),
                    _ => Answer::Unknown(failure.message.into()),
                }
            }
        };
        let changed = entry.answer != answer;
        if changed {
            entry.hurries = 0;
        }
        entry.answer = answer;
        drop(entries);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Between four fifths of it and all of it, so that what was asked together is not asked together for ever.
    fn spread(&self, wait: Duration) -> Duration {
        let share = self.random.hash_one(Instant::now()) % 1000;
        wait / 5 * 4 + wait / 5 * share as u32 / 1000
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Subject, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, sleep, timeout};

    use super::{super::manifest::parse_config, *};

    /// Answers by name: `slow…` after ten seconds, `down…` with a failure, others with amd64, or what `now` says.
    #[derive(Default)]
    struct Fake {
        calls: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
        broken: std::sync::atomic::AtomicBool,
        /// How often the tags were moved.
        moved: AtomicUsize,
    }

    impl Source for Arc<Fake> {
        async fn look_up(&self, subject: &Subject) -> Result<Found, Failure> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            sleep(if subject.image.starts_with("slow") {
                Duration::from_secs(10)
            } else {
                Duration::from_millis(100)
            })
            .await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            if subject.image.starts_with("down") || self.broken.load(Ordering::SeqCst) {
                return Err(Failure::new("no"));
            }
            Ok(Found {
                digest: format!("sha256:{}", self.moved.load(Ordering::SeqCst)),
                platforms: parse_config(br#"{"os": "linux", "architecture": "amd64"}"#).unwrap(),
            })
        }
    }

    fn subject(image: &str) -> Subject {
        Subject {
            image: image.to_owned(),
            secrets: Vec::new(),
            revision: None,
        }
    }

    struct Bench {
        fake: Arc<Fake>,
        lookups: Arc<Lookups>,
        changed: Arc<Notify>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn bench() -> Bench {
        let fake = Arc::new(Fake::default());
        let changed = Arc::new(Notify::new());
        let lookups = Arc::new(Lookups::new(Arc::clone(&changed), Metrics::default()));
        let (source, run) = (Arc::clone(&fake), Arc::clone(&lookups));
        let task = tokio::spawn(async move { run.run(&source).await });
        Bench {
            fake,
            lookups,
            changed,
            task,
        }
    }

    impl Bench {
        fn want(&self, images: &[&str]) {
            self.lookups.want(&images.iter().map(|image| subject(image)).collect());
        }

        fn calls(&self) -> usize {
            self.fake.calls.load(Ordering::SeqCst)
        }

        async fn changes(&self, within: Duration) -> bool {
            timeout(within, self.changed.notified()).await.is_ok()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_once_and_kept_until_it_is_old() {
        let bench = bench();
        bench.want(&["a"]);
        assert_eq!(bench.lookups.answer(&subject("a")), Answer::Pending);
        assert!(bench.changes(Duration::from_secs(1)).await);
        assert!(matches!(bench.lookups.answer(&subject("a")), Answer::Known(_)));
        for _ in 0..20 {
            bench.want(&["a"]);
            sleep(Duration::from_mins(1)).await;
        }
        assert_eq!(bench.calls(), 1);
        // 35 minutes after the start: the second answer is at most 30 minutes old then, and the third is not due before 48.
        sleep(FRESH / 2).await;
        assert_eq!(bench.calls(), 2, "asked again when it was old");
        assert!(
            !bench.changes(Duration::from_secs(1)).await,
            "the same answer is no change"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn placement_waits_three_seconds_at_most() {
        let bench = bench();
        bench.want(&["slow"]);
        assert!(!bench.changes(Duration::from_millis(2900)).await);
        assert_eq!(bench.lookups.answer(&subject("slow")), Answer::Pending);
        assert!(bench.changes(Duration::from_millis(200)).await);
        assert!(matches!(bench.lookups.answer(&subject("slow")), Answer::Unknown(_)));
        assert!(
            bench.changes(Duration::from_secs(10)).await,
            "and the answer comes later all the same"
        );
        assert!(matches!(bench.lookups.answer(&subject("slow")), Answer::Known(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn few_at_once_and_those_in_the_queue_do_not_wait_longer() {
        let bench = bench();
        let names: Vec<String> = (0..20).map(|n| format!("slow{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        bench.want(&names);
        sleep(FIRST_ANSWER + Duration::from_millis(10)).await;
        for name in &names {
            assert!(
                matches!(bench.lookups.answer(&subject(name)), Answer::Unknown(_)),
                "{name}"
            );
        }
        sleep(Duration::from_mins(1)).await;
        assert_eq!(bench.calls(), 20);
        assert_eq!(bench.fake.most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_ever_more_rarely() {
        let bench = bench();
        bench.want(&["down"]);
        assert!(bench.changes(Duration::from_secs(1)).await);
        assert_eq!(bench.lookups.answer(&subject("down")), Answer::Unknown("no".into()));
        sleep(RETRY).await;
        assert_eq!(bench.calls(), 2);
        sleep(Duration::from_hours(1)).await;
        let first = bench.calls();
        assert!((5..=13).contains(&first), "{first}");
        sleep(Duration::from_hours(1)).await;
        assert!(
            bench.calls() - first <= 8,
            "{} in the second hour",
            bench.calls() - first
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_does_not_wipe_out_what_the_registry_said() {
        let bench = bench();
        bench.want(&["a"]);
        assert!(bench.changes(Duration::from_secs(1)).await);
        bench.fake.broken.store(true, Ordering::SeqCst);
        assert!(!bench.changes(Duration::from_hours(20)).await);
        assert!(bench.calls() > 3);
        assert!(matches!(bench.lookups.answer(&subject("a")), Answer::Known(_)));
        assert!(bench.changes(Duration::from_hours(8)).await, "but not for ever");
        assert!(matches!(bench.lookups.answer(&subject("a")), Answer::Unknown(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moved_tag_is_a_change() {
        let bench = bench();
        bench.want(&["a"]);
        assert!(bench.changes(Duration::from_secs(1)).await);
        assert!(!bench.changes(FRESH * 2).await, "the same content again");
        bench.fake.moved.store(1, Ordering::SeqCst);
        assert!(bench.changes(FRESH + Duration::from_secs(1)).await);
        let Answer::Known(found) = bench.lookups.answer(&subject("a")) else {
            panic!("not known")
        };
        assert_eq!(found.digest, "sha256:1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_in_the_way_is_asked_for_sooner() {
        let bench = bench();
        bench.want(&["a"]);
        assert!(bench.changes(Duration::from_secs(1)).await);
        bench.lookups.hurry(&subject("a"));
        // The planner says so on every pass, which must not put it off.
        for _ in 0..12 {
            bench.lookups.hurry(&subject("a"));
            sleep(HURRY / 12).await;
        }
        assert_eq!(bench.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_in_the_way_is_asked_for_ever_more_rarely_until_it_changes() {
        let bench = bench();
        bench.want(&["a"]);
        let hours = async |hours: u64| {
            let before = bench.calls();
            for _ in 0..hours * 60 {
                bench.lookups.hurry(&subject("a"));
                sleep(Duration::from_mins(1)).await;
            }
            bench.calls() - before
        };
        let six = hours(6).await;
        assert!(
            (30..60).contains(&six),
            "{six}: Docker Hub grants 100 to all images together"
        );
        bench.fake.moved.store(1, Ordering::SeqCst);
        let next = hours(1).await;
        assert!(next > 6, "{next}: it changed, so that it may change again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wanted_no_longer_is_asked_for_no_longer_and_forgotten() {
        let bench = bench();
        bench.want(&["a"]);
        assert!(bench.changes(Duration::from_secs(1)).await);
        bench.want(&[]);
        bench.want(&["a"]);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.calls(), 1, "there and back again asks nothing");
        bench.want(&[]);
        sleep(FRESH * 3).await;
        assert_eq!(bench.calls(), 1);
        bench.want(&[]);
        assert!(bench.lookups.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_images_is_bounded() {
        let bench = bench();
        let names: Vec<String> = (0..MOST + 5).map(|n| format!("{n:05}")).collect();
        bench.want(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(bench.lookups.lock().len(), MOST);
        assert!(matches!(
            bench.lookups.answer(&subject(&names[MOST])),
            Answer::Unknown(_)
        ));
        bench.want(&[&names[MOST]]);
        assert_eq!(bench.lookups.answer(&subject(&names[MOST])), Answer::Pending);
        advance(Duration::from_secs(1)).await;
    }
}
