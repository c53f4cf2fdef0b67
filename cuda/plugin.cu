// What the registry (core/registry.cpp) looks for in libgptoss_cuda.so.
#include <cstdio>

#include "cuda/cuda_backend.h"
#include "cuda/runtime.h"

namespace gptoss::cuda {

#ifdef GPTOSS_CUDA_EMULATED

bool device_available(char* reason, size_t size) {
  std::snprintf(reason, size, "emulated on the CPU, for tests");
  return true;
}

#else

bool device_available(char* reason, size_t size) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    std::snprintf(reason, size, "no CUDA device: %s", cudaGetErrorString(status));
    return false;
  }
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::snprintf(reason, size, "the CUDA device cannot be asked for its properties");
    return false;
  }
  const bool enough = device.major >= 8;
  std::snprintf(reason, size, "%s, compute capability %d.%d, %zu MB%s", device.name, device.major,
                device.minor, device.totalGlobalMem >> 20,
                enough ? "" : ": expected compute capability 8.0 or later");
  return enough;
}

#endif

namespace {

Backend* create(const Options& options) { return make_backend(options).release(); }

}  // namespace

}  // namespace gptoss::cuda

extern "C" __attribute__((visibility("default")))
const gptoss::BackendPlugin gptoss_backend_plugin = {
    gptoss::backend_abi, gptoss::cuda::device_available, gptoss::cuda::create,
    gptoss::cuda::make_communicators};
