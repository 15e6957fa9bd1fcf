//! What is measured when the service starts: of a few settings the one that is fastest on this machine. The search decides on numbers that it
//! is given.

use std::time::Duration;

/// A setting takes the place of the one that is first choice only if it is faster by more than this share: below, it is chance, and a
/// larger batch takes more memory.
const MARGIN: f64 = 0.1;

/// No other setting is tried once that much was spent.
pub const BUDGET: Duration = Duration::from_secs(2);

/// What was measured of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Time of a unit of work, by which settings are compared.
    pub each: Duration,
    /// What the measurement itself took.
    pub took: Duration,
}

/// The outcome of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The setting to be used.
    pub best: usize,
    /// Time of a unit of work with each setting that was tried, in that order.
    pub tried: Vec<(usize, Duration)>,
}

impl Outcome {
    /// `measured: 16 takes 1.53 ms, 32 takes 1.27 ms` and what for.
    pub fn reason(&self, unit: &str) -> String {
        let tried: Vec<String> = self
            .tried
            .iter()
            .map(|(setting, each)| format!("{setting} takes {:.2} ms", each.as_secs_f64() * 1e3))
            .collect();
        format!("measured: {} {unit}", tried.join(", "))
    }
}

/// Measures `first`, then `others` until [`BUDGET`] is spent. Keeps `first` unless another one is clearly faster.
///
/// # Errors
/// The first of `measure`.
pub fn search<E>(
    first: usize,
    others: &[usize],
    mut measure: impl FnMut(usize) -> Result<Sample, E>,
) -> Result<Outcome, E> {
    let Sample { each, took } = measure(first)?;
    let (mut best, mut spent) = ((first, each.mul_f64(1.0 - MARGIN)), took);
    let mut tried = vec![(first, each)];
    for &setting in others.iter().filter(|&&setting| setting != first) {
        if spent >= BUDGET {
            break;
        }
        let Sample { each, took } = measure(setting)?;
        spent += took;
        tried.push((setting, each));
        if each < best.1 {
            best = (setting, each);
        }
    }
    Ok(Outcome { best: best.0, tried })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures settings that take `times`, in milliseconds, each measurement `took`.
    fn found(first: usize, times: &[(usize, u64)], took: u64) -> Outcome {
        let others: Vec<usize> = times.iter().map(|(setting, _)| *setting).collect();
        let outcome = search(first, &others, |setting| {
            let time = times.iter().find(|(known, _)| *known == setting);
            let (_, each) = time.ok_or("not a setting")?;
            Ok::<_, &str>(Sample {
                each: Duration::from_millis(*each),
                took: Duration::from_millis(took),
            })
        });
        outcome.expect("settings only")
    }

    #[test]
    fn the_fastest_wins_if_it_is_clearly_faster_than_the_first_choice() {
        let times = [(32, 80), (16, 100), (8, 130)];
        assert_eq!(found(16, &times, 1).best, 32);
        assert_eq!(found(32, &times, 1).best, 32);
        assert_eq!(found(8, &times, 1).best, 32);
        assert_eq!(found(16, &[(32, 91), (16, 100)], 1).best, 16, "within chance");
        assert_eq!(found(16, &[(32, 89), (16, 100), (8, 88)], 1).best, 8);
    }

    #[test]
    fn what_takes_too_long_ends_the_search() {
        let times = [(16, 100), (32, 50), (8, 10)];
        let outcome = found(16, &times, 1200);
        assert_eq!(
            (outcome.best, outcome.tried.len()),
            (32, 2),
            "the second ends after the budget"
        );
        let outcome = found(16, &times, 2000);
        assert_eq!((outcome.best, outcome.tried.len()), (16, 1));
    }

    #[test]
    fn a_measurement_that_fails_ends_the_search() {
        let failed = search(16, &[32], |setting| {
            let sample = Sample {
                each: Duration::ZERO,
                took: Duration::ZERO,
            };
            if setting == 16 { Ok(sample) } else { Err("no memory") }
        });
        assert_eq!(failed, Err("no memory"));
    }

    #[test]
    fn the_reason_has_the_figures() {
        let outcome = found(16, &[(16, 3), (32, 2)], 1);
        assert_eq!(
            outcome.reason("a crop and step"),
            "measured: 16 takes 3.00 ms, 32 takes 2.00 ms a crop and step"
        );
    }
}
