//! What waits for a device, and which of it comes next. One queue for all devices.

use super::EngineError;
use super::describe::{Described, Screen};
use crate::metrics::Metrics;
use hawkeye_pipeline::model::CaptionPrompt;
use hawkeye_pipeline::parser::{self, ParseOptions};
use image::RgbImage;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Screenshots that may be searched while crops wait for a fuller batch. Every one makes the batch cheaper by the crop and the
/// first request later.
const FINDS_BEFORE_CAPTIONS: usize = 4;

/// A screenshot to be searched.
#[derive(Debug)]
pub(super) struct FindJob {
    pub screen: Arc<Screen>,
    pub options: ParseOptions,
    pub queued: Instant,
    pub reply: oneshot::Sender<Result<Found, EngineError>>,
}

/// What was found, and when.
#[derive(Debug)]
pub(super) struct Found {
    pub elements: parser::Found,
    /// To be kept until its crops are in the queue.
    pub expected: Option<Expected>,
    pub waited: Duration,
    pub begun: Instant,
}

/// The crops of one screenshot, wherever they are: perhaps in several batches, perhaps on several devices.
#[derive(Debug)]
pub(super) struct Request {
    prompt: CaptionPrompt,
    queued: Instant,
    gathered: Mutex<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    /// By crop; empty until it is described.
    captions: Vec<String>,
    missing: usize,
    begun: Option<Instant>,
    /// Gone once it is used.
    reply: Option<oneshot::Sender<Result<Described, EngineError>>>,
}

impl Request {
    pub(super) fn new(
        crops: usize,
        prompt: CaptionPrompt,
        reply: oneshot::Sender<Result<Described, EngineError>>,
    ) -> Self {
        let gathered = Gathered {
            captions: vec![String::new(); crops],
            missing: crops,
            begun: None,
            reply: Some(reply),
        };
        Self {
            prompt,
            queued: Instant::now(),
            gathered: Mutex::new(gathered),
        }
    }

    // Nothing that can panic runs under these locks, so a poisoned one is sound.
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool {
        self.gathered().reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Takes the captions of the crops from `first` on, and replies when they were the last.
    fn answer(&self, first: usize, captions: impl Iterator<Item = String>) {
        let mut gathered = self.gathered();
        for (at, caption) in captions.enumerate() {
            gathered.captions[first + at] = caption;
            gathered.missing -= 1;
        }
        if gathered.missing > 0 {
            return;
        }
        let begun = gathered.begun.unwrap_or(self.queued);
        let described = Described {
            captions: std::mem::take(&mut gathered.captions),
            waited: begun.saturating_duration_since(self.queued),
            took: begun.elapsed(),
        };
        if let Some(reply) = gathered.reply.take() {
            // A client that left meanwhile is no error.
            drop(reply.send(Ok(described)));
        }
    }

    fn fail(&self, error: EngineError) {
        if let Some(reply) = self.gathered().reply.take() {
            drop(reply.send(Err(error)));
        }
    }
}

/// Crops of one request that no device has taken yet.
#[derive(Debug)]
struct Group {
    request: Arc<Request>,
    /// The number of the first that is left.
    first: usize,
    crops: VecDeque<RgbImage>,
}

/// Some crops of one request, which are next to each other in a batch.
#[derive(Debug)]
struct Share {
    request: Arc<Request>,
    first: usize,
    count: usize,
}

/// Crops that share a call of the captioner.
#[derive(Debug)]
pub(super) struct Batch {
    pub crops: Vec<RgbImage>,
    pub prompt: CaptionPrompt,
    shares: Vec<Share>,
}

impl Batch {
    /// Marks the begin: until then its requests have waited.
    pub(super) fn begin(&self) {
        let now = Instant::now();
        for share in &self.shares {
            share.request.gathered().begun.get_or_insert(now);
        }
    }

    /// Hands each request its captions, one per crop, or the error to all.
    pub(super) fn answer(self, outcome: Result<Vec<String>, EngineError>) {
        match outcome {
            Ok(captions) => {
                let mut captions = captions.into_iter();
                for share in self.shares {
                    share.request.answer(share.first, captions.by_ref().take(share.count));
                }
            }
            Err(error) => self.shares.iter().for_each(|share| share.request.fail(error.clone())),
        }
    }
}

/// What a device does next.
#[derive(Debug)]
pub(super) enum Task {
    Find(FindJob),
    Caption(Batch),
}

#[derive(Debug, Default)]
struct Waiting {
    finds: VecDeque<FindJob>,
    groups: VecDeque<Group>,
    /// Screenshots whose crops are being cut out.
    expected: usize,
    /// Screenshots that were searched while crops waited.
    finds_meanwhile: usize,
    closed: bool,
}

impl Waiting {
    /// Drops what nobody waits for any more; how much that was.
    fn drop_abandoned(&mut self) -> usize {
        let before = self.finds.len() + self.groups.len();
        self.finds.retain(|job| !job.reply.is_closed());
        self.groups.retain(|group| group.request.is_wanted());
        before - self.finds.len() - self.groups.len()
    }

    fn crops(&self) -> usize {
        self.groups.iter().map(|group| group.crops.len()).sum()
    }

    /// The next task for a device whose batches have `size` crops. A batch that is full comes first, then screenshots, so that
    /// it gets full, but only so many of them; then a batch as it is. Nothing waits for more to come, except for crops that
    /// are being cut out at this moment.
    fn next(&mut self, size: usize) -> Option<Task> {
        let crops = self.crops();
        if crops < size {
            if self.finds_meanwhile < FINDS_BEFORE_CAPTIONS
                && let Some(job) = self.finds.pop_front()
            {
                if crops > 0 {
                    self.finds_meanwhile += 1;
                }
                return Some(Task::Find(job));
            }
            if self.expected > 0 {
                return None;
            }
        }
        self.finds_meanwhile = 0;
        self.batch(size).map(Task::Caption)
    }

    /// Up to `size` crops, the oldest first, all with the prompt of the oldest.
    fn batch(&mut self, size: usize) -> Option<Batch> {
        let prompt = self.groups.front()?.request.prompt;
        let (mut crops, mut shares) = (Vec::new(), Vec::new());
        for group in self.groups.iter_mut().filter(|group| group.request.prompt == prompt) {
            let count = group.crops.len().min(size - crops.len());
            if count == 0 {
                break;
            }
            crops.extend(group.crops.drain(..count));
            shares.push(Share {
                request: Arc::clone(&group.request),
                first: group.first,
                count,
            });
            group.first += count;
        }
        self.groups.retain(|group| !group.crops.is_empty());
        Some(Batch { crops, prompt, shares })
    }
}

/// While it lives, the crops of a screenshot are on their way into the queue.
#[derive(Debug)]
pub(super) struct Expected(Arc<Work>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.waiting().expected -= 1;
        self.0.changed.notify_all();
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Work {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    metrics: Arc<Metrics>,
}

impl Work {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            metrics,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_abandoned(&self, waiting: &mut Waiting) {
        self.metrics.devices.abandoned.inc_by(waiting.drop_abandoned() as u64);
    }

    fn show(&self, waiting: &Waiting) {
        self.metrics.devices.waiting_screenshots.set(waiting.finds.len() as i64);
        self.metrics.devices.waiting_crops.set(waiting.crops() as i64);
    }

    pub(super) fn find(&self, job: FindJob) {
        let mut waiting = self.waiting();
        // Here, too: a device may be at its job for long, and pictures that nobody wants are large.
        self.drop_abandoned(&mut waiting);
        waiting.finds.push_back(job);
        self.show(&waiting);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Lets devices wait for the crops of a screenshot that are about to be cut out.
    pub(super) fn expect(self: &Arc<Self>) -> Expected {
        self.waiting().expected += 1;
        Expected(Arc::clone(self))
    }

    pub(super) fn describe(&self, request: Request, crops: Vec<RgbImage>) {
        let group = Group {
            request: Arc::new(request),
            first: 0,
            crops: crops.into(),
        };
        let mut waiting = self.waiting();
        waiting.groups.push_back(group);
        self.show(&waiting);
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next task for a device whose batches have `size` crops; waits for one. `None` when the queue is closed.
    pub(super) fn take(&self, size: usize) -> Option<Task> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            self.drop_abandoned(&mut waiting);
            let task = waiting.next(size);
            self.show(&waiting);
            if task.is_some() {
                return task;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the devices' threads after their current task, and drops what waits.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.finds.clear();
        waiting.groups.clear();
        drop(waiting);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<Described, EngineError>>;

    fn screenshot() -> (FindJob, oneshot::Receiver<Result<Found, EngineError>>) {
        let (reply, answer) = oneshot::channel();
        let job = FindJob {
            screen: Arc::new(Screen::from(RgbImage::new(1, 1))),
            options: ParseOptions::default(),
            queued: Instant::now(),
            reply,
        };
        (job, answer)
    }

    fn crops(waiting: &mut Waiting, count: usize, prompt: CaptionPrompt) -> Answer {
        let (reply, answer) = oneshot::channel();
        waiting.groups.push_back(Group {
            request: Arc::new(Request::new(count, prompt, reply)),
            first: 0,
            crops: vec![RgbImage::new(1, 1); count].into(),
        });
        answer
    }

    fn batch(waiting: &mut Waiting, size: usize) -> Batch {
        match waiting.next(size) {
            Some(Task::Caption(batch)) => batch,
            other => panic!("not a batch: {other:?}"),
        }
    }

    fn words(batch: &Batch) -> Vec<String> {
        (0..batch.crops.len()).map(|at| at.to_string()).collect()
    }

    const ASKED: CaptionPrompt = CaptionPrompt::Caption;

    #[test]
    fn crops_of_several_requests_share_a_batch_and_find_their_way_back() {
        let mut waiting = Waiting::default();
        let mut first = crops(&mut waiting, 3, ASKED);
        let mut second = crops(&mut waiting, 4, ASKED);
        let shared = batch(&mut waiting, 5);
        assert_eq!(shared.crops.len(), 5);
        let captions = words(&shared);
        shared.answer(Ok(captions));
        let described = first.try_recv().expect("answered").expect("described");
        assert_eq!(described.captions, ["0", "1", "2"]);
        assert!(second.try_recv().is_err(), "two of its crops are left");
        let rest = batch(&mut waiting, 5);
        assert_eq!(rest.crops.len(), 2);
        rest.answer(Ok(vec!["a".to_owned(), "b".to_owned()]));
        let described = second.try_recv().expect("answered").expect("described");
        assert_eq!(described.captions, ["3", "4", "a", "b"]);
        assert!(waiting.next(5).is_none());
    }

    #[test]
    fn a_batch_is_filled_first_but_nothing_waits_for_more() {
        let mut waiting = Waiting::default();
        let _answer = crops(&mut waiting, 2, ASKED);
        assert_eq!(batch(&mut waiting, 8).crops.len(), 2, "no screenshot waits");

        let _answer = crops(&mut waiting, 2, ASKED);
        let jobs: Vec<_> = (0..6).map(|_| screenshot()).collect();
        let (jobs, _answers): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        waiting.finds.extend(jobs);
        for _ in 0..FINDS_BEFORE_CAPTIONS {
            assert!(matches!(waiting.next(8), Some(Task::Find(_))));
        }
        assert_eq!(
            batch(&mut waiting, 8).crops.len(),
            2,
            "they have waited for long enough"
        );
        assert!(matches!(waiting.next(8), Some(Task::Find(_))));
        let _answer = crops(&mut waiting, 9, ASKED);
        assert_eq!(batch(&mut waiting, 8).crops.len(), 8, "a full batch comes first");
        assert!(matches!(waiting.next(8), Some(Task::Find(_))));
        assert_eq!(batch(&mut waiting, 8).crops.len(), 1);
    }

    #[test]
    fn crops_that_are_being_cut_out_are_waited_for() {
        let work = Arc::new(Work::new(Arc::new(Metrics::new())));
        let expected = work.expect();
        let _answer = crops(&mut work.waiting(), 2, ASKED);
        assert!(work.waiting().next(8).is_none(), "more are about to come");
        let (job, _found) = screenshot();
        work.waiting().finds.push_back(job);
        assert!(
            matches!(work.waiting().next(8), Some(Task::Find(_))),
            "meanwhile there is other work"
        );
        let _more = crops(&mut work.waiting(), 3, ASKED);
        drop(expected);
        assert_eq!(batch(&mut work.waiting(), 8).crops.len(), 5);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_before_each_stage() {
        let mut waiting = Waiting::default();
        let (job, answer) = screenshot();
        waiting.finds.push_back(job);
        drop(answer);
        drop(crops(&mut waiting, 9, ASKED));
        let _kept = crops(&mut waiting, 1, ASKED);
        assert_eq!(waiting.drop_abandoned(), 2);
        assert_eq!(batch(&mut waiting, 8).crops.len(), 1);
        assert!(waiting.next(8).is_none());
    }

    #[test]
    fn a_batch_that_fails_fails_the_requests_in_it_and_no_other() {
        let mut waiting = Waiting::default();
        let mut first = crops(&mut waiting, 2, ASKED);
        let mut second = crops(&mut waiting, 3, ASKED);
        let mut third = crops(&mut waiting, 1, ASKED);
        let error = EngineError::Parse("captioner: broken".to_owned());
        batch(&mut waiting, 3).answer(Err(error.clone()));
        for answer in [&mut first, &mut second] {
            assert_eq!(answer.try_recv().expect("answered").expect_err("failed"), error);
        }
        assert_eq!(waiting.drop_abandoned(), 1, "the rest of the second");
        let rest = batch(&mut waiting, 3);
        let captions = words(&rest);
        rest.answer(Ok(captions));
        assert!(third.try_recv().expect("answered").is_ok());
    }

    #[test]
    fn other_prompts_do_not_mix() {
        let mut waiting = Waiting::default();
        let _short = crops(&mut waiting, 1, CaptionPrompt::Caption);
        let _long = crops(&mut waiting, 2, CaptionPrompt::DetailedCaption);
        let _also_short = crops(&mut waiting, 3, CaptionPrompt::Caption);
        let first = batch(&mut waiting, 8);
        assert_eq!((first.crops.len(), first.prompt), (4, CaptionPrompt::Caption));
        let second = batch(&mut waiting, 8);
        assert_eq!((second.crops.len(), second.prompt), (2, CaptionPrompt::DetailedCaption));
    }
}
