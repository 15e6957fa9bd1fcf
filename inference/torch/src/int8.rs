//! What modules in `int8` need of libtorch: an engine that their weights are packed for, and inputs that its kernels can add up.

use tch::{CModule, QEngine, TchError};

/// End of the parameters that hold the two ends of the scale of a layer's inputs, (1, inputs): -1 and 1 in their first places.
const EDGES: &str = ".edges";

/// The upper end where inputs have 7 bits. The scale is then twice as coarse, and its integers begin at 0 instead of -128.
const SEVEN_BITS: f64 = 3.0;

/// Must come before weights are loaded, which are packed for the engine that is set then. x86-64 has the right one by itself.
///
/// On arm64, libtorch 2.11 chooses FBGEMM, which cannot pack there ("unknown architecure", pytorch issue 177254); oneDNN's path
/// gives wrong sums for a second size of batch. QNNPACK's are right.
pub(crate) fn choose_engine() {
    if cfg!(target_arch = "aarch64")
        && let Err(error) = QEngine::QNNPACK.set()
    {
        // Loading says what is wrong.
        tracing::debug!(%error, "QNNPACK is not there");
    }
}

/// Makes a loaded module's inputs those that this processor can add up.
///
/// x86-64 without AVX512-VNNI adds two products in 16 bits, which 8-bit inputs overflow without a word. QNNPACK's sums have 32.
pub(crate) fn fit(module: &CModule) -> Result<(), TchError> {
    if adds_in_32_bits() {
        return Ok(());
    }
    narrow(module)
}

fn narrow(module: &CModule) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let mut layers = 0;
    for (name, edges) in module.named_parameters()? {
        if name.ends_with(EDGES) {
            // A view: what is filled is the module's.
            let _ = edges.f_narrow(1, 1, 1)?.f_fill_(SEVEN_BITS)?;
            layers += 1;
        }
    }
    if layers == 0 {
        // Its sums would overflow without a word.
        let message = "int8 weights of another exporter, which this processor, without AVX512-VNNI, cannot add up";
        return Err(TchError::Torch(message.to_owned()));
    }
    Ok(())
}

fn adds_in_32_bits() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    true
}
