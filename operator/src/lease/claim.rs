//! The right to write, and the clock that it ends by.

use std::{
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` stands still on Linux while the machine is suspended, and a claim must not.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
/// Elsewhere, macOS included, it runs on.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A point in time on this machine's own clock, which only runs forward. Means nothing on another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// This long after the clock's start.
    pub const fn at(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Now.
    pub fn now() -> Self {
        let time = clock_gettime(CLOCK);
        // Neither is negative: the clock starts with the machine.
        Self(Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        ))
    }

    /// How long from `now` until then; zero when it is past.
    pub const fn left(self, now: Self) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}

/// The right to write, until a deadline that each renewal moves. Clones share it.
#[derive(Clone, Debug)]
pub struct Claim(Arc<AtomicU64>);

impl Claim {
    /// No right yet.
    pub fn none() -> Self {
        Self(Arc::new(AtomicU64::new(0)))
    }

    /// A right without an end: there is no other replica.
    pub fn for_ever() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// Moves the deadline.
    pub fn set(&self, deadline: Moment) {
        // 584 years of nanoseconds fit.
        let nanos = u64::try_from(deadline.0.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::SeqCst);
    }

    /// Ends it now.
    pub fn give_up(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// How much longer writes may be sent; zero when they may not.
    pub fn left(&self, now: Moment) -> Duration {
        Moment(Duration::from_nanos(self.0.load(Ordering::SeqCst))).left(now)
    }

    /// True while writes may be sent.
    pub fn is_current(&self, now: Moment) -> bool {
        !self.left(now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_ends_at_its_deadline() {
        let at = |seconds| Moment::at(Duration::from_secs(seconds));
        let claim = Claim::none();
        assert!(!claim.is_current(at(0)) && !claim.is_current(at(1)));
        claim.set(at(10));
        let shared = claim.clone();
        assert!(shared.is_current(at(9)) && !shared.is_current(at(10)));
        assert_eq!(shared.left(at(4)), Duration::from_secs(6));
        claim.give_up();
        assert!(!shared.is_current(at(4)));
        assert!(Claim::for_ever().is_current(Moment::now()));
    }

    #[test]
    fn the_clock_runs_forward() {
        let before = Moment::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(Moment::now() > before);
    }
}
