//! How much memory a pod gets.

use hawkeye_crds::v1alpha1::{HardwareClassSpec, PoolOverride, Quantity};

/// Memory limit of a pod, which is also requested: the override's, else the class's.
///
/// The one place to ask what model, dtype and batch size need together; today the class answers for all three.
pub fn limit(class: &HardwareClassSpec, change: Option<&PoolOverride>) -> Quantity {
    change
        .and_then(|change| change.memory.clone())
        .unwrap_or_else(|| class.memory.limit.clone())
}

/// CPU request of a pod: the override's, else the class's.
pub fn cpu(class: &HardwareClassSpec, change: Option<&PoolOverride>) -> Quantity {
    change
        .and_then(|change| change.cpu.clone())
        .unwrap_or_else(|| class.cpu.request.clone())
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
}
