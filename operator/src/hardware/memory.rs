//! How much memory a pod needs, and which batch fits on the nodes of its class.
//!
//! An estimate: what the process takes without a batch, plus the weights, plus what each image crop of a batch takes.
//!
//! | pods on | without a batch | weights | each crop of a batch | source |
//! |---|---|---|---|---|
//! | CUDA, one memory for CPU and GPU | 1.5 GiB | 256 Mi parameters | 24 MiB × bytes of a number | ARM guide: 128 → 8 GB, 256 → 14 GB at 16 bits |
//! | CUDA, memory of its own | 2 GiB | the same, once | 24 KiB × bytes of a number | the GPU holds the batch (128 ≈ 4 GB there); the pod holds crops of 64×64 pixels |
//! | CPU | 1 GiB | the same | 32 MiB × bytes of a number | crops of 768×768 pixels: the first stage of the captioner keeps about six tensors of 192×192×128 numbers (4.5 Mi), rounded up |
//!
//! In Int8 the sums, and with them the crops, are Float32. Its weights count two bytes: one as it is, one for the models that are not
//! Int8, for the table of tokens that is there twice, and for arm64, where libtorch keeps weights as they came beside the packed ones.
//!
//! What a class grants beyond the estimate for its own batch size stays on top, so whoever runs larger models raises the
//! limit of the class, and every batch size gets that much more.

use hawkeye_crds::v1alpha1::{BatchSize, Device, Dtype, HardwareClassSpec, PoolOverride, Quantity};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Parameters of the models of OmniParser v2 together: captioner 231.4 M, icon detector 20.1 M, text recognition about 5 M.
const PARAMETERS: u64 = 256 * MIB;

/// Estimates are rounded up to this many bytes.
const STEP: u64 = 256 * MIB;

/// What fits on a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Image crops that share one batch.
    pub batch_size: i32,
    /// Memory limit and request of a pod.
    pub memory: Quantity,
    /// A sentence when the batch is smaller than what was asked for, or the memory more than the class's limit.
    pub note: Option<String>,
}

/// The largest batch that fits, starting with the one asked for and going down in halves, and the memory that it needs.
/// `batch` is the class's for the profile, `largest` the memory in bytes that pods can ask for on the class's largest node;
/// `None` means that it is not known, and then everything fits.
///
/// The memory of an override is taken as it is, and the batch shrinks to what it holds; unless that is given, too.
///
/// # Errors
/// A sentence when nothing fits.
pub fn fit(
    class: &HardwareClassSpec,
    dtype: Dtype,
    batch: i32,
    change: Option<&PoolOverride>,
    largest: Option<u64>,
) -> Result<Fit, String> {
    let asked = change.and_then(|change| change.batch_size).unwrap_or(batch).max(1);
    let holds = largest.unwrap_or(u64::MAX);
    if let Some(memory) = change.and_then(|change| change.memory.as_ref()) {
        let given = memory.units().unwrap_or(0);
        if given > holds {
            return Err(format!(
                "overrides give each pod {memory}, and the largest node of the class has {} for pods.",
                text(holds)
            ));
        }
        let fixed = change.is_some_and(|change| change.batch_size.is_some());
        let (batch_size, note) = if fixed {
            (asked, None)
        } else {
            within(class, dtype, asked, given, memory)
        };
        return Ok(Fit {
            batch_size,
            memory: memory.clone(),
            note,
        });
    }
    let limit = class.memory.limit.units().unwrap_or(0);
    // The class's limit is the least as long as a node can hold it; a smaller batch on a smaller node gets what it needs.
    let memory = |batch: i32| {
        let needed = estimate(class, dtype, batch);
        [needed.max(limit), needed].into_iter().find(|bytes| *bytes <= holds)
    };
    let Some((batch_size, bytes)) = halves(asked).find_map(|batch| Some((batch, memory(batch)?))) else {
        return Err(format!(
            "a pod needs {} even with batches of 1, and the largest node of the class has {} for pods.",
            text(estimate(class, dtype, 1)),
            text(holds)
        ));
    };
    let more = (bytes > limit).then(|| {
        format!(
            "Memory is {} instead of the class's {}: that is what batches of {batch_size} crops in {} need.",
            text(bytes),
            class.memory.limit,
            dtype.as_str()
        )
    });
    let smaller = (batch_size < asked).then(|| {
        let whose = if change.is_some_and(|change| change.batch_size.is_some()) {
            "overrides ask for batches of"
        } else {
            "batches of"
        };
        format!(
            "Batches of {batch_size}: {whose} {asked} crops need {}, and the largest node of the class has {} for pods.",
            text(estimate(class, dtype, asked).max(limit)),
            text(holds)
        )
    });
    let notes: Vec<String> = smaller.into_iter().chain(more).collect();
    Ok(Fit {
        batch_size,
        note: (!notes.is_empty()).then(|| notes.join(" ")),
        memory: if bytes == limit {
            class.memory.limit.clone()
        } else {
            quantity(bytes)
        },
    })
}

/// The largest batch for which the memory of an override suffices. Where not even the smallest would do, the user knows
/// better than the table.
fn within(class: &HardwareClassSpec, dtype: Dtype, asked: i32, given: u64, memory: &Quantity) -> (i32, Option<String>) {
    let about = |batch| text(need(class, dtype, batch));
    match halves(asked).find(|batch| need(class, dtype, *batch) <= given) {
        Some(batch) if batch == asked => (asked, None),
        Some(batch) => (
            batch,
            Some(format!(
                "Batches of {batch} instead of {asked} crops: overrides give each pod {memory}, and {asked} need about {}.",
                about(asked)
            )),
        ),
        None => (
            asked,
            Some(format!(
                "Overrides give each pod {memory}; about {} were expected to be needed.",
                about(asked)
            )),
        ),
    }
}

/// Bytes that a pod of the class needs for batches of this size, with what the class grants beyond the estimate.
fn estimate(class: &HardwareClassSpec, dtype: Dtype, batch: i32) -> u64 {
    let BatchSize {
        speed,
        balanced,
        quality,
    } = class.batch_size;
    let own = need(class, class.dtype, speed.max(balanced).max(quality));
    let limit = class.memory.limit.units().unwrap_or(0);
    need(class, dtype, batch) + limit.saturating_sub(own)
}

/// The table at the top of this file.
fn need(class: &HardwareClassSpec, dtype: Dtype, batch: i32) -> u64 {
    let (process, crop) = match (class.device, class.memory.unified) {
        (Device::Cuda, true) => (GIB + GIB / 2, 24 * MIB),
        (Device::Cuda, false) => (2 * GIB, 24 * KIB),
        (Device::Cpu, _) => (GIB, 32 * MIB),
    };
    let (weight, number) = match dtype {
        Dtype::Float16 | Dtype::BFloat16 => (2, 2),
        Dtype::Float32 => (4, 4),
        Dtype::Int8 => (2, 4),
    };
    let batch = u64::try_from(batch).unwrap_or(0);
    (process + weight * PARAMETERS + number * crop * batch).next_multiple_of(STEP)
}

fn halves(from: i32) -> impl Iterator<Item = i32> {
    std::iter::successors(Some(from), |batch| (*batch > 1).then_some(batch / 2))
}

/// Bytes as a quantity, in whole Gi where that is exact.
fn quantity(bytes: u64) -> Quantity {
    if bytes.is_multiple_of(GIB) {
        Quantity(format!("{}Gi", bytes / GIB))
    } else {
        Quantity(format!("{}Mi", bytes.div_ceil(MIB)))
    }
}

/// Bytes to read, rounded down to a tenth of a Gi: what is there is never said to be more.
fn text(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / u128::from(GIB);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}Gi"),
        (whole, rest) => format!("{whole}.{rest}Gi"),
    }
}

/// CPU request of a pod: the override's, else the class's.
pub fn cpu(class: &HardwareClassSpec, change: Option<&PoolOverride>) -> Quantity {
    change
        .and_then(|change| change.cpu.clone())
        .unwrap_or_else(|| class.cpu.request.clone())
}

/// Why no node of the class could hold a pod that asks for this much CPU, in a sentence. `largest` is what pods can ask for
/// on the largest node, in thousandths of a CPU; `None` means that it is not known, and then everything fits.
pub fn cpu_does_not_fit(cpu: &Quantity, change: Option<&PoolOverride>, largest: Option<u64>) -> Option<String> {
    let (asked, holds) = (cpu.milli()?, largest?);
    let whose = if change.is_some_and(|change| change.cpu.is_some()) {
        "overrides give each pod"
    } else {
        "each pod asks for"
    };
    let holds_cpus = holds as f64 / 1000.0;
    (asked > holds).then(|| format!("{whose} {cpu} CPUs, and the largest node of the class has {holds_cpus} for pods."))
}

/// Threads that a pod computes with: its CPU request rounded up, at least 1. More would wait for one another.
pub fn threads(cpu: &Quantity) -> u64 {
    cpu.units().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_round_up() {
        for (cpu, expected) in [("250m", 1), ("1", 1), ("1500m", 2), ("0", 1), ("8", 8)] {
            assert_eq!(threads(&Quantity::from(cpu)), expected, "{cpu}");
        }
    }

    #[test]
    fn bytes_are_written_as_people_write_them() {
        assert_eq!(quantity(8 * GIB).0, "8Gi");
        assert_eq!(quantity(GIB + GIB / 2).0, "1536Mi");
        assert_eq!(text(GIB), "1Gi");
        assert_eq!(text(4 * GIB - 1), "3.9Gi");
    }

    #[test]
    fn halves_end_at_one() {
        assert_eq!(halves(24).collect::<Vec<_>>(), [24, 12, 6, 3, 1]);
        assert_eq!(halves(1).collect::<Vec<_>>(), [1]);
    }
}
