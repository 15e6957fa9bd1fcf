//! The C++ shim (`shim/shim.cpp`): what tch lacks, in safe words.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_void},
    marker::PhantomData,
    mem,
    ptr::{self, NonNull},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};
use tch::TchError;

unsafe extern "C" {
    fn hk_free_message(message: *mut c_char);
    fn hk_inference_begin() -> *mut c_void;
    fn hk_inference_end(mode: *mut c_void);
    fn hk_stream_use(device: i8) -> *mut c_char;
    fn hk_stream_current(device: *mut i8, stream: *mut i64) -> *mut c_char;
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
    fn hk_graph_ended(slot: *mut c_void) -> *mut c_char;
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

/// Makes a GPU this thread's, with a CUDA stream of the thread's own, for all that follows: the default stream cannot be captured.
/// A thread has one stream on each GPU, however often this is called.
pub(crate) fn use_own_stream(device: i8) -> Result<(), TchError> {
    // SAFETY: no pointers.
    done(unsafe { hk_stream_use(device) })
}

/// The number of the GPU that this thread uses, and that of its stream there.
pub(crate) fn current_stream() -> Result<(i8, i64), TchError> {
    let (mut device, mut stream) = (0, 0);
    // SAFETY: two places that outlive the call.
    done(unsafe { hk_stream_current(&raw mut device, &raw mut stream) })?;
    Ok((device, stream))
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

/// The name that libtorch knows the memory of graphs by. It is good for as long as a graph has that memory, and never again: libtorch's
/// allocator of host memory remembers that the last one went, and refuses the next (`use_count > 0` in its `CachingHostAllocator.h`).
#[derive(Debug)]
struct PoolName {
    first: u64,
    second: u64,
}

impl PoolName {
    fn new() -> Result<Self, TchError> {
        let (mut first, mut second) = (0, 0);
        // SAFETY: two places that outlive the call.
        done(unsafe { hk_graph_pool(&raw mut first, &raw mut second) })?;
        Ok(Self { first, second })
    }
}

/// Memory that several graphs share, on one thread. None of them may run while another's results are still needed. It goes back to
/// the device with the last graph and [`trim_memory`].
#[derive(Debug, Clone, Default)]
pub(crate) struct GraphPool(Arc<Mutex<Weak<PoolName>>>);

impl GraphPool {
    // Nothing that can panic runs under this lock, so a poisoned one is sound.
    fn latest(&self) -> MutexGuard<'_, Weak<PoolName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name that the living graphs have, or a new one.
    fn name(&self, new: impl FnOnce() -> Result<PoolName, TchError>) -> Result<Arc<PoolName>, TchError> {
        let mut latest = self.latest();
        if let Some(name) = latest.upgrade() {
            return Ok(name);
        }
        let name = Arc::new(new()?);
        *latest = Arc::downgrade(&name);
        Ok(name)
    }

    /// Lets nobody have the name any more that the living graphs have.
    fn forget_name(&self) {
        *self.latest() = Weak::new();
    }
}

/// Whether graphs can be recorded: an error where libtorch_cuda is not open, or is of another release than this program was built for.
pub(crate) fn graphs_are_there() -> Result<(), TchError> {
    PoolName::new().map(drop)
}

/// Taken whole to record or free a graph, shared to run one. All graphs of a GPU are in one list of libtorch's, beside one mark that says
/// that something is being recorded (`CUDAGeneratorState`), and several threads may work on that GPU.
static GRAPHS: RwLock<()> = RwLock::new(());

/// Work for a GPU, recorded once and run as one: a CUDA graph. It reads and writes the very tensors that it was recorded with.
#[derive(Debug)]
pub(crate) struct Graph {
    slot: NonNull<c_void>,
    /// Gone once the graph is being dropped.
    pool: Option<Arc<PoolName>>,
}

// SAFETY: a graph is bound to a device, not to a thread; `&mut` keeps two threads apart.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` asks of the device, on this thread's own stream; nothing is computed. Whatever `work` uses for the first
    /// time must have run before.
    ///
    /// # Errors
    /// Those of `work`, and those of libtorch, which say where in the recording they arose.
    pub(crate) fn record<T>(
        pool: &GraphPool,
        work: impl FnOnce() -> Result<T, TchError>,
    ) -> Result<(Self, T), TchError> {
        let name = pool.name(PoolName::new)?;
        let (first, second) = (name.first, name.second);
        let mut made = ptr::null_mut();
        // SAFETY: a place that outlives the call.
        done(unsafe { hk_graph_new(&raw mut made) })?;
        let slot = NonNull::new(made).ok_or_else(|| TchError::Torch("no graph was made".to_owned()))?;
        let graph = Self { slot, pool: Some(name) };
        // After `graph`, so that it goes before: dropping a graph takes it, too.
        let _alone = GRAPHS.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the slot is alive as long as `graph`.
        if let Err(error) = done(unsafe { hk_graph_begin(graph.slot.as_ptr(), first, second) }) {
            graph.leave(pool);
            return Err(within("the begin of a recording", &error));
        }
        let outcome = work().map_err(|error| within("the recorded work", &error));
        // SAFETY: as above. Recording must end whatever happened, or the stream stays in it.
        let ended = done(unsafe { hk_graph_end(graph.slot.as_ptr()) });
        match (outcome, ended.map_err(|error| within("the end of a recording", &error))) {
            (Ok(result), Ok(())) => Ok((graph, result)),
            (Err(error), _) | (_, Err(error)) => {
                // SAFETY: as above.
                if done(unsafe { hk_graph_ended(graph.slot.as_ptr()) }).is_err() {
                    graph.leave(pool);
                }
                Err(error)
            }
        }
    }

    /// A recording that libtorch did not get to its end goes on for libtorch's allocators, which ask the graph with every allocation
    /// whether it is theirs: it is left where it is, and its memory is never used again.
    fn leave(self, pool: &GraphPool) {
        pool.forget_name();
        mem::forget(self);
    }

    /// Runs it, after what this thread asked of the device before.
    pub(crate) fn replay(&mut self) -> Result<(), TchError> {
        let _no_recording = GRAPHS.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the slot is alive as long as `self`.
        done(unsafe { hk_graph_replay(self.slot.as_ptr()) })
    }
}

/// The error with where it arose. Its own words stay in it, for [`crate::module::is_out_of_memory`] reads them.
fn within(phase: &str, error: &TchError) -> TchError {
    TchError::Torch(format!("{phase}: {error}"))
}

impl Drop for Graph {
    fn drop(&mut self) {
        // First, so that nobody takes the name of memory that is about to go.
        self.pool = None;
        let _alone = GRAPHS.write().unwrap_or_else(PoisonError::into_inner);
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
    fn memory_of_graphs_has_a_name_for_as_long_as_a_graph_lives() {
        let (pool, names) = (GraphPool::default(), std::cell::Cell::new(0));
        let name = |pool: &GraphPool| {
            let made = pool.name(|| {
                names.set(names.get() + 1);
                let second = names.get();
                Ok(PoolName { first: 0, second })
            });
            made.unwrap()
        };
        let (first, same) = (name(&pool), name(&pool.clone()));
        assert_eq!((first.second, same.second), (1, 1));
        drop(first);
        assert_eq!(name(&pool).second, 1, "a graph is left");
        drop(same);
        let next = name(&pool);
        assert_eq!(next.second, 2, "libtorch takes no name again");
        pool.forget_name();
        assert_eq!(name(&pool).second, 3, "a recording that did not end keeps its own");
        assert_eq!(name(&GraphPool::default()).second, 4);
        drop(next);
        let error = GraphPool::default().name(|| Err(TchError::Torch("no GPU".to_owned())));
        assert!(error.is_err());
    }

    #[test]
    fn without_cuda_everything_says_so() {
        // Other tests of this process may have opened libtorch_cuda, but no build machine has a GPU that answers.
        if tch::Cuda::is_available() {
            return;
        }
        for error in [
            graphs_are_there().unwrap_err(),
            use_own_stream(0).unwrap_err(),
            current_stream().unwrap_err(),
        ] {
            assert!(!error.to_string().is_empty());
        }
    }
}
