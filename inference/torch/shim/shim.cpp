// What tch lacks: inference mode, a CUDA stream of one's own, CUDA graphs, and what the allocator holds.
//
// The binary links libtorch_cpu and libc10 only and must start where there is no libtorch_cuda. So everything here goes through
// libtorch's device-neutral interfaces, which CUDA fills in once its library is open; only the graph has none, and its six
// functions are looked up in libtorch_cuda by their mangled names. CUDA's own headers are not needed. Where a function is missing,
// graphs are reported as unavailable.
//
// Every function that can fail returns null, or a message that the caller frees with hk_free_message.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace {

char* copied(const char* text) {
  // A failure without a text would look like success.
  return strdup(text == nullptr || *text == 0 ? "unknown error" : text);
}

template <typename F>
char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return copied(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return copied(error.what());
  } catch (...) {
    return copied(nullptr);
  }
}

c10::DeviceAllocator* allocator() {
  return c10::getDeviceAllocator(c10::DeviceType::CUDA);
}

} // namespace

extern "C" {

void hk_free_message(char* message) {
  std::free(message);
}

void* hk_inference_begin() {
  return new (std::nothrow) c10::InferenceMode(true);
}

void hk_inference_end(void* mode) {
  delete static_cast<c10::InferenceMode*>(mode);
}

// Gives the calling thread a stream from the pool: the default stream cannot be captured. A thread that has one keeps it, for what
// was made on it may still be in use there.
char* hk_stream_use(int8_t device) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Device place(c10::DeviceType::CUDA, device);
    cuda.setDevice(place);
    if (cuda.getStream(place) == cuda.getDefaultStream(place)) {
      cuda.exchangeStream(cuda.getStreamFromGlobalPool(place));
    }
  });
}

// The device that the calling thread uses, and the number of its stream there.
char* hk_stream_current(int8_t* device, int64_t* stream) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Device place = cuda.getDevice();
    *device = place.index();
    *stream = cuda.getStream(place).id();
  });
}

// Bytes in use by tensors, held from the device, and the most of both since the last reset.
char* hk_memory(int8_t device, int64_t* in_use, int64_t* held, int64_t* most_in_use, int64_t* most_held) {
  return guarded([&] {
    const auto stats = allocator()->getDeviceStats(device);
    // The first entry of each is the sum of the others.
    *in_use = stats.allocated_bytes[0].current;
    *held = stats.reserved_bytes[0].current;
    *most_in_use = stats.allocated_bytes[0].peak;
    *most_held = stats.reserved_bytes[0].peak;
  });
}

// Bytes of the device that nobody uses, and all of its bytes.
char* hk_memory_free(int8_t device, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    const auto info = allocator()->getMemoryInfo(device);
    *free = info.first;
    *total = info.second;
  });
}

char* hk_memory_reset_peak(int8_t device) {
  return guarded([&] { allocator()->resetPeakStats(device); });
}

// Gives memory that no tensor uses back to the device.
char* hk_memory_trim() {
  return guarded([&] { allocator()->emptyCache(); });
}

} // extern "C"

#ifdef __linux__

namespace {

using Pool = c10::MempoolId_t;

// Room for an at::cuda::CUDAGraph (ATen/cuda/CUDAGraph.h), which has 104 bytes in torch 2.11.
struct alignas(64) Graph {
  unsigned char bytes[1024];
};

// cudaStreamCaptureModeThreadLocal: what other threads do is no part of a recording, nor a reason to end it.
constexpr int capture_mode = 1;

// A member function is called like one whose first argument is the object: the Itanium ABI, which Linux has everywhere.
struct Functions {
  void (*construct)(Graph*, bool);
  void (*destroy)(Graph*);
  void (*begin)(Graph*, Pool, int);
  void (*end)(Graph*);
  void (*replay)(Graph*);
  Pool (*pool)(Graph*);
  Pool (*new_pool)();
};

template <typename F>
void look_up(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr) {
    throw std::runtime_error(std::string("libtorch_cuda has no ") + name);
  }
}

const Functions& functions() {
  static const Functions found = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) {
      throw std::runtime_error("libtorch_cuda is not open");
    }
    Functions table{};
    look_up(library, "_ZN2at4cuda9CUDAGraphC1Eb", table.construct);
    look_up(library, "_ZN2at4cuda9CUDAGraphD1Ev", table.destroy);
    look_up(library, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode", table.begin);
    look_up(library, "_ZN2at4cuda9CUDAGraph11capture_endEv", table.end);
    look_up(library, "_ZN2at4cuda9CUDAGraph6replayEv", table.replay);
    look_up(library, "_ZN2at4cuda9CUDAGraph4poolEv", table.pool);
    look_up(library, "_ZN2at4cuda17graph_pool_handleEv", table.new_pool);
    return table;
  }();
  return found;
}

} // namespace

extern "C" {

// A name for memory that several graphs may share, because none of them runs while another's results are still needed.
char* hk_graph_pool(uint64_t* first, uint64_t* second) {
  return guarded([&] {
    const Pool pool = functions().new_pool();
    *first = pool.first;
    *second = pool.second;
  });
}

char* hk_graph_new(void** made) {
  return guarded([&] {
    auto graph = std::make_unique<Graph>();
    functions().construct(graph.get(), false);
    *made = graph.release();
  });
}

void hk_graph_free(void* slot) {
  auto* graph = static_cast<Graph*>(slot);
  // Destroying it can throw when the device has failed; there is nobody to tell.
  std::free(guarded([&] { functions().destroy(graph); }));
  delete graph;
}

char* hk_graph_begin(void* slot, uint64_t first, uint64_t second) {
  return guarded([&] { functions().begin(static_cast<Graph*>(slot), {first, second}, capture_mode); });
}

char* hk_graph_end(void* slot) {
  return guarded([&] { functions().end(static_cast<Graph*>(slot)); });
}

// Fails while a recording has not ended: then libtorch keeps the graph's address, and it must not be freed.
char* hk_graph_ended(void* slot) {
  return guarded([&] { functions().pool(static_cast<Graph*>(slot)); });
}

char* hk_graph_replay(void* slot) {
  return guarded([&] { functions().replay(static_cast<Graph*>(slot)); });
}

} // extern "C"

#else

namespace {
char* absent() {
  return copied("CUDA graphs need Linux");
}
} // namespace

extern "C" {

char* hk_graph_pool(uint64_t*, uint64_t*) { return absent(); }
char* hk_graph_new(void**) { return absent(); }
void hk_graph_free(void*) {}
char* hk_graph_begin(void*, uint64_t, uint64_t) { return absent(); }
char* hk_graph_end(void*) { return absent(); }
char* hk_graph_ended(void*) { return absent(); }
char* hk_graph_replay(void*) { return absent(); }

} // extern "C"

#endif
