//! What a replica may do about the Lease. Pure.

use std::time::Duration;

use super::Moment;

/// Durations of the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    duration: Duration,
    deadline: Duration,
    period: Duration,
}

/// Durations that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// The Lease holds whole seconds.
    #[error("the lease duration must be whole seconds, from 1 s to 1 h")]
    Duration,
    /// A claim has to end before the Lease does.
    #[error("the renew deadline must be shorter than the lease duration")]
    Deadline,
    /// One try that fails must not end a claim.
    #[error("the retry period must be more than zero, and the renew deadline at least twice as long")]
    Period,
}

impl Terms {
    /// `duration`: how long a Lease counts after it was last seen to change. `deadline`: how long a holder writes after it
    /// sent its last renewal that succeeded. `period`: between two tries.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new(duration: Duration, deadline: Duration, period: Duration) -> Result<Self, TermsError> {
        if duration.subsec_nanos() != 0 || !(1..=3600).contains(&duration.as_secs()) {
            return Err(TermsError::Duration);
        }
        if deadline >= duration {
            return Err(TermsError::Deadline);
        }
        if period.is_zero() || period * 2 > deadline {
            return Err(TermsError::Period);
        }
        Ok(Self {
            duration,
            deadline,
            period,
        })
    }

    /// How long a Lease counts.
    pub const fn duration(&self) -> Duration {
        self.duration
    }

    /// Time between two tries.
    pub const fn period(&self) -> Duration {
        self.period
    }

    /// Longest time for one request, so that a second one fits before the deadline.
    pub fn patience(&self) -> Duration {
        self.deadline / 2
    }

    /// The deadline of a claim whose renewal was sent then. What counts is when it was sent: when it arrived is not known.
    pub fn deadline(&self, sent: Moment) -> Moment {
        sent + self.deadline
    }
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; nobody after it was freed.
    pub holder: Option<String>,
    /// How long it counts.
    pub duration: Duration,
    /// Changes with each renewal.
    pub renewal: String,
}

/// What a replica has seen of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it says.
    pub record: Record,
    /// When this replica first knew that it says so.
    pub since: Moment,
}

impl Seen {
    /// What is known after a read, or a write, that was answered at `now`.
    pub fn update(before: Option<Self>, record: Record, now: Moment) -> Self {
        match before {
            Some(before) if before.record == record => before,
            _ => Self { record, since: now },
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody holds it: take it.
    Acquire,
    /// It is held by this replica.
    Renew,
    /// Someone else holds it until then.
    Wait(Moment),
}

/// What a replica may do; `None` when there is no Lease.
///
/// A replica that restarts under its name holds what it held before: the kubelet starts a container only after its
/// predecessor has ended.
pub fn decide(seen: Option<&Seen>, me: &str, now: Moment) -> Decision {
    let Some(seen) = seen else {
        return Decision::Acquire;
    };
    match seen.record.holder.as_deref() {
        None | Some("") => Decision::Acquire,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let until = seen.since + seen.record.duration;
            if now < until {
                Decision::Wait(until)
            } else {
                Decision::Acquire
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn at(after: u64) -> Moment {
        Moment::at(seconds(after))
    }

    fn record(holder: &str, renewal: &str) -> Record {
        Record {
            holder: Some(holder.to_owned()),
            duration: seconds(20),
            renewal: renewal.to_owned(),
        }
    }

    #[test]
    fn a_lease_of_someone_else_counts_from_when_it_was_seen_to_change() {
        let seen = Seen::update(None, record("other", "1"), at(100));
        assert_eq!(decide(Some(&seen), "me", at(110)), Decision::Wait(at(120)));
        let same = Seen::update(Some(seen), record("other", "1"), at(115));
        assert_eq!(decide(Some(&same), "me", at(120)), Decision::Acquire);
        let renewed = Seen::update(Some(same), record("other", "2"), at(119));
        assert_eq!(decide(Some(&renewed), "me", at(138)), Decision::Wait(at(139)));
    }

    #[test]
    fn a_free_lease_is_taken_and_an_own_one_renewed_at_once() {
        assert_eq!(decide(None, "me", at(0)), Decision::Acquire);
        let freed = Seen::update(None, record("", "1"), at(0));
        assert_eq!(decide(Some(&freed), "me", at(0)), Decision::Acquire);
        let own = Seen::update(None, record("me", "1"), at(0));
        assert_eq!(decide(Some(&own), "me", at(500)), Decision::Renew);
    }

    #[test]
    fn terms_that_would_let_two_write_are_refused() {
        let terms = |a, b, c| Terms::new(seconds(a), seconds(b), seconds(c));
        assert!(terms(20, 15, 2).is_ok());
        assert_eq!(terms(15, 15, 2), Err(TermsError::Deadline));
        assert_eq!(terms(20, 15, 8), Err(TermsError::Period));
        assert_eq!(terms(20, 15, 0), Err(TermsError::Period));
        assert_eq!(terms(0, 15, 2), Err(TermsError::Duration));
        let part = Terms::new(Duration::from_millis(1500), seconds(1), Duration::from_millis(100));
        assert_eq!(part, Err(TermsError::Duration));
    }
}
