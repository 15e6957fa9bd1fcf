//! Leader election by Lease: several replicas run, one writes.
//!
//! [`decide`] says what a replica may do, from what it saw of the Lease and when; it is pure. [`Elector`] does it. What it
//! won is a [`Claim`] with an end that lies before that of the Lease, and [`Gate`] refuses every write without a current
//! claim, nearest the wire. So a replica that was cut off, or stood still, has stopped writing before another one starts.
//!
//! Clocks of different machines are never compared: a replica measures with its own clock how long it has seen a Lease
//! unchanged, and that clock runs on while the machine is suspended.

mod claim;
mod decide;
mod elector;
mod gate;

pub use claim::{Claim, Moment};
pub use decide::{Decision, Record, Seen, Terms, TermsError, decide};
pub use elector::{Elector, Identity, Lost};
pub use gate::{Gate, Gated, NotLeading};
