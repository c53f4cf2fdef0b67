// What the kernels and the backend need of CUDA: memory, copies, launches, errors. Compiled by nvcc
// it is CUDA's runtime; compiled as C++ with GPTOSS_CUDA_EMULATED the same source runs on the CPU
// (emulated/emulated.h).
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "check.h"
#include "dtype.h"

#ifdef GPTOSS_CUDA_EMULATED
#include "emulated/emulated.h"
#else
#include <cuda_runtime.h>
#define GPTOSS_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace gptoss::cuda {

#ifdef GPTOSS_CUDA_EMULATED
using Stream = void*;
#else
constexpr int warp_size = 32;
struct Index {
  int x = 0, y = 0, z = 0;
};
using Stream = cudaStream_t;

// `what`: the call, or the kernel with its shape.
inline void check(cudaError_t status, const std::string& what) {
  GPTOSS_CHECK(status == cudaSuccess, "CUDA: {}: {} ({})", what, cudaGetErrorString(status),
               cudaGetErrorName(status));
}
#endif

// Bytes on the device, owned.
class DeviceMemory {
public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    const size_t asked = bytes == 0 ? 1 : bytes;
#ifdef GPTOSS_CUDA_EMULATED
    data_ = std::malloc(asked);
    GPTOSS_CHECK(data_ != nullptr, "cannot allocate {} bytes", bytes);
#else
    const cudaError_t status = cudaMalloc(&data_, asked);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // it would be reported again by the next call
      size_t free_bytes = 0, total = 0;
      check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
      throw Error(
          format("GPU memory: needed {} bytes more, {} of {} are free", bytes, free_bytes, total));
    }
    check(status, format("cudaMalloc of {} bytes", bytes));
#endif
  }
  ~DeviceMemory() {
#ifdef GPTOSS_CUDA_EMULATED
    std::free(data_);
#else
    (void)cudaFree(data_);  // nothing can be done about a failure here
#endif
  }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
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
#endif
  }

private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Runs `kernel` on grid × threads. `what`: its name and shape, for errors.
template <class Args>
void launch(const std::string& what, void (*kernel)(Args), Index grid, int threads,
            size_t shared_bytes, Stream stream, const Args& args) {
#ifdef GPTOSS_CUDA_EMULATED
  (void)stream;
  (void)what;
  emulated::run_grid(grid, threads, shared_bytes, [&] { kernel(args); });
#else
  constexpr size_t without_asking = 48 << 10;
  if (shared_bytes > without_asking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          what);
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, stream>>>(args);
  check(cudaGetLastError(), what);
#endif
}

}  // namespace gptoss::cuda
