// What the kernels and the backend need of CUDA: memory, copies, launches, errors. Compiled by nvcc
// it is CUDA's runtime; compiled as C++ with GPTOSS_CUDA_EMULATED the same source runs on the CPU
// (emulated/emulated.h).
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/dtype.h"

#ifdef GPTOSS_CUDA_EMULATED
#include "cuda/emulated/emulated.h"
#else
#include <cuda_runtime.h>
#define GPTOSS_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace gptoss::cuda {

// What the choosers of tiles want to know of a GPU.
struct Device {
  int major = 9, minor = 0;      // compute capability
  int multiprocessors = 132;     // H100, H200
  int shared_bytes = 227 << 10;  // that a block may ask for
};

#ifdef GPTOSS_CUDA_EMULATED
using StreamHandle = void*;
// The GPU to emulate, for streams made from now on.
inline Device& emulated_device() {
  static Device device;
  return device;
}
// Larger allocations fail: for tests of running out of memory.
inline size_t& emulated_largest_allocation() {
  static size_t bytes = SIZE_MAX;
  return bytes;
}
#else
constexpr int warp_size = 32;
struct Index {
  int x = 0, y = 0, z = 0;
};
using StreamHandle = cudaStream_t;

inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) {
    (void)cudaGetLastError();  // it would be reported again by the next call
    throw Error(gptoss::format("CUDA: {}: {} ({})", what, cudaGetErrorString(status),
                               cudaGetErrorName(status)));
  }
}
#endif

// Where kernels run, one after the other.
struct Stream {
  StreamHandle handle = nullptr;
  Device device;
  // A kernel may begin before the one before it has ended (programmatic dependent launch, sm_90
  // and later); kernels wait for it themselves, wait_for_previous() in ptx.h.
  bool overlap = false;
};

// Memory of the device that nobody uses.
inline int64_t free_device_bytes() {
#ifdef GPTOSS_CUDA_EMULATED
  return int64_t{1} << 30;
#else
  size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free_bytes);
#endif
}

// Memory of the device ran out.
class OutOfMemory : public Error {
public:
  using Error::Error;
};

// Bytes on the device, owned.
class DeviceMemory {
public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    const size_t asked = bytes == 0 ? 1 : bytes;
#ifdef GPTOSS_CUDA_EMULATED
    data_ = asked > emulated_largest_allocation() ? nullptr : std::malloc(asked);
    if (data_ == nullptr) {
      throw OutOfMemory(gptoss::format("GPU memory: needed {} bytes more", bytes));
    }
#else
    const cudaError_t status = cudaMalloc(&data_, asked);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // it would be reported again by the next call
      throw OutOfMemory(gptoss::format("GPU memory: needed {} bytes more, {} are free", bytes,
                                       free_device_bytes()));
    }
    check(status, gptoss::format("cudaMalloc of {} bytes", bytes));
#endif
  }
  ~DeviceMemory() {
#ifdef GPTOSS_CUDA_EMULATED
    std::free(data_);
#else
    (void)cudaFree(data_);  // a failure here cannot be handled
#endif
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

  // The first `bytes`. Both wait for what the device does.
  void copy_from_host(const void* from, size_t bytes) const {
#ifdef GPTOSS_CUDA_EMULATED
    std::memcpy(data_, from, bytes);
#else
    check(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
    finish();  // it may return when the host's side is done, and our streams do not wait for it
#endif
  }
  void copy_to_host(void* to, size_t bytes) const {
#ifdef GPTOSS_CUDA_EMULATED
    std::memcpy(to, data_, bytes);
#else
    check(cudaMemcpy(to, data_, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
#endif
  }
  void fill(int byte) const {
#ifdef GPTOSS_CUDA_EMULATED
    std::memset(data_, byte, bytes_);
#else
    check(cudaMemset(data_, byte, bytes_), "cudaMemset");
    finish();
#endif
  }

private:
#ifndef GPTOSS_CUDA_EMULATED
  static void finish() { check(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize"); }
#endif
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Bytes of the host that the device reads and writes by itself.
class PinnedMemory {
public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes) : bytes_(bytes) {
    const size_t asked = bytes == 0 ? 1 : bytes;
#ifdef GPTOSS_CUDA_EMULATED
    data_ = std::malloc(asked);
    GPTOSS_CHECK(data_ != nullptr, "cannot allocate {} bytes", bytes);
#else
    check(cudaMallocHost(&data_, asked), gptoss::format("cudaMallocHost of {} bytes", bytes));
#endif
  }
  ~PinnedMemory() {
#ifdef GPTOSS_CUDA_EMULATED
    std::free(data_);
#else
    (void)cudaFreeHost(data_);
#endif
  }
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A stream of its own on a device, which becomes this thread's, with the device's properties.
class StreamOwner {
public:
  explicit StreamOwner(int device = 0) {
#ifdef GPTOSS_CUDA_EMULATED
    (void)device;
    stream_.device = emulated_device();
#else
    check(cudaSetDevice(device), gptoss::format("cudaSetDevice({})", device));
    const auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
      return value;
    };
    stream_.device = {ask(cudaDevAttrComputeCapabilityMajor),
                      ask(cudaDevAttrComputeCapabilityMinor), ask(cudaDevAttrMultiProcessorCount),
                      ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
    stream_.overlap = stream_.device.major >= 9;
    check(cudaStreamCreateWithFlags(&stream_.handle, cudaStreamNonBlocking), "cudaStreamCreate");
#endif
  }
  ~StreamOwner() {
#ifndef GPTOSS_CUDA_EMULATED
    (void)cudaStreamDestroy(stream_.handle);
#endif
  }
  StreamOwner(const StreamOwner&) = delete;
  StreamOwner& operator=(const StreamOwner&) = delete;

  operator const Stream&() const { return stream_; }  // NOLINT: it is one
  const Stream& get() const { return stream_; }
  Stream& get() { return stream_; }

private:
  Stream stream_;
};

inline void synchronize(const Stream& stream) {
#ifdef GPTOSS_CUDA_EMULATED
  (void)stream;
#else
  check(cudaStreamSynchronize(stream.handle), "cudaStreamSynchronize");
#endif
}

// Either side may be the host's (pinned, or the call waits).
inline void copy_async_to(void* to, const void* from, size_t bytes, const Stream& stream) {
#ifdef GPTOSS_CUDA_EMULATED
  (void)stream;
  std::memcpy(to, from, bytes);
#else
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle), "cudaMemcpyAsync");
#endif
}

inline void zero_async(void* to, size_t bytes, const Stream& stream) {
#ifdef GPTOSS_CUDA_EMULATED
  (void)stream;
  std::memset(to, 0, bytes);
#else
  check(cudaMemsetAsync(to, 0, bytes, stream.handle), "cudaMemsetAsync");
#endif
}

// A place in a stream that the host can wait for.
class Event {
public:
#ifdef GPTOSS_CUDA_EMULATED
  void record(const Stream&) {}
  void wait() const {}
#else
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { (void)cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream) {
    check(cudaEventRecord(event_, stream.handle), "cudaEventRecord");
  }
  void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

private:
  cudaEvent_t event_ = nullptr;
#endif
};

// A kernel and its shape, for error messages.
struct Label {
  const char* name;
  int64_t sizes[5] = {-1, -1, -1, -1, -1};
};

inline std::string describe(const Label& label) {
  std::string text = std::string("kernel ") + label.name;
  const char* before = " of ";
  for (const int64_t size : label.sizes) {
    if (size >= 0) {
      text += before + std::to_string(size);
      before = " x ";
    }
  }
  return text;
}

// Runs `kernel` on grid × threads.
template <class Args>
void launch(const Label& label, void (*kernel)(Args), Index grid, int threads, size_t shared_bytes,
            const Stream& stream, const Args& args) {
#ifdef GPTOSS_CUDA_EMULATED
  (void)stream;
  (void)label;
  emulated::run_grid(grid, threads, shared_bytes, [&] { kernel(args); });
#else
  constexpr size_t without_asking = 48 << 10;
  if (shared_bytes > without_asking) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shared_bytes));
    if (status != cudaSuccess) {
      check(status, describe(label));
    }
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = &attribute;
  config.numAttrs = stream.overlap ? 1 : 0;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, args);
  if (status != cudaSuccess) {
    check(status, describe(label));
  }
#endif
}

}  // namespace gptoss::cuda
