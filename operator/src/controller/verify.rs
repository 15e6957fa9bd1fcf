//! Asks each pod once per start of its container what it computes on: GET on the pod's own address, since `pods/proxy`
//! would be a right to talk to any pod. What a pod answers is kept in memory and asked again after a restart.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, channel::mpsc::UnboundedSender, stream::FuturesUnordered};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::runtime::reflector::{ObjectRef, Store, store::WriterDropped};
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use super::{
    build::PORT,
    device::{AskError, Asked, Report, Verdict, compare},
    observe::{GuardedDeployment, Pod},
};
use crate::metrics::{DeviceCheck, Metrics};

/// How long one pod may take to answer, connection included.
const LIMIT: Duration = Duration::from_secs(2);
/// Largest answer that is read, in bytes; a report has less than one KiB.
const BODY: usize = 16 << 10;
/// Changes of pods within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
/// Wait after the first try that told nothing; doubled each time.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait for a pod that gives no answer, as one behind a network policy that forgot the operator.
const LONGEST: Duration = Duration::from_mins(5);
/// Longest wait for a pod that says it loads.
const LONGEST_LOADING: Duration = Duration::from_secs(15);
/// So often a pod that is ready may say that it loads before that is taken for its last word.
const LOADING: u32 = 4;

/// A running container that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// UID of its pod.
    pub uid: String,
    /// Which start of the container this is.
    pub start: String,
    /// Namespace and name of the HawkeyeDeployment.
    pub owner: (String, String),
    /// The pod's address.
    pub address: IpAddr,
    /// The pod is ready.
    pub ready: bool,
    /// What its template asks for.
    pub asked: Asked,
}

impl Target {
    /// The container of a pod of ours, if it runs and has an address.
    pub fn of(pod: &Pod) -> Option<Self> {
        if !pod.active() {
            return None;
        }
        let (namespace, name) = pod.instance()?;
        Some(Self {
            uid: pod.metadata.uid.clone()?,
            start: pod.start()?,
            owner: (namespace.to_owned(), name.to_owned()),
            address: pod.status.pod_ip.as_ref()?.parse().ok()?,
            ready: pod.ready(),
            asked: pod.asked()?,
        })
    }
}

/// What is known of every pod, and when to ask which next. Time is a parameter.
#[derive(Debug, Default)]
struct Checks {
    entries: HashMap<String, Entry>,
    due: BTreeSet<(Instant, String)>,
    random: RandomState,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    verdict: Verdict,
    tries: u32,
    due: Option<Instant>,
}

impl Checks {
    /// Takes note of the pods that run now: new starts are due at once, and so is a pod that became ready.
    fn see(&mut self, targets: Vec<Target>, now: Instant) {
        let running: HashSet<&str> = targets.iter().map(|target| target.uid.as_str()).collect();
        let due = &mut self.due;
        self.entries.retain(|uid, entry| {
            let stays = running.contains(uid.as_str());
            if let Some(at) = entry.due.filter(|_| !stays) {
                due.remove(&(at, uid.clone()));
            }
            stays
        });
        for target in targets {
            let uid = target.uid.clone();
            let news = match self.entries.get_mut(&uid) {
                Some(entry) if entry.target.start == target.start => {
                    let became_ready = target.ready && !entry.target.ready;
                    let known = matches!(entry.verdict, Verdict::Verified | Verdict::Differs(_));
                    entry.target = target;
                    became_ready && !known
                }
                Some(entry) => {
                    entry.target = target;
                    true
                }
                None => {
                    let entry = Entry {
                        target,
                        verdict: Verdict::Pending,
                        tries: 0,
                        due: None,
                    };
                    self.entries.insert(uid.clone(), entry);
                    true
                }
            };
            if news {
                self.schedule(&uid, Verdict::Pending, 0, Some(now));
            }
        }
    }

    fn schedule(&mut self, uid: &str, verdict: Verdict, tries: u32, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Some(at) = entry.due {
            self.due.remove(&(at, uid.to_owned()));
        }
        if let Some(at) = due {
            self.due.insert((at, uid.to_owned()));
        }
        (entry.verdict, entry.tries, entry.due) = (verdict, tries, due);
    }

    /// When the next pod is due.
    fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The pod that is due now, taken off the list.
    fn take(&mut self, now: Instant) -> Option<Target> {
        self.next().filter(|at| *at <= now)?;
        let (_, uid) = self.due.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.due = None;
        Some(entry.target.clone())
    }

    /// Notes an answer; true when it changes what is known. One that comes too late, after the pod is gone or its
    /// container started anew, is nothing.
    fn answered(&mut self, asked: &Target, answer: Result<Report, AskError>, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&asked.uid) else {
            return false;
        };
        if entry.target.start != asked.start {
            return false;
        }
        let (tries, ready, before) = (entry.tries + 1, entry.target.ready, entry.verdict.clone());
        let (verdict, longest) = match answer.map(|report| compare(&asked.asked, &report)) {
            Ok(Verdict::Loading) if ready && tries > LOADING => {
                (Verdict::Unknown(AskError::Loading), Some(LONGEST_LOADING))
            }
            Ok(Verdict::Loading) => (Verdict::Loading, Some(LONGEST_LOADING)),
            Ok(verdict) => (verdict, None),
            Err(error) => (Verdict::Unknown(error), Some(LONGEST)),
        };
        let due = longest.map(|longest| now + self.wait(&asked.uid, tries, longest));
        // It became ready while it was asked: it is due already, and sooner.
        let due = match (due, self.entries.get(&asked.uid).and_then(|entry| entry.due)) {
            (Some(later), Some(sooner)) => Some(later.min(sooner)),
            (due, _) => due,
        };
        let changed = before != verdict;
        self.schedule(&asked.uid, verdict, tries, due);
        changed
    }

    /// Doubled with each try, and spread at random between half of it and all of it.
    fn wait(&self, uid: &str, tries: u32, longest: Duration) -> Duration {
        let full = FIRST.saturating_mul(1 << tries.clamp(1, 10)).min(longest);
        let share = self.random.hash_one((uid, tries)) % 1000;
        full / 2 + full / 2 * share as u32 / 1000
    }
}

/// What pods were found to compute on.
#[derive(Debug, Default)]
pub struct Devices {
    checks: Mutex<Checks>,
    off: bool,
}

impl Devices {
    /// `off`: nobody is asked, so nothing is ever known.
    pub fn new(off: bool) -> Self {
        Self { off, ..Self::default() }
    }

    /// What is known of a pod as it is now.
    pub fn verdict(&self, pod: &Pod) -> Verdict {
        if self.off {
            return Verdict::Unknown(AskError::Off);
        }
        if Target::of(pod).is_none() {
            return if pod.ready() {
                Verdict::Unknown(AskError::NoTarget)
            } else {
                Verdict::Loading
            };
        }
        let checks = self.lock();
        let entry = pod.metadata.uid.as_ref().and_then(|uid| checks.entries.get(uid));
        entry
            .filter(|entry| pod.start().as_ref() == Some(&entry.target.start))
            // What was heard before it was ready may be old.
            .filter(|entry| entry.target.ready || !pod.ready() || !matches!(entry.verdict, Verdict::Unknown(_)))
            .map_or(Verdict::Pending, |entry| entry.verdict.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Checks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that asking runs with.
pub struct Verifier {
    /// Pods of ours, among others.
    pub pods: Store<Pod>,
    /// Says that a pod changed.
    pub changed: Arc<Notify>,
    /// Where the answers are kept.
    pub devices: Arc<Devices>,
    /// Objects to be reconciled.
    pub triggers: UnboundedSender<ObjectRef<GuardedDeployment>>,
    /// Most pods that are asked at the same time.
    pub concurrency: usize,
    /// Metrics.
    pub metrics: Metrics,
}

impl Verifier {
    /// Asks for ever; with a concurrency of 0 nobody.
    ///
    /// # Errors
    /// When the watch has ended.
    pub async fn run<F>(self, ask: impl Fn(IpAddr) -> F) -> Result<(), WriterDropped>
    where
        F: Future<Output = Result<Report, AskError>>,
    {
        self.pods.wait_until_ready().await?;
        let mut asking = FuturesUnordered::new();
        let mut look = Some(Instant::now());
        loop {
            let now = Instant::now();
            if look.is_some_and(|at| at <= now) {
                look = None;
                let running = self.pods.state().iter().filter_map(|pod| Target::of(pod)).collect();
                self.devices.lock().see(running, now);
            }
            while asking.len() < self.concurrency
                && let Some(target) = self.devices.lock().take(now)
            {
                let answer = ask(target.address);
                asking.push(async move { (target, answer.await) });
            }
            let free = asking.len() < self.concurrency;
            let next = self.devices.lock().next().filter(|_| free);
            let wake = [look, next].into_iter().flatten().min();
            tokio::select! {
                Some((target, answer)) = asking.next(), if !asking.is_empty() => self.answered(&target, answer),
                () = self.changed.notified() => look = look.or(Some(Instant::now() + SETTLE)),
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    fn answered(&self, target: &Target, answer: Result<Report, AskError>) {
        let (namespace, name) = &target.owner;
        tracing::debug!(%namespace, %name, address = %target.address, ?answer, "asked a pod for its device");
        let kind = match &answer {
            Err(AskError::NoAnswer) => DeviceCheck::NoAnswer,
            Err(_) => DeviceCheck::Unreadable,
            Ok(report) => match compare(&target.asked, report) {
                Verdict::Verified => DeviceCheck::Verified,
                Verdict::Loading => DeviceCheck::Loading,
                _ => DeviceCheck::Differs,
            },
        };
        self.metrics.checked(kind);
        if self.devices.lock().answered(target, answer, Instant::now()) {
            // It fails only when the controller is gone, and then the process ends.
            let _gone = self.triggers.unbounded_send(ObjectRef::new(name).within(namespace));
        }
    }
}

/// GET on a pod's `/device`. No proxy and no redirect: what is asked is the address that the kubelet reported.
///
/// # Errors
/// [`AskError`], after two seconds at the latest.
pub async fn ask(address: IpAddr) -> Result<Report, AskError> {
    timeout(LIMIT, get(address)).await.unwrap_or(Err(AskError::NoAnswer))
}

async fn get(address: IpAddr) -> Result<Report, AskError> {
    let port = u16::try_from(PORT).unwrap_or_default();
    let stream = TcpStream::connect((address, port))
        .await
        .map_err(|error| silent(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| silent(&error))?;
    let request = Request::get("/device")
        .header(header::HOST, std::net::SocketAddr::new(address, port).to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| silent(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| silent(&error))?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), BODY).collect().await;
        let body = body.map_err(|_| AskError::Unreadable)?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| AskError::Unreadable)
    };
    // The connection does the work of both ends; its own end says nothing that the exchange does not.
    let driven = async {
        if let Err(error) = connection.await {
            silent(&error);
        }
        std::future::pending().await
    };
    tokio::select! {
        result = exchange => result,
        never = driven => never,
    }
}

fn silent(error: &dyn std::error::Error) -> AskError {
    tracing::debug!(%error, "a pod does not answer");
    AskError::NoAnswer
}

#[cfg(test)]
mod tests;
