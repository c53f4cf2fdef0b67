// Where tests get kernels from: this build's emulation, or the library for the device.
#include <dlfcn.h>

#include "core/backend.h"
#include "core/check.h"
#include "cuda/testing.h"

// Keeps the emulated backend in what is linked with this: a file by the name of the real library
// may be a link to that (tests/cuda/test_backend.py).
extern "C" const gptoss::BackendPlugin gptoss_backend_plugin;

namespace gptoss::cuda {

const HostKernels& load_host_kernels(const std::string& path) {
  if (path.empty()) {
    GPTOSS_CHECK(gptoss_backend_plugin.abi == backend_abi, "built for another interface");
    return emulated_kernels();
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* message = dlerror();
    throw Error(message != nullptr ? message : gptoss::format("{} cannot be loaded", path));
  }
  const auto* kernels = static_cast<const HostKernels*>(dlsym(library, "gptoss_cuda_kernels"));
  GPTOSS_CHECK(kernels != nullptr, "{} exports no gptoss_cuda_kernels", path);
  char reason[256];
  GPTOSS_CHECK(kernels->available(reason, sizeof reason), "{}", reason);
  return *kernels;
}

}  // namespace gptoss::cuda
