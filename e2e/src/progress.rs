//! Says what is going on, and since when.

use std::{
    io::Write,
    time::{Duration, Instant},
};

/// Prints steps with the time elapsed since it was made, on standard error: standard output belongs to results.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    started: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            quiet: false,
        }
    }

    /// Prints nothing; for tests.
    pub fn quiet() -> Self {
        Self {
            started: Instant::now(),
            quiet: true,
        }
    }

    /// A line of its own: `[  12.3s] text`.
    pub fn step(&self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        // A closed terminal is no reason to fail.
        let _ = writeln!(std::io::stderr(), "[{seconds:6.1}s] {}", text.as_ref());
    }

    /// Time since the clock was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
