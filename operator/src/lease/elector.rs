//! Takes the Lease, keeps it, and frees it in the end.

use std::{fmt, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Resource,
    api::PostParams,
    runtime::events::{Event, EventType},
};
use tokio::time::{sleep, timeout};

use super::{Claim, Decision, Moment, Record, Seen, Terms, decide};
use crate::metrics::Metrics;

/// How long freeing the Lease may take in the end.
const FREEING: Duration = Duration::from_secs(4);

/// Which Lease, and who asks for it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the Lease; replicas with the same one are rivals.
    pub lease: String,
    /// Name of this replica: that of its pod.
    pub me: String,
}

/// Why a replica leads no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Someone else has it.
    #[error("the Lease is lost: {0} holds it")]
    Taken(String),
    /// No renewal succeeded in time.
    #[error("the Lease is lost: it could not be renewed in time ({0})")]
    Expired(String),
}

#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("{0}")]
    Api(#[from] Box<kube::Error>),
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    Timeout(Duration),
}

/// One replica in the election.
pub struct Elector {
    /// With a client of its own: renewals pass the gate, and do not wait for other requests.
    api: Api<Lease>,
    identity: Identity,
    terms: Terms,
    claim: Claim,
    metrics: Metrics,
    /// The Lease as it was after the last read or write; `None` when there is none, or that is not known.
    lease: Option<Lease>,
    seen: Option<Seen>,
    /// Whether `lease` may be written over without another read.
    fresh: bool,
    /// What the last try failed with, which is said once.
    complaint: Option<String>,
}

impl fmt::Debug for Elector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elector")
            .field("identity", &self.identity)
            .field("terms", &self.terms)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

impl Elector {
    /// `claim` is what this replica's writes are held against.
    pub fn new(api: Api<Lease>, identity: Identity, terms: Terms, claim: Claim, metrics: Metrics) -> Self {
        Self {
            api,
            identity,
            terms,
            claim,
            metrics,
            lease: None,
            seen: None,
            fresh: false,
            complaint: None,
        }
    }

    /// Waits until this replica holds the Lease. May be dropped and called again.
    pub async fn acquire(&mut self) {
        tracing::info!(lease = %self.identity.lease, me = %self.identity.me, "standing by");
        loop {
            let start = Moment::now();
            let mut next = start + self.terms.period();
            match self.attempt().await {
                Ok(None) if self.claim.is_current(Moment::now()) => break,
                // Answered so late that it ends at once.
                Ok(None) => {}
                Ok(Some(until)) => next = next.min(until),
                Err(error) => self.complain(&error),
            }
            sleep(next.left(Moment::now())).await;
        }
        self.metrics.leading(true);
        tracing::info!(lease = %self.identity.lease, me = %self.identity.me, "holds the Lease and leads");
    }

    /// Renews the Lease until it is lost. May be dropped and called again.
    pub async fn keep(&mut self) -> Lost {
        let mut next = Moment::now() + self.terms.period();
        loop {
            let now = Moment::now();
            let pause = next.left(now).min(self.claim.left(now));
            sleep(pause).await;
            next = Moment::now() + self.terms.period();
            // Past the deadline nothing is tried any more: another replica may be about to start.
            let lost = if self.claim.is_current(Moment::now()) {
                match self.attempt().await {
                    Ok(None) => None,
                    Ok(Some(_)) => Some(Lost::Taken(self.holder().unwrap_or_default().to_owned())),
                    Err(error) => {
                        self.metrics.renewal_failed();
                        self.complain(&error);
                        None
                    }
                }
            } else {
                let why = self
                    .complaint
                    .take()
                    .unwrap_or_else(|| "this process stood still".to_owned());
                Some(Lost::Expired(why))
            };
            if let Some(lost) = lost {
                self.claim.give_up();
                self.metrics.leading(false);
                return lost;
            }
        }
    }

    /// Frees the Lease if this replica holds it, so that another one need not wait. Nothing may be in flight any more.
    pub async fn release(&mut self) {
        self.claim.give_up();
        self.metrics.leading(false);
        match timeout(FREEING, self.free()).await {
            Ok(Ok(true)) => tracing::info!(lease = %self.identity.lease, "freed the Lease"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be freed and has to run out"),
            Err(_) => tracing::warn!("the Lease could not be freed in time and has to run out"),
        }
    }

    /// What is to be said on the Lease when this replica took it; nothing when it only went on after its restart.
    pub fn announcement(&self) -> Option<(Event, ObjectReference)> {
        let lease = self.lease.as_ref()?;
        let spec = lease.spec.as_ref()?;
        // A renewal leaves the time at which the Lease was taken.
        (spec.acquire_time == spec.renew_time).then(|| {
            let event = Event {
                type_: EventType::Normal,
                reason: "LeaderElection".to_owned(),
                note: Some(format!("{} leads", self.identity.me)),
                action: "Lead".to_owned(),
                secondary: None,
            };
            (event, lease.object_ref(&()))
        })
    }

    fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.record.holder.as_deref()
    }

    fn complain(&mut self, error: &TryError) {
        let complaint = error.to_string();
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!(lease = %self.identity.lease, error = %complaint, "the Lease could not be read or written");
        }
        self.complaint = Some(complaint);
    }

    /// One try: `None` when the Lease was written, else until when someone else holds it.
    async fn attempt(&mut self) -> Result<Option<Moment>, TryError> {
        let result = self.read_and_write().await;
        match result {
            Ok(_) => self.complaint = None,
            Err(_) => self.fresh = false,
        }
        result
    }

    async fn read_and_write(&mut self) -> Result<Option<Moment>, TryError> {
        if !self.fresh {
            let lease = self.limited(self.api.get_opt(&self.identity.lease)).await?;
            self.saw(lease);
        }
        match decide(self.seen.as_ref(), &self.identity.me, Moment::now()) {
            Decision::Wait(until) => {
                self.fresh = false;
                Ok(Some(until))
            }
            Decision::Acquire | Decision::Renew => {
                let wanted = self.wanted();
                // Until it is answered, nobody knows what the Lease says.
                self.fresh = false;
                let sent = Moment::now();
                let written = self.limited(self.write(&wanted)).await?;
                self.claim.set(self.terms.deadline(sent));
                self.saw(Some(written));
                self.fresh = true;
                Ok(None)
            }
        }
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let params = PostParams::default();
        // With the resource version that was read, so that whoever was faster is not written over.
        match lease.metadata.resource_version {
            Some(_) => self.api.replace(&self.identity.lease, &params, lease).await,
            None => self.api.create(&params, lease).await,
        }
    }

    async fn limited<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, TryError> {
        let patience = self.terms.patience();
        match timeout(patience, request).await {
            Ok(result) => Ok(result.map_err(Box::new)?),
            Err(_) => Err(TryError::Timeout(patience)),
        }
    }

    fn saw(&mut self, lease: Option<Lease>) {
        let now = Moment::now();
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        if let Some(transitions) = spec.and_then(|spec| spec.lease_transitions) {
            self.metrics.lease_transitions(transitions);
        }
        self.seen = lease.as_ref().map(|lease| {
            let record = record(lease, self.terms.duration());
            Seen::update(self.seen.take(), record, now)
        });
        self.lease = lease;
    }

    /// The Lease as this replica's.
    fn wanted(&self) -> Lease {
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.identity.lease.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let now = MicroTime(jiff::Timestamp::now());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(&self.identity.me) {
            let before = spec.lease_transitions.map(|count| count.saturating_add(1));
            spec.lease_transitions = Some(before.unwrap_or(0));
            spec.holder_identity = Some(self.identity.me.clone());
            spec.acquire_time = Some(now.clone());
        }
        spec.lease_duration_seconds = i32::try_from(self.terms.duration().as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    async fn free(&self) -> Result<bool, kube::Error> {
        // Read again: a renewal that was broken off may have arrived.
        let Some(mut lease) = self.api.get_opt(&self.identity.lease).await? else {
            return Ok(false);
        };
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(false);
        };
        if spec.holder_identity.as_deref() != Some(&self.identity.me) {
            return Ok(false);
        }
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
        self.write(&lease).await?;
        Ok(true)
    }
}

fn record(lease: &Lease, default: Duration) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    Record {
        holder: spec.and_then(|spec| spec.holder_identity.clone()),
        duration: match u64::try_from(seconds) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            // Nothing that makes sense.
            _ => default,
        },
        renewal: spec.map_or_else(String::new, |spec| {
            format!("{:?} {:?}", spec.renew_time, spec.lease_transitions)
        }),
    }
}
