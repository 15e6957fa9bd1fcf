//! The C++ shim (`shim/shim.cpp`): what tch lacks, in safe words.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_void},
    marker::PhantomData,
    ptr::{self, NonNull},
    rc::Rc,
};
use tch::TchError;

unsafe extern "C" {
    fn hk_free_message(message: *mut c_char);
    fn hk_inference_begin() -> *mut c_void;
    fn hk_inference_end(mode: *mut c_void);
    fn hk_stream_use(device: i8) -> *mut c_char;
    fn hk_memory(
        device: i8,
        in_use: *mut i64,
        held: *mut i64,
        most_in_use: *mut i64,
        most_held: *mut i64,
    ) -> *mut c_char;
    fn hk_memory_free(device: i8, free: *mut u64, total: *mut u64) -> *mut c_char;
    fn hk_memory_reset_peak(device: i8) -> *mut c_char;
    fn hk_memory_trim() -> *mut c_char;
    fn hk_graph_pool(first: *mut u64, second: *mut u64) -> *mut c_char;
    fn hk_graph_new(made: *mut *mut c_void) -> *mut c_char;
    fn hk_graph_free(slot: *mut c_void);
    fn hk_graph_begin(slot: *mut c_void, first: u64, second: u64) -> *mut c_char;
    fn hk_graph_end(slot: *mut c_void) -> *mut c_char;
    fn hk_graph_replay(slot: *mut c_void) -> *mut c_char;
}

/// The shim's answer as a result.
fn done(message: *mut c_char) -> Result<(), TchError> {
    let Some(message) = NonNull::new(message) else {
        return Ok(());
    };
    // SAFETY: the shim gives a C string of its own, which nobody else frees.
    let text = unsafe {
        let text = CStr::from_ptr(message.as_ptr()).to_string_lossy().into_owned();
        hk_free_message(message.as_ptr());
        text
    };
    Err(TchError::Torch(text))
}

/// While it lives, libtorch keeps no record on this thread of how tensors were made and changed. Tensors made meanwhile cannot be
/// changed afterwards.
#[derive(Debug)]
pub(crate) struct InferenceMode {
    mode: *mut c_void,
    /// It belongs to the thread that began it.
    thread: PhantomData<Rc<()>>,
}

impl InferenceMode {
    pub(crate) fn begin() -> Self {
        // SAFETY: it only sets variables of this thread; null without memory, which ending takes.
        let mode = unsafe { hk_inference_begin() };
        Self {
            mode,
            thread: PhantomData,
        }
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: begun by this thread and ended once.
        unsafe { hk_inference_end(self.mode) }
    }
}

/// Gives this thread a CUDA stream of its own, for all that follows: the default stream cannot be captured.
pub(crate) fn use_own_stream(device: i8) -> Result<(), TchError> {
    // SAFETY: no pointers.
    done(unsafe { hk_stream_use(device) })
}

/// What libtorch's allocator holds of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceMemory {
    /// Bytes in tensors.
    pub in_use: u64,
    /// Bytes held from the device, in use or kept for later.
    pub held: u64,
    /// The most that `in_use` was.
    pub most_in_use: u64,
    /// The most that `held` was.
    pub most_held: u64,
}

pub(crate) fn memory(device: i8) -> Result<DeviceMemory, TchError> {
    let mut values = [0_i64; 4];
    let [in_use, held, most_in_use, most_held] = &mut values;
    // SAFETY: four places that outlive the call.
    done(unsafe { hk_memory(device, in_use, held, most_in_use, most_held) })?;
    let [in_use, held, most_in_use, most_held] = values.map(|value| u64::try_from(value).unwrap_or(0));
    Ok(DeviceMemory {
        in_use,
        held,
        most_in_use,
        most_held,
    })
}

/// Bytes of a GPU's memory that no process uses, and all of its bytes.
pub(crate) fn free_memory(device: i8) -> Result<(u64, u64), TchError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: two places that outlive the call.
    done(unsafe { hk_memory_free(device, &raw mut free, &raw mut total) })?;
    Ok((free, total))
}

pub(crate) fn reset_peak_memory(device: i8) -> Result<(), TchError> {
    // SAFETY: no pointers.
    done(unsafe { hk_memory_reset_peak(device) })
}

/// Gives memory that no tensor uses back to the device.
pub(crate) fn trim_memory() -> Result<(), TchError> {
    // SAFETY: no pointers.
    done(unsafe { hk_memory_trim() })
}

/// Memory that several graphs share. None of them may run while another's results are still needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GraphPool {
    first: u64,
    second: u64,
}

impl GraphPool {
    /// An error where libtorch_cuda is not open, or is of another release than this program was built for.
    pub(crate) fn new() -> Result<Self, TchError> {
        let (mut first, mut second) = (0, 0);
        // SAFETY: two places that outlive the call.
        done(unsafe { hk_graph_pool(&raw mut first, &raw mut second) })?;
        Ok(Self { first, second })
    }
}

/// Work for a GPU, recorded once and run as one: a CUDA graph. It reads and writes the very tensors that it was recorded with.
#[derive(Debug)]
pub(crate) struct Graph {
    slot: NonNull<c_void>,
}

// SAFETY: a graph is bound to a device, not to a thread; `&mut` keeps two threads apart.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` asks of the device, on this thread's own stream; nothing is computed. Whatever `work` uses for the first
    /// time must have run before.
    pub(crate) fn record<T>(
        pool: GraphPool,
        work: impl FnOnce() -> Result<T, TchError>,
    ) -> Result<(Self, T), TchError> {
        let mut made = ptr::null_mut();
        // SAFETY: a place that outlives the call.
        done(unsafe { hk_graph_new(&raw mut made) })?;
        let slot = NonNull::new(made).ok_or_else(|| TchError::Torch("no graph was made".to_owned()))?;
        let graph = Self { slot };
        // SAFETY: the slot is alive as long as `graph`.
        done(unsafe { hk_graph_begin(graph.slot.as_ptr(), pool.first, pool.second) })?;
        let outcome = work();
        // SAFETY: as above. Recording must end whatever happened, or the stream stays in it.
        let ended = done(unsafe { hk_graph_end(graph.slot.as_ptr()) });
        let result = outcome?;
        ended?;
        Ok((graph, result))
    }

    /// Runs it, after what this thread asked of the device before.
    pub(crate) fn replay(&mut self) -> Result<(), TchError> {
        // SAFETY: the slot is alive as long as `self`.
        done(unsafe { hk_graph_replay(self.slot.as_ptr()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by the shim and freed once.
        unsafe { hk_graph_free(self.slot.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn inference_mode_is_left_again() {
        let zeros = || Tensor::f_zeros([2], (Kind::Float, Device::Cpu)).unwrap();
        let made_within = {
            let _outer = InferenceMode::begin();
            drop(InferenceMode::begin());
            zeros()
        };
        assert!(made_within.f_set_requires_grad(true).is_err(), "it keeps no record");
        assert!(zeros().f_set_requires_grad(true).unwrap().requires_grad());
    }

    #[test]
    fn without_cuda_everything_says_so() {
        // Other tests of this process may have opened libtorch_cuda, but no build machine has a GPU that answers.
        if tch::Cuda::is_available() {
            return;
        }
        for error in [
            GraphPool::new().map(drop).and_then(|()| use_own_stream(0)).unwrap_err(),
            use_own_stream(0).unwrap_err(),
        ] {
            assert!(!error.to_string().is_empty());
        }
    }
}
